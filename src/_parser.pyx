"""An incremental, strict HTTP/1.x request parser: bytes in, facts out, no I/O.

The rule behind every decision: accept only what every implementation reads the
same way (RFC 9112 section 11), and say 400 to the rest.

How it works:

* The caller pulls: `next()` reports one event and how many bytes it took, until
  it says NEED_DATA.
* Whole lines are parsed where they lie, in one pass. A reader of whole lines only
  ever accepts; whatever it does not understand (not there yet, too long, wrong)
  goes through `_one_line`, which looks at one byte after the other. So the first
  wrong byte decides the answer, however the input was cut.
* Only the line that straddles two calls is copied aside, and freed when it is
  parsed. Its bytes are checked as they arrive, so that a TLS handshake sent to
  this port is answered at once and not when a line end happens to follow.
* The framing of the body is kept in C integers, so the facts may be released as
  soon as the caller took them.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy


cdef extern from "Python.h":
    str PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    void* PyUnicode_DATA(object text)
    PyObject* PyTuple_GET_ITEM(PyObject* items, Py_ssize_t index) noexcept


cdef extern from *:
    """
    /* Eight bytes at once. A mark (0x80) stands in the lowest byte that is below 0x20
       or is 0x7F, and perhaps in bytes above it: a subtraction borrows from a byte's
       high bit just when the byte is smaller, and only upwards from there. */
    #define EACH_BYTE(c) (0x0101010101010101u * (uint64_t)(c))

    static inline uint64_t control_bytes(const unsigned char *p) {
        uint64_t word, deleted;
        memcpy(&word, p, 8);
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        word = __builtin_bswap64(word);
    #endif
        deleted = word ^ EACH_BYTE(0x7F);
        return (((word - EACH_BYTE(0x20)) & ~word)
                | ((deleted - EACH_BYTE(1)) & ~deleted)) & EACH_BYTE(0x80);
    }

    /* The index of the byte with the lowest mark. */
    #define first_of(marks) (__builtin_ctzll(marks) >> 3)
    """
    uint64_t control_bytes(const unsigned char* p) noexcept
    int first_of(uint64_t marks) noexcept


# ---------------------------------------------------------------------- constants

cdef enum:
    HTAB = 0x09
    LF = 0x0A
    CR = 0x0D
    SPACE = 0x20

cdef enum:                          # RequestParser._state
    BETWEEN = 0                     # no byte of a request line seen
    BETWEEN_CR = 1                  # the same, after the CR of an empty line
    REQUEST_LINE = 2
    FIELDS = 3
    SIZED_BODY = 4
    CHUNK_SIZE = 5
    CHUNK_DATA = 6
    CHUNK_CR = 7                    # the two bytes behind the data of a chunk
    CHUNK_LF = 8
    TRAILERS = 9
    COMPLETE = 10                   # END is due
    FAILED = 11

cdef enum:                          # RequestParser._seen
    SAW_HOST = 0x001
    SAW_LENGTH = 0x002
    SAW_CODING = 0x004              # a Transfer-Encoding field
    ENDS_CHUNKED = 0x008            # "chunked" was the last coding named
    SAW_OTHER_CODING = 0x010
    SAW_CLOSE = 0x020
    SAW_KEEP_ALIVE = 0x040
    SAW_UPGRADE = 0x080             # the option of Connection, not the field
    EXPECTS_CONTINUE = 0x100
    EXPECTS_OTHER = 0x200
    ACCEPTS_TRAILERS = 0x400

cdef enum:                          # bits of CLASS
    IN_LINE = 0x01                  # may stand in a request line
    IN_VALUE = 0x02                 # in a field value or a chunk extension
    IN_TARGET = 0x04
    PLAIN = 0x08                    # IN_TARGET, and neither "?" nor "%"
    IN_HOST = 0x10                  # unreserved or sub-delims, without ","

cdef enum:                          # what a known field name means to the framing
    NOTHING = 0
    HOST = 1
    CONTENT_LENGTH = 2
    TRANSFER_ENCODING = 3
    CONNECTION = 4
    EXPECT = 5
    UPGRADE = 6
    TE = 7

cdef enum:
    MAX_EMPTY_LINES = 4             # before a request line
    MAX_SIZE_DIGITS = 16            # hexadecimal digits of a chunk size
    MAX_LINE_EXTENSION = 4096       # bytes behind one chunk size
    MAX_BODY_EXTENSION = 16384      # the same, of a whole body
    MAX_TRAILER_BYTES = 8192
    SHORT_NAME = 64                 # a field name up to this length is lower-cased on the stack
    SHORT_PATH = 512                # a path up to this length is decoded on the stack
    HELD_MIN = 256
    NAME_SLOTS = 256                # a power of two, about four times the names
    MAX_NAMES = 80
    NOT_HEX = 0xFF


# ------------------------------------------------------------------------- tables
# Filled once at import and never written again.

cdef struct KnownName:
    PyObject* name                  # bytes, lower-case; owned by KEEP_NAMES
    const char* text                # the same
    unsigned char length
    unsigned char meaning
    bint repeats

cdef unsigned char[256] CLASS
cdef unsigned char[256] TOKEN       # tchar (RFC 9110 section 5.6.2) in lower case; 0: no tchar
cdef unsigned char[256] HEX_VALUE   # or NOT_HEX
cdef KnownName[MAX_NAMES] KNOWN     # from 1 on
cdef unsigned char[NAME_SLOTS] NAME_SLOT    # index into KNOWN; 0: empty

# Of these a client, or many clients, send the same values again and again.
cdef tuple REPEATED = tuple(b"""
    host user-agent accept accept-encoding accept-language accept-charset connection
    content-type content-encoding content-language
    cache-control pragma origin upgrade-insecure-requests dnt te
    transfer-encoding keep-alive priority
    sec-fetch-dest sec-fetch-mode sec-fetch-site sec-fetch-user sec-gpc
    sec-ch-ua sec-ch-ua-mobile sec-ch-ua-platform
    sec-websocket-version sec-websocket-extensions
    x-forwarded-proto x-forwarded-host x-forwarded-port x-forwarded-prefix via cdn-loop
    x-requested-with access-control-request-method access-control-request-headers
