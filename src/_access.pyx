"""Access lines: facts of an exchange in, bytes out. No HTTP, no I/O.

The format comes as a list of parts and is gone through for each line; what a line costs is the
copying of its texts. A text of the client's is escaped on its way.

Nothing here runs Python code between the beginning and the end of a line, but for what is
called when it is whole, and what traces each line of the source. Lines are kept, and taken by
another thread, in one statement each: so whoever holds the interpreter's lock finds whole lines,
and each of them once.
"""

cimport cython
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE,
)
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from cpython.unicode cimport PyUnicode_1BYTE_DATA, PyUnicode_GET_LENGTH
from libc.string cimport memchr, memcpy, memmove, memset
from libc.time cimport time_t, tm
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, clockid_t, timespec


cdef extern from "<time.h>" nogil:
    tm* gmtime_r(const time_t*, tm*)

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(str)


cdef extern from *:
    """
    static const char fs_hex[] = "0123456789ABCDEF";

    /* What could end a quoted text or the line, or steer a terminal, is not plain (0); a space is
       (2) where it does not end the text. */
    static const unsigned char fs_plain[256] = {
        [' '] = 2, ['!'] = 3, ['#' ... '['] = 3, [']' ... '~'] = 3,
    };

    #define FS_EACH(c) (0x0101010101010101u * (c))

    /* Whether eight bytes are plain and none is below `least`, found by carries into their highest
       bits: such a bit may be wrong, but only above one that is right. */
    static inline int fs_are_plain(uint64_t bytes, unsigned char least) {
        uint64_t quote = bytes ^ FS_EACH('"');
        uint64_t backslash = bytes ^ FS_EACH('\\\\');
        uint64_t found = bytes | (bytes + FS_EACH(0x80 - 0x7f)) | ((bytes - FS_EACH(least)) & ~bytes)
            | ((quote - FS_EACH(1)) & ~quote) | ((backslash - FS_EACH(1)) & ~backslash);
        return !(found & FS_EACH(0x80));
    }

    /* At most four bytes for each, in JSON (RFC 8259 section 7, each byte as the character of this
       number) six. */
    static inline char* fs_escape(
        char* to, const char* from, Py_ssize_t length, int spaces, int json
    ) {
        const unsigned char least = spaces ? ' ' : '!';
        const unsigned char mask = spaces ? 2 : 1;
        const char* const end = from + length;
        uint64_t bytes;
        while (from < end) {
            const char* stop = end;
            if (end - from >= (Py_ssize_t)sizeof(bytes)) {
                memcpy(&bytes, from, sizeof(bytes));
                if (fs_are_plain(bytes, least)) {
                    memcpy(to, &bytes, sizeof(bytes));
                    from += sizeof(bytes);
                    to += sizeof(bytes);
                    continue;
                }
                stop = from + sizeof(bytes);
            }
            for (; from < stop; from++) {
                unsigned char c = (unsigned char)*from;
                if (fs_plain[c] & mask) {
                    *to++ = (char)c;
                    continue;
                }
                *to++ = '\\\\';
                if (json && (c == '"' || c == '\\\\')) {
                    *to++ = (char)c;
                    continue;
                }
                if (json) {
                    *to++ = 'u';
                    *to++ = '0';
                    *to++ = '0';
                } else {
                    *to++ = 'x';
                }
                *to++ = fs_hex[c >> 4];
                *to++ = fs_hex[c & 15];
            }
        }
        return to;
    }

    /* In decimal, with at least so many digits and at most 19; `number` is not negative. */
    static inline char* fs_decimal(char* to, int64_t number, int digits) {
        uint64_t left = (uint64_t)number;
        int length = 1;
        for (uint64_t power = 10; left >= power; power *= 10)
            length++;
        if (length < digits)
            length = digits;
        for (int i = length - 1; i >= 0; i--) {
            to[i] = (char)('0' + left % 10);
            left /= 10;
        }
        return to + length;
    }

    /* `name` is in lower case. */
    static inline int fs_is_name(const char* field, const char* name, Py_ssize_t length) {
        for (Py_ssize_t i = 0; i < length; i++) {
            char c = field[i];
            if (c >= 'A' && c <= 'Z')
                c = (char)(c + ('a' - 'A'));
            if (c != name[i])
                return 0;
        }
        return 1;
    }

    /* A line from `start` to `end` goes behind the `used` bytes; how many they are then. */
    static inline Py_ssize_t fs_keep(
        char* block, Py_ssize_t used, Py_ssize_t start, Py_ssize_t end
    ) {
        if (used != start)
            memmove(block + used, block + start, (size_t)(end - start));
        return used + end - start;
    }

    static inline int fs_is_id(const char* text, Py_ssize_t length) {
        for (Py_ssize_t i = 0; i < length; i++) {
            char c = text[i];
            if (!((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z')
                  || c == '-' || c == '_' || c == '.' || c == ':' || c == '+' || c == '/'
                  || c == '=' || c == '@'))
                return 0;
        }
        return length > 0;
    }

    static inline int fs_base64_value(char c) {
        return c >= 'A' && c <= 'Z' ? c - 'A' : c >= 'a' && c <= 'z' ? c - 'a' + 26
             : c >= '0' && c <= '9' ? c - '0' + 52 : c == '+' ? 62 : c == '/' ? 63 : -1;
    }

    /* Decodes `text` (RFC 4648 section 4); how many bytes that are, or -1 if it is not base64. */
    static inline Py_ssize_t fs_base64(char* to, const char* text, Py_ssize_t length) {
        char* begin = to;
        unsigned int bits = 0;
        int padding = 0;
        if (length % 4)
            return -1;
        while (length && padding < 2 && text[length - 1] == '=') {
            length--;
            padding++;
        }
        for (Py_ssize_t i = 0; i < length; i++) {
            int value = fs_base64_value(text[i]);
            if (value < 0)
                return -1;
            bits = bits << 6 | (unsigned int)value;
            if (i % 4)
                *to++ = (char)(bits >> (6 - 2 * (i % 4)));
        }
        return to - begin;
    }
    """
    Py_ssize_t fs_keep(
        char* block, Py_ssize_t used, Py_ssize_t start, Py_ssize_t end
    ) noexcept
    char* fs_escape(
        char* to, const char* from_, Py_ssize_t length, bint spaces, bint json
    ) noexcept
    char* fs_decimal(char* to, int64_t number, int digits) noexcept
    bint fs_is_name(const char* field, const char* name, Py_ssize_t length) noexcept
    bint fs_is_id(const char* text, Py_ssize_t length) noexcept
    Py_ssize_t fs_base64(char* to, const char* text, Py_ssize_t length) noexcept


