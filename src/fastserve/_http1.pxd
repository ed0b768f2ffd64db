# Declarations of fastserve._http1. No ABI is promised between releases.
from libc.stdint cimport int64_t

from fastserve._access cimport AccessLines, Entry
from fastserve._buffer cimport SendBuffer
from fastserve._conversation cimport Conversation, Host
from fastserve._file cimport File
from fastserve._forwarded cimport Origin, Trust
from fastserve._headers cimport DateLine, ResponseHead
from fastserve._parser cimport FieldCache, RequestParser
from fastserve._shared cimport Row
from fastserve._transport cimport Protocol, ProtocolFactory, Stage, Transport

cdef enum:
    BODY_BUFFER = 64 * 1024         # received body the application has not taken: reading pauses
    BODY_PIECE = 64 * 1024          # of a body, received into an object of its own
    BODY_PIECE_LEAST = 16 * 1024
    PIPELINE_BUFFER = 64 * 1024     # received behind the current request: reading pauses
    PIPELINE_BATCH = 64             # requests answered before the loop gets its turn
    COLLECT = 128 * 1024            # output collected while an application runs
    DRAIN_BYTES = 256 * 1024        # of an unread body, read to keep the connection
    NAMES = 6                       # of extensions
    SPARE_EXTENSIONS = 256          # kept for the next requests

cdef enum Phase:                    # of a connection: what its deadline is for
    PHASE_FIRST                     # nothing received yet
    PHASE_HEAD                      # part of a head
    PHASE_BODY                      # part of a body
    PHASE_WAITING                   # in the line of the gate
    PHASE_APPLICATION               # a whole request
    PHASE_IDLE                      # between requests

cdef enum Progress:                 # of a response
    NOT_STARTED
    HEAD_KEPT                       # http.response.start was sent; nothing is on the wire
    HEAD_WRITTEN
    BODY_WRITTEN                    # http.response.trailers is due
    LEAVING                         # the application has sent all; of its last file there is a rest
    COMPLETE
    ABANDONED                       # the server ended it: what the application sends is ignored

cdef enum Framing:                  # of a response body, RFC 9112 section 6
    FRAMING_NONE                    # no body
    FRAMING_LENGTH
    FRAMING_CHUNKED
    FRAMING_CLOSE                   # until the connection is closed: HTTP/1.0


cdef class Gate:
    cdef:
        Py_ssize_t limit
        Py_ssize_t running
        Py_ssize_t queue_size
        int64_t queue_timeout
        frozenset exempt
        list line                       # connections whose exchange waits
        bytes fields                    # of a refusal

    cdef bint admit(self, Http1Connection connection, HttpExchange exchange) except -1
    cdef int refuse(self, Http1Connection connection) except -1
    cdef int leave(self, HttpExchange exchange) except -1
    cdef void _end_waiting(self, HttpExchange exchange) noexcept


cdef class Http1Factory(ProtocolFactory):
    cdef:
        Host host
        Upgrade upgrade                 # None: no other protocol
        Gate gate                       # None: as many at once as come
        Trust trust                     # None: no peer is believed
        AccessLines access              # None: there is no access log
        Row row                         # where requests are counted; None: nowhere
        FieldCache cache                # what requests have in common
        dict scope                      # to be copied
        dict asgi
        dict state
        dict shutdown                   # `fastserve.shutdown`, to be copied
        str root_path
        bytes server_line, field_lines
        DateLine date
        list spare                      # `extensions` of scopes to use again; a place for each
        Py_ssize_t spares               # how many there are
        frozenset names                 # of the hosts that are served; empty: any
        bint raise_on_disconnect
        Stage stage                     # of the server's end
        Py_ssize_t limit_line, limit_fields, limit_field_bytes
        int64_t limit_body
        int64_t header_timeout, body_timeout, keep_alive_timeout
        int64_t keep_alive_requests, body_min_rate
        int64_t request_timeout         # milliseconds; 0: none

    cdef dict take_extensions(self, dict tls)
    cdef dict complete_extensions(self, dict extensions, dict tls)
    cdef int keep_extensions(self, dict extensions) except -1
    cdef int append_own_fields(self, ResponseHead head, SendBuffer out) except -1


