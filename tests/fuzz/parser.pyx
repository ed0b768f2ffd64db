# modules: _parser
# cython: language_level=3, boundscheck=True, wraparound=True
"""The request parser: whatever comes, in whatever parts, the same documented events.

The first two bytes of an input say how it is cut and which limits apply; the rest is
what a connection receives. It is parsed whole and in parts. Each part is in a block
of memory of exactly its size, so that AddressSanitizer sees one byte too far.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastserve._parser cimport DATA, END, HEAD, INVALID, NEED_DATA, RequestParser

cdef frozenset TOKEN = frozenset(
    b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
)
cdef frozenset STATUSES = frozenset((400, 414, 417, 431, 501, 505))


cdef int check_facts(RequestParser parser) except -1:
    assert parser.method and parser.method.isascii() and parser.method != "CONNECT"
    assert parser.raw_path[:1] == b"/" or (parser.raw_path == b"*" and parser.method == "OPTIONS")
    assert b"?" not in parser.raw_path and b"#" not in parser.raw_path + parser.query_string
    parser.path.encode()
    hosts = lengths = codings = 0
    for name, value in parser.headers:
        assert name and TOKEN.issuperset(name)
        assert value == value.strip(b" \t")
        assert not any(c < 0x20 and c != 9 or c == 0x7F for c in value)
        hosts += name == b"host"
        lengths += name == b"content-length"
        codings += name == b"transfer-encoding"
    assert hosts <= 1 and lengths <= 1 and codings <= 1
    assert hosts == 1 or parser.minor_version == 0
    assert parser.chunked == (codings == 1)
    assert (parser.content_length >= 0) == (lengths == 1)
    assert not (lengths and codings)
    assert parser.upgrade is None or parser.minor_version == 1
    return 0


cdef list parse(bytes data, list cuts, dict limits, bint keep):
    """The events, neighbouring pieces of a body joined. `keep`: release nothing."""
    cdef RequestParser parser = RequestParser(**limits)
    cdef list events = []
    cdef Py_ssize_t start, stop, left, used
    cdef int event = NEED_DATA
    cdef char* block
    cdef char* p
    for start, stop in zip([0, *cuts], [*cuts, len(data)]):
        left = stop - start
        block = <char*>malloc(left if left else 1)
        memcpy(block, <const char*>data + start, left)
        p = block
        try:
            while True:
                used = -1
                event = parser.next(p, left, &used)
                assert 0 <= used <= left
                if event == HEAD:
                    assert not events or events[-1][0] == "end"
                    assert used > 0 and parser.in_message()
                    check_facts(parser)
                    events.append(("head", parser.method, parser.path, parser.raw_path,
                                   parser.query_string, tuple(parser.headers),
                                   parser.minor_version, parser.keep_alive,
                                   parser.expect_continue, parser.chunked,
                                   parser.content_length, parser.upgrade))
                    if not keep:
                        parser.release()
                elif event == DATA:
                    assert parser.in_message()
                    assert parser.piece_length > 0
                    assert p <= parser.piece
                    assert parser.piece + parser.piece_length == p + used
                    piece = parser.piece[:parser.piece_length]
                    if events[-1][0] == "data":
                        events[-1] = ("data", events[-1][1] + piece)
                    else:
                        assert events[-1][0] == "head"
                        events.append(("data", piece))
                elif event == END:
                    assert events[-1][0] != "end" and not parser.in_message()
                    events.append(("end",))
                elif event == INVALID:
                    assert used == 0 and parser.error_status in STATUSES and parser.error_reason
                    assert parser.next(p, left, &used) == INVALID and used == 0
                    events.append(("invalid", parser.error_status, parser.error_reason))
                    return events
                else:
                    assert event == NEED_DATA and used == left
                    break
                p += used
                left -= used
        finally:
            free(block)
    return events


def check(bytes data):
    if len(data) < 2:
        return
    seed = data[0] | data[1] << 8
    limits = {}
    if data[1] & 0x80:
        limits = {"limit_line": data[0], "limit_fields": data[0] & 7,
                  "limit_field_bytes": 2 * data[0]}
    data = data[2:]
    cuts = set()
    for _ in range(seed % 9):
        seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
        cuts.add((seed >> 8) % (len(data) + 1))
    whole = parse(data, [], limits, False)
    assert parse(data, sorted(cuts), limits, True) == whole
    if len(data) < 200:
        assert parse(data, list(range(1, len(data))), limits, False) == whole
