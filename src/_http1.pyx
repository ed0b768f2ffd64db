"""HTTP/1.1 connections and the ASGI conversation of each exchange.

`Http1Connection` turns received bytes into exchanges, one at a time and in order, and
keeps or closes the connection (RFC 9112 section 9). `HttpExchange` is one request and
its response: it builds the ASGI scope and is the other side of the application's
`receive` and `send` (see fastserve._conversation). Neither knows a socket.
"""

cimport cython
from cpython.bytearray cimport (
    PyByteArray_AS_STRING, PyByteArray_FromStringAndSize, PyByteArray_GET_SIZE,
)
from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Copy
from cpython.object cimport PyObject
from libc.stdint cimport INT64_MAX, uint64_t

from fastserve._conversation import ClientDisconnected

from fastserve._access cimport monotonic
from fastserve._buffer cimport GATHER_MIN
from fastserve._conversation cimport WAIT_WRITABLE, PyDict_GetItemWithError, get, is_disconnect
from fastserve._file cimport File
from fastserve._forwarded cimport line_of_host
from fastserve._headers cimport append_chunk_size, append_content_length
from fastserve._parser cimport DATA, END, HEAD, INVALID
from fastserve._shared cimport Figures, count_response, observe
from fastserve._transport cimport END_ALL, END_IDLE, SERVING, Stage


cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    #define FS_REFERENCES_ARE_SHARED 1      /* a reference count says less there */
    #else
    #define FS_REFERENCES_ARE_SHARED 0
    #endif
    """
    bint REFERENCES_ARE_SHARED "FS_REFERENCES_ARE_SHARED"

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX
    Py_ssize_t Py_REFCNT(PyObject*) noexcept
    bint PyDict_CheckExact(PyObject*) noexcept
    Py_ssize_t PyDict_GET_SIZE(PyObject*) noexcept
    bint PyDict_Next(PyObject*, Py_ssize_t*, PyObject**, PyObject**) noexcept
    PyObject* PyTuple_GET_ITEM(PyObject*, Py_ssize_t) noexcept
    int PyObject_AsFileDescriptor(object) except -1


cdef str TYPE = "type"
cdef str BODY = "body"
cdef str MORE_BODY = "more_body"
cdef str HTTP_REQUEST = "http.request"
cdef str HTTP_DISCONNECT = "http.disconnect"
cdef str RESPONSE_START = "http.response.start"
cdef str RESPONSE_BODY = "http.response.body"
cdef str EARLY_HINT = "http.response.early_hint"
cdef str TRAILERS = "http.response.trailers"
cdef str PATHSEND = "http.response.pathsend"
cdef str ZEROCOPYSEND = "http.response.zerocopysend"
cdef str SHUTDOWN = "fastserve.shutdown"
cdef str TLS = "tls"
cdef tuple EXTENSIONS = (EARLY_HINT, TRAILERS, PATHSEND, ZEROCOPYSEND, SHUTDOWN, TLS)
cdef str SHUTTING_DOWN = "The server is shutting down."
cdef tuple NO_HEADERS = ()
cdef str GET = "GET"


@cython.final
cdef class Gate:
    """Lets so many requests run at once; the next ones wait in a line, and those behind it are
    turned away. Idle connections and open WebSockets do not count."""

    def __init__(
        self, Py_ssize_t limit, *, Py_ssize_t queue_size=0, double queue_timeout=5, exempt=()
    ):
        """`limit`: requests. `queue_size`: how many may wait, `queue_timeout`: seconds that
        each of them may. `exempt`: paths for which none of this holds."""
        self.limit = limit
        self.queue_size = queue_size
        self.queue_timeout = <int64_t>(1000 * queue_timeout)
        self.exempt = frozenset(exempt)
        self.line = []
        self.fields = b"retry-after: %d\r\n" % max(1, round(queue_timeout))

    cdef bint admit(self, Http1Connection connection, HttpExchange exchange) except -1:
        """Whether its application may be called now; False: it waits, or was refused."""
        if exchange.admitted:
            return True
        if exchange.waits:
            return False
        if exchange.scope["path"] in self.exempt:
            return True
        if self.running < self.limit:
            exchange.admitted = True
            self.running += 1
            return True
        if len(self.line) < self.queue_size:
            exchange.waits = True
            exchange.deadline = connection.transport.clock() + self.queue_timeout
            self.line.append(connection)
            return False
        self.refuse(connection)
        return False

    cdef int refuse(self, Http1Connection connection) except -1:
        cdef Row row = connection.factory.row
        if row is not None:
            row.figures.counts.refused += 1
        return connection.refuse(503, "The server is busy.", self.fields)

    cdef int leave(self, HttpExchange exchange) except -1:
        """It has ended, or needs its place no longer: the first in the line has it."""
        cdef Http1Connection connection
        if exchange.waits:
            self._end_waiting(exchange)
            self.line.remove(exchange.connection)
        elif exchange.admitted:
            exchange.admitted = False
            self.running -= 1
            if self.line and self.running < self.limit:
                connection = <Http1Connection>self.line.pop(0)
                self._end_waiting(connection.exchange)
                connection.exchange.admitted = True
                connection.deadline = 0     # it was that of the waiting
                self.running += 1
                connection.transport.call_soon()
        return 0

    cdef void _end_waiting(self, HttpExchange exchange) noexcept:
        exchange.waits = False
        if exchange.begun:
            observe(&exchange.factory.row.figures.counts.queue, monotonic() - exchange.begun)


cdef class Http1Factory(ProtocolFactory):
    """What all connections of one server have in common."""

    def __init__(
        self,
        Host host not None,
        *,
        Upgrade upgrade=None,
        Gate gate=None,
        Trust trust=None,
        AccessLines access=None,
        Row row=None,
        state=None,
        wait_for_shutdown,
        is_shutting_down,
        str root_path="",
        bytes server_header=b"fastserve",
        bint date_header=True,
        fields=(),
        names=(),
        bint raise_on_disconnect=False,
        Py_ssize_t limit_request_line=8190,
        Py_ssize_t limit_request_fields=100,
        Py_ssize_t limit_request_field_bytes=65536,
        limit_request_body=None,
        double header_timeout=30,
        double body_timeout=60,
        double keep_alive_timeout=75,
        int64_t keep_alive_requests=0,
        int64_t body_min_rate=240,
        double request_timeout=0,
    ):
        """`upgrade`: the other protocol that a request may ask for. `gate`: how many may run
        at once. `trust`: which peers are believed about where a request comes from; None:
        none. `access`: where each exchange has its line; None: there is no access log. `row`:
        where they are counted, in the table of the workers; None: nowhere. `state`: the
        lifespan's, copied for each request; None where the application has no lifespan.
        `fields`: pairs of bytes, for every response. `names`: in lower case, of the hosts that
        are served (none: any). `wait_for_shutdown()`, `is_shutting_down()`: what applications
        have as `fastserve.shutdown`. Timeouts are in seconds, `body_min_rate` in bytes a second,
        `keep_alive_requests` is how many a connection may have, limits are in bytes; 0 is any
        `body_min_rate`, any number of requests, and no end of `request_timeout`, which an
        application has for a whole response."""
        self.host = host
        self.upgrade = upgrade
        self.gate = gate
        self.trust = trust
        self.access = access
        self.row = row
        self.state = state
        self.cache = FieldCache()
        self.shutdown = {"wait": wait_for_shutdown, "is_set": is_shutting_down}
        self.root_path = root_path
        self.server_line = b"server: " + server_header + b"\r\n" if server_header else b""
        self.date = DateLine() if date_header else None
        self.field_lines = b"".join([b"%b: %b\r\n" % field for field in fields])
        self.names = frozenset([name.encode("ascii") for name in names])
        self.raise_on_disconnect = raise_on_disconnect
        self.limit_line = limit_request_line
        self.limit_fields = limit_request_fields
        self.limit_field_bytes = limit_request_field_bytes
        self.limit_body = -1 if limit_request_body is None else limit_request_body
        self.header_timeout = <int64_t>(1000 * header_timeout)
        self.body_timeout = <int64_t>(1000 * body_timeout)
        self.keep_alive_timeout = <int64_t>(1000 * keep_alive_timeout)
        self.keep_alive_requests = keep_alive_requests
        self.body_min_rate = body_min_rate
        self.request_timeout = <int64_t>(1000 * request_timeout)
        # From 2.4 on a framework relies on send() raising: with a silent send() its
        # stream to a client that has left would never end.
        self.asgi = {"version": "3.0", "spec_version": "2.5" if raise_on_disconnect else "2.3"}
        self.spare = [None] * SPARE_EXTENSIONS
        # Every key is there, so that a request's copy never has to grow, and what most requests
        # have in common need not be set again.
        self.scope = {
            "type": "http",
            "asgi": None,
            "http_version": "1.1",
            "server": None,
            "client": None,
            "scheme": "http",
            "method": GET,
            "root_path": root_path,
            "path": None,
            "raw_path": None,
            "query_string": b"",
            "headers": None,
            "extensions": None,
        }
        if state is not None:
            self.scope["state"] = None

    def drain(self, Stage stage):
        """The server's end has come to this stage, also for connections still to come."""
        self.stage = stage

    cdef dict take_extensions(self, dict tls):
        """`extensions` of a scope, with that of TLS if there is one: dicts that nobody else has.
        Those of an earlier request will do; to make six and to free them would cost 2,000
        instructions, and twice as many with TLS."""
        cdef dict extensions
        if self.spares:
            self.spares -= 1
            extensions = <dict>self.spare[self.spares]
            self.spare[self.spares] = None
            if _suit(extensions, tls):
                return extensions
        extensions = {EARLY_HINT: {}, TRAILERS: {}, PATHSEND: {}, ZEROCOPYSEND: {}}
        return self.complete_extensions(extensions, tls)

    cdef dict complete_extensions(self, dict extensions, dict tls):
        """With what every protocol offers."""
        extensions[SHUTDOWN] = PyDict_Copy(self.shutdown)
        if tls is not None:
            extensions[TLS] = PyDict_Copy(tls)
        return extensions

    cdef int keep_extensions(self, dict extensions) except -1:
        """They are as they were made, and nobody else has them any more."""
        if self.spares < SPARE_EXTENSIONS:
            self.spare[self.spares] = extensions
            self.spares += 1
        return 0

    cdef int append_own_fields(self, ResponseHead head, SendBuffer out) except -1:
        """Date and Server, unless the application set its own or the option is off, and those
        that every response has."""
        if self.date is not None and not head.has_date:
            self.date.append_to(out)
        if not head.has_server:
            out.append_bytes(self.server_line)
        if self.field_lines:
            out.append_bytes(self.field_lines)
        return 0

    cdef Protocol build(self):
        cdef Http1Connection connection = Http1Connection.__new__(Http1Connection)
        connection.factory = self
        connection.parser = RequestParser(
            limit_line=self.limit_line,
            limit_fields=self.limit_fields,
            limit_field_bytes=self.limit_field_bytes,
            cache=self.cache,
        )
        return connection