cdef enum What:
    TEXT                            # the argument as it is
    HOST
    USER
    TIME
    REQUEST
    TARGET
    METHOD
    PATH
    QUERY
    VERSION
    SCHEME
    STATUS
    REASON
    SENT
    SENT_OR_NONE
    RECEIVED
    SECONDS
    DECIMAL_SECONDS
    MILLISECONDS
    MICROSECONDS
    FIRST_BYTE
    QUEUED
    ID
    TLS_VERSION
    TLS_CIPHER
    ASKED                           # a field of the request, by its name in lower case
    ANSWERED                        # and of the response
    END                             # of the line

# The names of the parts, in the same order.
cdef tuple PARTS = (
    "text", "host", "user", "time", "request", "target", "method", "path", "query", "version",
    "scheme", "status", "reason", "sent", "sent_or_none", "received", "seconds",
    "decimal_seconds", "milliseconds", "microseconds", "first_byte", "queued", "id",
    "tls_version", "tls_cipher", "asked", "answered",
)
cdef tuple STYLES = ("word", "quoted", "json")

cdef const char* _months = "JanFebMarAprMayJunJulAugSepOctNovDec"
cdef const char* _hex_digits = "0123456789abcdef"
cdef bytes ID_FIELD = b"x-request-id"


cdef int64_t _microseconds(clockid_t clock) noexcept:
    cdef timespec now
    clock_gettime(clock, &now)
    return <int64_t>now.tv_sec * 1000000 + now.tv_nsec // 1000


cdef int64_t monotonic() noexcept:
    return _microseconds(CLOCK_MONOTONIC)


