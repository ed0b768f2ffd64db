# modules: _buffer, _transport, _parser, _headers, _conversation, _http1, _deflate, _websocket, _file, _access, _forwarded, _shared, _address
# cython: language_level=3, boundscheck=True, wraparound=True
"""The WebSocket frame decoder: whatever comes, in whatever parts, the same events.

The first three bytes of an input are options. What follows is what a client sends, or
short descriptions of frames, for a mutation seldom keeps a length or compressed data
right. It is decoded whole and in parts. Each part is in a block of memory of exactly its
size, so that AddressSanitizer sees one byte too far.
"""

import zlib

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastserve._deflate cimport DeflatePool
from fastserve._websocket cimport (
    CONTROL_MOST, FRAME_CLOSE, FRAME_INVALID, FRAME_MESSAGE, FRAME_NEED_DATA, FRAME_PING,
    FRAME_PONG, INFLATE_STEP, FrameDecoder,
)

cdef frozenset FAILURES = frozenset((1002, 1007, 1009))
cdef frozenset UNSENDABLE = frozenset((1004, 1006, 1015))
cdef tuple SIZES = (0, 1, 5, 125, 126, 1023, 1024, 1025, 4096, 65535, 65536, 70000, 1 << 17)


cdef Py_ssize_t check_message(message) except -1:
    """Its length in bytes; text is text."""
    if type(message) is str:
        return len(message.encode())        # raises for surrogates
    assert type(message) is bytes
    return len(message)


cdef list decode(bytes data, list cuts, Py_ssize_t max_size, DeflatePool pool, bint takes_over):
    cdef FrameDecoder decoder = FrameDecoder(max_size=max_size, pool=pool, takes_over=takes_over)
    cdef list events = []
    cdef Py_ssize_t start, stop, left, used
    cdef int event = FRAME_NEED_DATA
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
                event = decoder.next(p, left, &used)
                assert 0 <= used <= left
                p += used
                left -= used
                assert 0 <= decoder.held_length <= max_size
                assert decoder.held_length <= decoder.held_size <= max_size + INFLATE_STEP
                if event == FRAME_MESSAGE:
                    assert used > 0 and decoder.held_size == 0
                    assert check_message(decoder.message) <= max_size
                    events.append(("message", decoder.message))
                    continue
                assert decoder.message is None
                if event == FRAME_PING or event == FRAME_PONG:
                    assert used > 0 and type(decoder.payload) is bytes
                    assert len(decoder.payload) <= CONTROL_MOST
                    events.append((event, decoder.payload))
                elif event == FRAME_CLOSE:
                    assert used > 0
                    assert 1000 <= decoder.code < 5000 and decoder.code not in UNSENDABLE
                    assert len(decoder.reason.encode()) <= CONTROL_MOST - 2
                    events.append((event, decoder.code, decoder.reason))
                elif event == FRAME_INVALID:
                    assert decoder.code in FAILURES and decoder.reason
                    events.append((event, decoder.code, decoder.reason))
                    assert decoder.next(p, left, &used) == FRAME_INVALID and used == 0
                    assert (decoder.code, decoder.reason) == events[-1][1:]
                    return events
                else:
                    assert event == FRAME_NEED_DATA and left == 0
                    break
        finally:
            free(block)
    return events


cdef bytes frame(int first, bytes payload, bytes mask):
    length = len(payload)
    if length < 126:
        head = bytes((first, 0x80 | length))
    elif length < 65536:
        head = bytes((first, 0xFE)) + length.to_bytes(2, "big")
    else:
        head = bytes((first, 0xFF)) + length.to_bytes(8, "big")
    pad = (mask * (length // 4 + 1))[:length]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")
    return head + mask + masked.to_bytes(length, "big")


cdef bytes build(bytes data, bint takes_over):
    """The frames that are described: three bytes, and as many more as the third says."""
    out = []
    compressor = None
    at = 0
    while at + 3 <= len(data):
        first = data[at]
        kind = data[at + 1]
        length = data[at + 2]
        payload = data[at + 3:at + 3 + length]
        mask = bytes((first, kind, length, at & 0xFF))
        at += 3 + length
        if kind & 0x10:
            payload *= 1 + (kind >> 5) * 150
        if kind & 0x08:
            if compressor is None or not takes_over:
                compressor = zlib.compressobj(1, zlib.DEFLATED, -9, 1)
            payload = compressor.compress(payload)
            if kind & 0x80:         # in a final block, RFC 7692 section 7.2.3.4
                payload += compressor.flush() + b"\0"
                compressor = None
            else:
                payload += compressor.flush(zlib.Z_SYNC_FLUSH)[:-4]
        if kind & 0x04:
            middle = len(payload) // 2
            payload = payload[:middle] + bytes((first ^ length,)) + payload[middle + 1:]
        count = kind & 0x03
        if not count:
            out.append(frame(first, payload, mask))
            continue
        size = len(payload) // (count + 1)
        for index in range(count + 1):
            part = payload[index * size:(index + 1) * size if index < count else len(payload)]
            out.append(frame(
                (0 if index else first & 0x7F) | (first & 0x80 if index == count else 0), part, mask
            ))
            if length & 1:
                out.append(frame(0x89 | (length & 2) >> 1, part[:CONTROL_MOST], mask))
    return b"".join(out)


def check(bytes data):
    if len(data) < 3:
        return
    options = data[0]
    seed = data[1] | data[2] << 8
    takes_over = bool(options & 2)
    pool = DeflatePool() if options & 1 else None
    max_size = SIZES[(options >> 3) % len(SIZES)]
    data = build(data[3:], takes_over) if options & 4 else data[3:]
    cuts = set()
    for _ in range(seed % 9):
        seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
        cuts.add((seed >> 8) % (len(data) + 1))
    whole = decode(data, [], max_size, pool, takes_over)
    assert decode(data, sorted(cuts), max_size, pool, takes_over) == whole
    if len(data) < 200:
        assert decode(data, list(range(1, len(data))), max_size, pool, takes_over) == whole