@cython.final
cdef class Http1Connection(Protocol):
    """One connection: its exchanges one after the other."""

    cdef int connection_made(self, Transport transport) except -1:
        cdef Trust trust = self.factory.trust
        self.transport = transport
        if trust is not None and not transport.anonymous:
            self.origin = trust.origin(transport.client)
        self.phase = PHASE_FIRST
        self.deadline = transport.clock() + self.factory.header_timeout
        return 0

    cdef int data_received(self, const char* data, Py_ssize_t length) except -1:
        if self.closing or self.eof:
            return 0
        if self.unparsed is not None or (
            self.exchange is not None and self.exchange.request_complete
        ):
            self._keep(data, length)
            return self._update_reading()
        return self._consume(data, length)

    cdef Py_ssize_t content_ahead(self) noexcept:
        cdef HttpExchange exchange = self.exchange
        cdef uint64_t ahead
        if (
            exchange is None or exchange.request_complete
            or self.unparsed is not None or self.closing or self.eof
        ):
            return 0
        ahead = self.parser.content_ahead()
        # A short piece is copied sooner than it is received by a call of its own.
        return <Py_ssize_t>min(ahead, <uint64_t>BODY_PIECE) if ahead >= BODY_PIECE_LEAST else 0

    cdef int content_received(self, bytes content) except -1:
        self.parser.pass_content(PyBytes_GET_SIZE(content))
        self._take_body(content)
        return self._consume(b"", 0)

    cdef int eof_received(self) except -1:
        self.eof = True
        if self.exchange is not None:
            # A half-close ends the request, not the response, which is still written.
            self._tell_eof()
        elif self.unparsed is None:
            self._close(False)
        return 0

    cdef int connection_lost(self) except -1:
        cdef HttpExchange exchange = self.exchange
        self.transport = None
        self.closing = True
        self.deadline = 0
        self.unparsed = None
        if exchange is not None:
            if not exchange.spawned:
                exchange.leave_gate()
            self.exchange = None
            exchange.disconnect(True)
            exchange.account()
        return 0

    cdef int resume_writing(self) except -1:
        cdef HttpExchange exchange = self.exchange
        if exchange is not None:
            if exchange.progress == LEAVING:
                exchange._complete()
            else:
                exchange.wake_all()
        if self.unparsed is not None and not self.closing:
            self.transport.call_soon()
        return 0

    cdef int proceed(self) except -1:
        cdef bytearray unparsed = self.unparsed
        if self.closing:
            return 0
        self.proceeding = True
        try:
            if unparsed is not None:
                # The local reference keeps the memory; nothing else writes to it.
                self.unparsed = None
                self._consume(PyByteArray_AS_STRING(unparsed), PyByteArray_GET_SIZE(unparsed))
            else:
                self._consume(b"", 0)       # the end of a message may still be to be told
        finally:
            self.proceeding = False
        if self.closing:
            return 0
        if self.eof and self.exchange is None and self.unparsed is None:
            self._close(self.factory.stage == END_ALL)
        return 0

    cdef int deadline_expired(self) except -1:
        if self.discarding:
            return self._close(True)
        if self.phase == PHASE_FIRST or self.phase == PHASE_IDLE:
            # A request may be on its way: it must not meet a reset.
            return self._close(self.phase == PHASE_IDLE)
        if self.phase == PHASE_WAITING:
            return self.factory.gate.refuse(self)
        if self.exchange is not None and self.exchange.is_late(self.transport.clock()):
            return self._give_up()
        return self.refuse(408, "The request did not arrive in time.")

    cdef int drain(self, Stage stage) except -1:
        cdef HttpExchange exchange = self.exchange
        if exchange is None:
            if stage == END_ALL or stage >= END_IDLE and not (
                self.unparsed is not None or self.parser.in_message()
            ):
                # A request may be on its way: it must not meet a reset.
                self._close(True)
        elif stage == END_ALL:
            if not exchange.spawned:
                return self.refuse(503, SHUTTING_DOWN)
            # As if the client had said that it sends no more.
            self.eof = True
            self._tell_eof()
        return 0

    cdef int _consume(self, const char* data, Py_ssize_t length) except -1:
        """Parse, start applications, and keep what has to wait for its turn."""
        cdef Py_ssize_t used
        self.parsing = True
        try:
            used = self._parse(data, length)
        finally:
            self.parsing = False
        if self.closing:
            if self.successor is not None and used < length:
                self.successor.data_received(data + used, length - used)
            return 0
        if used < length:
            self._keep(data + used, length - used)
        if not self.proceeding and self.exchange is not None and not self.exchange.spawned:
            return 0        # `proceed` comes in this very turn, and settles
        if self.eof and self.exchange is not None:
            # The FIN came before this request had its turn: it will not be told again.
            self._tell_eof()
        return self._settle()

    cdef int _tell_eof(self) except -1:
        """Not before what was received of the request, which may be waiting to be parsed."""
        cdef HttpExchange exchange = self.exchange
        if exchange.request_complete or (
            self.unparsed is None and exchange.buffered <= BODY_BUFFER
        ):
            exchange.disconnect(False)
        return 0

    cdef Py_ssize_t _parse(self, const char* data, Py_ssize_t length) except -1:
        """How many bytes were used. An application that is started here may end its
        response, close the connection or lose it, so all of that is asked anew."""
        cdef RequestParser parser = self.parser
        cdef HttpExchange exchange
        cdef Py_ssize_t used = 0, count = 0
        cdef int event, begun = 0
        while not self.closing:
            exchange = self.exchange
            if exchange is not None:
                if exchange.request_complete or exchange.buffered > BODY_BUFFER:
                    if exchange.spawned or not self._may_spawn():
                        break
                    self._spawn()
                    continue
            elif not self.discarding:
                if used == length or self.transport.choked:
                    break
                if begun == PIPELINE_BATCH:
                    self.transport.call_soon()
                    break
            event = parser.next(data + used, length - used, &count)
            used += count
            if event == HEAD:
                begun += 1
                self._begin()
            elif event == DATA:
                self._take_body(None)
            elif event == END:
                self.discarding = False
                if exchange is not None:
                    exchange.request_complete = True
                    exchange.owes_continue = False
                    exchange.wake_all()
            elif event == INVALID:
                self.refuse(parser.error_status, parser.error_reason)
            else:
                if exchange is not None and not exchange.spawned and self._may_spawn():
                    self._spawn()
                break
        return used

    cdef int _keep(self, const char* data, Py_ssize_t length) except -1:
        if self.unparsed is None:
            self.unparsed = PyByteArray_FromStringAndSize(data, length)
        else:
            self.unparsed.extend(data[:length])
        return 0

    cdef int _begin(self) except -1:
        """A head has arrived: its exchange begins."""
        cdef Http1Factory factory = self.factory
        cdef RequestParser parser = self.parser
        cdef HttpExchange exchange = None
        cdef dict scope = PyDict_Copy(factory.scope)
        cdef dict tls = self.transport.tls
        cdef str path = parser.path
        cdef object client = self.transport.client
        cdef str scheme = "http"
        cdef bint upgrades = False
        if parser.upgrade is not None and factory.upgrade is not None:
            exchange = factory.upgrade.build(parser.upgrade, parser.method)
            upgrades = exchange is not None
        if not upgrades:
            exchange = HttpExchange.__new__(HttpExchange)
        exchange.connection = self
        exchange.factory = factory
        exchange.host = factory.host
        exchange.scope = scope
        self.requests += 1
        exchange.keep_alive = parser.keep_alive and self.requests != factory.keep_alive_requests
        exchange.owes_continue = parser.expect_continue
        exchange.accepts_trailers = parser.accepts_trailers and not upgrades
        if factory.root_path:
            path = _below(factory.root_path, path)
        scope["asgi"] = PyDict_Copy(factory.asgi)
        if parser.minor_version == 0:
            scope["http_version"] = "1.0"
            exchange.is_http10 = True
        scope["server"] = self.transport.server
        scope["client"] = client
        if parser.method is not GET:
            scope["method"] = parser.method
            exchange.is_head = parser.method == "HEAD"
        scope["path"] = path
        scope["raw_path"] = parser.raw_path
        if parser.query_string:
            scope["query_string"] = parser.query_string
        scope["headers"] = parser.headers
        if tls is not None:
            scope["scheme"] = scheme = "https"
        if upgrades:
            scope["extensions"] = factory.complete_extensions({}, tls)  # the protocol adds its own
        else:
            scope["extensions"] = exchange.extensions = factory.take_extensions(tls)
        if self.origin is not None and self._tell_origin(scope):
            client, scheme = scope["client"], scope["scheme"]
        if factory.state is not None:
            scope["state"] = factory.state.copy()
        if factory.access is not None:
            exchange.entry = factory.access.begin(
                parser.method, parser.raw_path, parser.query_string, parser.minor_version,
                parser.headers, client, scheme, tls, self.origin is not None,
            )
        if factory.row is not None:
            exchange.begun = monotonic() if exchange.entry is None else exchange.entry.begun
            factory.row.figures.in_flight += 1
        if factory.request_timeout:
            exchange.asked = (parser.method, parser.raw_path, parser.query_string)
        parser.release()
        self.exchange = exchange
        self.phase = PHASE_APPLICATION
        self.deadline = 0           # the head's; `_settle` sets the next one
        self.body_received = 0
        if factory.names and _host_of(scope["headers"]) not in factory.names:
            self.refuse(421, "This host is not served here.")
        elif 0 <= factory.limit_body < parser.content_length:
            self.refuse(413, "The request body is too large.")
        elif upgrades:
            exchange.opened(scope, parser.chunked or parser.content_length > 0)
        return 0

    cdef bint _tell_origin(self, dict scope) except -1:
        """What a trusted peer says of the request goes into its scope; whether it says any."""
        cdef Origin origin = self.origin
        cdef list headers = self.parser.headers
        cdef Py_ssize_t line
        if not origin.resolve(headers, self.transport.tls is not None):
            return False
        if origin.has_client:
            scope["client"] = origin.client
        if origin.scheme is not None:
            scope["scheme"] = origin.scheme
        if origin.root_path is not None:
            scope["root_path"] = origin.root_path
            scope["path"] = _below(origin.root_path, self.parser.path)
        if origin.host is not None:
            line = line_of_host(headers)
            if line < 0:
                headers.append((b"host", origin.host))
            else:
                headers[line] = (b"host", origin.host)
        return True

    cdef int _take_body(self, bytes content) except -1:
        """The parser's present piece of the body, which is `content`, or in the block."""
        cdef Py_ssize_t length = self.parser.piece_length
        self.body_received += length
        if self.discarding:
            self.discarded += length
            if self.discarded > DRAIN_BYTES:
                self._close(True)
        elif 0 <= self.factory.limit_body < self.body_received:
            self.refuse(413, "The request body is too large.")
        else:
            if content is None:
                content = PyBytes_FromStringAndSize(self.parser.piece, length)
            self.exchange.body_arrived(content)
        return 0

    cdef bint _may_spawn(self) except -1:
        """Applications are started by `proceed`, when the whole batch was received and
        parsed: to go back and forth between the kernel, the parser and the interpreter
        for each request costs more than the work itself."""
        if not self.proceeding:
            self.transport.call_soon()
            return False
        return self.factory.gate is None or self.factory.gate.admit(self, self.exchange)

    cdef int _spawn(self) except -1:
        cdef HttpExchange exchange = self.exchange
        exchange.spawned = True
        exchange.deadline = 0           # of its place in the line
        if self.factory.request_timeout:
            exchange.deadline = self.transport.clock() + self.factory.request_timeout
        if exchange.entry is not None:
            self.factory.access.call(exchange.entry)
        return self.factory.host.start(exchange)

    cdef int _give_up(self) except -1:
        """The application has had its time for a whole response."""
        cdef HttpExchange exchange = self.exchange
        method, path, query = exchange.asked
        target = (path + b"?" + query if query else path).decode("ascii", "backslashreplace")
        return self.factory.host.give_up(exchange, f"{method} {target}")

    cdef int refuse(self, int status, str reason, bytes fields=b"") except -1:
        """The server's own answer, with more field lines if need be, and the end of the
        connection. What has begun to be answered otherwise is cut, so that nobody can take
        it for whole."""
        cdef HttpExchange exchange = self.exchange
        cdef Transport transport = self.transport
        cdef Progress progress = NOT_STARTED
        if exchange is not None:
            if not exchange.spawned:
                exchange.leave_gate()
            self.exchange = None
            progress = exchange.progress
            exchange.progress = ABANDONED
            exchange.disconnect(False)
        if HEAD_WRITTEN <= progress < COMPLETE:
            exchange.account()
            if exchange.framing == FRAMING_CLOSE and progress != LEAVING:
                self.closing = True
                return transport.abort()
        elif not self.discarding:
            self._answer(status, reason, fields, exchange)
        return self._close(True)

    cdef int _answer(
        self, int status, str reason, bytes fields, HttpExchange exchange
    ) except -1:
        cdef SendBuffer out = self.transport.output()
        cdef ResponseHead head = ResponseHead.__new__(ResponseHead)
        cdef bytes body = f"{reason}\n".encode()
        head.start(RESPONSE_START, status, _plain_text)
        head.append_to(out)
        self.factory.append_own_fields(head, out)
        append_content_length(out, PyBytes_GET_SIZE(body))
        out.append_bytes(fields)
        out.append_bytes(b"connection: close\r\n\r\n")
        if exchange is None or not exchange.is_head:
            out.append_bytes(body)
        if exchange is not None:
            exchange.answered(status)
            if exchange.entry is not None:
                exchange.entry.keep_answered(_plain_text)
                exchange.entry.sent = PyBytes_GET_SIZE(body)
            exchange.account()
        elif self.factory.row is not None:
            count_response(self.factory.row.figures, status)
        return 0

    cdef int hand_over(self, Protocol successor) except -1:
        """Another protocol goes on with the connection, from the next byte (RFC 9110 section
        7.8). May be called on an application's stack: `successor` starts nothing."""
        cdef Transport transport = self.transport
        cdef bytearray unparsed = self.unparsed
        self.closing = True
        self.deadline = 0
        self.transport = None
        self.exchange = None
        self.unparsed = None
        self.successor = successor
        transport.set_protocol(successor)
        successor.connection_made(transport)
        if self.paused:
            transport.resume_reading()
        if unparsed is not None:
            successor.data_received(PyByteArray_AS_STRING(unparsed), PyByteArray_GET_SIZE(unparsed))
        if self.eof:
            successor.eof_received()
        return 0

    cdef int _response_complete(self, HttpExchange exchange) except -1:
        """Called on an application's stack: nothing may be started here."""
        self.exchange = None
        if not exchange.keep_alive:
            return self._close(True)
        if not exchange.request_complete:
            self.discarding = True
            self.discarded = 0
        if self.parsing:
            return 0
        if self.unparsed is not None or self.discarding:
            # Of a body that is all there the end may still be to be told.
            return self.transport.call_soon()
        if self.eof:
            return self._close(self.factory.stage == END_ALL)
        return self._settle()

    cdef int _close(self, bint linger) except -1:
        # A reference of our own: connection_lost, which this may bring about, drops the other.
        cdef Transport transport = self.transport
        self.closing = True
        self.deadline = 0
        return transport.close(linger)

    cdef int _settle(self) except -1:
        """Set the deadline for what the connection now waits for, and read or pause."""
        cdef HttpExchange exchange = self.exchange
        cdef int64_t now = self.transport.clock()
        cdef Phase before = self.phase
        if exchange is not None:
            if exchange.waits:
                self.phase = PHASE_WAITING
            elif exchange.request_complete or exchange.owes_continue:
                self.phase = PHASE_APPLICATION
            else:
                self.phase = PHASE_BODY
        elif self.discarding:
            self.phase = PHASE_BODY
        elif self.unparsed is not None:
            self.phase = PHASE_APPLICATION  # the next request waits for the peer to read
        elif self.parser.in_message():
            self.phase = PHASE_HEAD
        elif before != PHASE_FIRST:
            self.phase = PHASE_IDLE
        if self.phase == PHASE_IDLE and self.factory.stage >= END_IDLE:
            # The head was written before, and announced no end.
            return self._close(True)
        self._update_reading()
        if self.phase == PHASE_IDLE:
            self.deadline = now + self.factory.keep_alive_timeout
        elif self.phase == PHASE_BODY:
            if before != PHASE_BODY:
                self.rate_deadline = now + self.factory.body_timeout
            self._set_body_deadline(now)
            if exchange is not None and exchange.deadline:
                self.deadline = min(self.deadline or exchange.deadline, exchange.deadline)
        elif self.phase == PHASE_APPLICATION or self.phase == PHASE_WAITING:
            self.deadline = 0 if exchange is None else exchange.deadline
        elif before != self.phase and before != PHASE_FIRST:
            self.deadline = now + self.factory.header_timeout
        return 0

    cdef int _set_body_deadline(self, int64_t now) except -1:
        """The body must go on arriving, and on the whole at the minimum rate."""
        cdef int64_t by_rate
        if self.paused:
            self.deadline = 0
            return 0
        self.deadline = now + self.factory.body_timeout
        if self.factory.body_min_rate:
            by_rate = self.rate_deadline + 1000 * self.body_received // self.factory.body_min_rate
            self.deadline = min(self.deadline, by_rate)
        return 0

    cdef int _update_reading(self) except -1:
        cdef bint pause = (
            self.unparsed is not None and PyByteArray_GET_SIZE(self.unparsed) > PIPELINE_BUFFER
        ) or (self.exchange is not None and self.exchange.buffered > BODY_BUFFER)
        if pause == self.paused:
            return 0
        self.paused = pause
        if pause:
            self.paused_at = self.transport.clock()
            return self.transport.pause_reading()
        # The time in which we did not read is not the client's.
        self.rate_deadline += self.transport.clock() - self.paused_at
        return self.transport.resume_reading()