""".split())
# Of these not, or the values are secrets, of which nothing may outlive the request.
cdef tuple UNREPEATED = tuple(b"""
    content-length cookie authorization referer trailer expect upgrade proxy-connection date from
    range max-forwards if-match if-none-match if-modified-since if-unmodified-since if-range
    sec-websocket-key sec-websocket-protocol
    x-forwarded-for x-real-ip x-request-id x-correlation-id forwarded
    traceparent tracestate baggage x-api-key x-csrf-token idempotency-key
""".split())
cdef tuple KEEP_NAMES = REPEATED + UNREPEATED

cdef dict MEANINGS = {
    b"host": HOST,
    b"content-length": CONTENT_LENGTH,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"connection": CONNECTION,
    b"expect": EXPECT,
    b"upgrade": UPGRADE,
    b"te": TE,
}

cdef bytes HOST_NAME = KEEP_NAMES[0]


cdef inline unsigned int name_hash(const unsigned char* name, Py_ssize_t length) noexcept:
    # The factors were searched for: nearly every known name has a slot of its own.
    return (<unsigned int>length + 17u * name[0] + 11u * name[length - 1]
            + 13u * name[length >> 1]) & (NAME_SLOTS - 1)


cdef int fill_tables() except -1:
    cdef int code, bits, index
    cdef unsigned int slot
    cdef bytes name
    for code in range(256):
        bits = 0
        if 0x20 <= code < 0x7F:
            bits |= IN_LINE
        if code >= 0x20 and code != 0x7F or code == HTAB:
            bits |= IN_VALUE
        # RFC 3986 would refuse some more, such as "|" and "^", which clients do send
        # and which nobody gives a meaning. "#" would be a fragment, and is none of ours.
        if 0x21 <= code < 0x7F and code != c"#":
            bits |= IN_TARGET
            if code != c"?" and code != c"%":
                bits |= PLAIN
        # A "," is a sub-delim as well, but a Host with one reads as a list to some.
        if code in b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+;=":
            bits |= IN_HOST
        CLASS[code] = bits
        TOKEN[code] = 0
        HEX_VALUE[code] = NOT_HEX
    for code in b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz":
        TOKEN[code] = code
    for code in b"ABCDEFGHIJKLMNOPQRSTUVWXYZ":
        TOKEN[code] = code | 0x20
    for index in range(16):
        HEX_VALUE[<int>b"0123456789abcdef"[index]] = index
        HEX_VALUE[<int>b"0123456789ABCDEF"[index]] = index
    if len(KEEP_NAMES) >= MAX_NAMES:
        raise AssertionError("too many known names for the table")
    for index in range(1, len(KEEP_NAMES) + 1):
        name = KEEP_NAMES[index - 1]
        if len(name) > SHORT_NAME:
            raise AssertionError("a known name is too long")
        KNOWN[index].name = <PyObject*>name
        KNOWN[index].text = PyBytes_AS_STRING(name)
        KNOWN[index].length = len(name)
        KNOWN[index].meaning = MEANINGS.get(name, NOTHING)
        KNOWN[index].repeats = index <= len(REPEATED)
        slot = name_hash(<const unsigned char*>PyBytes_AS_STRING(name), len(name))
        while NAME_SLOT[slot]:
            slot = (slot + 1) & (NAME_SLOTS - 1)
        NAME_SLOT[slot] = index
    return 0

fill_tables()


# ----------------------------------------------------------------- looking at bytes

cdef inline bint is_blank(unsigned char c) noexcept:
    return c == SPACE or c == HTAB


cdef inline bint is_word(const unsigned char* text, Py_ssize_t length, const char* word,
                         Py_ssize_t word_length) noexcept:
    """Whether `text` is `word`, a lower-case token, in any case."""
    cdef Py_ssize_t i
    if length != word_length:
        return False
    for i in range(length):
        if TOKEN[text[i]] != <unsigned char>word[i]:
            return False
    return True


cdef inline const unsigned char* skip_value(const unsigned char* p,
                                            const unsigned char* end) noexcept:
    """The first byte in [p, end) that may not stand in a field value, or `end`."""
    cdef uint64_t controls
    while end - p >= 8:
        controls = control_bytes(p)
        if controls:
            p += first_of(controls)
            if p[0] != HTAB:
                return p
            p += 1
        else:
            p += 8
    while p < end and CLASS[p[0]] & IN_VALUE:
        p += 1
    return p


cdef inline const unsigned char* skip_token(const unsigned char* p,
                                            const unsigned char* end) noexcept:
    while p < end and TOKEN[p[0]]:
        p += 1
    return p


cdef inline const unsigned char* skip_blanks(const unsigned char* p,
                                             const unsigned char* end) noexcept:
    while p < end and is_blank(p[0]):
        p += 1
    return p


cdef bint is_authority(const unsigned char* p, const unsigned char* end) noexcept:
    """uri-host [":" port] of RFC 3986 section 3.2.2, not empty and without a ","."""
    cdef const unsigned char* start
    cdef int colons = 0
    cdef int port = 0
    if p < end and p[0] == c"[":
        p += 1
        if p < end and p[0] | 0x20 == c"v":         # IPvFuture
            p += 1
            start = p
            while p < end and HEX_VALUE[p[0]] != NOT_HEX:
                p += 1
            if p == start or p == end or p[0] != c".":
                return False
            p += 1
            start = p
            while p < end and (CLASS[p[0]] & IN_HOST or p[0] == c":"):
                p += 1
            if p == start:
                return False
        else:
            while p < end and (HEX_VALUE[p[0]] != NOT_HEX or p[0] == c":" or p[0] == c"."):
                if p[0] == c":":
                    colons += 1
                p += 1
            if colons < 2:                          # no IPv6 address has fewer
                return False
        if p == end or p[0] != c"]":
            return False
        p += 1
    else:
        start = p
        while p < end:
            if CLASS[p[0]] & IN_HOST:
                p += 1
            elif (p[0] == c"%" and end - p >= 3
                    and HEX_VALUE[p[1]] != NOT_HEX and HEX_VALUE[p[2]] != NOT_HEX):
                p += 3
            else:
                break
        if p == start:
            return False
    if p == end:
        return True
    if p[0] != c":":
        return False
    p += 1
    while p < end:
        if not c"0" <= p[0] <= c"9":
            return False
        port = port * 10 + (p[0] - c"0")
        if port > 65535:
            return False
        p += 1
    return True


cdef str method_name(const unsigned char* text, Py_ssize_t length):
    """The method as str; one shared object for each of the common ones."""
    if length == 3:
        if memcmp(text, b"GET", 3) == 0:
            return "GET"
        if memcmp(text, b"PUT", 3) == 0:
            return "PUT"
    elif length == 4:
        if memcmp(text, b"POST", 4) == 0:
            return "POST"
        if memcmp(text, b"HEAD", 4) == 0:
            return "HEAD"
    elif length == 5:
        if memcmp(text, b"PATCH", 5) == 0:
            return "PATCH"
        if memcmp(text, b"TRACE", 5) == 0:
            return "TRACE"
    elif length == 6:
        if memcmp(text, b"DELETE", 6) == 0:
            return "DELETE"
    elif length == 7:
        if memcmp(text, b"OPTIONS", 7) == 0:
            return "OPTIONS"
        if memcmp(text, b"CONNECT", 7) == 0:
            return "CONNECT"
    return ascii_text(text, length)


cdef inline str ascii_text(const unsigned char* text, Py_ssize_t length):
    cdef str made = PyUnicode_New(length, 0x7F)
    memcpy(PyUnicode_DATA(made), text, length)
    return made


cdef str decode_path(const unsigned char* path, Py_ssize_t length):
    """The path with its percent escapes undone, as UTF-8 with replacement characters.

    What is no escape ("%", "%x") stays as it is: so do the other ASGI servers.
    """
    cdef unsigned char[SHORT_PATH] small
    cdef unsigned char* decoded = small
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t used = 0
    cdef unsigned char high, low
    small[0] = 0
    if length > SHORT_PATH:
        decoded = <unsigned char*>malloc(length)
        if decoded == NULL:
            raise MemoryError
    while i < length:
        if path[i] == c"%" and length - i >= 3:
            high = HEX_VALUE[path[i + 1]]
            low = HEX_VALUE[path[i + 2]]
            if high != NOT_HEX and low != NOT_HEX:
                decoded[used] = high << 4 | low
                used += 1
                i += 3
                continue
        decoded[used] = path[i]
        used += 1
        i += 1
    try:
        return PyUnicode_DecodeUTF8(<char*>decoded, used, "replace")
    finally:
        if decoded != small:
            free(decoded)


# ------------------------------------------------------------------- fields seen before

cdef inline unsigned int field_hash(PyObject* name, const unsigned char* value,
                                    Py_ssize_t length) noexcept:
    # Whoever makes values collide gains nothing: a slot has one pair, and others replace it.
    cdef uint64_t mixed = <uint64_t><size_t>name >> 4
    cdef uint64_t word = 0
    if length >= 8:
        memcpy(&word, value + (length >> 1) - 4, 8)
        mixed = (mixed ^ word) * 0x9E3779B97F4A7C15u
        memcpy(&word, value + length - 8, 8)
    elif length:
        word = value[0] | <uint64_t>value[length >> 1] << 8 | <uint64_t>value[length - 1] << 16
    mixed = (mixed ^ word ^ <uint64_t>length << 56) * 0x9E3779B97F4A7C15u
    return <unsigned int>(mixed >> 32) & (FIELD_SLOTS - 1)


@cython.final
cdef class FieldCache:
    # The public docstring is in the stub, _parser.pyi.

    def __dealloc__(self):
        cdef int slot
        for slot in range(FIELD_SLOTS):
            Py_XDECREF(self.slots[slot])

    cdef tuple pair(self, PyObject* name, const unsigned char* value, Py_ssize_t length):
        """(name, value). `name` is one of the known names."""
        cdef unsigned int slot = field_hash(name, value, length)
        cdef PyObject* known = self.slots[slot]
        cdef PyObject* content
        cdef tuple made
        if known != NULL and PyTuple_GET_ITEM(known, 0) == name:
            content = PyTuple_GET_ITEM(known, 1)
            if (PyBytes_GET_SIZE(<object>content) == length
                    and memcmp(PyBytes_AS_STRING(<object>content), value, length) == 0):
                return <tuple>known
        made = (<object>name, PyBytes_FromStringAndSize(<const char*>value, length))
        Py_INCREF(made)
        self.slots[slot] = <PyObject*>made
        Py_XDECREF(known)
        return made


# ------------------------------------------------------------------------- the parser

@cython.final
cdef class RequestParser:
    # The public docstrings are in the stub, _parser.pyi.

    def __cinit__(self, *, Py_ssize_t limit_line=8190, Py_ssize_t limit_fields=100,
                  Py_ssize_t limit_field_bytes=65536, FieldCache cache=None):
        if limit_line < 0 or limit_fields < 0 or limit_field_bytes < 0:
            raise ValueError("a limit cannot be negative")
        self.limit_line = limit_line
        self.limit_fields = limit_fields
        self.limit_field_bytes = limit_field_bytes
        self.cache = cache
        self.content_length = -1

    def __dealloc__(self):
        free(self._held)

    @property
    def mid_message(self):
        return self.in_message()

    def feed(self, bytes data not None):
        cdef const char* p = PyBytes_AS_STRING(data)
        cdef Py_ssize_t left = len(data)
        cdef Py_ssize_t used = 0
        cdef int event
        cdef list events = []
        while True:
            event = self.next(p, left, &used)
            p += used
            left -= used
            if event == HEAD:
                events.append(("head", self._facts()))
                # A caller in C does the same: the body is framed without the facts.
                self.release()
            elif event == DATA:
                events.append(("data", PyBytes_FromStringAndSize(self.piece, self.piece_length)))
            elif event == END:
                events.append(("end",))
            elif event == INVALID:
                events.append(("invalid", self.error_status, self.error_reason))
                return events
            else:
                return events

    cdef dict _facts(self):
        return {
            "method": self.method,
            "path": self.path,
            "raw_path": self.raw_path,
            "query_string": self.query_string,
            "headers": self.headers,
            "minor_version": self.minor_version,
            "keep_alive": self.keep_alive,
            "expect_continue": self.expect_continue,
            "chunked": self.chunked,
            "content_length": self.content_length,
            "upgrade": self.upgrade,
            "accepts_trailers": self.accepts_trailers,
        }

    # -------------------------------------------------------------- the C interface

    cdef int next(self, const char* data, Py_ssize_t length, Py_ssize_t* consumed) except -1:
        """One event, and how many of the `length` bytes at `data` belong to it.

        Call again with the rest until it returns NEED_DATA (all bytes taken) or
        INVALID (none taken; for good). END may be due without any byte left, so
        call once more after HEAD and DATA with a length of 0; `data` may then be
        NULL. `data` is only read during the call; `piece` points into it.

        Raises MemoryError; the parser is then of no further use.
        """
        cdef const unsigned char* start = <const unsigned char*>data
        cdef const unsigned char* p
        cdef const unsigned char* end
        cdef Py_ssize_t used
        cdef int state = self._state
        consumed[0] = 0
        if state == COMPLETE:
            self._become_idle()
            return END
        if state == FAILED:
            return INVALID
        if length <= 0:
            return NEED_DATA
        p = start
        end = start + length
        while p < end:
            state = self._state
            if state <= BETWEEN_CR:
                if state == BETWEEN_CR:
                    if p[0] != LF:
                        return self._fail(400, "bare CR")
                    self._empty_lines += 1
                    self._state = BETWEEN
                    p += 1
                    continue
                if p[0] == CR:
                    # RFC 9112 section 2.2: some clients send CRLF behind a body
                    if self._empty_lines == MAX_EMPTY_LINES:
                        return self._fail(400, "too many empty lines before the request line")
                    self._state = BETWEEN_CR
                    p += 1
                    continue
                self._state = state = REQUEST_LINE
            elif state == SIZED_BODY or state == CHUNK_DATA:
                self._body_piece(p, end - p)
                consumed[0] = (p - start) + self.piece_length
                return DATA
            elif state == CHUNK_CR or state == CHUNK_LF:
                # RFC 9112 section 7.1: whoever skips other bytes here can be made to
                # see another request than the proxy in front saw
                if p[0] != (CR if state == CHUNK_CR else LF):
                    return self._fail(400, "chunk data without its line end")
                self._state = CHUNK_LF if state == CHUNK_CR else CHUNK_SIZE
                p += 1
                continue

            used = 0
            if self._held == NULL:
                used = self._whole_lines(p, end)
            if used == 0:
                used = self._one_line(p, end)
            p += used
            if self._state != state:
                if self._state == FAILED:
                    return INVALID
                if state == FIELDS:
                    consumed[0] = p - start
                    return HEAD
                if state == TRAILERS:
                    consumed[0] = p - start
                    return END
        consumed[0] = length
        return NEED_DATA

    cdef bint in_message(self) noexcept:
        """From the first byte of a request line until END; also after INVALID."""
        return self._state > BETWEEN_CR

    cdef uint64_t content_ahead(self) noexcept:
        """How many of the next bytes are the body's and nothing else, as far as is known."""
        return self._remaining if self._state == SIZED_BODY or self._state == CHUNK_DATA else 0

    cdef void pass_content(self, Py_ssize_t length) noexcept:
        """So many of them were received, and are not shown to `next`."""
        self._body_piece(NULL, length)

    cdef void release(self) noexcept:
        """Drop the references to the facts, but for the method. Safe at any time:
        while a head is being read there is nothing to drop yet."""
        if self._state == FIELDS:
            return
        self.path = None
        self.raw_path = None
        self.query_string = None
        self.headers = None
        self.upgrade = None

    # --------------------------------------------------------------- state changes

    cdef int _fail(self, int status, str reason) noexcept:
        if self._state <= FIELDS:
            # no half-read head, nor the request before this one, for the caller's log
            self._state = FAILED
            self.release()
            self.method = None
            self._authority = None
        self._state = FAILED
        self.error_status = status
        self.error_reason = reason
        return INVALID

    cdef void _become_idle(self) noexcept:
        self._state = BETWEEN
        self._empty_lines = 0

    cdef void _body_piece(self, const unsigned char* data, Py_ssize_t length) noexcept:
        # compared unsigned: `_remaining` may be up to 2**63 - 1
        if <uint64_t>length >= self._remaining:
            length = <Py_ssize_t>self._remaining
            self._state = COMPLETE if self._state == SIZED_BODY else CHUNK_CR
        self._remaining -= <uint64_t>length
        self.piece = <const char*>data
        self.piece_length = length

    # ------------------------------------------- lines in several parts, or wrong ones

    cdef void _drop_held(self) noexcept:
        free(self._held)
        self._held = NULL
        self._held_length = 0
        self._held_size = 0

    cdef int _hold(self, const unsigned char* data, Py_ssize_t length) except -1:
        cdef Py_ssize_t size = self._held_size
        cdef unsigned char* grown
        # The sum cannot overflow: both are lengths of memory blocks.
        if self._held_length + length > size:
            size = max(HELD_MIN, 2 * size, self._held_length + length)
            grown = <unsigned char*>realloc(self._held, size)
            if grown == NULL:
                raise MemoryError
            self._held = grown
            self._held_size = size
        memcpy(self._held + self._held_length, data, length)
        self._held_length += length
        return 0

    cdef Py_ssize_t _whole_lines(self, const unsigned char* data,
                                 const unsigned char* end) except -1:
        """Take the whole, good lines at `data`; how many bytes they were, 0 for none."""
        if self._state == FIELDS or self._state == TRAILERS:
            return self._field_lines(data, end)
        if self._state == REQUEST_LINE:
            return self._request_line(data, end)
        return self._chunk_line(data, end)

    cdef Py_ssize_t _one_line(self, const unsigned char* data,
                              const unsigned char* end) except -1:
        """Take the rest of one line, or hold it until there is more of it.

        Each byte is judged by its place alone, the same in one part or in many.
        Returns how many bytes were taken; nothing counts once the state is FAILED.
        """
        cdef const unsigned char* p = data
        cdef Py_ssize_t room
        cdef bint complete = False
        cdef unsigned char allowed
        cdef int status
        cdef str too_long, malformed
        if self._state == REQUEST_LINE:
            room = self.limit_line
            allowed = IN_LINE
            status = 414
            too_long = "request line too long"
            malformed = "malformed request line"
        elif self._state == CHUNK_SIZE:
            room = MAX_SIZE_DIGITS + MAX_LINE_EXTENSION
            allowed = IN_VALUE
            status = 400
            too_long = "chunk-size line too long"
            malformed = "malformed chunk size or extension"
        else:
            room = self.limit_field_bytes if self._state == FIELDS else MAX_TRAILER_BYTES
            room -= self._field_bytes + 2
            allowed = IN_VALUE
            status = 431
            too_long = "fields too long"
            malformed = "malformed field line"
            if self._fields >= self.limit_fields:
                room = 0
                too_long = "too many fields"

        if self._held_length and self._held[self._held_length - 1] == CR:
            if p[0] != LF:
                self._drop_held()
                self._fail(400, "bare CR")
                return 0
            p += 1
            complete = True
        else:
            room -= self._held_length
            while p < end:
                if p[0] == CR:
                    p += 1
                    if p == end:
                        break
                    if p[0] != LF:
                        self._drop_held()
                        self._fail(400, "bare CR")
                        return 0
                    p += 1
                    complete = True
                    break
                if room <= 0:
                    self._drop_held()
                    self._fail(status, too_long)
                    return 0
                if not CLASS[p[0]] & allowed:
                    self._drop_held()
                    self._fail(400, "bare LF" if p[0] == LF else "illegal byte in a line")
                    return 0
                room -= 1
                p += 1

        if self._held != NULL or not complete:
            self._hold(data, p - data)
            if not complete:
                return p - data
            if self._whole_lines(self._held, self._held + self._held_length) == 0:
                self._fail(400, malformed)
            self._drop_held()
        elif self._whole_lines(data, p) == 0:
            self._fail(400, malformed)
        return p - data

    # ------------------------------------------------------------- the request line

    cdef Py_ssize_t _request_line(self, const unsigned char* line,
                                  const unsigned char* end) except -1:
        """RFC 9112 section 3: method SP request-target SP HTTP-version CRLF.

        Returns the length of the line; 0 when it is not whole, not good or too long.
        """
        cdef const unsigned char* p = line
        cdef const unsigned char* target
        cdef const unsigned char* query = NULL
        cdef const unsigned char* target_end
        cdef bint escaped = False
        cdef str method

        p = skip_token(p, end)
        if p == line or p == end or p[0] != SPACE:
            return 0
        method = method_name(line, p - line)
        p += 1

        target = p
        while True:
            while p < end and CLASS[p[0]] & PLAIN:
                p += 1
            if p == end:
                return 0
            if p[0] == c"%":
                escaped = True
                p += 1
            elif p[0] == c"?":
                query = p
                while p < end and CLASS[p[0]] & IN_TARGET:
                    p += 1
                break
            else:
                break
        target_end = p
        # SP "HTTP/" DIGIT "." DIGIT CRLF
        if end - p < 11 or p[0] != SPACE or p == target or memcmp(p + 1, b"HTTP/", 5) != 0:
            return 0
        if (not c"0" <= p[6] <= c"9" or p[7] != c"." or not c"0" <= p[8] <= c"9"
                or p[9] != CR or p[10] != LF):
            return 0
        if p + 9 - line > self.limit_line:
            return 0
        if p[6] != c"1":
            self._fail(505, "not HTTP/1.x")
            return p + 11 - line
        if method == "CONNECT":
            self._fail(501, "CONNECT is not supported")
            return p + 11 - line

        # RFC 9110 section 2.5: a higher minor version is read as the highest known
        self.minor_version = 0 if p[8] == c"0" else 1
        self.method = method
        self._authority = None
        self._target(target, query, target_end, escaped)
        if self._state != FAILED:
            self._state = FIELDS
            self._seen = 0
            self._fields = 0
            self._field_bytes = 0
            self.content_length = -1
            self.upgrade = None
            self.headers = []
        return p + 11 - line

    cdef int _target(self, const unsigned char* target, const unsigned char* query,
                     const unsigned char* end, bint escaped) except -1:
        """Set path, raw_path, query_string and _authority. `query`: its "?", or NULL.

        `escaped`: there may be a "%" in the path.
        """
        cdef const unsigned char* path = target
        cdef const unsigned char* path_end = end if query == NULL else query
        cdef Py_ssize_t length
        if target[0] == c"/":
            pass
        elif end - target == 1 and target[0] == c"*":
            if self.method != "OPTIONS":            # RFC 9112 section 3.2.4
                self._fail(400, "target * without OPTIONS")
                return 0
        else:
            # absolute-form, RFC 9112 section 3.2.2
            length = path_end - target
            if length >= 7 and is_word(target, 4, b"http", 4) and target[4] == c":":
                path += 5
            elif length >= 8 and is_word(target, 5, b"https", 5) and target[5] == c":":
                path += 6
            else:
                self._fail(400, "malformed request target")
                return 0
            if path[0] != c"/" or path[1] != c"/":
                self._fail(400, "malformed request target")
                return 0
            path += 2
            target = path
            while path < path_end and path[0] != c"/":
                path += 1
            # userinfo falls through this too: RFC 9110 section 4.2.4
            if not is_authority(target, path):
                self._fail(400, "malformed authority in the request target")
                return 0
            self._authority = PyBytes_FromStringAndSize(<const char*>target, path - target)
        if query == NULL:
            self.query_string = b""
        else:
            self.query_string = PyBytes_FromStringAndSize(<const char*>query + 1, end - query - 1)
        length = path_end - path
        if length == 0 or length == 1 and path[0] == c"/":
            self.raw_path = b"/"
            self.path = "/"
            return 0
        self.raw_path = PyBytes_FromStringAndSize(<const char*>path, length)
        self.path = decode_path(path, length) if escaped else ascii_text(path, length)
        return 0

    # ---------------------------------------------------------- fields and trailers

    cdef Py_ssize_t _field_lines(self, const unsigned char* data,
                                 const unsigned char* end) except -1:
        """RFC 9112 section 5: take whole field lines, and the empty line behind them.

        Stops before a line that is not whole, not good or beyond a limit. Returns
        how many bytes were taken.
        """
        cdef unsigned char[SHORT_NAME] lower
        cdef unsigned char* long_lower
        cdef const unsigned char* line = data
        cdef const unsigned char* p
        cdef const unsigned char* value
        cdef const unsigned char* value_end
        cdef Py_ssize_t length, most, i
        cdef unsigned int slot, index
        cdef unsigned char c
        cdef int meaning
        cdef bint wanted = self._state == FIELDS
        cdef Py_ssize_t limit_bytes = self.limit_field_bytes if wanted else MAX_TRAILER_BYTES
        cdef list headers = self.headers
        cdef bytes name
        cdef tuple pair

        while True:
            most = end - line
            if most >= 2 and line[0] == CR and line[1] == LF:
                line += 2
                if wanted:
                    self._finish_head()
                else:
                    self._become_idle()
                break

            # the name: no byte but tchar before the colon, so no obs-fold either
            if most > SHORT_NAME:
                most = SHORT_NAME
            length = 0
            while length < most:
                c = TOKEN[line[length]]
                if c == 0:
                    break
                lower[length] = c
                length += 1
            p = skip_token(line + length, end)
            length = p - line
            if p == end or p[0] != c":" or length == 0:
                break
            p += 1

            # OWS value OWS CRLF
            value = skip_blanks(p, end)
            p = skip_value(value, end)
            if end - p < 2 or p[0] != CR or p[1] != LF:
                break
            value_end = p
            while value_end > value and is_blank((value_end - 1)[0]):
                value_end -= 1
            p += 2

            if self._fields >= self.limit_fields or p - line > limit_bytes - self._field_bytes:
                break
            self._fields += 1
            self._field_bytes += p - line
            if not wanted:
                line = p                # trailers are dropped, RFC 9110 section 6.5.1
                continue

            name = None
            pair = None
            meaning = NOTHING
            if length <= SHORT_NAME:
                slot = name_hash(lower, length)
                while True:
                    index = NAME_SLOT[slot]
                    if index == 0:
                        name = PyBytes_FromStringAndSize(<char*>lower, length)
                        break
                    if (KNOWN[index].length == length
                            and memcmp(KNOWN[index].text, lower, length) == 0):
                        name = <bytes>KNOWN[index].name
                        meaning = KNOWN[index].meaning
                        if (KNOWN[index].repeats and self.cache is not None
                                and value_end - value <= CACHED_MOST):
                            pair = self.cache.pair(KNOWN[index].name, value, value_end - value)
                        break
                    slot = (slot + 1) & (NAME_SLOTS - 1)
            else:
                name = PyBytes_FromStringAndSize(NULL, length)
                long_lower = <unsigned char*>PyBytes_AS_STRING(name)
                for i in range(length):
                    long_lower[i] = TOKEN[line[i]]
            if pair is None:
                pair = (name, PyBytes_FromStringAndSize(<const char*>value, value_end - value))
            if meaning != NOTHING:
                if self._field_meaning(meaning, value, value_end, <bytes>pair[1]) == INVALID:
                    line = p
                    break
                if meaning == HOST and self._authority is not None:
                    pair = (name, self._authority)  # RFC 9112 section 3.2.2
            headers.append(pair)
            line = p
        return line - data

    cdef int _field_meaning(self, int meaning, const unsigned char* value,
                            const unsigned char* end, bytes whole) except -1:
        """Note what a field says about the connection or the body; INVALID or 0.

        Only what is wrong by itself fails here, what is wrong together with other
        fields in `_finish_head`.
        """
        cdef uint64_t number = 0
        if meaning == HOST:
            # RFC 9112 section 3.2; RFC 9110 section 7.2
            if self._seen & SAW_HOST:
                return self._fail(400, "more than one Host")
            self._seen |= SAW_HOST
            if value < end and not is_authority(value, end):
                return self._fail(400, "malformed Host")
        elif meaning == CONTENT_LENGTH:
            # RFC 9112 section 6.3 allows equal repetitions to be merged; not everybody
            # does, and no client needs it
            if self._seen & SAW_LENGTH:
                return self._fail(400, "more than one Content-Length")
            self._seen |= SAW_LENGTH
            if value == end:
                return self._fail(400, "malformed Content-Length")
            while value < end:
                if not c"0" <= value[0] <= c"9":
                    return self._fail(400, "malformed Content-Length")
                # asked before it is computed, so that nothing can wrap
                if number > (<uint64_t>INT64_MAX - (value[0] - c"0")) / 10:
                    return self._fail(400, "Content-Length too large")
                number = number * 10 + (value[0] - c"0")
                value += 1
            self.content_length = <int64_t>number
        elif meaning == TRANSFER_ENCODING:
            if not self._read_codings(value, end):
                return self._fail(400, "malformed Transfer-Encoding")
        elif meaning == CONNECTION or meaning == TE:
            self._read_options(meaning, value, end)
        elif meaning == EXPECT:
            if is_word(value, end - value, b"100-continue", 12):
                self._seen |= EXPECTS_CONTINUE
            else:
                self._seen |= EXPECTS_OTHER
        elif self.upgrade is None:
            self.upgrade = whole
        else:
            self.upgrade += b", " + whole       # RFC 9110 section 5.3
        return 0

    cdef bint _read_codings(self, const unsigned char* value,
                            const unsigned char* end) noexcept:
        """RFC 9112 section 6.1, RFC 9110 section 10.1.4: a list of transfer codings.

        False for a list that is malformed or goes on behind "chunked". Unlike other
        lists it may have no empty elements: some take ",chunked" for another coding.
        """
        cdef const unsigned char* start
        cdef bint is_chunked
        while True:
            value = skip_blanks(value, end)
            start = value
            value = skip_token(value, end)
            if value == start or self._seen & ENDS_CHUNKED:
                return False
            is_chunked = is_word(start, value - start, b"chunked", 7)
            value = skip_blanks(value, end)
            while value < end and value[0] == c";":
                if is_chunked:
                    return False
                value = skip_blanks(value + 1, end)
                start = value
                value = skip_token(value, end)
                if value == start:
                    return False
                value = skip_blanks(value, end)
                if value == end or value[0] != c"=":
                    return False
                value = skip_blanks(value + 1, end)
                start = value
                if value < end and value[0] == c'"':
                    value += 1
                    while value < end and value[0] != c'"':
                        if value[0] == c"\\":
                            value += 1
                            if value == end:
                                return False
                        value += 1
                    if value == end:
                        return False
                    value += 1
                else:
                    value = skip_token(value, end)
                    if value == start:
                        return False
                value = skip_blanks(value, end)
            self._seen |= SAW_CODING | (ENDS_CHUNKED if is_chunked else SAW_OTHER_CODING)
            if value == end:
                return True
            if value[0] != c",":
                return False
            value += 1

    cdef void _read_options(self, int meaning, const unsigned char* value,
                            const unsigned char* end) noexcept:
        """Note the members of Connection (RFC 9110 section 7.6.1) or TE (section 10.1.4)
        that concern us."""
        cdef const unsigned char* start
        cdef const unsigned char* stop
        while value < end:
            value = start = skip_blanks(value, end)
            while value < end and value[0] != c",":
                value += 1
            stop = value
            while stop > start and is_blank((stop - 1)[0]):
                stop -= 1
            if meaning == TE:
                if is_word(start, stop - start, b"trailers", 8):
                    self._seen |= ACCEPTS_TRAILERS
            elif is_word(start, stop - start, b"keep-alive", 10):
                self._seen |= SAW_KEEP_ALIVE
            elif is_word(start, stop - start, b"close", 5):
                self._seen |= SAW_CLOSE
            elif is_word(start, stop - start, b"upgrade", 7):
                self._seen |= SAW_UPGRADE
            value += 1

    cdef int _finish_head(self) except -1:
        """The head is whole: what its fields say together. Sets the next state."""
        cdef int seen = self._seen
        cdef bint newer = self.minor_version > 0
        if not seen & SAW_HOST:
            if newer:
                self._fail(400, "no Host")
                return 0
            if self._authority is not None:
                self.headers.insert(0, (HOST_NAME, self._authority))
        self._authority = None
        if seen & SAW_CODING:
            # The two framings together, and chunked from a client that cannot know
            # it, are how requests are smuggled: RFC 9112 sections 6.1, 6.3 and 11.2
            if seen & SAW_LENGTH:
                self._fail(400, "both Content-Length and Transfer-Encoding")
                return 0
            if not newer:
                self._fail(400, "Transfer-Encoding in HTTP/1.0")
                return 0
            if not seen & ENDS_CHUNKED:
                self._fail(400, "Transfer-Encoding does not end with chunked")
                return 0
            if seen & SAW_OTHER_CODING:
                self._fail(501, "unknown transfer coding")
                return 0
        # RFC 9110 section 10.1.1
        if newer and seen & EXPECTS_OTHER:
            self._fail(417, "unknown expectation")
            return 0
        self.expect_continue = newer and seen & EXPECTS_CONTINUE != 0
        self.accepts_trailers = newer and seen & ACCEPTS_TRAILERS != 0
        # RFC 9112 section 9.3
        self.keep_alive = not seen & SAW_CLOSE and (newer or seen & SAW_KEEP_ALIVE != 0)
        if self.upgrade is not None and not (newer and seen & SAW_UPGRADE):
            self.upgrade = None                     # RFC 9110 section 7.8
        self.chunked = seen & SAW_CODING != 0
        if self.chunked:
            self._extension_bytes = 0
            self._state = CHUNK_SIZE
        elif self.content_length > 0:
            self._remaining = <uint64_t>self.content_length
            self._state = SIZED_BODY
        else:
            self._state = COMPLETE
        return 0

    # --------------------------------------------------------------------- chunks

    cdef Py_ssize_t _chunk_line(self, const unsigned char* line,
                                const unsigned char* end) noexcept:
        """RFC 9112 section 7.1: chunk-size [ BWS ";" chunk-ext ] CRLF.

        Returns the length of the line; 0 when it is not whole, not good or too long.
        Extensions are skipped, but counted: RFC 9112 section 7.1.1.
        """
        cdef const unsigned char* p = line
        cdef uint64_t size = 0
        cdef Py_ssize_t extension
        cdef unsigned char digit
        while p < end:
            digit = HEX_VALUE[p[0]]
            if digit == NOT_HEX:
                break
            if p - line == MAX_SIZE_DIGITS:         # so the shift loses nothing
                return 0
            size = size << 4 | digit
            p += 1
        if p == line or size > <uint64_t>INT64_MAX:
            return 0
        extension = p - line
        p = skip_blanks(p, end)
        if p < end and p[0] == c";":
            p = skip_value(p, end)
        elif p - line != extension:
            return 0
        if end - p < 2 or p[0] != CR or p[1] != LF:
            return 0
        extension = p - line - extension
        if (extension > MAX_LINE_EXTENSION
                or extension > MAX_BODY_EXTENSION - self._extension_bytes):
            return 0
        self._extension_bytes += <int>extension
        if size:
            self._remaining = size
            self._state = CHUNK_DATA
        else:
            self._fields = 0
            self._field_bytes = 0
            self._state = TRAILERS
        return p + 2 - line
