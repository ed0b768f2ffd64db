"""What is asked of a server, by number: R1 to R91 by ASGI, H1 to H13 by HTTP and WebSocket beneath
it, and X1 to X8 by nobody but those who run it.

Of ASGI this is version 3.0, HTTP and WebSocket 2.5, lifespan 2.0, and the extensions. Where the
specifications say "should", so does the level; "optional" is what need not be offered at all.
"""

from __future__ import annotations

from typing import NamedTuple

MUST, SHOULD, OPTIONAL = "must", "should", "optional"


class Requirement(NamedTuple):
    level: str
    text: str


GROUPS = {
    "Every call": ("R1", "R15"),
    "HTTP": ("R16", "R46"),
    "WebSocket": ("R47", "R70"),
    "Lifespan": ("R71", "R82"),
    "Extensions": ("R83", "R91"),
    "Beneath ASGI": ("H1", "H13"),
    "Beyond it": ("X1", "X8"),
}

_TEXT = """
R1   must      The scope is a dict, and its type a str.
R2   must      scope["asgi"]["version"] says 3.0.
R3   must      spec_version is given, and what it claims is so.
R4   should    Applications of ASGI 2, which are called twice, are served too.
R5   must      One call for each HTTP request, and one for each WebSocket.
R6   must      send() returns or raises when the peer is gone; it never hangs.
R7   must      Events hold plain objects only: bytes, str, int, float, list, dict, bool, None.
R8   must      An event that is invalid raises out of send(): type unknown, key missing, wrong type.
R9   must      Keys that nobody knows are no error.
R10  must      An application's error ends its call and its connection, and nothing else.
R11  must      A message behind the close is no error, unless the protocol says so.
R12  must      What send() raises by itself, the server ignores when it comes back out of the call.
R13  must      extensions is a dict of dicts, and no two calls share it.
R14  must      Nothing that one call writes into its scope is seen by another.
R15  must      The call is a task in the process's main thread, of the loop that sniffio names.
R16  must      Streams of HTTP/2 have scopes of their own, and each its own response.
R17  must      Header fields are pairs, as they came; cookies are never joined.
R18  must      type is http.
R19  must      http_version is 1.0, 1.1 or 2.
R20  must      method is as it was sent; get, which is not GET, is kept, raised or refused.
R21  must      scheme is there, and https with TLS.
R22  must      path has no query, is decoded from percents and UTF-8, and never costs a 500.
R23  optional  raw_path is the path as it was received, without the query.
R24  must      query_string is bytes, still encoded; empty if there is none.
R25  must      root_path is what was configured, and path begins with it.
R26  must      Values of one field keep their order, and none is lost.
R27  should    Names of header fields are in lower case.
R28  must      Pseudo fields are removed; :authority is the first field, host, in place of another.
R29  must      client is address and port, a str and an int.
R30  must      server is address and port; on a unix socket its path and None.
R31  must      state has what the lifespan put there.
R32  must      Chunks of the request are decoded: the body is the content alone.
R33  must      A body of unknown length may be chunked, but never for HTTP/1.0.
R34  must      http.request comes at least once, and with the whole body.
R35  must      A response is not whole before its first body event; until then a 500 may replace it.
R36  must      Transfer-Encoding of the application's is ignored.
R37  must      status is needed, headers are not.
R38  must      Response fields keep their order; pseudo fields and line ends never reach the client.
R39  optional  With trailers announced, the response ends with them and not before.
R40  must      What send() was given is on its way when it returns.
R41  must      The response ends with the event that has no more_body; body may be missing.
R42  must      Messages behind the response's end are ignored.
R43  should    From 2.4 on, send() raises an OSError when the client is gone.
R44  must      That exception is not reported as an application's error.
R45  must      receive() returns http.disconnect after response or close, however often.
R46  must      A call that returns too early: 500 if nothing was sent, and the connection ends.
R47  must      Pings are answered, and sent.
R48  must      Fragments arrive as one message.
R49  must      type is websocket.
R50  must      An application that fails ends the socket, by 500 or 1011, and a lost socket tells it.
R51  must      spec_version and http_version are right.
R52  must      scheme is ws, or wss with TLS.
R53  must      path, raw_path, query_string and root_path are as for HTTP.
R54  must      Header fields are as for HTTP.
R55  must      client and server are as for HTTP.
R56  must      subprotocols are those offered, in the client's order.
R57  must      state has what the lifespan put there.
R58  must      websocket.connect comes within the handshake, which accept completes.
R59  must      No message is received before accept.
R60  must      accept has a subprotocol, and from 2.1 on headers, but no others for the handshake.
R61  must      A message received is either text or bytes.
R62  must      A message to send is either text or bytes; neither or both is an error.
R63  must      websocket.disconnect comes after the client's close, one's own, and a refusal.
R64  must      code is the Close frame's, 1005 if that has none, and 1006 for a loss.
R65  must      From 2.5 on, reason is the Close frame's.
R66  must      receive() after the disconnect does not hang.
R67  must      From 2.4 on, send() after the close raises an OSError, which is not reported.
R68  must      close before accept refuses the handshake with 403.
R69  must      close has the code, 1000 by default, and from 2.3 on the reason.
R70  must      No Close frame has a code that may not be sent, or is too long.
R71  must      The lifespan runs once in each process, in the loop of the requests.
R72  must      Its scope has type, version and a spec_version of its own: 1.0 or 2.0.
R73  must      Its state is offered, and empty.
R74  must      An application that raises on it is served without it.
R75  must      Each request has a shallow copy of the state, which the server never changes.
R76  must      startup comes before any connection is served; who comes early is answered later.
R77  must      No request is processed before startup.complete.
R78  must      startup.failed ends the server, with the message and a status other than 0.
R79  must      shutdown comes when all connections are through.
R80  must      The process waits for shutdown.complete.
R81  must      shutdown.failed is logged, and ends it.
R82  must      When one process crashes, the others still have their shutdown.
R83  optional  A handshake is refused with a response, in as many parts as one likes.
R84  optional  Push is offered in HTTP/2 alone.
R85  optional  zerocopysend sends from a descriptor, which stays the application's.
R86  optional  pathsend sends a file by its path.
R87  must      tls is in the scope with TLS alone.
R88  optional  tls says certificate, version and cipher suite.
R89  optional  Early hints are sent as 103, any number of them, or left out.
R90  optional  Trailers are sent to who says TE: trailers.
R91  should    debug, which is for clients in tests, is not offered.
H1   must      No body to HEAD and with 204 and 304, and no Transfer-Encoding.
H2   must      HTTP/1.0 is never chunked, and keeps a connection that asks for it, saying so.
H3   must      100 Continue when the application asks for the body, and not behind a final status.
H4   must      A body shorter than its Content-Length ends the connection; a longer one is an error.
H5   must      A body that nobody reads is never taken for the next request.
H6   must      What two parsers could read differently is refused with 400, and closed.
H7   must      Host is there once, and well-formed, or it is 400.
H8   must      Request line, fields, versions and codings have bounds, and a slow head has a deadline.
H9   must      Pipelined answers keep their order, and nothing follows Connection: close.
H10  must      Who has closed his sending side still gets his answer.
H11  must      A handshake of another version is 426, one without a key 400; other upgrades are ignored.
H12  must      Frames that are wrong are 1002, text that is no UTF-8 1007, what is too long 1009.
H13  must      An empty part of a body does not end it.
X1   should    A connection that was reset is let go of, with all that was kept for it.
X2   should    A unix socket is not writable for everybody.
X3   should    A server that stops answers once more, with Connection: close.
X4   should    The lifespan's shutdown is whole even if requests had to be given up.
X5   should    It is whole even after a second signal.
X6   should    A worker process that dies is replaced, and the server goes on.
X7   should    A request body that nobody takes is not kept in memory.
X8   should    A response that nobody reads is not kept in memory.
"""

REQUIREMENTS = {
    number: Requirement(level, text)
    for number, level, text in (line.split(maxsplit=2) for line in _TEXT.strip().splitlines())
}


def group_of(number: str) -> str:
    for name, (first, last) in GROUPS.items():
        if number[0] == first[0] and int(first[1:]) <= int(number[1:]) <= int(last[1:]):
            return name
    raise KeyError(number)