cdef tuple _plain_text = ((b"content-type", b"text/plain; charset=utf-8"),)


cdef bint _is_alone(PyObject* found, Py_ssize_t size) noexcept:
    """Whether it is a dict of this size, to which there is but one reference."""
    return (
        not REFERENCES_ARE_SHARED and Py_REFCNT(found) == 1
        and PyDict_CheckExact(found) and PyDict_GET_SIZE(found) == size
    )


cdef bint _is_still(PyObject* found, dict made) noexcept:
    """Whether it is a dict that holds what `made` does, to which there is but one reference."""
    cdef PyObject* key = NULL
    cdef PyObject* value = NULL
    cdef PyObject* made_key = NULL
    cdef PyObject* made_value = NULL
    cdef Py_ssize_t at = 0, made_at = 0
    if not _is_alone(found, PyDict_GET_SIZE(<PyObject*>made)):
        return False
    while PyDict_Next(<PyObject*>made, &made_at, &made_key, &made_value):
        PyDict_Next(found, &at, &key, &value)
        if key != made_key or value != made_value:
            return False
    return True


cdef bint _are_as_made(PyObject* extensions, dict shutdown, dict tls) noexcept:
    """Whether these `extensions` of a scope are what they were, and their owner has them, and
    each dict in them, alone."""
    cdef PyObject* names = <PyObject*>EXTENSIONS
    cdef PyObject* key = NULL
    cdef PyObject* value = NULL
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t index = 0
    if not _is_alone(extensions, NAMES if tls is not None else NAMES - 1):
        return False
    while PyDict_Next(extensions, &at, &key, &value):
        if key != PyTuple_GET_ITEM(names, index):
            return False
        index += 1
        if key == <PyObject*>SHUTDOWN:
            if not _is_still(value, shutdown):
                return False
        elif key == <PyObject*>TLS:
            if not _is_still(value, tls):
                return False
        elif not _is_alone(value, 0):
            return False
    return True


