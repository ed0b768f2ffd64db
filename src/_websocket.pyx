"""WebSocket: frames, the connection after the upgrade, and the ASGI conversation.

`FrameDecoder` is pure: bytes in, messages out (RFC 6455 section 5). `WebSocketConnection` is the
protocol that takes the transport over from HTTP/1.1: pings, the closing handshake, what waits
for the application. `WebSocketExchange` is the application's side. Its opening handshake is
an HTTP exchange like any other, whose success is a 101, so that all of HTTP's rules hold
for a refusal.
"""

import base64
import hashlib

cimport cython
from cpython.bytearray cimport (
    PyByteArray_AS_STRING, PyByteArray_FromStringAndSize, PyByteArray_GET_SIZE,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Copy
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_AsUTF8String, PyUnicode_DecodeUTF8
from libc.string cimport memcpy

from fastserve._conversation import ClientDisconnected

from fastserve._buffer cimport GATHER_MIN
from fastserve._conversation cimport WAIT_WRITABLE, get, is_disconnect
from fastserve._deflate cimport DEFLATE_MOST
from fastserve._http1 cimport COMPLETE, NOT_STARTED, Http1Connection
from fastserve._transport cimport END_ENDLESS, Stage


cdef extern from *:
    """
    /* RFC 6455 section 5.3: `to` becomes `from` without its mask, a word at a time; the two may be
       the same. `phase`: how many bytes of this frame were unmasked before. */
    static void fs_unmask(char* to, const char* from, Py_ssize_t length,
                          const unsigned char* mask, unsigned phase) {
        unsigned char turned[8];
        uint64_t word, a, b, c, d;
        for (unsigned i = 0; i < 8; i++)
            turned[i] = mask[(phase + i) & 3];
        memcpy(&word, turned, 8);
        for (; length >= 32; length -= 32, to += 32, from += 32) {
            memcpy(&a, from, 8);
            memcpy(&b, from + 8, 8);
            memcpy(&c, from + 16, 8);
            memcpy(&d, from + 24, 8);
            a ^= word; b ^= word; c ^= word; d ^= word;
            memcpy(to, &a, 8);
            memcpy(to + 8, &b, 8);
            memcpy(to + 16, &c, 8);
            memcpy(to + 24, &d, 8);
        }
        for (; length >= 8; length -= 8, to += 8, from += 8) {
            memcpy(&a, from, 8);
            a ^= word;
            memcpy(to, &a, 8);
        }
        for (Py_ssize_t i = 0; i < length; i++)
            to[i] = (char)(from[i] ^ turned[i]);
    }

    /* Between two characters; else how many bytes are missing, and between which two values the
       next one has to be. */
    #define FS_UTF8_COMPLETE 0u
    #define FS_UTF8_INVALID 0xffffffffu
    #define FS_UTF8_STATE(missing, low, high) ((missing) << 16 | (low) << 8 | (high))

    /* RFC 3629 section 4, incrementally: the state after these bytes. */
    static uint32_t fs_utf8(uint32_t state, const char* text, Py_ssize_t length) {
        const unsigned char* at = (const unsigned char*)text;
        const unsigned char* end = at + length;
        while (at < end) {
            unsigned char c;
            if (state != FS_UTF8_COMPLETE) {
                c = *at++;
                if (c < (state >> 8 & 0xff) || c > (state & 0xff))
                    return FS_UTF8_INVALID;
                state = state >> 16 == 1 ? FS_UTF8_COMPLETE
                      : FS_UTF8_STATE((state >> 16) - 1, 0x80u, 0xbfu);
                continue;
            }
            while (end - at >= 8) {
                uint64_t word;
                memcpy(&word, at, 8);
                if (word & 0x8080808080808080u)
                    break;
                at += 8;
            }
            if (at == end)
                break;
            c = *at++;
            if (c < 0x80)
                continue;
            if (c < 0xc2 || c > 0xf4)
                return FS_UTF8_INVALID;
            if (c < 0xe0)
                state = FS_UTF8_STATE(1u, 0x80u, 0xbfu);
            else if (c < 0xf0)
                state = FS_UTF8_STATE(2u, c == 0xe0 ? 0xa0u : 0x80u, c == 0xed ? 0x9fu : 0xbfu);
            else
                state = FS_UTF8_STATE(3u, c == 0xf0 ? 0x90u : 0x80u, c == 0xf4 ? 0x8fu : 0xbfu);
        }
        return state;
    }
    """
    enum: FS_UTF8_COMPLETE, FS_UTF8_INVALID
    void fs_unmask(char* to, const char* from_, Py_ssize_t length,
                   const unsigned char* mask, unsigned int phase) noexcept
    uint32_t fs_utf8(uint32_t state, const char* text, Py_ssize_t length) noexcept


cdef extern from "Python.h":
    int _PyBytes_Resize(PyObject** data, Py_ssize_t size) except -1
    PyObject* PyBytes_New "PyBytes_FromStringAndSize"(const char*, Py_ssize_t) except NULL
    char* PyBytes_AS_STRING_of "PyBytes_AS_STRING"(PyObject*) noexcept
    void Py_DECREF_pointer "Py_DECREF"(PyObject*) noexcept
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* length) except NULL