cdef class Http1Connection(Protocol):
    cdef:
        Http1Factory factory
        RequestParser parser
        Origin origin                   # what the peer says of requests; None: it is not trusted
        HttpExchange exchange           # the one whose response is not complete
        bytearray unparsed              # received, but not its turn yet
        Protocol successor              # has taken the connection over
        Phase phase
        bint parsing                    # inside _consume: output is flushed afterwards
        bint proceeding                 # inside proceed: applications may be started
        bint paused
        bint eof
        bint closing
        bint discarding                 # the rest of a body nobody will take
        int64_t requests                # that it has had
        int64_t discarded
        int64_t body_received           # of the current request
        int64_t rate_deadline
        int64_t paused_at

    cdef int _consume(self, const char* data, Py_ssize_t length) except -1
    cdef Py_ssize_t _parse(self, const char* data, Py_ssize_t length) except -1
    cdef int _tell_eof(self) except -1
    cdef int _keep(self, const char* data, Py_ssize_t length) except -1
    cdef int _begin(self) except -1
    cdef bint _tell_origin(self, dict scope) except -1
    cdef int _take_body(self, bytes content) except -1
    cdef bint _may_spawn(self) except -1
    cdef int _spawn(self) except -1
    cdef int _give_up(self) except -1
    cdef int refuse(self, int status, str reason, bytes fields=*) except -1
    cdef int hand_over(self, Protocol successor) except -1
    cdef int _answer(
        self, int status, str reason, bytes fields, HttpExchange exchange
    ) except -1
    cdef int _response_complete(self, HttpExchange exchange) except -1
    cdef int _update_reading(self) except -1
    cdef int _close(self, bint linger) except -1
    cdef int _settle(self) except -1
    cdef int _set_body_deadline(self, int64_t now) except -1


cdef class Upgrade:
    cdef HttpExchange build(self, bytes tokens, str method)


cdef class HttpExchange(Conversation):
    cdef:
        Http1Connection connection
        Http1Factory factory
        ResponseHead head
        bytes body                      # received and not taken; None: nothing
        list more_body                  # further pieces of it
        Py_ssize_t buffered
        int64_t length_left             # of a response with a length
        Progress progress
        Framing framing
        bint admitted                   # has a place inside the gate
        bint waits                      # in its line
        int64_t deadline                # of that; then of its application; 0: none
        tuple asked                     # method, path and query, where the application has a deadline
        bint spawned
        bint request_complete
        bint body_ended                 # http.request with more_body False was taken
        bint owes_continue              # 100 (Continue) is still to be sent
        bint disconnected               # the peer sends no more
        bint lost                       # the connection is gone
        bint is_head
        bint is_http10
        bint keep_alive
        bint accepts_trailers           # the request has TE: trailers
        bint has_trailers               # the response is to have some
        dict extensions                 # of the scope, to be used again; None: they are not
        Entry entry                     # for the access line; None: there will be none
        int status                      # of the response, once its head is written
        int64_t begun                   # microseconds of the monotonic clock; 0: it is not counted

    cdef int leave_gate(self) except -1
    cdef int _give_extensions(self) except -1
    cdef int conclude(self, object error) except -1
    cdef int cut_short(self) except -1
    cdef bint is_over(self) noexcept
    cdef object when_over(self)
    cdef int _check_unstarted(self, str kind) except -1
    cdef int _flush(self, bint more_body) except -1
    cdef int opened(self, dict scope, bint has_body) except -1
    cdef bint is_late(self, int64_t now) noexcept
    cdef int body_arrived(self, bytes piece) except -1
    cdef int disconnect(self, bint lost) except -1
    cdef object start(self, str kind, dict message)
    cdef object send_body(self, dict message)
    cdef object _send_path(self, dict message)
    cdef object _send_descriptor(self, dict message)
    cdef object _send_file(
        self, dict message, str key, File file, int64_t start, int64_t length, bint more_body
    )
    cdef object _deliver(
        self, dict message, str key, bytes body, File file, Py_ssize_t start, Py_ssize_t length,
        bint more_body,
    )
    cdef object _sent(self, Py_ssize_t length)
    cdef object _send_early_hint(self, dict message)
    cdef object _send_trailers(self, dict message)
    cdef int _refuse_body(self, str kind) except -1
    cdef int _check_length(
        self, dict message, str key, int64_t left, Py_ssize_t length, bint more_body
    ) except -1
    cdef bint _leaves_too_much(self, bint more_body) noexcept
    cdef int answered(self, int status) except -1
    cdef int account(self) except -1
    cdef int _write_head(self, Py_ssize_t length, bint more_body) except -1
    cdef int _write_body(
        self, bytes body, File file, Py_ssize_t start, Py_ssize_t length, bint more_body
    ) except -1
    cdef int _complete(self) except -1
    cdef object after_disconnect(self)