cdef bint _suit(dict extensions, dict tls) except -1:
    """Whether these, made for some connection, are right for one with this `tls` as well."""
    if PyDict_GET_SIZE(<PyObject*>extensions) != (NAMES - 1 if tls is None else NAMES):
        return False
    return tls is None or _is_still(
        PyDict_GetItemWithError(<PyObject*>extensions, <PyObject*>TLS), tls
    )


cdef ResponseHead _trailers(dict message):
    """The field lines of an http.response.trailers, checked."""
    cdef ResponseHead lines = ResponseHead.__new__(ResponseHead)
    lines.trailers(get(message, "headers", ()))
    return lines


cdef int64_t _size(str key, object given) except -1:
    """What http.response.zerocopysend says by `key`: a number of bytes."""
    if not isinstance(given, int):
        raise TypeError(f"{ZEROCOPYSEND}: {key} must be an int, not {type(given).__name__}")
    if not 0 <= given <= INT64_MAX:
        raise ValueError(f"{ZEROCOPYSEND}: {key} is {given}, which is no number of bytes")
    return given


cdef bytes _host_of(list headers):
    """The name in the Host field, without a port, in lower case; None if there is none."""
    cdef Py_ssize_t line = line_of_host(headers)
    cdef bytes host
    if line < 0:
        return None
    host = (<bytes>headers[line][1]).lower()
    name, colon, port = host.rpartition(b":")
    return name if colon and b"]" not in port else host


