"""Response heads and chunk framing: facts in, bytes out. No I/O.

What an application hands over is checked and serialised in the same pass, so that
nothing it changes afterwards can reach the wire unchecked. The lines that frame the
message (Content-Length when the application stated none, Transfer-Encoding,
Connection) are the connection's business and are appended by it.
"""

import http

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport INT64_MAX
from libc.string cimport memcpy
from libc.time cimport time, time_t, tm


cdef extern from "<time.h>" nogil:
    tm* gmtime_r(const time_t*, tm*)


cdef extern from *:
    """
    /* RFC 9110 section 5.6.2: tchar, as the lower-case letter; 0 for every other byte. */
    static const unsigned char fs_tchar[256] = {
        ['!'] = '!', ['#'] = '#', ['$'] = '$', ['%'] = '%', ['&'] = '&', ['\\''] = '\\'',
        ['*'] = '*', ['+'] = '+', ['-'] = '-', ['.'] = '.', ['^'] = '^', ['_'] = '_',
        ['`'] = '`', ['|'] = '|', ['~'] = '~',
        ['0'] = '0', '1', '2', '3', '4', '5', '6', '7', '8', '9',
        ['A'] = 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm',
                'n', 'o', 'p', 'q', 'r', 's', 't', 'u', 'v', 'w', 'x', 'y', 'z',
        ['a'] = 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm',
                'n', 'o', 'p', 'q', 'r', 's', 't', 'u', 'v', 'w', 'x', 'y', 'z',
    };

    /* RFC 9110 section 5.5: VCHAR, SP, HTAB and obs-text may stand in a field value. */
    static inline int fs_is_field_byte(unsigned char c) {
        return (c >= 0x20 && c != 0x7f) || c == '\\t';
    }

    /* A copy of `length` bytes; 0 if one of them may not stand in a field value. */
    static inline int fs_copy_value(char* to, const char* from, Py_ssize_t length) {
        int good = 1;
        for (Py_ssize_t i = 0; i < length; i++) {
            unsigned char c = (unsigned char)from[i];
            good &= fs_is_field_byte(c);
            to[i] = (char)c;
        }
        return good;
    }

    /* A copy of a field name; 0 if it is not a token. */
    static inline int fs_copy_name(char* to, const char* from, Py_ssize_t length) {
        int good = length > 0;
        for (Py_ssize_t i = 0; i < length; i++) {
            good &= fs_tchar[(unsigned char)from[i]] != 0;
            to[i] = from[i];
        }
        return good;
    }

    /* Case-insensitive comparison with `name`, which is in lower case. */
    static inline int fs_same_name(const char* field, const char* name, Py_ssize_t length) {
        for (Py_ssize_t i = 0; i < length; i++)
            if (fs_tchar[(unsigned char)field[i]] != (unsigned char)name[i])
                return 0;
        return 1;
    }

    /* Fields that the server acts on, or keeps from the wire. */
    enum { FS_ORDINARY, FS_CONTENT_LENGTH, FS_CONNECTION, FS_DATE, FS_SERVER, FS_HOP, FS_WEBSOCKET };

    static inline int fs_classify(const char* name, Py_ssize_t length) {
        switch (length) {
        case 2:
            return fs_same_name(name, "te", 2) ? FS_HOP : FS_ORDINARY;
        case 4:
            return fs_same_name(name, "date", 4) ? FS_DATE : FS_ORDINARY;
        case 6:
            return fs_same_name(name, "server", 6) ? FS_SERVER : FS_ORDINARY;
        case 7:
            return fs_same_name(name, "upgrade", 7) ? FS_HOP : FS_ORDINARY;
        case 10:
            return fs_same_name(name, "connection", 10) ? FS_CONNECTION
                 : fs_same_name(name, "keep-alive", 10) ? FS_HOP : FS_ORDINARY;
        case 14:
            return fs_same_name(name, "content-length", 14) ? FS_CONTENT_LENGTH : FS_ORDINARY;
        case 16:
            return fs_same_name(name, "proxy-connection", 16) ? FS_HOP : FS_ORDINARY;
        case 17:
            if (fs_same_name(name, "transfer-encoding", 17))
                return FS_HOP;
        }
        return length > 14 && fs_same_name(name, "sec-websocket-", 14) ? FS_WEBSOCKET : FS_ORDINARY;
    }
    """
    enum: FS_ORDINARY, FS_CONTENT_LENGTH, FS_CONNECTION, FS_DATE, FS_SERVER, FS_HOP, FS_WEBSOCKET
    int fs_classify(const char* name, Py_ssize_t length) noexcept
    int fs_copy_name(char* to, const char* from_, Py_ssize_t length) noexcept
    int fs_copy_value(char* to, const char* from_, Py_ssize_t length) noexcept