@cython.final
@cython.no_gc           # nothing that it refers to can have got hold of it
@cython.freelist(64)
cdef class Entry:
    """What the access line will tell of one exchange: the server writes into it as it goes."""

    cdef object keep_answered(self, object fields):
        """The response's fields as the application gave them, whatever they are; to be gone
        through once more."""
        if self.keeps_answered:
            if not isinstance(fields, (list, tuple, str, bytes, dict)) and hasattr(
                fields, "__iter__"
            ):
                fields = list(fields)
            if isinstance(fields, (list, tuple)):
                self.answered = tuple(fields)
        return fields


cdef inline int _make_room(LineBuffer buffer, Py_ssize_t length) except -1:
    return 0 if buffer.size - buffer.at >= length else buffer.grow(length)


cdef inline int _add(LineBuffer buffer, const char* data, Py_ssize_t length) except -1:
    _make_room(buffer, length)
    memcpy(buffer.block + buffer.at, data, length)
    buffer.at += length
    return 0


@cython.final
cdef class LineBuffer:
    """Lines, one behind the other; the last one may not be whole yet.

    Resource handling: one block, which grows geometrically."""

    def __cinit__(self):
        self.block = <char*>PyMem_Malloc(BLOCK_SIZE)
        if self.block == NULL:
            raise MemoryError()
        self.size = BLOCK_SIZE
        self.second = -1

    def __dealloc__(self):
        PyMem_Free(self.block)

    cdef int grow(self, Py_ssize_t length) except -1:
        """Make room for `length` more bytes."""
        cdef Py_ssize_t size = self.size
        cdef char* grown
        while size - self.at < length:
            size *= 2
        grown = <char*>PyMem_Realloc(self.block, size)
        if grown == NULL:
            raise MemoryError()
        self.block = grown
        self.size = size
        return 0

    cdef int add_bytes(self, bytes text, int style) except -1:
        """`text`, or None, escaped."""
        if text is None:
            return self.add_none(style)
        return self.add_escaped(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text), style)

    cdef int add_str(self, str text, int style) except -1:
        """The same for a str, as UTF-8."""
        if text is None:
            return self.add_none(style)
        if PyUnicode_IS_ASCII(text):
            return self.add_escaped(
                <const char*>PyUnicode_1BYTE_DATA(text), PyUnicode_GET_LENGTH(text), style
            )
        return self.add_bytes(text.encode("utf-8", "surrogatepass"), style)

    cdef int add_escaped(self, const char* data, Py_ssize_t length, int style) except -1:
        cdef char* to
        if style == STYLE_JSON:
            _make_room(self, 6 * length + 2)
            to = self.block + self.at
            to[0] = c'"'
            to = fs_escape(to + 1, data, length, True, True)
            to[0] = c'"'
            to += 1
        elif length == 0:
            return self.add_none(style)
        else:
            _make_room(self, 4 * length)
            to = fs_escape(self.block + self.at, data, length, style == STYLE_QUOTED, False)
        self.at = to - self.block
        return 0

    cdef int add_none(self, int style) except -1:
        return _add(self, b"null", 4) if style == STYLE_JSON else _add(self, b"-", 1)

    cdef int add_number(self, int64_t number, int digits) except -1:
        """In decimal, with at least so many digits; `number` is not negative."""
        _make_room(self, DIGITS_MOST)
        self.at = fs_decimal(self.block + self.at, number, digits) - self.block
        return 0

    cdef int add_time(self, int64_t moment, int style) except -1:
        """[22/Nov/2026:08:00:00 +0000], and in JSON "2026-11-22T08:00:00.123456Z" (RFC 3339)."""
        cdef int64_t second = moment // 1000000
        if second != self.second:
            self._make_stamps(second)
        if style != STYLE_JSON:
            return _add(self, self.stamp, 28)
        _add(self, b'"', 1)
        _add(self, self.iso_stamp, 19)
        _add(self, b".", 1)
        self.add_number(moment % 1000000, 6)
        return _add(self, b'Z"', 2)

    cdef int _make_stamps(self, int64_t second) except -1:
        cdef time_t now = <time_t>second
        cdef tm parts
        cdef Py_ssize_t before = self.at
        self.second = second
        gmtime_r(&now, &parts)
        _add(self, b"[", 1)
        self.add_number(parts.tm_mday, 2)
        _add(self, b"/", 1)
        _add(self, _months + 3 * parts.tm_mon, 3)
        _add(self, b"/", 1)
        self.add_number(parts.tm_year + 1900, 4)
        self._add_clock(b":", &parts)
        _add(self, b" +0000]", 7)
        memcpy(self.stamp, self.block + before, 28)
        self.at = before
        self.add_number(parts.tm_year + 1900, 4)
        _add(self, b"-", 1)
        self.add_number(parts.tm_mon + 1, 2)
        _add(self, b"-", 1)
        self.add_number(parts.tm_mday, 2)
        self._add_clock(b"T", &parts)
        memcpy(self.iso_stamp, self.block + before, 19)
        self.at = before
        return 0

    cdef int _add_clock(self, const char* before, tm* parts) except -1:
        _add(self, before, 1)
        self.add_number(parts.tm_hour, 2)
        _add(self, b":", 1)
        self.add_number(parts.tm_min, 2)
        _add(self, b":", 1)
        return self.add_number(parts.tm_sec, 2)

    cdef int pad(self, Py_ssize_t start, int width) except -1:
        """Fill up what was added since `start` with spaces."""
        cdef Py_ssize_t length = self.at - start
        cdef Py_ssize_t missing = (width if width > 0 else -width) - length
        cdef char* begin
        if missing <= 0:
            return 0
        _make_room(self, missing)
        begin = self.block + start
        if width > 0:
            memmove(begin + missing, begin, length)
            memset(begin, c" ", missing)
        else:
            memset(begin + length, c" ", missing)
        self.at += missing
        return 0