cdef str _below(str root_path, str path):
    """`path` with the prefix that a proxy in front has taken away, if it has."""
    if path == "*" or path == root_path or path.startswith(root_path + "/"):
        return path
    return root_path + path


cdef class Upgrade:
    """Another protocol that a request may ask for (RFC 9110 section 7.8)."""

    cdef HttpExchange build(self, bytes tokens, str method):
        """The exchange for a request with this Upgrade field; None: it is ignored."""
        raise NotImplementedError


cdef class HttpExchange(Conversation):
    """One request, its response, and the application between them."""

    cdef int leave_gate(self) except -1:
        return 0 if self.factory.gate is None else self.factory.gate.leave(self)

    cdef int opened(self, dict scope, bint has_body) except -1:
        """The head of a request for an upgrade has come: check it, complete the scope."""
        return 0

    cdef int expired(self) except -1:
        if self.progress < LEAVING and not self.lost:
            self.connection.refuse(504, "The application did not answer in time.")
        return 0

    cdef bint is_late(self, int64_t now) noexcept:
        """Whether its application has had all the time that there is for a response."""
        return self.spawned and 0 < self.deadline <= now

    cpdef int finished(self, error) except -1:
        try:
            self.conclude(error)
        finally:
            self.leave_gate()
            self.host.ended(self)
            if self.extensions is not None:
                self._give_extensions()
        return 0

    cpdef int cancelled(self) except -1:
        try:
            self.cut_short()
        finally:
            self.leave_gate()
            self.host.ended(self)
        return 0

    cdef int _give_extensions(self) except -1:
        """To the next request, if the application has neither kept nor changed any of them."""
        cdef Transport transport = self.connection.transport
        if transport is not None and _are_as_made(
            <PyObject*>self.extensions, self.factory.shutdown, transport.tls
        ):
            self.factory.keep_extensions(self.extensions)
        self.extensions = None
        return 0

    cdef int conclude(self, object error) except -1:
        """Report `error`, or that something is missing, and end what was to be answered."""
        if error is not None:
            if not is_disconnect(error):
                self.host.report(error)
        elif not (self.is_over() or self.disconnected):
            # Once the client has left, to stop is what an application is to do.
            self.host.report(RuntimeError("the application returned without a complete response"))
        if self.is_over():
            return 0
        if self.disconnected and self.factory.stage == END_ALL:
            return self.connection.refuse(503, SHUTTING_DOWN)
        return self.connection.refuse(500, "Internal Server Error")

    cdef int cut_short(self) except -1:
        """End what was to be answered, since the server ends."""
        return 0 if self.is_over() else self.connection.refuse(503, SHUTTING_DOWN)

    cdef bint is_over(self) noexcept:
        """Whether nothing of the response can be sent any more. To be asked again after each
        message's values were looked at: where they are objects of the application's own, its code
        runs, and may have sent the rest, or met the end of the connection."""
        return self.lost or self.progress >= LEAVING

    cdef object when_over(self):
        """What `send()` returns then."""
        if self.lost or self.progress == ABANDONED:
            return self.after_disconnect()
        return self.done(0)

    def send(self, message):
        cdef object kind
        if not isinstance(message, dict):
            raise TypeError(f"send() takes a dict, not {type(message).__name__}")
        kind = get(<dict>message, TYPE, None)
        if self.is_over():
            if kind == TRAILERS and not self.lost and self.progress != ABANDONED:
                _trailers(<dict>message)        # to nobody, but they must be right
            return self.when_over()
        if kind == RESPONSE_BODY:
            return self.send_body(<dict>message)
        if kind == RESPONSE_START:
            return self.start(RESPONSE_START, <dict>message)
        if kind == PATHSEND:
            return self._send_path(<dict>message)
        if kind == ZEROCOPYSEND:
            return self._send_descriptor(<dict>message)
        if kind == EARLY_HINT:
            return self._send_early_hint(<dict>message)
        if kind == TRAILERS:
            return self._send_trailers(<dict>message)
        raise ValueError(f"send(): type {kind!r:.100} is not a message of an HTTP response")

    cdef object start(self, str kind, dict message):
        cdef ResponseHead head = ResponseHead.__new__(ResponseHead)
        cdef object fields = get(message, "headers", NO_HEADERS)
        cdef bint has_trailers = False
        self._check_unstarted(kind)
        # With headers and two more keys, these are all found; else it is worth a look.
        if PyDict_GET_SIZE(<PyObject*>message) > 3 or fields is NO_HEADERS:
            has_trailers = get(message, "trailers", False)
        if self.entry is not None:
            fields = self.entry.keep_answered(fields)
        head.start(kind, get(message, "status", None), fields)
        if self.is_over():
            return self.when_over()
        self._check_unstarted(kind)
        self.head = head
        self.has_trailers = has_trailers
        self.progress = HEAD_KEPT
        return self.done(0)

    cdef int _check_unstarted(self, str kind) except -1:
        if self.progress != NOT_STARTED:
            raise RuntimeError(f"{kind} was sent already")
        return 0

    cdef object send_body(self, dict message):
        cdef object given = get(message, BODY, b"")
        cdef bint more_body = get(message, MORE_BODY, False)
        cdef bytes body
        if isinstance(given, bytes):
            body = <bytes>given
        elif isinstance(given, (bytearray, memoryview)):
            body = bytes(given)
        else:
            raise TypeError(
                f"{message[TYPE]}: body must be bytes, not {type(given).__name__}"
            )
        return self._deliver(message, BODY, body, None, 0, PyBytes_GET_SIZE(body), more_body)

    cdef object _send_path(self, dict message):
        cdef object path = get(message, "path", None)
        cdef File file
        if self.progress != HEAD_KEPT:
            self._refuse_body(PATHSEND)
        if not isinstance(path, str):
            raise TypeError(f"{PATHSEND}: path must be a str, not {type(path).__name__}")
        try:
            # It has to be absolute; frameworks hand on what they were given. What `open`
            # takes would work without this extension, so it does with it.
            file = File.open(<str>path)
        except ValueError as error:
            raise ValueError(f"{PATHSEND}: path: {error}") from error
        return self._send_file(message, "the file at path", file, 0, file.size, False)

    cdef object _send_descriptor(self, dict message):
        cdef object given = get(message, "file", None)
        cdef object place = get(message, "offset", None)
        cdef object number = get(message, "count", None)
        cdef bint more_body = get(message, MORE_BODY, False)
        cdef File file
        cdef int64_t start, length
        cdef int fd
        if self.progress != HEAD_KEPT and self.progress != HEAD_WRITTEN:
            self._refuse_body(ZEROCOPYSEND)
        try:
            fd = PyObject_AsFileDescriptor(given)
        except TypeError as error:
            raise TypeError(
                f"{ZEROCOPYSEND}: file must be a descriptor or have fileno(),"
                f" not {type(given).__name__}"
            ) from error
        except ValueError as error:     # it is closed, or in memory alone
            raise ValueError(f"{ZEROCOPYSEND}: file has no descriptor: {error}") from error
        file = File.duplicate(fd)
        start = _size("offset", file.position(given) if place is None else place)
        if start > file.size:
            raise ValueError(
                f"{ZEROCOPYSEND}: offset {start} is behind the end of the file, {file.size}"
            )
        length = file.size - start
        if number is not None:
            if _size("count", number) > length:
                raise ValueError(
                    f"{ZEROCOPYSEND}: count is {number}, the file has {length} bytes from {start} on"
                )
            length = number
        sent = self._send_file(message, "count", file, start, length, more_body)
        if place is None:
            file.set_position(given, start + length)
        return sent

    cdef object _send_file(
        self, dict message, str key, File file, int64_t start, int64_t length, bint more_body
    ):
        cdef bytes body = None
        if start > <int64_t>PY_SSIZE_T_MAX - length:
            raise ValueError(f"{message[TYPE]}: {key} is larger than can be sent")
        if length < GATHER_MIN:
            # To read is cheaper than to keep a descriptor, and leaves with the head.
            body = file.read(start, <Py_ssize_t>length)
            file = None
        return self._deliver(message, key, body, file, <Py_ssize_t>start, <Py_ssize_t>length, more_body)

    cdef object _deliver(
        self, dict message, str key, bytes body, File file, Py_ssize_t start, Py_ssize_t length,
        bint more_body,
    ):
        """Send so much of the body, which `key` of `message` gave: `body`, or the piece of
        `file` from `start` on."""
        cdef Transport transport
        if self.is_over():
            return self.when_over()
        if self.progress != HEAD_KEPT and self.progress != HEAD_WRITTEN:
            self._refuse_body(message[TYPE])
        transport = self.connection.transport
        if self.progress == HEAD_KEPT:
            self._check_length(message, key, self.head.content_length, length, more_body)
            self._write_head(length, more_body)
        elif self.framing == FRAMING_LENGTH:
            self._check_length(message, key, self.length_left, length, more_body)
        self._write_body(body, file, start, length, more_body)
        self._flush(more_body)
        if not more_body and self.progress != BODY_WRITTEN:
            if file is not None and transport.choked and not self.lost:
                # What is in the file is not ours yet: it may be changed or cut short.
                self.progress = LEAVING
                if self.deadline:
                    self.deadline = 0       # the application has done its part
                    self.connection._settle()
                return self.wait(WAIT_WRITABLE)
            self._complete()
            return self.done(0)
        return self._sent(length)

    cdef object _sent(self, Py_ssize_t length):
        """What `send()` returns when so much was handed over, and more will come."""
        if self.lost:
            return self.after_disconnect()
        if self.connection.transport.choked:
            return self.wait(WAIT_WRITABLE)
        return self.done(length)

    cdef object _send_early_hint(self, dict message):
        cdef ResponseHead head = ResponseHead.__new__(ResponseHead)
        cdef int count = head.early_hint(get(message, "links", None))
        if self.is_over():
            return self.when_over()
        if self.progress >= HEAD_WRITTEN:
            raise RuntimeError(f"{EARLY_HINT} was sent after the response had begun")
        # A client of HTTP/1.0 knows no interim responses (RFC 9110 section 15.2).
        if count == 0 or self.is_http10:
            return self.done(0)
        head.append_to(self.connection.transport.output())
        self._flush(False)
        return self._sent(0)

    cdef object _send_trailers(self, dict message):
        cdef ResponseHead lines = _trailers(message)
        cdef bint more_trailers = get(message, "more_trailers", False)
        cdef SendBuffer out
        if self.is_over():
            return self.when_over()
        if not self.has_trailers:
            raise RuntimeError(f"{TRAILERS} was sent, but {RESPONSE_START} had no trailers")
        if self.progress != BODY_WRITTEN:
            raise RuntimeError(f"{TRAILERS} was sent before the end of the body")
        out = self.connection.transport.output()
        lines.append_to(out)
        if not more_trailers:
            out.append(b"\r\n", 2)
        self._flush(False)
        if more_trailers:
            return self._sent(0)
        self._complete()
        return self.done(0)

    cdef int _flush(self, bint more_body) except -1:
        """Hand over what was appended, unless it leaves with what the batch's others send, or, with
        `more_body`, with what the application sends before it waits for something."""
        # A reference of our own: connection_lost, which this may bring about, drops the other.
        cdef Transport transport = self.connection.transport
        if transport.output().pending <= COLLECT:
            if self.connection.parsing:
                return 0
            if self.in_step and more_body:
                self.collected = True
                return 0
        return transport.flush()

    cdef int step_ended(self) except -1:
        cdef Transport transport = self.connection.transport
        return 0 if transport is None else transport.flush()

    cdef int _refuse_body(self, str kind) except -1:
        """Raise what says why this message may not come now."""
        if self.progress == NOT_STARTED:
            raise RuntimeError(f"{kind} was sent before {kind.rpartition('.')[0]}.start")
        if self.progress == HEAD_WRITTEN:
            raise RuntimeError(f"{kind} was sent after the body had begun")
        raise RuntimeError(f"{kind} was sent after the body had ended")

    cdef int _check_length(
        self, dict message, str key, int64_t left, Py_ssize_t length, bint more_body
    ) except -1:
        """Content-Length is a promise to the client (RFC 9110 section 8.6)."""
        if left < 0 or self.is_head or (self.head is not None and self.head.status == 304):
            return 0
        if length > left:
            raise RuntimeError(f"{message[TYPE]}: {key} is longer than content-length says")
        if length < left and not more_body:
            raise RuntimeError(f"{message[TYPE]}: {key} is shorter than content-length says")
        return 0

    cdef int _write_head(self, Py_ssize_t length, bint more_body) except -1:
        cdef Http1Connection connection = self.connection
        cdef Http1Factory factory = self.factory
        cdef ResponseHead head = self.head
        cdef SendBuffer out = connection.transport.output()
        self.head = None
        self.answered(head.status)
        head.append_to(out)
        factory.append_own_fields(head, out)
        self.length_left = head.content_length
        if head.status == 204 or head.status == 304:
            self.framing = FRAMING_NONE
        elif self.is_head:
            # Only the length that a GET would have had may be stated; the empty body of
            # an answer to HEAD says nothing about it (RFC 9110 section 9.3.2).
            self.framing = FRAMING_NONE
            if head.content_length < 0 and length and not more_body:
                append_content_length(out, length)
        elif head.content_length >= 0:
            self.framing = FRAMING_LENGTH
        elif not more_body and not (self.has_trailers and self.accepts_trailers):
            self.framing = FRAMING_LENGTH
            self.length_left = length
            append_content_length(out, length)
        elif self.is_http10:
            self.framing = FRAMING_CLOSE
            self.keep_alive = False
        else:
            self.framing = FRAMING_CHUNKED
            out.append(b"transfer-encoding: chunked\r\n", 28)
        if self.keep_alive and (
            head.close or factory.stage != SERVING or self._leaves_too_much(more_body)
        ):
            self.keep_alive = False
        if not self.keep_alive:
            out.append(b"connection: close\r\n\r\n", 21)
        elif self.is_http10:
            out.append(b"connection: keep-alive\r\n\r\n", 26)
        else:
            out.append(b"\r\n", 2)
        self.progress = HEAD_WRITTEN
        return 0

    cdef bint _leaves_too_much(self, bint more_body) noexcept:
        """Whether the request has more to come than is read for nobody."""
        cdef Http1Connection connection = self.connection
        if self.request_complete:
            return False
        # After a final status nobody knows whether the client will send the body that
        # it was not asked for (RFC 9110 section 10.1.1).
        return self.owes_continue or (
            not more_body
            and connection.parser.content_length - connection.body_received > DRAIN_BYTES
        )

    cdef int _write_body(
        self, bytes body, File file, Py_ssize_t start, Py_ssize_t length, bint more_body
    ) except -1:
        cdef SendBuffer out = self.connection.transport.output()
        if self.framing == FRAMING_NONE:
            return 0
        if self.entry is not None:
            self.entry.sent += length
        if self.framing == FRAMING_CHUNKED:
            if length:
                append_chunk_size(out, length)
                if file is not None:
                    out.append_file(file, start, length)
                else:
                    out.append_bytes(body)
                out.append(b"\r\n", 2)
            if more_body:
                return 0
            if self.has_trailers and self.accepts_trailers:
                self.progress = BODY_WRITTEN
                return out.append(b"0\r\n", 3)
            return out.append(b"0\r\n\r\n", 5)
        self.length_left -= length
        if file is not None:
            return out.append_file(file, start, length)
        return out.append_bytes(body)

    cdef int _complete(self) except -1:
        self.progress = COMPLETE
        self.body = None
        self.more_body = None
        self.buffered = 0
        self.wake_all()
        self.account()
        if not self.lost:
            self.connection._response_complete(self)
        return 0

    cdef int answered(self, int status) except -1:
        """The head of the response is being written."""
        self.status = status
        if self.entry is not None:
            self.factory.access.start(self.entry, status)
        return 0

    cdef int account(self) except -1:
        """It has ended, in one way or the other: it is counted, and has its line."""
        cdef Entry entry = self.entry
        cdef Figures* figures
        cdef int64_t now
        if self.begun:
            now = monotonic()
            figures = self.factory.row.figures
            figures.in_flight -= 1
            count_response(figures, self.status)
            observe(&figures.counts.duration, now - self.begun)
            self.begun = 0
            if entry is not None:
                entry.ended = now
        if entry is None:
            return 0
        self.entry = None
        entry.received = self.connection.body_received
        return self.factory.access.end(entry)

    cdef object after_disconnect(self):
        if self.factory.raise_on_disconnect:
            raise ClientDisconnected("the client is gone")
        return self.done(0)

    cdef bint may_send(self) noexcept:
        return self.lost or self.progress >= COMPLETE or not self.connection.transport.choked

    cdef dict take_event(self):
        cdef bytes body
        cdef Http1Connection connection = self.connection
        cdef Transport transport = connection.transport
        if self.lost or self.progress >= COMPLETE:
            return {TYPE: HTTP_DISCONNECT}
        if self.body is not None or (self.request_complete and not self.body_ended):
            body = self.body if self.body is not None else b""
            if self.more_body is not None:
                body = b"".join([body, *self.more_body])
                self.more_body = None
            self.body = None
            self.buffered = 0
            self.body_ended = self.request_complete
            if connection.paused or connection.unparsed is not None:
                transport.call_soon()
            return {TYPE: HTTP_REQUEST, BODY: body, MORE_BODY: not self.request_complete}
        if self.disconnected:
            return {TYPE: HTTP_DISCONNECT}
        if self.owes_continue and self.progress < HEAD_WRITTEN:
            # The application asks for the body, so the client is (RFC 9110 section 10.1.1).
            self.owes_continue = False
            transport.output().append_bytes(b"HTTP/1.1 100 Continue\r\n\r\n")
            if not connection.parsing:
                transport.flush()
                if not self.lost:
                    connection._settle()
        return None

    cdef int body_arrived(self, bytes piece) except -1:
        self.owes_continue = False      # the client did not wait for it
        self.buffered += PyBytes_GET_SIZE(piece)
        if self.body is None:
            self.body = piece
        elif self.more_body is None:
            self.more_body = [piece]
        else:
            self.more_body.append(piece)
        return self.wake_all()

    cdef int disconnect(self, bint lost) except -1:
        self.disconnected = True
        if lost:
            self.lost = True
        return self.wake_all()