cdef bytes _status_line(int status):
    try:
        reason = http.HTTPStatus(status).phrase
    except ValueError:
        reason = ""     # RFC 9112 section 4: it may be empty, the space before it may not
    return f"HTTP/1.1 {status} {reason}\r\n".encode()


# From 200 on: an interim response is not the application's to start.
cdef enum:
    FIRST_STATUS = 200
    LAST_STATUS = 999
cdef bytes _switching_protocols = _status_line(101)
cdef bytes _early_hints = _status_line(103)
cdef tuple _status_lines = tuple([_status_line(n) for n in range(FIRST_STATUS, LAST_STATUS + 1)])

cdef const char* _hex_digits = "0123456789abcdef"
cdef const char* _days = "SunMonTueWedThuFriSat"
cdef const char* _months = "JanFebMarAprMayJunJulAugSepOctNovDec"


@cython.final
cdef class DateLine:
    """The Date field line (RFC 9110 section 6.6.1), rendered once a second."""

    def __cinit__(self):
        memcpy(self.line, <const char*>b"date: ___, __ ___ ____ __:__:__ GMT\r\n", DATE_LINE_LENGTH)

    def render(self):
        """The line for the present second, as `bytes`."""
        cdef SendBuffer out = SendBuffer()
        self.append_to(out)
        return out.peek()

    cdef int append_to(self, SendBuffer out) except -1:
        cdef time_t now = time(NULL)
        cdef tm parts
        if now != self.second:
            gmtime_r(&now, &parts)
            memcpy(self.line + 6, _days + 3 * parts.tm_wday, 3)
            _two_digits(self.line + 11, parts.tm_mday)
            memcpy(self.line + 14, _months + 3 * parts.tm_mon, 3)
            _two_digits(self.line + 18, (parts.tm_year + 1900) // 100)
            _two_digits(self.line + 20, (parts.tm_year + 1900) % 100)
            _two_digits(self.line + 23, parts.tm_hour)
            _two_digits(self.line + 26, parts.tm_min)
            _two_digits(self.line + 29, parts.tm_sec)
            self.second = now
        return out.append(self.line, DATE_LINE_LENGTH)


cdef void _two_digits(char* to, int value) noexcept:
    to[0] = <char>(c"0" + value // 10)
    to[1] = <char>(c"0" + value % 10)


@cython.final
@cython.freelist(16)
cdef class ResponseHead:
    """The status line and the application's field lines, checked and serialised.

    What an application may not decide is left out: Transfer-Encoding and the other
    hop-by-hop fields (RFC 9110 section 7.6.1), and a Content-Length where none may be
    (section 8.6). `Connection: close` is noted in `close`.
    """

    def __cinit__(self):
        self._block = self._small
        self._size = HEAD_INLINE
        self.content_length = -1

    def __dealloc__(self):
        if self._block != self._small:
            PyMem_Free(self._block)

    def begin(self, status, headers=()):
        """As `http.response.start` does. Raises TypeError or ValueError."""
        self.start("http.response.start", status, headers)

    def render(self):
        """The lines so far, without the empty one at the end, as `bytes`."""
        return self._block[:self._used]

    cdef int start(self, str message, object status, object headers) except -1:
        """Check and serialise; on an error the object is not to be used again. `message`:
        the ASGI message that they are of.

        Raises TypeError, ValueError: what is wrong, by the names of the ASGI message."""
        self._message = message
        if not isinstance(status, int):
            raise TypeError(f"{self._message}: status must be an int, not {_kind(status)}")
        if not FIRST_STATUS <= status <= LAST_STATUS:
            raise ValueError(
                f"{self._message}: status must be {FIRST_STATUS} to {LAST_STATUS}, not {status}"
            )
        self.status = status
        return self._begin(<bytes>_status_lines[self.status - FIRST_STATUS], headers)

    cdef int switch_protocols(self, object headers) except -1:
        """The same for a 101 (RFC 9110 section 15.2.2)."""
        self.status = 101
        self._message = "websocket.accept"
        return self._begin(_switching_protocols, headers)

    cdef int early_hint(self, object links) except -1:
        """The whole head of a 103 (RFC 8297) with these Link fields; how many they are."""
        cdef object link
        cdef Py_ssize_t length
        cdef int count = 0
        self.status = 103
        self._message = "http.response.early_hint"
        self._used = PyBytes_GET_SIZE(_early_hints)
        memcpy(self._block, PyBytes_AS_STRING(_early_hints), self._used)
        if isinstance(links, (str, bytes, dict)) or not hasattr(links, "__iter__"):
            raise TypeError(f"{self._message}: links must be bytes objects, not {_kind(links)}")
        for link in links:
            if not isinstance(link, bytes):
                raise TypeError(f"{self._message}: links must be bytes, not {_kind(link)}")
            length = PyBytes_GET_SIZE(link)
            if self._size - self._used < length + 10:
                self._make_room(length + 10)
            memcpy(self._block + self._used, <const char*>b"link: ", 6)
            if not fs_copy_value(self._block + self._used + 6, PyBytes_AS_STRING(link), length):
                raise ValueError(
                    f"{self._message}: one of links has a control character"
                    f" (RFC 9110 section 5.5): {link!r:.100}"
                )
            memcpy(self._block + self._used + 6 + length, <const char*>b"\r\n", 2)
            self._used += length + 8
            count += 1
        memcpy(self._block + self._used, <const char*>b"\r\n", 2)   # there is always room
        self._used += 2
        return count

    cdef int trailers(self, object headers) except -1:
        """Field lines for behind the last chunk (RFC 9112 section 7.1.2), nothing else."""
        cdef object pair
        self._message = "http.response.trailers"
        headers = self._listed(headers)
        for pair in headers:
            if (
                isinstance(pair, (tuple, list)) and pair and isinstance(pair[0], bytes)
                and pair[0].lower() in _not_in_trailers
            ):
                raise ValueError(
                    f"{self._message}: headers may not have {pair[0]!r:.100} in a trailer"
                    " section (RFC 9110 section 6.5.1)"
                )
        return self._append_fields(headers)

    cdef object _listed(self, object headers):
        if not isinstance(headers, (list, tuple)):
            if isinstance(headers, (str, bytes, dict)) or not hasattr(headers, "__iter__"):
                raise TypeError(
                    f"{self._message}: headers must be pairs, not {_kind(headers)}"
                )
            return list(headers)
        return headers

    cdef int _begin(self, bytes line, object headers) except -1:
        self._used = PyBytes_GET_SIZE(line)
        memcpy(self._block, PyBytes_AS_STRING(line), self._used)
        headers = self._listed(headers)
        self._append_fields(headers)
        if self._nominated is not None:
            # Once more, without the fields that Connection names.
            headers = [pair for pair in headers if pair[0].lower() not in self._nominated]
            self._used = PyBytes_GET_SIZE(line)
            self.content_length = -1
            self.has_date = self.has_server = False
            self._append_fields(headers)
        return 0

    cdef int append_to(self, SendBuffer out) except -1:
        return out.append(self._block, self._used)

    cdef int _append_fields(self, object headers) except -1:
        cdef object pair
        for pair in headers:
            if isinstance(pair, tuple) and PyTuple_GET_SIZE(pair) == 2:
                self._append_field(
                    <object>PyTuple_GET_ITEM(pair, 0), <object>PyTuple_GET_ITEM(pair, 1)
                )
            elif isinstance(pair, list) and PyList_GET_SIZE(pair) == 2:
                self._append_field(
                    <object>PyList_GET_ITEM(pair, 0), <object>PyList_GET_ITEM(pair, 1)
                )
            else:
                raise TypeError(
                    f"{self._message}: headers must be pairs of bytes, not {pair!r:.100}"
                )
        return 0

    cdef int _append_field(self, object name, object value) except -1:
        cdef Py_ssize_t name_length, value_length, used = self._used
        cdef int field
        cdef char* to
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise TypeError(
                f"{self._message}: headers must be pairs of bytes, not"
                f" {_kind(name)} and {_kind(value)}: {name!r:.100}"
            )
        name_length = PyBytes_GET_SIZE(name)
        value_length = PyBytes_GET_SIZE(value)
        if self._size - used < name_length + value_length + 4:
            self._make_room(name_length + value_length + 4)
        to = self._block + used
        if not fs_copy_name(to, PyBytes_AS_STRING(name), name_length):
            raise ValueError(
                f"{self._message}: header name {name!r:.100} is not a token"
                " (RFC 9110 section 5.1)"
            )
        to += name_length
        to[0] = c":"
        to[1] = c" "
        to += 2
        if not fs_copy_value(to, PyBytes_AS_STRING(value), value_length):
            raise ValueError(
                f"{self._message}: the value of header {name!r:.100} has a control character"
                " (RFC 9110 section 5.5)"
            )
        to += value_length
        to[0] = c"\r"
        to[1] = c"\n"
        field = fs_classify(PyBytes_AS_STRING(name), name_length)
        if field == FS_ORDINARY or self._special(field, <bytes>value):
            self._used = used + name_length + value_length + 4
        return 0

    cdef int _special(self, int field, bytes value) except -1:
        """Note what the field says; 1 if its line is to be sent, 0 if not."""
        cdef int64_t length
        if field == FS_DATE:
            self.has_date = True
            return 1
        if field == FS_SERVER:
            self.has_server = True
            return 1
        if field == FS_WEBSOCKET:
            if self.status == 101:
                raise ValueError(
                    "websocket.accept: headers may not have Sec-WebSocket fields;"
                    " the protocol is named by subprotocol"
                )
            return 1
        if field == FS_CONTENT_LENGTH:
            length = _content_length(value)
            if self.content_length not in (-1, length):
                raise ValueError(f"{self._message}: two different content-length headers")
            if self.content_length == length or self.status == 204 or self.status < FIRST_STATUS:
                return 0
            self.content_length = length
            return 1
        if field == FS_CONNECTION:
            for option in value.lower().split(b","):
                option = option.strip(b" \t")
                if option == b"close":
                    self.close = True
                elif option not in (b"", b"keep-alive", *_end_to_end):
                    if self._nominated is None:
                        self._nominated = set()
                    (<set>self._nominated).add(option)
        return 0

    cdef int _make_room(self, Py_ssize_t length) except -1:
        cdef Py_ssize_t size = self._size
        cdef char* grown
        while size - self._used < length:
            size *= 2
        if self._block == self._small:
            grown = <char*>PyMem_Malloc(size)
            if grown != NULL:
                memcpy(grown, self._small, self._used)
        else:
            grown = <char*>PyMem_Realloc(self._block, size)
        if grown == NULL:
            raise MemoryError()
        self._block = grown
        self._size = size
        return 0


# What frames, routes or modifies a message, or says how its content is to be read, comes
# too late behind the content (RFC 9110 section 6.5.1; the list is that of RFC 7230 section
# 4.1.2, and what was no field then or says something about one connection alone).
cdef frozenset _not_in_trailers = frozenset(b"""
    transfer-encoding content-length host trailer te connection keep-alive proxy-connection
    upgrade content-encoding content-type content-range
    cache-control expect max-forwards pragma range
    if-match if-none-match if-modified-since if-unmodified-since if-range
    authorization www-authenticate proxy-authenticate proxy-authorization cookie set-cookie
    age expires date location retry-after vary warning
""".split())

# A message cannot do without these, whatever Connection names (RFC 9110 section 7.6.1).
cdef frozenset _end_to_end = frozenset((b"content-length", b"content-type", b"date"))


cdef str _kind(object value):
    return type(value).__name__


cdef int64_t _content_length(bytes value) except -1:
    cdef int64_t length = 0
    cdef int digit
    cdef unsigned char c
    for c in value:
        digit = c - c"0"
        if digit < 0 or digit > 9 or length > (INT64_MAX - digit) // 10:
            length = -1
            break
        length = 10 * length + digit
    if length < 0 or not value:
        raise ValueError(f"http.response.start: content-length {value!r:.100} is not a length")
    return length


cdef int append_chunk_size(SendBuffer out, Py_ssize_t length) except -1:
    """The line before the data of a chunk (RFC 9112 section 7.1); 0 is the last chunk's."""
    cdef char[18] line                  # 16 hexadecimal digits, CRLF
    cdef int at = sizeof(line) - 2
    cdef size_t rest = <size_t>length
    line[at] = c"\r"
    line[at + 1] = c"\n"
    while True:
        at -= 1
        line[at] = _hex_digits[rest & 15]
        rest >>= 4
        if rest == 0:
            break
    return out.append(line + at, sizeof(line) - at)


cdef int append_content_length(SendBuffer out, Py_ssize_t length) except -1:
    """A whole Content-Length field line (RFC 9110 section 8.6)."""
    cdef char[48] line
    cdef int at = sizeof(line) - 2
    cdef size_t rest = <size_t>length
    line[at] = c"\r"
    line[at + 1] = c"\n"
    while True:
        at -= 1
        line[at] = <char>(c"0" + rest % 10)
        rest //= 10
        if rest == 0:
            break
    at -= 16
    memcpy(line + at, <const char*>b"content-length: ", 16)
    return out.append(line + at, sizeof(line) - at)