cdef str TYPE = "type"
cdef str DENIAL_START = "websocket.http.response.start"
cdef str TEXT = "text"
cdef str BYTES = "bytes"
cdef str WEBSOCKET_RECEIVE = "websocket.receive"
cdef str WEBSOCKET_SEND = "websocket.send"


# --------------------------------------------------------------------------- frames


@cython.final
cdef class FrameDecoder:
    """The frames of one client, put together to messages (RFC 6455 section 5, RFC 7692).

    Everything that a frame's head says is checked before anything is kept for it; text is
    checked as it arrives.
    """

    def __cinit__(
        self, *, Py_ssize_t max_size=16 * 1024 * 1024, DeflatePool pool=None, bint takes_over=False
    ):
        """`max_size`: bytes of a message, inflated. `pool`: where permessage-deflate was agreed;
        `takes_over`: and the client does not begin each message anew."""
        self.max_size = max_size
        self.pool = pool
        if takes_over:
            self.inflater = Inflater()
        self.takes_over = takes_over

    def __dealloc__(self):
        if self.held != NULL:
            Py_DECREF_pointer(self.held)

    def feed(self, data):
        """All that happens in `data`, in order, as tuples (for tests)."""
        cdef bytearray copy = bytearray(data)
        cdef Py_ssize_t used = 0, count = 0
        cdef int event = FRAME_NEED_DATA
        cdef list events = []
        while event != FRAME_INVALID:
            event = self.next(
                PyByteArray_AS_STRING(copy) + used, PyByteArray_GET_SIZE(copy) - used, &count
            )
            used += count
            if event == FRAME_NEED_DATA:
                break
            elif event == FRAME_MESSAGE:
                events.append(("message", self.message))
            elif event == FRAME_PING or event == FRAME_PONG:
                events.append(("ping" if event == FRAME_PING else "pong", self.payload))
            else:
                events.append(("close" if event == FRAME_CLOSE else "invalid", self.code, self.reason))
        return events

    cdef int next(self, char* data, Py_ssize_t length, Py_ssize_t* consumed) except -1:
        """The next event in `data`, which is unmasked in place; `consumed` is how much of it
        was used, all of it with FRAME_NEED_DATA."""
        cdef Py_ssize_t used = 0, count
        cdef int event = FRAME_NEED_DATA
        self.message = None
        while event == FRAME_NEED_DATA:
            if self.failed:
                event = FRAME_INVALID
            elif not self.in_payload:
                used += self._take_head(data + used, length - used)
                if not self.in_payload and not self.failed:
                    break
            else:
                count = length - used
                if <uint64_t>count > self.remaining:
                    count = <Py_ssize_t>self.remaining
                if count == 0 and self.remaining:
                    break
                event = self._take_payload(data + used, count)
                used += count
        consumed[0] = used
        return event

    cdef Py_ssize_t _take_head(self, const char* data, Py_ssize_t length) except -1:
        """How many bytes were used; `in_payload` once the head is complete and good."""
        cdef Py_ssize_t used = 0
        cdef int needed = 2
        while True:
            if self.head_length >= 2:
                if self.head_length == 2 and self._check_start() < 0:
                    return used
                needed = 6
                if self.head[1] & 0x7F == 126:
                    needed = 8
                elif self.head[1] & 0x7F == 127:
                    needed = 14
            if self.head_length >= needed:
                break
            if used == length:
                return used
            self.head[self.head_length] = <unsigned char>data[used]
            self.head_length += 1
            used += 1
        self._begin_payload(needed)
        return used

    cdef int _check_start(self) noexcept:
        """What the first two bytes of a frame say; -1: not to this server."""
        cdef int first = self.head[0]
        cdef int length = self.head[1] & 0x7F
        cdef int opcode = first & 0x0F
        if first & 0x30 or (
            first & 0x40
            and (self.pool is None or (opcode != OPCODE_TEXT and opcode != OPCODE_BINARY))
        ):
            return self._fail(1002, "reserved bits are set")
        if opcode & 0x08:
            if opcode > OPCODE_PONG:
                return self._fail(1002, "unknown opcode")
            if not first & 0x80:
                return self._fail(1002, "a control frame is fragmented")
            if length > CONTROL_MOST:
                return self._fail(1002, "a control frame is too long")
        elif opcode > OPCODE_BINARY:
            return self._fail(1002, "unknown opcode")
        elif (opcode == OPCODE_CONTINUATION) != (self.message_opcode != OPCODE_CONTINUATION):
            return self._fail(1002, "a fragment is out of place")
        if not self.head[1] & 0x80:
            return self._fail(1002, "a frame is not masked")
        return 0

    cdef int _begin_payload(self, int head_length) noexcept:
        cdef int opcode = self.head[0] & 0x0F
        cdef uint64_t length = self.head[1] & 0x7F
        cdef uint64_t least = 0
        cdef int index
        self.head_length = 0
        if length >= 126:
            least = 126 if length == 126 else 65536
            length = 0
            for index in range(2, head_length - 4):
                length = length << 8 | self.head[index]
            # RFC 6455 section 5.2: the shortest form, and the most significant bit is 0.
            if length < least or length >> 63:
                return self._fail(1002, "a length is written wrongly")
        memcpy(self.mask, self.head + head_length - 4, 4)
        self.opcode = opcode
        self.final = self.head[0] >> 7
        self.unmasked = 0
        if not opcode & 0x08:
            if opcode != OPCODE_CONTINUATION:
                self.message_opcode = opcode
                self.compressed = (self.head[0] & 0x40) != 0
                self.utf8 = FS_UTF8_COMPLETE
            # What a compressed frame becomes counts, and is counted while it does.
            if not self.compressed and length > <uint64_t>(self.max_size - self.held_length):
                return self._fail(1009, "the message is too big")
        self.remaining = length
        self.in_payload = True
        return 0

    cdef int _take_payload(self, char* data, Py_ssize_t length) except -1:
        cdef bint whole = self.remaining == <uint64_t>length
        cdef bint alone = whole and self.unmasked == 0 and self.final and self.held == NULL
        cdef int opcode = self.opcode
        cdef unsigned int phase = self.unmasked & 3
        self.remaining -= <uint64_t>length
        self.unmasked += <unsigned int>length       # only its last two bits count after the start
        if self.unmasked == 0 and length:
            self.unmasked = 4
        if whole:
            self.in_payload = False
        if opcode & 0x08:
            fs_unmask(<char*>self.control + self.control_length, data, length, self.mask, phase)
            self.control_length += <int>length
            return self._end_control() if whole else FRAME_NEED_DATA
        if self.compressed:
            fs_unmask(data, data, length, self.mask, phase)
            if self.inflater is None:
                self.inflater = self.pool.borrow()
            self.inflater.give(data, length)
            if self._inflate() < 0:
                return FRAME_INVALID
        elif alone and opcode == OPCODE_BINARY:
            self.message = PyBytes_FromStringAndSize(NULL, length)
            fs_unmask(PyBytes_AS_STRING(<bytes>self.message), data, length, self.mask, phase)
            self.message_opcode = OPCODE_CONTINUATION
            return FRAME_MESSAGE
        elif alone and opcode == OPCODE_TEXT:
            fs_unmask(data, data, length, self.mask, phase)
            return self._end_text(data, length)
        elif length:
            self._reserve(length, self.remaining)
            fs_unmask(self._end_of_held(), data, length, self.mask, phase)
            if self._extend(length) < 0:
                return FRAME_INVALID
        if not (whole and self.final):
            return FRAME_NEED_DATA
        if self.compressed:
            self.inflater.give_tail()
            if self._inflate() < 0:
                return FRAME_INVALID
            if not self.takes_over:
                self.pool.give_back(self.inflater)
                self.inflater = None
        return self._end_message()

    cdef int _inflate(self) except? -2:
        """What the inflater was given becomes part of the message; -1: it failed."""
        cdef Py_ssize_t room, made, fits
        while True:
            self._reserve(INFLATE_STEP, 0)
            # One byte more than may be: that is how too many are noticed.
            room = min(self.held_size, self.max_size + 1) - self.held_length
            made = self.inflater.take(self._end_of_held(), room)
            # Judged in the order of the bytes, however they were cut on their way.
            fits = min(made, self.max_size - self.held_length)
            if self._extend(fits) < 0:
                return -1
            if fits < made:
                return self._fail(1009, "the message is too big")
            if self.inflater.broken:
                return self._fail(1007, "the compressed data are invalid")
            if made < room:
                return 0

    cdef int _reserve(self, Py_ssize_t length, uint64_t announced) except -1:
        """Room for `length` bytes of the message, and for as many as are announced if that
        is not more than what has come already: an announcement costs a client nothing."""
        cdef Py_ssize_t least = self.held_length + length
        cdef Py_ssize_t size = least
        if self.held != NULL and least <= self.held_size:
            return 0
        size += least if <uint64_t>least < announced else <Py_ssize_t>announced
        if announced == 0 and self.held != NULL:
            size = min(2 * least, max(least, self.max_size + 1))
        if self.held == NULL:
            self.held = PyBytes_New(NULL, size)
        else:
            self.held_size = 0
            _PyBytes_Resize(&self.held, size)
        self.held_size = size
        return 0

    cdef char* _end_of_held(self) noexcept:
        return PyBytes_AS_STRING_of(self.held) + self.held_length

    cdef int _extend(self, Py_ssize_t length) noexcept:
        """`length` bytes more were written where the message ends; -1: they are not text."""
        if self.message_opcode == OPCODE_TEXT:
            self.utf8 = fs_utf8(self.utf8, self._end_of_held(), length)
            if self.utf8 == FS_UTF8_INVALID:
                return self._fail(1007, "the text is not UTF-8")
        self.held_length += length
        return 0

    cdef int _end_message(self) except -1:
        cdef PyObject* held = self.held
        cdef Py_ssize_t length = self.held_length
        cdef int event
        if self.message_opcode == OPCODE_TEXT:
            if held == NULL:
                event = self._end_text(b"", 0)
            else:
                event = self._end_text(PyBytes_AS_STRING_of(held), length)
                self._forget_held()
            return event
        self.message_opcode = OPCODE_CONTINUATION
        if held == NULL:
            self.message = b""
        else:
            if length < self.held_size:
                _PyBytes_Resize(&self.held, length)
            self.message = <object>self.held
            self._forget_held()
        return FRAME_MESSAGE

    cdef int _end_text(self, const char* data, Py_ssize_t length) except -1:
        self.message_opcode = OPCODE_CONTINUATION
        try:
            self.message = PyUnicode_DecodeUTF8(data, length, NULL)
        except UnicodeDecodeError:
            self._fail(1007, "the text is not UTF-8")
            return FRAME_INVALID
        return FRAME_MESSAGE

    cdef void _forget_held(self) noexcept:
        if self.held != NULL:
            Py_DECREF_pointer(self.held)
            self.held = NULL
        self.held_length = self.held_size = 0

    cdef int _end_control(self) except -1:
        cdef Py_ssize_t length = self.control_length
        cdef const char* data = <const char*>self.control
        self.control_length = 0
        if self.opcode != OPCODE_CLOSE:
            self.payload = data[:length]
            return FRAME_PING if self.opcode == OPCODE_PING else FRAME_PONG
        self.code = 1005        # RFC 6455 section 7.1.5: the frame had none
        self.reason = ""
        if length:
            self.code = self.control[0] << 8 | self.control[1] if length > 1 else 0
            if not may_be_sent(self.code):
                self._fail(1002, "the close code is invalid")
                return FRAME_INVALID
            try:
                self.reason = PyUnicode_DecodeUTF8(data + 2, length - 2, NULL)
            except UnicodeDecodeError:
                self._fail(1007, "the close reason is not UTF-8")
                return FRAME_INVALID
        return FRAME_CLOSE

    cdef int _fail(self, int code, str reason) noexcept:
        self.failed = True
        self.in_payload = False
        self.code = code
        self.reason = reason
        self._forget_held()
        return -1