@cython.final
cdef class AccessLines:
    """A line for each exchange, until somebody takes them.

    Resource handling: keeps at most LINES_MOST bytes; a line beyond them is dropped and
    counted.
    """

    def __init__(
        self, parts, *, wake, full, names=None, excluded=(), double sample=1, bytes seed=bytes(8)
    ):
        """`parts`: tuples of a name, the style of its text, its width and its argument; see
        fastserve.access. `names`: texts for numbers, of `reason`, `tls_version` and `tls_cipher`.
        `excluded`: raw paths without a line; one that ends with * stands for all that begin so.
        `sample`: the share of the other requests that have a line; those that fail (a status
        from 500 on) always have one. `wake(None)` and `full()` are called in the thread of
        the exchanges. `seed`: 8 random bytes."""
        cdef bytes text = b""
        self.buffer = LineBuffer()
        self.wake = wake
        self.full = full
        self.names = names or {}
        self.excludes = bool(excluded)
        self.excluded = frozenset([path for path in excluded if not path.endswith(b"*")])
        self.excluded_below = tuple(
            [path.removesuffix(b"*") for path in excluded if path.endswith(b"*")]
        )
        self.share = <uint64_t>(sample * 4294967296.0)
        self.random = int.from_bytes(seed, "little")
        self.kept = []
        self.parts = <Part*>PyMem_Malloc((len(parts) + 1) * sizeof(Part))
        if self.parts == NULL:
            raise MemoryError()
        for what, style, width, argument in parts:
            if what == "text" and not width:
                text += argument
            else:
                self._add_part(PARTS.index(what), STYLES.index(style), width, text, argument)
                text = b""
        self._add_part(END, STYLE_WORD, 0, text + b"\n", b"")

    def __dealloc__(self):
        PyMem_Free(self.parts)

    cdef int _add_part(
        self, int what, int style, int width, bytes text, bytes argument
    ) except -1:
        cdef Part* part = &self.parts[self.count]
        self.kept += [text, argument]
        part.what = what
        part.style = style
        part.width = width
        part.text = PyBytes_AS_STRING(text)
        part.text_length = PyBytes_GET_SIZE(text)
        part.argument = PyBytes_AS_STRING(argument)
        part.argument_length = PyBytes_GET_SIZE(argument)
        self.count += 1
        return self._ask_for(what)

    cdef int _ask_for(self, int what) except -1:
        if what == ASKED or what == USER:
            self.wants_asked = True
        elif what == ANSWERED:
            self.wants_answered = True
        elif what == ID:
            self.wants_id = True
        elif what == QUEUED:
            self.wants_called = True
        elif what == FIRST_BYTE:
            self.wants_started = True
        elif what == TIME:
            self.wants_moment = True
        return 0

    def take(self):
        """The lines so far, as `bytes`, and how many more were dropped."""
        cdef LineBuffer buffer = self.buffer
        cdef bytes lines
        cdef Py_ssize_t dropped
        lines, buffer.used = PyBytes_FromStringAndSize(buffer.block, buffer.used), 0
        dropped, self.dropped = self.dropped, 0
        return lines, dropped

    def write(
        self, *, client=None, str method="GET", bytes raw_path=b"/", bytes query_string=b"",
        int minor_version=1, str scheme="http", dict tls=None, headers=(), answered=(),
        int status=200, int64_t sent=0, int64_t received=0, int64_t duration=0, queued=None,
        first_byte=None, int64_t moment=0, bint trusted=False,
    ):
        """A line for an exchange of which all this is told (for tests): times in microseconds,
        `moment` since 1970."""
        cdef Entry entry = self.begin(
            method, raw_path, query_string, minor_version, list(headers), client, scheme, tls,
            trusted,
        )
        if entry is None:
            return
        entry.keep_answered(answered)
        entry.status = status
        entry.sent = sent
        entry.received = received
        entry.ended = entry.begun + duration
        entry.moment = moment
        entry.called = 0 if queued is None else entry.begun + <int64_t>queued
        entry.started = 0 if first_byte is None else entry.begun + <int64_t>first_byte
        self._append(entry)

    # What the server tells, in this order.

    cdef Entry begin(
        self, str method, bytes raw_path, bytes query_string, int minor_version, list headers,
        object client, str scheme, object tls, bint trusted,
    ):
        """A request has arrived; None: nothing has to be told of it. Where a line has its id,
        `headers` has it as well from then on: the one that a `trusted` peer has given, or a
        new one."""
        cdef Entry entry
        cdef bytes id = self._identify(headers, trusted) if self.wants_id else None
        if self.excludes and self._excludes(raw_path):
            return None
        entry = Entry.__new__(Entry)
        entry.id = id
        entry.client = client
        entry.method = method
        entry.raw_path = raw_path
        entry.query_string = query_string
        entry.is_http10 = minor_version == 0
        entry.scheme = scheme
        entry.tls = tls
        if self.wants_asked:
            # The list itself is the application's, which may change it.
            entry.asked = tuple(headers)
        entry.keeps_answered = self.wants_answered
        entry.begun = monotonic()
        return entry

    cdef int call(self, Entry entry) noexcept:
        """The application is being called."""
        if self.wants_called:
            entry.called = monotonic()
        return 0

    cdef int start(self, Entry entry, int status) noexcept:
        """The head of the response is being written."""
        entry.status = status
        if self.wants_started:
            entry.started = monotonic()
        return 0

    cdef int end(self, Entry entry) except -1:
        """The exchange has ended: its line is written."""
        if entry.status < 500 and (self._next_random() >> 32) >= self.share:
            return 0
        if not entry.ended:     # else whoever ended it has looked at the clock
            entry.ended = monotonic()
        if self.wants_moment:
            entry.moment = entry.ended + self._since_1970(entry.ended)
        return self._append(entry)

    cdef int64_t _since_1970(self, int64_t now) noexcept:
        """What is to be added to a moment of the monotonic clock; the other one is looked at
        once a second."""
        if now >= self.compare_at:
            self.offset = _microseconds(CLOCK_REALTIME) - monotonic()
            self.compare_at = now + 1000000
        return self.offset

    cdef bint _excludes(self, bytes raw_path) except -1:
        cdef bytes below
        if raw_path in self.excluded:
            return True
        for below in self.excluded_below:
            if raw_path.startswith(below):
                return True
        return False

    cdef bytes _identify(self, list headers, bint trusted):
        cdef bytes id = None
        cdef bytes name, value
        cdef uint64_t half
        cdef char[32] text
        cdef Py_ssize_t index = len(headers)
        cdef int digit
        while index:
            index -= 1
            name, value = <tuple?>headers[index]
            if name == ID_FIELD:
                if (
                    trusted and PyBytes_GET_SIZE(value) <= ID_MOST
                    and fs_is_id(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
                ):
                    id = value
                del headers[index]
        if id is None:
            half = self._next_random()
            for digit in range(32):
                if digit == 16:
                    half = self._next_random()
                text[digit] = _hex_digits[half & 15]
                half >>= 4
            id = PyBytes_FromStringAndSize(text, 32)
        headers.append((ID_FIELD, id))
        return id

    cdef uint64_t _next_random(self) noexcept:
        """Splitmix64: spread evenly, and not to be relied on by anybody who keeps secrets."""
        cdef uint64_t mixed
        self.random += <uint64_t>0x9E3779B97F4A7C15
        mixed = self.random
        mixed = (mixed ^ (mixed >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
        mixed = (mixed ^ (mixed >> 27)) * <uint64_t>0x94D049BB133111EB
        return mixed ^ (mixed >> 31)

    # A line.

    cdef int _append(self, Entry entry) except -1:
        cdef int index
        cdef LineBuffer buffer = self.buffer
        cdef Py_ssize_t start = buffer.used
        buffer.at = start
        if start < LINES_MOST:
            for index in range(self.count):
                self._put(&self.parts[index], entry)
        if start == buffer.at or buffer.at > LINES_MOST:
            self.dropped += 1
            if self.dropped == 1:
                self.full()
            return 0
        buffer.used = fs_keep(buffer.block, buffer.used, start, buffer.at)
        if buffer.used == buffer.at - start or (start < HURRY_AT <= buffer.used):
            self.wake(None)
        return 0

    cdef int _put(self, Part* part, Entry entry) except -1:
        cdef Py_ssize_t start
        cdef int what = part.what, style = part.style
        _add(self.buffer, part.text, part.text_length)
        start = self.buffer.at
        if what == END:
            return 0
        if what == TEXT:
            _add(self.buffer, part.argument, part.argument_length)
        elif what == HOST:
            self._put_host(entry.client, style)
        elif what == TIME:
            self.buffer.add_time(entry.moment, style)
        elif what == REQUEST:
            self.buffer.add_str(entry.method, STYLE_WORD)
            _add(self.buffer, b" ", 1)
            self._put_target(entry)
            _add(self.buffer, b" HTTP/1.0" if entry.is_http10 else b" HTTP/1.1", 9)
        elif what == TARGET:
            self._put_target(entry)
        elif what == METHOD:
            self.buffer.add_str(entry.method, style)
        elif what == PATH:
            self.buffer.add_bytes(entry.raw_path, style)
        elif what == QUERY:
            if style == STYLE_JSON or PyBytes_GET_SIZE(entry.query_string):
                self.buffer.add_bytes(entry.query_string, style)
        elif what == VERSION:
            self.buffer.add_str("HTTP/1.0" if entry.is_http10 else "HTTP/1.1", style)
        elif what == SCHEME:
            self.buffer.add_str(entry.scheme, style)
        elif what == REASON:
            self._put_name("reason", entry.status, style)
        elif what == TLS_VERSION:
            self._put_name("tls_version", _of_tls(entry, "tls_version"), style)
        elif what == TLS_CIPHER:
            self._put_name("tls_cipher", _of_tls(entry, "cipher_suite"), style)
        elif what == ID:
            self.buffer.add_bytes(entry.id, style)
        elif what == USER:
            self._put_user(entry.asked, style)
        elif what == ASKED:
            self._put_field(entry.asked, part)
        elif what == ANSWERED:
            self._put_field(entry.answered, part)
        else:
            self._put_number(part, entry)
        return self.buffer.pad(start, part.width) if part.width else 0

    cdef int _put_number(self, Part* part, Entry entry) except -1:
        cdef int64_t number = -1        # none
        cdef int64_t duration = entry.ended - entry.begun
        cdef int what = part.what
        if what == STATUS:
            number = entry.status or -1
        elif what == SENT:
            number = entry.sent
        elif what == SENT_OR_NONE:
            number = entry.sent or -1
        elif what == RECEIVED:
            number = entry.received
        elif what == SECONDS or what == DECIMAL_SECONDS:
            number = duration // 1000000
        elif what == MILLISECONDS:
            number = duration // 1000
        elif what == MICROSECONDS:
            number = duration
        elif what == FIRST_BYTE and entry.started:
            number = entry.started - entry.begun
        elif what == QUEUED and entry.called:
            number = entry.called - entry.begun
        if number < 0:
            return self.buffer.add_none(part.style)
        self.buffer.add_number(number, 1)
        if what == DECIMAL_SECONDS:
            _add(self.buffer, b".", 1)
            self.buffer.add_number(duration % 1000000, 6)
        return 0

    cdef int _put_target(self, Entry entry) except -1:
        self.buffer.add_bytes(entry.raw_path, STYLE_WORD)
        if PyBytes_GET_SIZE(entry.query_string):
            _add(self.buffer, b"?", 1)
            self.buffer.add_bytes(entry.query_string, STYLE_WORD)
        return 0

    cdef int _put_host(self, object client, int style) except -1:
        """A proxy may have told it, and a unix socket's peer may choose its own name."""
        cdef object host = client
        if isinstance(client, tuple) and PyTuple_GET_SIZE(client):
            host = (<tuple>client)[0]
        return self.buffer.add_str(host if isinstance(host, str) else None, style)

    cdef int _put_field(self, tuple fields, Part* part) except -1:
        """The values of all fields of this name, with a comma between them."""
        cdef bytes value, found = None
        cdef object pair
        for pair in fields or ():
            value = _value_of(pair, part.argument, part.argument_length)
            if value is not None:
                found = value if found is None else found + b", " + value
        return self.buffer.add_bytes(found, part.style)

    cdef int _put_user(self, tuple fields, int style) except -1:
        """The user's name in Basic credentials (RFC 7617); nobody has checked it here."""
        cdef bytes value = None, name
        cdef object pair
        cdef const char* colon
        cdef Py_ssize_t length
        for pair in fields or ():
            value = _value_of(pair, b"authorization", 13)
            if value is not None and value[:6].lower() == b"basic ":
                value = value[6:].strip()
                name = PyBytes_FromStringAndSize(NULL, PyBytes_GET_SIZE(value))
                length = fs_base64(
                    PyBytes_AS_STRING(name), PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value)
                )
                if length > 0:
                    colon = <const char*>memchr(PyBytes_AS_STRING(name), c":", length)
                    if colon != NULL:
                        length = colon - PyBytes_AS_STRING(name)
                    return self.buffer.add_escaped(PyBytes_AS_STRING(name), length, style)
                break
        return self.buffer.add_none(style)

    cdef int _put_name(self, str kind, object number, int style) except -1:
        cdef dict names = self.names.get(kind)
        return self.buffer.add_bytes(None if names is None else names.get(number), style)


cdef object _of_tls(Entry entry, str key):
    return None if entry.tls is None else entry.tls.get(key)


cdef bytes _value_of(object pair, const char* name, Py_ssize_t length):
    """The value of this field, if it has that name. An application's may be anything."""
    cdef object field, value
    if isinstance(pair, tuple) and PyTuple_GET_SIZE(pair) == 2:
        field = <object>PyTuple_GET_ITEM(pair, 0)
        value = <object>PyTuple_GET_ITEM(pair, 1)
    elif isinstance(pair, list) and PyList_GET_SIZE(pair) == 2:
        field = <object>PyList_GET_ITEM(pair, 0)
        value = <object>PyList_GET_ITEM(pair, 1)
    else:
        return None
    if (
        isinstance(field, bytes) and isinstance(value, bytes)
        and PyBytes_GET_SIZE(field) == length
        and fs_is_name(PyBytes_AS_STRING(field), name, length)
    ):
        # Not of a subclass, whose methods are Python code.
        if PyBytes_CheckExact(value):
            return value
        return PyBytes_FromStringAndSize(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    return None
