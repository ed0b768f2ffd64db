# Declarations of fastserve._websocket. No ABI is promised between releases.
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastserve._buffer cimport SendBuffer
from fastserve._deflate cimport Deflater, DeflatePool, Inflater
from fastserve._headers cimport ResponseHead
from fastserve._http1 cimport HttpExchange, Upgrade
from fastserve._shared cimport Row
from fastserve._transport cimport Protocol, Transport

cdef enum Opcode:                   # RFC 6455 section 5.2
    OPCODE_CONTINUATION = 0
    OPCODE_TEXT = 1
    OPCODE_BINARY = 2
    OPCODE_CLOSE = 8
    OPCODE_PING = 9
    OPCODE_PONG = 10

cdef enum FrameEvent:
    FRAME_NEED_DATA = 0             # everything given was consumed, more is needed
    FRAME_MESSAGE = 1               # `message`
    FRAME_PING = 2                  # `payload`
    FRAME_PONG = 3                  # `payload`
    FRAME_CLOSE = 4                 # `code`, `reason`
    FRAME_INVALID = 5               # `code`, `reason` to close with; every later call says the same

cdef enum State:                    # of a connection, RFC 6455 section 7.1
    STATE_OPEN
    STATE_CLOSING                   # our Close is sent, the peer's is awaited
    STATE_ENDED

cdef enum:
    CONTROL_MOST = 125              # bytes in a control frame, RFC 6455 section 5.5
    INFLATE_STEP = 1024             # room that inflating begins with
    COMPRESS_LEAST = 512            # bytes of a message below which compressing does not pay
    PACKED_MOST = 64 * 1024         # of a message that is remembered with its compressed form
    QUEUE_BYTES = 256 * 1024        # in messages the application has not taken: reading pauses


cdef class FrameDecoder:
    cdef:
        Py_ssize_t max_size
        DeflatePool pool            # None: permessage-deflate was not agreed
        Inflater inflater           # of the present message; with takes_over: for good
        bint takes_over

        # what an event is about
        readonly object message     # str or bytes
        readonly bytes payload
        readonly int code
        readonly str reason

        # the frame
        bint failed
        bint in_payload
        bint final
        int opcode
        uint64_t remaining          # of its payload
        unsigned int unmasked       # bytes of its payload that came; 0 at its start alone
        int head_length
        unsigned char[14] head
        unsigned char[4] mask
        int control_length
        unsigned char[CONTROL_MOST] control

        # the message
        int message_opcode          # OPCODE_CONTINUATION: none has begun
        bint compressed
        uint32_t utf8               # of the text so far
        PyObject* held              # bytes of ours alone, or NULL
        Py_ssize_t held_length
        Py_ssize_t held_size

    cdef int next(self, char* data, Py_ssize_t length, Py_ssize_t* consumed) except -1
    cdef Py_ssize_t _take_head(self, const char* data, Py_ssize_t length) except -1
    cdef int _check_start(self) noexcept
    cdef int _begin_payload(self, int head_length) noexcept
    cdef int _take_payload(self, char* data, Py_ssize_t length) except -1
    cdef int _inflate(self) except? -2
    cdef int _reserve(self, Py_ssize_t length, uint64_t announced) except -1
    cdef char* _end_of_held(self) noexcept
    cdef int _extend(self, Py_ssize_t length) noexcept
    cdef int _end_message(self) except -1
    cdef int _end_text(self, const char* data, Py_ssize_t length) except -1
    cdef void _forget_held(self) noexcept
    cdef int _end_control(self) except -1
    cdef int _fail(self, int code, str reason) noexcept


cdef class WebSocketConnection(Protocol):
    cdef:
        WebSocketUpgrade upgrade
        WebSocketExchange exchange  # None once it was told of the end
        Row row                     # where it is counted; None: nowhere
        FrameDecoder decoder
        Deflater deflater           # of its own, where messages refer to those before
        int window_bits             # of what is sent compressed; 0: nothing is
        bytearray unparsed          # received, but the application has to take messages first
        State state
        bint paused
        bint awaits_pong
        uint32_t pings
        bytes ping_payload          # of the last ping
        bytes owed_pong

    cdef int send(self, object message, bint is_text) except -1
    cdef int close(self, int code, str reason) except -1
    cdef int _schedule_ping(self) except -1
    cdef int _consume(self, const char* data, Py_ssize_t length) except -1
    cdef int _answer_ping(self, bytes payload) except -1
    cdef bytes _compress(self, object message, const char* data, Py_ssize_t length)
    cdef int _end(self, int code, str reason, bint linger) except -1
    cdef int _ended(self, int code, str reason) except -1


cdef class WebSocketUpgrade(Upgrade):
    cdef:
        object negotiate
        dict asgi
        DeflatePool pool
        Py_ssize_t max_size, max_queue
        int64_t ping_interval, ping_timeout, close_timeout      # milliseconds
        # The message that was compressed last, since a broadcast sends one to many.
        object packed_of
        int packed_bits
        bytes packed


cdef class WebSocketExchange(HttpExchange):
    cdef:
        WebSocketUpgrade upgrade
        WebSocketConnection session     # None until it is accepted
        bytes key
        str offers                      # of extensions
        list subprotocols               # the client's, in its order
        bint connect_told
        list queue                      # messages to be received
        Py_ssize_t queued               # their length
        int code                        # what it was closed with; 0: not yet
        str reason

    cdef bint is_full(self) noexcept
    cdef int message_arrived(self, object message) except -1
    cdef int ended(self, int code, str reason) except -1
    cdef int _check_open(self) except -1
    cdef int _check_acceptable(self) except -1
    cdef object _send(self, dict message)
    cdef object _accept(self, dict message)
    cdef WebSocketConnection _new_session(self, object agreed)
    cdef object _close(self, dict message)