cdef bint may_be_sent(int code) noexcept:
    """Whether a Close frame may carry the code (RFC 6455 section 7.4 and IANA's registry)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


cdef int append_frame_head(SendBuffer out, int first, Py_ssize_t length) except -1:
    """The head of a server's frame, which is never masked. `first`: FIN, RSV and opcode."""
    cdef unsigned char* head = <unsigned char*>out.reserve(10)
    cdef int used = 2, shift
    head[0] = <unsigned char>first
    if length < 126:
        head[1] = <unsigned char>length
    elif length < 65536:
        head[1] = 126
        head[2] = <unsigned char>(length >> 8)
        head[3] = <unsigned char>length
        used = 4
    else:
        head[1] = 127
        for shift in range(56, -8, -8):
            head[used] = <unsigned char>(length >> shift)
            used += 1
    return out.commit(used)


cdef int append_frame(SendBuffer out, int opcode, bytes payload) except -1:
    """A whole control frame, or a message that is one frame."""
    append_frame_head(out, 0x80 | opcode, PyBytes_GET_SIZE(payload))
    return out.append_bytes(payload)


cdef bytes close_payload(int code, str reason):
    """What a Close frame carries; a reason that is too long is cut between two characters."""
    cdef bytes text = reason.encode("utf-8", "replace")
    if code == 1005:
        return b""
    if len(text) > CONTROL_MOST - 2:
        text = text[:CONTROL_MOST - 2].decode("utf-8", "ignore").encode()
    return code.to_bytes(2, "big") + text


