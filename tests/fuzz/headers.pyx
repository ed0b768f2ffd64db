# modules: _headers, _buffer, _file
# cython: language_level=3, boundscheck=True, wraparound=True
"""The response head writer: whatever an application says, a head that is well formed, or
an exception of the documented kind.

An input says the status, the kinds of the containers, and then one field after the
other: names from a list or any bytes, values of any bytes, and now and then something
that is no pair of bytes at all. What was written is read back by a reader that knows
nothing of the writer, and compared with what a plain model makes of the same fields.
"""

import re

from fastserve._buffer cimport SendBuffer
from fastserve._headers cimport ResponseHead

cdef tuple NAMES = (
    b"content-length", b"Content-Length", b"content-type", b"date", b"Date", b"server",
    b"connection", b"Connection", b"transfer-encoding", b"Transfer-Encoding", b"keep-alive",
    b"proxy-connection", b"te", b"TE", b"upgrade", b"set-cookie", b"x", b"X-One", b"x-two",
    b"trailer", b"content-encoding", b"a", b"close", b"",
)
cdef tuple VALUES = (
    b"0", b"5", b"05", b"9223372036854775807", b"9223372036854775808", b"close", b"Close, x",
    b"keep-alive", b"x-one", b"X-TWO\t, a ,,server", b"date, content-length, content-type",
    b"connection", b"chunked", b"\r\nx: y", b"\x00", b"",
)
cdef tuple ODD = (
    None, 5, "text", b"ab", (), (b"x",), (b"x", b"y", b"z"), [b"x"], ("x", b"y"), (b"x", "y"),
    (b"x", None), (bytearray(b"x"), b"y"), (b"x", memoryview(b"y")), {b"x": b"y"},
)
cdef tuple STATUSES = (None, "200", b"200", 200.0, True, False, -1, 2 ** 31, 2 ** 64 + 200)

cdef object STATUS_LINE = re.compile(rb"HTTP/1\.1 ([2-9][0-9]{2}) ([A-Za-z'\- ]*)\r\n").match
cdef object FIELD_LINE = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([\t\x20-\x7e\x80-\xff]*)\r\n"
).match
cdef object IS_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
cdef object HAS_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
cdef object IS_LENGTH = re.compile(rb"[0-9]+").fullmatch
cdef frozenset DROPPED = frozenset((
    b"transfer-encoding", b"keep-alive", b"proxy-connection", b"te", b"upgrade", b"connection",
))
cdef frozenset NEEDED = frozenset((b"content-length", b"content-type", b"date"))


class Wrong(Exception):
    """The model's word for TypeError or ValueError."""


def model(status, pairs):
    """The fields that are to be written, the content length, and whether to close."""
    if not isinstance(status, int) or not 200 <= status <= 999:
        raise Wrong
    named = set()
    close = False
    lengths = set()
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or [type(part) for part in pair] != [bytes, bytes]:
            raise Wrong
        name, value = pair
        if not IS_TOKEN(name) or HAS_CONTROL(value):
            raise Wrong
        if name.lower() == b"content-length":
            if not IS_LENGTH(value) or int(value) >= 2 ** 63:
                raise Wrong
            if status != 204:
                lengths.add(int(value))
        if name.lower() == b"connection":
            options = [option.strip(b" \t") for option in value.lower().split(b",")]
            close |= b"close" in options
            named |= set(options) - {b"", b"close", b"keep-alive"} - NEEDED
    if len(lengths) > 1:
        raise Wrong
    written = []
    for name, value in pairs:
        if name.lower() in DROPPED | named:
            continue
        if name.lower() == b"content-length":
            if status == 204 or b"content-length" in [n.lower() for n, _ in written]:
                continue
        written.append((name, value))
    return written, lengths.pop() if lengths else -1, close


def read(head):
    """Status and fields of a head; anything that is not exactly one is an error."""
    line = STATUS_LINE(head)
    assert line, head
    at = line.end()
    fields = []
    while at < len(head):
        field = FIELD_LINE(head, at)
        assert field, head[at:]
        fields.append((field[1], field[2]))
        at = field.end()
    return int(line[1]), fields


cdef class Input:
    """Takes an input apart; zeros follow its end."""

    cdef bytes data
    cdef Py_ssize_t at

    cdef int byte(self) except -1:
        cdef int value = 0
        if self.at < len(self.data):
            value = self.data[self.at]
        self.at += 1
        return value

    cdef bytes take(self, Py_ssize_t length):
        cdef Py_ssize_t start = self.at
        self.at += length
        return self.data[start:self.at]

    cdef bint more(self):
        return self.at < len(self.data)

    cdef object text(self, tuple known):
        """One of `known` below 64, then short raw bytes, then long ones."""
        cdef int kind = self.byte()
        if kind < 64:
            return known[kind % len(known)]
        if kind < 224:
            return self.take(kind - 64)
        return self.take(16) * (kind - 222)


def check(bytes data):
    cdef Input source = Input()
    cdef ResponseHead head = ResponseHead()
    cdef SendBuffer out = SendBuffer()
    source.data = data
    flags = source.byte()
    status = 200 + 2 * source.byte() + (flags & 1)
    if flags & 2:
        status += 300
    if flags & 4:
        status = (204, 304, 199, 1000)[status % 4] if flags & 8 else 204
    if flags & 0x70 == 0x70:
        status = STATUSES[status % len(STATUSES)]
    pairs = []
    while source.more():
        kind = source.byte()
        if kind == 255:
            pairs.append(ODD[source.byte() % len(ODD)])
            continue
        name = source.text(NAMES)
        value = source.text(VALUES)
        for _ in range(8 if kind & 15 == 15 else 1):
            pairs.append([name, value] if kind & 16 else (name, value))
    try:
        expected = model(status, pairs)
    except Wrong:
        expected = None
    if flags & 128:
        headers = tuple(pairs)
    elif flags & 0x30 == 0x30:
        headers = (pair for pair in pairs)
    else:
        headers = list(pairs)
    try:
        head.begin(status, headers)
    except (TypeError, ValueError) as error:
        assert expected is None, error
        assert str(error).startswith("http.response.start: "), error
        return
    assert expected is not None
    if isinstance(headers, list):
        headers.append((b"transfer-encoding", b"chunked"))
    rendered = head.render()
    written, length, close = expected
    assert read(rendered) == (status, written)
    assert head.status == status
    assert head.content_length == length
    assert head.close == close
    names = [name.lower() for name, _ in written]
    assert not DROPPED.intersection(names)
    assert names.count(b"content-length") <= 1
    assert head.has_date == (b"date" in names)
    if b"server" in names:
        assert head.has_server
    out.write(b"before")
    head.append_to(out)
    assert out.peek() == b"before" + rendered
