"""WSGI applications (PEP 3333), as ASGI 3 ones.

Each request is a call of the application in one of the worker's threads, in a copy of the
request's context. Nothing is collected on the way: the body is received when the application
reads it, and each piece that it yields is sent before the next one is asked for.
"""

from __future__ import annotations

import contextlib
import io
import re
import wsgiref.util
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from fastserve._conversation import ClientDisconnected
from fastserve.asgi import Message, Receive, Scope, Send
from fastserve.blocking import Attended
from fastserve.log import logger
from fastserve.worker import Worker, running

if TYPE_CHECKING:
    from _typeshed import OptExcInfo, WriteableBuffer
    from _typeshed.wsgi import WSGIApplication

__all__ = ["WSGI", "FileWrapper"]

BLOCK = 64 * 1024

# From here on send() raises when the client is gone (ASGI HTTP spec, version history).
SEND_RAISES = (2, 4)

# RFC 9110 sections 5.1 and 5.5: what a field's name and value consist of.
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_STATUS = re.compile(r"([2-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")

# The connection is the server's business. PEP 3333 has it that an application must not send
# these; many do, copied from an example, and mean nothing by it.
_HOP_BY_HOP = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer"
    " transfer-encoding upgrade".split()
)


class WSGI:
    """A WSGI application, callable as an ASGI 3 one. It runs on fastserve's workers only.

    At most `wsgi_threads` requests of a worker are in such applications at a time; the others
    wait, and the first to come is the first to be served.
    """

    __slots__ = ("application",)

    def __init__(self, application: WSGIApplication) -> None:
        self.application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})
        elif scope["type"] == "http":
            worker = running()
            attended = Attended(worker)
            exchange = _Exchange(self.application, worker, attended, scope, receive, send)
            await attended.attend(exchange.run)
        else:
            raise NotImplementedError(f"a WSGI application has no {scope['type']}")


class FileWrapper(wsgiref.util.FileWrapper):
    """`wsgi.file_wrapper`: the blocks of a file, which is closed at the end. Small blocks
    would only be many."""

    def __init__(self, filelike: Any, blksize: int = BLOCK) -> None:
        super().__init__(filelike, max(blksize, BLOCK))