# ----------------------------------------------------------------------- connection


@cython.final
cdef class WebSocketConnection(Protocol):
    """A connection after its upgrade."""

    cdef int connection_made(self, Transport transport) except -1:
        self.transport = transport
        self._schedule_ping()
        return 0

    cdef int data_received(self, const char* data, Py_ssize_t length) except -1:
        if self.state == STATE_ENDED:
            return 0
        if self.awaits_pong and self.decoder.in_payload:
            # The client cannot put its pong into the middle of a frame.
            self.deadline = self.transport.clock() + self.upgrade.ping_timeout
        if self.unparsed is not None:
            self.unparsed.extend(data[:length])
            return 0
        return self._consume(data, length)

    cdef int eof_received(self) except -1:
        # No closing handshake can follow: nothing is left to say (RFC 6455 section 7.1.5).
        return self._end(1006, "", False)

    cdef int connection_lost(self) except -1:
        self.transport = None
        self.state = STATE_ENDED
        self.unparsed = None
        if self.row is not None:
            self.row.figures.websockets -= 1
        return self._ended(1006, "")

    cdef int resume_writing(self) except -1:
        cdef bytes payload = self.owed_pong
        if payload is not None and self.state == STATE_OPEN:
            self.owed_pong = None
            append_frame(self.transport.output(), OPCODE_PONG, payload)
        if self.exchange is not None:
            self.exchange.wake_all()
        return 0

    cdef int proceed(self) except -1:
        cdef bytearray unparsed = self.unparsed
        if self.state == STATE_ENDED or unparsed is None:
            return 0
        # The local reference keeps the memory; nothing else writes to it.
        self.unparsed = None
        self._consume(PyByteArray_AS_STRING(unparsed), PyByteArray_GET_SIZE(unparsed))
        if self.state != STATE_ENDED and self.unparsed is None and self.paused:
            self.paused = False
            # The time in which its pong was not read is not the client's.
            self._schedule_ping()
            self.transport.resume_reading()
        return 0

    cdef int deadline_expired(self) except -1:
        if self.state == STATE_CLOSING:     # the peer does not answer our Close
            return self._end(1006, "", False)
        if self.paused:
            return 0
        if self.awaits_pong:
            append_frame(
                self.transport.output(), OPCODE_CLOSE, close_payload(1011, "keepalive ping timeout")
            )
            return self._end(1006, "", True)
        self.pings += 1
        self.ping_payload = self.pings.to_bytes(4, "big")
        append_frame(self.transport.output(), OPCODE_PING, self.ping_payload)
        self._schedule_ping()
        if self.upgrade.ping_timeout:
            self.awaits_pong = True
            self.deadline = self.transport.clock() + self.upgrade.ping_timeout
        return 0

    cdef int drain(self, Stage stage) except -1:
        return self.close(1012, "") if stage >= END_ENDLESS else 0

    cdef int _schedule_ping(self) except -1:
        if self.state != STATE_OPEN:        # the deadline is the closing handshake's
            return 0
        self.awaits_pong = False
        self.deadline = 0
        if self.upgrade.ping_interval:
            self.deadline = self.transport.clock() + self.upgrade.ping_interval
        return 0

    cdef int _consume(self, const char* data, Py_ssize_t length) except -1:
        """Take frame after frame, and keep what has to wait until the application has taken
        the messages before it."""
        cdef FrameDecoder decoder = self.decoder
        cdef Py_ssize_t used = 0, count = 0
        cdef int event
        while self.state != STATE_ENDED:
            if self.state == STATE_OPEN and self.exchange.is_full():
                if used < length:
                    self.unparsed = PyByteArray_FromStringAndSize(data + used, length - used)
                    if not self.paused:
                        self.paused = True
                        self.transport.pause_reading()
                break
            event = decoder.next(<char*>data + used, length - used, &count)
            used += count
            if event == FRAME_NEED_DATA:
                break
            elif event == FRAME_MESSAGE:
                if self.state == STATE_OPEN:
                    self.exchange.message_arrived(decoder.message)
                decoder.message = None
            elif event == FRAME_PING:
                self._answer_ping(decoder.payload)
            elif event == FRAME_PONG:
                if self.awaits_pong and decoder.payload == self.ping_payload:
                    self._schedule_ping()
            else:       # the peer's Close, which is echoed, or what cannot be understood
                if self.state == STATE_OPEN:
                    append_frame(
                        self.transport.output(), OPCODE_CLOSE,
                        close_payload(decoder.code, decoder.reason),
                    )
                self._end(decoder.code, decoder.reason, True)
        return 0

    cdef int _answer_ping(self, bytes payload) except -1:
        if self.state != STATE_OPEN:        # nothing follows our Close
            return 0
        if self.transport.choked:
            # RFC 6455 section 5.5.3: the most recent one may be the only one answered.
            self.owed_pong = payload
            return 0
        return append_frame(self.transport.output(), OPCODE_PONG, payload)

    cdef int send(self, object message, bint is_text) except -1:
        """Send a message: `str` or `bytes`."""
        # A reference of our own: a flush may find the connection lost, which drops the other.
        cdef Transport transport = self.transport
        cdef SendBuffer out = transport.output()
        cdef int opcode = OPCODE_TEXT if is_text else OPCODE_BINARY
        cdef Py_ssize_t length = 0
        cdef const char* data
        cdef bytes packed
        if is_text:
            data = PyUnicode_AsUTF8AndSize(message, &length)
        else:
            data = PyBytes_AS_STRING(<bytes>message)
            length = PyBytes_GET_SIZE(<bytes>message)
        if self.window_bits and COMPRESS_LEAST <= length <= DEFLATE_MOST:
            packed = self._compress(message, data, length)
            if packed is not None:
                append_frame_head(out, 0xC0 | opcode, PyBytes_GET_SIZE(packed))
                out.append_bytes(packed)
                return transport.flush()
        append_frame_head(out, 0x80 | opcode, length)
        if length < GATHER_MIN:
            out.append(data, length)
        else:
            out.append_bytes(PyUnicode_AsUTF8String(message) if is_text else <bytes>message)
        return transport.flush()

    cdef bytes _compress(self, object message, const char* data, Py_ssize_t length):
        """The message's payload; None if it is better sent as it is."""
        cdef WebSocketUpgrade upgrade = self.upgrade
        cdef bytes packed
        if self.deflater is not None:
            # It has become part of what later messages refer to: it must be sent so.
            return self.deflater.deflate(data, length)
        if upgrade.packed_of is message and upgrade.packed_bits == self.window_bits:
            return upgrade.packed
        packed = upgrade.pool.deflater(self.window_bits).deflate(data, length)
        if PyBytes_GET_SIZE(packed) >= length:
            packed = None
        if length <= PACKED_MOST:
            upgrade.packed_of = message
            upgrade.packed_bits = self.window_bits
            upgrade.packed = packed
        return packed

    cdef int close(self, int code, str reason) except -1:
        """Begin the closing handshake (RFC 6455 section 7.1.2)."""
        cdef Transport transport = self.transport
        if self.state != STATE_OPEN:
            return 0
        self.state = STATE_CLOSING
        self.awaits_pong = False
        append_frame(transport.output(), OPCODE_CLOSE, close_payload(code, reason))
        self.deadline = transport.clock() + self.upgrade.close_timeout
        self._ended(code, reason)
        if self.paused:
            # What comes now is only looked at for the peer's Close.
            transport.call_soon()
        return transport.flush()

    cdef int _end(self, int code, str reason, bint linger) except -1:
        # A reference of our own: connection_lost, which this may bring about, drops the other.
        cdef Transport transport = self.transport
        self.state = STATE_ENDED
        self.deadline = 0
        self.unparsed = None
        self._ended(code, reason)
        return transport.close(linger)

    cdef int _ended(self, int code, str reason) except -1:
        cdef WebSocketExchange exchange = self.exchange
        if exchange is not None:
            self.exchange = None
            exchange.ended(code, reason)
        return 0


