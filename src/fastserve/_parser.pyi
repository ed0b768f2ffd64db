"""An incremental, strict HTTP/1.x request parser: bytes in, facts out, no I/O.

Compiled code drives `RequestParser.next()` (see `_parser.pxd`); Python code has
`feed()`. What is accepted, and which status answers the rest, follows RFC 9112
and RFC 9110, and where those let two implementations read the same bytes
differently, the request is refused.
"""

from typing import Any, final

@final
class FieldCache:
    """Field lines that were seen before, for all parsers of a server.

    Most requests repeat most of what others said: the same immutable `(name, value)` is used
    again, in place of a new one for each. Only names whose values repeat and are no secrets
    are kept here (no Cookie, no Authorization), with values of at most 160 bytes, and 256 of
    them; the next one replaces another. What is found is compared byte by byte.
    """

@final
class RequestParser:
    """The requests of one connection, one after the other.

    Between two requests a parser owns no memory but itself (about 240 bytes), once
    the facts are released.

    Error handling: nothing a peer sends raises. A wrong request ends in the event
    "invalid", with the status to answer: 400 (malformed), 414 (request line too
    long), 417 (unknown expectation), 431 (fields too long or too many), 501
    (CONNECT, unknown transfer coding), 505 (not HTTP/1.x). After it there is no way
    to tell where a next request would begin, so every later call says the same, and
    the connection has to be closed (RFC 9112 section 11.2). Only MemoryError is
    raised; the parser is of no further use then.
    """

    def __new__(
        cls,
        *,
        limit_line: int = 8190,
        limit_fields: int = 100,
        limit_field_bytes: int = 65536,
        cache: FieldCache | None = None,
    ) -> RequestParser:
        """Set the bounds on what is accepted, and so on the memory a peer can claim.

        Args:
            limit_line: bytes of a request line without its CRLF (RFC 9112 section 3).
            limit_fields: number of field lines of a head; of a trailer section too.
            limit_field_bytes: bytes of all field lines of a head, each with its CRLF
                (RFC 9110 section 5.4). Trailers have 8192.
            cache: shared with other parsers; None: each field has objects of its own.

        Raises:
            ValueError: a limit is negative.
        """

    def feed(self, data: bytes) -> list[tuple[Any, ...]]:
        """Parse all of `data`, the next bytes of the connection, and say what they held.

        The events, of as many requests as there are:

        * `("head", facts)`: a head is complete. `facts` is a dict with the attributes
          below, from `method` to `accepts_trailers`, by name.
        * `("data", piece)`: bytes of the body, chunked coding removed. How a body is
          cut depends on how it is fed.
        * `("end",)`: the request is complete; also without a body.
        * `("invalid", status, reason)`: the last event; see the class.

        Raises:
            TypeError: `data` is not bytes.
            MemoryError: see the class.
        """

    # Facts of the request: set from its head on. `feed()` puts them into its event
    # and releases them (None), all but `method` and those that are numbers.

    @property
    def method(self) -> str:
        """The method as sent; methods are case-sensitive (RFC 9110 section 9.1)."""

    @property
    def path(self) -> str:
        """`raw_path` with escapes undone, decoded as UTF-8.

        Malformed escapes stay; what is not UTF-8 becomes U+FFFD.
        """

    @property
    def raw_path(self) -> bytes:
        """The path as sent, without the query; b"*" for the asterisk-form.

        Of an absolute-form target the path alone, b"/" when it is empty
        (RFC 9112 section 3.2).
        """

    @property
    def query_string(self) -> bytes:
        """What follows the first "?", as sent; b"" when there is none."""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """(lower-case name, value) of each field line, in order, none joined.

        The authority of an absolute-form target stands in the place of Host's value
        (RFC 9112 section 3.2.2).
        """

    @property
    def minor_version(self) -> int:
        """0 or 1; a higher HTTP/1.x is read as 1 (RFC 9110 section 2.5)."""

    @property
    def keep_alive(self) -> bool:
        """Whether the client wants another request (RFC 9112 section 9.3)."""

    @property
    def expect_continue(self) -> bool:
        """Whether it waits for 100 (RFC 9110 section 10.1.1); never in HTTP/1.0."""

    @property
    def chunked(self) -> bool:
        """Whether the body comes in chunks (RFC 9112 section 7.1)."""

    @property
    def content_length(self) -> int:
        """Bytes of the body, 0 to 2**63 - 1; -1 without a Content-Length."""

    @property
    def upgrade(self) -> bytes | None:
        """The value of Upgrade, when Connection names it and the request is HTTP/1.1.

        Several lines are joined with ", " (RFC 9110 sections 5.3 and 7.8).
        """

    @property
    def accepts_trailers(self) -> bool:
        """Whether TE has "trailers" (RFC 9110 section 10.1.4); never in HTTP/1.0."""

    @property
    def error_status(self) -> int:
        """The status that answers an invalid request; 0 before."""

    @property
    def error_reason(self) -> str:
        """Why it is invalid, a few words for a log; None before."""

    @property
    def mid_message(self) -> bool:
        """True from the first byte of a request line until "end", and after "invalid".

        Empty lines before a request line do not count (RFC 9112 section 2.2).
        """