class _Exchange:
    """One request and its response, seen from the thread."""

    def __init__(
        self,
        application: WSGIApplication,
        worker: Worker,
        attended: Attended,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self._application = application
        self._worker = worker
        self._ask = attended.ask
        self._tell = attended.tell
        self._scope = scope
        self._receive = receive
        self._send = send
        self._body = _Body(attended, receive, ended=not _has_body(scope))
        self._is_head = scope["method"] == "HEAD"
        self._head: Message | None = None
        self._left: int | None = None  # of content-length
        self._begun = False  # the head was sent
        self._complete = False
        self._must_watch = not _send_raises(scope)
        self._gone = False

    def run(self) -> None:
        """The whole request, in the thread. Raises what the application raises."""
        errors = _Errors()
        environ = make_environ(self._scope)
        environ["wsgi.input"] = io.BufferedReader(self._body)
        environ["wsgi.errors"] = errors
        environ["wsgi.multithread"] = self._worker.threads.limit > 1
        try:
            pieces = self._application(environ, self.start_response)
            # Also when the client is gone, and when an iterator of its own is never made.
            with contextlib.ExitStack() as stack:
                if hasattr(pieces, "close"):
                    stack.callback(pieces.close)
                self._respond(pieces)
        finally:
            errors.flush()

    def start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: OptExcInfo | None = None,
        /,
    ) -> Callable[[bytes], None]:
        """PEP 3333. Raises TypeError, ValueError for what cannot be sent; RuntimeError when
        it is called again without `exc_info`; `exc_info` itself when it is too late."""
        try:
            if self._begun and exc_info is not None and exc_info[1] is not None:
                raise exc_info[1].with_traceback(exc_info[2])
            if self._head is not None and exc_info is None:
                raise RuntimeError("start_response() was called already")
        finally:
            exc_info = None  # its traceback has this frame
        self._head = {
            "type": "http.response.start",
            "status": _status(status),
            "headers": _fields(headers),
        }
        lengths = [value for name, value in self._head["headers"] if name == b"content-length"]
        self._left = int(lengths[0]) if lengths and lengths[0].isdigit() else None
        return self.write

    def write(self, data: bytes) -> None:
        """What start_response() returns: send a piece of the body now."""
        if not isinstance(data, bytes):
            raise TypeError(f"a piece of the body must be bytes, not {type(data).__name__}")
        if data:
            self._send_piece(data, more_body=True)

    def _respond(self, pieces: Iterable[bytes]) -> None:
        if not self._begun and isinstance(pieces, (list, tuple)) and len(pieces) == 1:
            # PEP 3333, "Handling the Content-Length Header": the server may then state it.
            [piece] = pieces
            if isinstance(piece, bytes):
                return self._send_piece(piece, more_body=False)
        for piece in pieces:
            self.write(piece)
            if self._complete and self._is_head:
                return None  # the rest would be made for nobody
        if not self._complete:
            self._send_piece(b"", more_body=False)
        return None

    def _send_piece(self, data: bytes, *, more_body: bool) -> None:
        if self._head is None:
            raise RuntimeError("start_response() was not called")
        if self._complete:
            if data and not self._is_head:
                raise RuntimeError("the body is longer than Content-Length says")
            return
        if self._gone:
            raise ClientDisconnected("the client is gone")
        if more_body and self._is_head:
            data, more_body = b"", False
        elif more_body and self._left is not None:
            self._left -= len(data)
            more_body = self._left != 0
        messages: list[Message] = [] if self._begun else [self._head]
        messages.append({"type": "http.response.body", "body": data, "more_body": more_body})
        self._begun = True
        self._complete = not more_body
        if more_body:
            self._ask(self._send_all, messages)
        else:
            # Nothing depends on it: the loop need not wake the thread once more.
            self._tell(self._send_all, messages)

    async def _send_all(self, messages: list[Message]) -> None:
        for message in messages:
            await self._send(message)
        if self._must_watch and messages[-1]["more_body"] and self._body.ended:
            self._must_watch = False
            self._worker.start(self._watch)

    async def _watch(self) -> None:
        """Where send() does not say that the client is gone, receive() does, at the latest
        when the response is complete."""
        with contextlib.suppress(Exception):
            while (await self._receive())["type"] != "http.disconnect":
                pass
        self._gone = True


def _send_raises(scope: Scope) -> bool:
    version = scope["asgi"].get("spec_version", "2.0")
    return tuple(map(int, version.split("."))) >= SEND_RAISES


def _has_body(scope: Scope) -> bool:
    """Whether there may be a request body; HTTP/1 says so (RFC 9112 section 6.3)."""
    if not scope["http_version"].startswith("1"):
        return True
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
        for name, value in scope["headers"]
    )