# --------------------------------------------------------------------- conversation


@cython.final
cdef class WebSocketUpgrade(Upgrade):
    """What all WebSockets of one server have in common."""

    def __init__(
        self,
        *,
        negotiate=None,
        Py_ssize_t max_size=16 * 1024 * 1024,
        Py_ssize_t max_queue=32,
        double ping_interval=20,
        double ping_timeout=20,
        double close_timeout=10,
    ):
        """`negotiate(offers)`: see fastserve.extensions; None: no permessage-deflate.
        `max_size`: bytes of a received message. `max_queue`: received messages that wait for
        the application. Times are in seconds, 0 for no ping or no end to waiting for a pong."""
        self.negotiate = negotiate
        self.pool = DeflatePool()
        self.max_size = max_size
        self.max_queue = max_queue
        self.ping_interval = <int64_t>(1000 * ping_interval)
        self.ping_timeout = <int64_t>(1000 * ping_timeout)
        self.close_timeout = <int64_t>(1000 * close_timeout)
        self.asgi = {"version": "3.0", "spec_version": "2.5"}

    cdef HttpExchange build(self, bytes tokens, str method):
        cdef WebSocketExchange exchange
        if method != "GET" or b"websocket" not in _tokens(tokens.lower()):
            return None
        exchange = WebSocketExchange.__new__(WebSocketExchange)
        exchange.upgrade = self
        exchange.queue = []
        return exchange