class _Body(io.RawIOBase):
    """The request's body, received as it is read; buffering and lines are io's business.

    Error handling: reading raises ClientDisconnected, an OSError, if the client leaves
    before the end.
    """

    def __init__(self, attended: Attended, receive: Receive, *, ended: bool) -> None:
        self._ask = attended.ask
        self._receive = receive
        self._piece = memoryview(b"")
        self.ended = ended  # nothing more is to be received

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        target = memoryview(buffer).cast("B")
        while not self._piece and not self.ended:
            message = self._ask(self._receive)
            if message["type"] == "http.disconnect":
                raise ClientDisconnected("the client left before its body was complete")
            self._piece = memoryview(message.get("body", b""))
            self.ended = not message.get("more_body", False)
        count = min(len(target), len(self._piece))
        target[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count


class _Errors(io.TextIOBase):
    """`wsgi.errors`: whole lines go to the log, those written together as one message."""

    def __init__(self) -> None:
        self._line = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        lines, end, self._line = (self._line + text).rpartition("\n")
        if end:
            logger.error("%s", lines)
        return len(text)

    def flush(self) -> None:
        if self._line:
            line, self._line = self._line, ""
            logger.error("%s", line)


def _status(status: str) -> int:
    """The number; the words after it do not travel, ASGI has none."""
    if not isinstance(status, str):
        raise TypeError(f"start_response(): status must be a str, not {type(status).__name__}")
    match = _STATUS.fullmatch(status)
    if match is None:
        raise ValueError(f"start_response(): {status!r} is no status such as '200 OK'")
    return int(match[1])


def _fields(headers: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    if not isinstance(headers, list):
        raise TypeError(f"start_response(): headers must be a list, not {type(headers).__name__}")
    fields = []
    for pair in headers:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(f"start_response(): {pair!r} is no tuple of name and value")
        name, value = pair
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"start_response(): name and value must be str, not {pair!r}")
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(f"start_response(): {pair!r} cannot be a header field")
        if name.lower() not in _HOP_BY_HOP:
            fields.append((name.lower().encode("ascii"), value.encode("latin-1")))
    return fields


def make_environ(scope: Scope) -> dict[str, Any]:
    """The environ of a request, but for what belongs to its thread (PEP 3333; RFC 3875
    section 4.1). Text stands in it as bytes taken for latin-1."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": _as_latin1(scope.get("root_path", "")),
        "PATH_INFO": _path_info(scope),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.multiprocess": True,  # nothing hinders anybody from starting several
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
        # Reading ends with the body, whether or not its length is known.
        "wsgi.input_terminated": True,
    }
    _add_fields(environ, scope["headers"])
    _add_addresses(environ, scope)
    return environ


def _as_latin1(text: str) -> str:
    return text.encode("utf-8").decode("latin-1")


def _path_info(scope: Scope) -> str:
    """The path below `root_path`."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :]
    raw = scope.get("raw_path")
    if raw is not None and "\ufffd" in path:
        # It was not UTF-8: the bytes are in `raw_path`, behind as many slashes.
        segments = unquote_to_bytes(raw).split(b"/")[-path.count("/") :]
        return "/" + b"/".join(segments).decode("latin-1")
    return _as_latin1(path)


def _add_fields(environ: dict[str, Any], headers: Iterable[tuple[bytes, bytes]]) -> None:
    for field, raw in headers:
        name, value = field.decode("latin-1"), raw.decode("latin-1")
        # With "-" and "_" both an underscore, one could pass for the other that a proxy has
        # checked; and programs take HTTP_PROXY for a setting (CVE-2016-5387).
        if "_" in name or name == "proxy":
            continue
        key = name.upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = f"HTTP_{key}"
        if key in environ:
            # RFC 9110 section 5.3; RFC 9113 section 8.2.3 for the exception.
            separator = "; " if key == "HTTP_COOKIE" else ","
            value = f"{environ[key]}{separator}{value}"
        environ[key] = value


def _add_addresses(environ: dict[str, Any], scope: Scope) -> None:
    """After the fields: where the server has no port, the Host field says which is meant."""
    host, port = scope.get("server") or ("", None)
    if port is None:
        host, _, digits = environ.get("HTTP_HOST", "").rpartition(":")
        if not digits.isdigit():
            host, digits = environ.get("HTTP_HOST", ""), ""
        port = digits or (443 if scope["scheme"] == "https" else 80)
    environ["SERVER_NAME"] = host or "localhost"
    environ["SERVER_PORT"] = str(port)
    client = scope.get("client") or ("", None)
    environ["REMOTE_ADDR"] = client[0]
    if client[1] is not None:
        environ["REMOTE_PORT"] = str(client[1])