@cython.final
cdef class WebSocketExchange(HttpExchange):
    """An opening handshake, and the conversation that may follow."""

    cdef int opened(self, dict scope, bint has_body) except -1:
        """RFC 6455 section 4.2.1: what a client's handshake has to be."""
        cdef Http1Connection connection = self.connection
        cdef list versions = [], keys = [], protocols = [], offers = []
        for name, value in scope["headers"]:
            if name == b"sec-websocket-version":
                versions.append(value)
            elif name == b"sec-websocket-key":
                keys.append(value)
            elif name == b"sec-websocket-protocol":
                protocols.append(value)
            elif name == b"sec-websocket-extensions":
                offers.append(value)
        if versions != [b"13"]:
            return connection.refuse(
                426, "Only version 13 of the WebSocket protocol is spoken here.",
                b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n",
            )
        if has_body or len(keys) != 1 or not _is_key(keys[0]):
            return connection.refuse(400, "The WebSocket handshake is not valid.", b"")
        self.key = keys[0]
        self.offers = b", ".join(offers).decode("latin-1")
        self.subprotocols = [token.decode("latin-1") for token in _tokens(b",".join(protocols))]
        del scope["method"]
        scope["type"] = "websocket"
        scope["scheme"] = "wss" if scope["scheme"] == "https" else "ws"
        scope["asgi"] = PyDict_Copy(self.upgrade.asgi)
        scope["subprotocols"] = self.subprotocols.copy()
        scope["extensions"]["websocket.http.response"] = {}
        return 0

    cdef int conclude(self, object error) except -1:
        cdef WebSocketConnection session = self.session
        if session is None:
            return HttpExchange.conclude(self, error)
        if error is None or is_disconnect(error):
            return session.close(1000, "")
        self.host.report(error)
        return session.close(1011, "")

    cdef int cut_short(self) except -1:
        cdef WebSocketConnection session = self.session
        return HttpExchange.cut_short(self) if session is None else session.close(1012, "")

    cdef dict take_event(self):
        cdef WebSocketConnection session = self.session
        if not self.connect_told:
            self.connect_told = True
            return {TYPE: "websocket.connect"}
        if self.queue:
            message = self.queue.pop(0)
            self.queued -= len(message)
            if session.unparsed is not None and session.transport is not None:
                session.transport.call_soon()
            if isinstance(message, str):
                return {TYPE: WEBSOCKET_RECEIVE, TEXT: message, BYTES: None}
            return {TYPE: WEBSOCKET_RECEIVE, TEXT: None, BYTES: message}
        if session is None:
            if self.lost or self.disconnected or self.progress >= COMPLETE:
                return {TYPE: "websocket.disconnect", "code": 1006, "reason": ""}
        elif self.code:
            return {TYPE: "websocket.disconnect", "code": self.code, "reason": self.reason}
        return None

    cdef bint may_send(self) noexcept:
        if self.session is None:
            return HttpExchange.may_send(self)
        return self.session.state != STATE_OPEN or not self.session.transport.choked

    cdef object after_disconnect(self):
        raise ClientDisconnected("the WebSocket is closed")

    def send(self, message):
        cdef object kind
        if not isinstance(message, dict):
            raise TypeError(f"send() takes a dict, not {type(message).__name__}")
        kind = get(<dict>message, TYPE, None)
        if kind == WEBSOCKET_SEND:
            return self._send(<dict>message)
        if kind == "websocket.accept":
            return self._accept(<dict>message)
        if kind == "websocket.close":
            return self._close(<dict>message)
        if kind == DENIAL_START or kind == "websocket.http.response.body":
            if self.session is not None:
                raise RuntimeError(f"{kind} was sent after websocket.accept")
            self._check_open()
            if kind == DENIAL_START:
                self.keep_alive = False
                return self.start(DENIAL_START, <dict>message)
            return self.send_body(<dict>message)
        raise ValueError(f"send(): type {kind!r:.100} is not a message of a WebSocket")

    cdef int _check_open(self) except -1:
        """Raises ClientDisconnected when there is nobody, or nothing more, to be told."""
        if self.code if self.session is not None else self.lost or self.progress >= COMPLETE:
            self.after_disconnect()
        return 0

    cdef object _send(self, dict message):
        cdef object text = get(message, TEXT, None)
        cdef object data = get(message, BYTES, None)
        cdef WebSocketConnection session
        if isinstance(data, (bytearray, memoryview)):
            data = bytes(data)
        # Not before: where they are objects of the application's own, its code has run.
        self._check_open()
        session = self.session
        if session is None:
            raise RuntimeError("websocket.send was sent before websocket.accept")
        if (text is None) == (data is None):
            raise ValueError("websocket.send: exactly one of text and bytes must be given")
        if data is None:
            if not isinstance(text, str):
                raise TypeError(f"websocket.send: text must be a str, not {type(text).__name__}")
            try:
                session.send(text, True)
            except UnicodeEncodeError as error:
                raise ValueError(f"websocket.send: text is not Unicode: {error}") from None
        else:
            if not isinstance(data, bytes):
                raise TypeError(f"websocket.send: bytes must be bytes, not {type(data).__name__}")
            session.send(data, False)
        if session.transport is not None and session.transport.choked:
            return self.wait(WAIT_WRITABLE)
        return self.done(len(text if data is None else data))

    cdef object _accept(self, dict message):
        """The 101 (RFC 6455 section 4.2.2); from here on the connection is the session's."""
        cdef Http1Connection connection = self.connection
        cdef Transport transport
        cdef SendBuffer out
        cdef WebSocketConnection session
        cdef ResponseHead head
        cdef object subprotocol = get(message, "subprotocol", None)
        cdef object fields = get(message, "headers", None)
        cdef object agreed = None
        cdef bytes protocol_line = b""
        self._check_acceptable()
        if subprotocol is not None:
            if subprotocol not in self.subprotocols:
                raise ValueError(
                    f"websocket.accept: subprotocol {subprotocol!r:.100} is not one that the"
                    " client offers"
                )
            protocol_line = f"sec-websocket-protocol: {subprotocol}\r\n".encode("latin-1")
        if fields is None:
            fields = ()
        if self.entry is not None:
            fields = self.entry.keep_answered(fields)
        head = ResponseHead.__new__(ResponseHead)
        head.switch_protocols(fields)
        # Once more: where the values are objects of the application's own, its code has run.
        self._check_acceptable()
        if self.offers and self.upgrade.negotiate is not None:
            agreed = self.upgrade.negotiate(self.offers)
        session = self._new_session(agreed)
        transport = connection.transport
        out = transport.output()
        head.append_to(out)
        self.factory.append_own_fields(head, out)
        out.append_bytes(
            b"upgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: "
            + _accept_value(self.key) + b"\r\n"
        )
        out.append_bytes(protocol_line)
        if agreed is not None:
            out.append_bytes(b"sec-websocket-extensions: " + agreed[0].encode("ascii") + b"\r\n")
        out.append(b"\r\n", 2)
        self.answered(101)
        self.leave_gate()
        self.progress = COMPLETE
        self.account()
        if session.row is not None:
            session.row.figures.websockets += 1
        self.session = session
        self.connection = None
        connection.hand_over(session)
        if session.transport is not None:
            session.drain(self.factory.stage)
        transport.flush()
        return self.done(0)

    cdef int _check_acceptable(self) except -1:
        self._check_open()
        if self.session is not None:
            raise RuntimeError("websocket.accept was sent already")
        if self.disconnected:
            self.after_disconnect()
        if self.progress != NOT_STARTED:
            raise RuntimeError(f"websocket.accept was sent after {DENIAL_START}")
        return 0

    cdef WebSocketConnection _new_session(self, object agreed):
        """`agreed`: about permessage-deflate, see fastserve.extensions; or None."""
        cdef WebSocketUpgrade upgrade = self.upgrade
        cdef WebSocketConnection session = WebSocketConnection.__new__(WebSocketConnection)
        cdef int bits
        cdef bint takes_over
        session.upgrade = upgrade
        session.exchange = self
        session.row = self.factory.row
        if agreed is None:
            session.decoder = FrameDecoder(max_size=upgrade.max_size)
            return session
        _, bits, takes_over, client_takes_over = agreed
        session.decoder = FrameDecoder(
            max_size=upgrade.max_size, pool=upgrade.pool, takes_over=client_takes_over
        )
        session.window_bits = bits
        if takes_over:
            session.deflater = Deflater(bits, True)
        return session

    cdef object _close(self, dict message):
        cdef object code = get(message, "code", 1000)
        cdef object reason = get(message, "reason", None)
        self._check_open()
        if self.session is None:
            # A refusal has neither: what they are does not matter.
            if self.progress != NOT_STARTED:
                raise RuntimeError(f"websocket.close was sent after {DENIAL_START}")
            self.keep_alive = False
            self.start(DENIAL_START, {"status": 403})
            return self.send_body({})
        if code is None:
            code = 1000
        if not isinstance(code, int) or not 0 <= code < 65536 or not may_be_sent(code):
            raise ValueError(f"websocket.close: code {code!r:.100} may not be sent")
        if reason is None:
            reason = ""
        elif not isinstance(reason, str):
            raise TypeError(f"websocket.close: reason must be a str, not {type(reason).__name__}")
        self.queue.clear()
        self.queued = 0
        self.session.close(code, reason)
        return self.done(0)

    cdef bint is_full(self) noexcept:
        return len(self.queue) >= self.upgrade.max_queue or self.queued > QUEUE_BYTES

    cdef int message_arrived(self, object message) except -1:
        self.queue.append(message)
        self.queued += len(message)
        return self.wake_all()

    cdef int ended(self, int code, str reason) except -1:
        """The connection is, or is being, closed: what `receive` has to say after the messages
        that came before."""
        self.code = code
        self.reason = reason
        return self.wake_all()


cdef list _tokens(bytes value):
    """The members of a list-based field (RFC 9110 section 5.6.1)."""
    return [token for token in [part.strip(b" \t") for part in value.split(b",")] if token]


cdef bint _is_key(bytes value) except -1:
    """RFC 6455 section 4.1: 16 bytes in base64."""
    try:
        return len(value) == 24 and len(base64.b64decode(value, validate=True)) == 16
    except ValueError:
        return False


cdef bytes _accept_value(bytes key):
    """RFC 6455 section 4.2.2, step 5.4."""
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False)
    return base64.b64encode(digest.digest())
