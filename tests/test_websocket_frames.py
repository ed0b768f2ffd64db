"""The WebSocket codec, driven by bytes alone: every rule, every cut, and witnesses.

Each case is fed whole, byte by byte and in two parts at every offset; all must give the
same events. Python's own decoders say what UTF-8 and deflate are. The differential parts
hold the frames against wsproto, and the negotiation against websockets: what differs is
either in the table DIFFERENCES, with the section that decides it, or it is a failure.
"""

from __future__ import annotations

import codecs
import contextlib
import itertools
import random
import re
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import measures_memory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import NegotiationError
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    ServerPerMessageDeflateFactory,
)
from websockets.headers import parse_extension
from wsproto.extensions import Extension, PerMessageDeflate
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from fastserve._deflate import DeflatePool, Deflater
from fastserve._websocket import FrameDecoder
from fastserve.extensions import negotiate_deflate

Events = list[tuple[Any, ...]]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
RSV1, RSV2, RSV3 = 4, 2, 1
TAIL = b"\x00\x00\xff\xff"  # RFC 7692 section 7.2.1
LIMIT = 16 * 1024 * 1024

# Derandomized: the same examples on every run, so a failure is somebody's change.
examples = settings(
    derandomize=True,
    max_examples=400,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


# ------------------------------------------------------------------------ helpers


@dataclass(frozen=True)
class Agreed:
    """What a connection begins with."""

    deflate: bool = False
    takes_over: bool = False
    max_size: int = LIMIT

    def decoder(self) -> FrameDecoder:
        return FrameDecoder(
            max_size=self.max_size,
            pool=DeflatePool() if self.deflate else None,
            takes_over=self.takes_over,
        )


PLAIN = Agreed()
DEFLATE = Agreed(deflate=True)
TAKEOVER = Agreed(deflate=True, takes_over=True)
ALL = [
    pytest.param(PLAIN, id="plain"),
    pytest.param(DEFLATE, id="deflate"),
    pytest.param(TAKEOVER, id="takeover"),
]


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = b"\x37\xfa\x21\x3d",
    form: int | None = None,
    length: int | None = None,
) -> bytes:
    """`form`: bytes that the length is written in, beside the first; `length`: another one."""
    if length is None:
        length = len(payload)
    if form is None:
        form = 0 if length < 126 else 2 if length < 65536 else 8
    start = length if form == 0 else 126 if form == 2 else 127
    head = bytes([fin << 7 | rsv << 4 | opcode, (mask is not None) << 7 | start])
    if form:
        head += length.to_bytes(form, "big")
    if mask is None:
        return head + payload
    pad = (mask * (len(payload) // 4 + 1))[: len(payload)]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")
    return head + mask + masked.to_bytes(len(payload), "big")


def fragments(opcode: int, pieces: list[bytes], *, rsv: int = 0, between: bytes = b"") -> bytes:
    """A message, one frame for each piece; `between` stands between any two of them."""
    last = len(pieces) - 1
    return between.join(
        frame(CONTINUATION if i else opcode, piece, fin=i == last, rsv=0 if i else rsv)
        for i, piece in enumerate(pieces)
    )


def deflated(data: bytes, compressor: Any = None) -> bytes:
    if compressor is None:
        compressor = zlib.compressobj(wbits=-15)
    packed: bytes = compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert packed.endswith(TAIL)
    return packed[:-4]


def finished(data: bytes) -> bytes:
    """Compressed into a final block, RFC 7692 section 7.2.3.4."""
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush() + b"\x00"


def packed(opcode: int, payload: bytes, **facts: Any) -> bytes:
    return frame(opcode, payload, rsv=RSV1, **facts)


def decode(parts: Iterable[bytes], agreed: Agreed = PLAIN) -> Events:
    decoder = agreed.decoder()
    events: Events = []
    for part in parts:
        events += decoder.feed(part)
        if events and events[-1][0] == "invalid":
            break
    return events


def decode_every_way(data: bytes, agreed: Agreed = PLAIN) -> Events:
    """Decode whole, byte by byte and in two parts at every offset; all must agree."""
    whole = decode([data], agreed)
    assert decode((data[i : i + 1] for i in range(len(data))), agreed) == whole, "byte by byte"
    for cut in range(len(data) + 1):
        assert decode([data[:cut], data[cut:]], agreed) == whole, f"cut at {cut}"
    return whole


def invalid(events: Events) -> int:
    """The code to close with; the reason is for people."""
    assert [event[0] for event in events] == ["invalid"]
    assert 0 < len(events[0][2]) <= 123
    code = events[0][1]
    assert isinstance(code, int)
    return code


def message(data: str | bytes) -> tuple[str, str | bytes]:
    return ("message", data)


def case(name: str, data: bytes, *rest: Any) -> Any:
    return pytest.param(data, *rest, id=name)


# ------------------------------------------------------------------------- frames

HELLO = deflated(b"Hello")
MIXED = "aé€𝄞\0\U0010ffff"

VALID = [
    case("nothing", b"", PLAIN, []),
    case("text", frame(TEXT, MIXED.encode()), PLAIN, [message(MIXED)]),
    case("binary", frame(BINARY, b"\xff\x00"), PLAIN, [message(b"\xff\x00")]),
    case("empty text", frame(TEXT), PLAIN, [message("")]),
    case("empty binary", frame(BINARY), PLAIN, [message(b"")]),
    case("one byte", frame(BINARY, b"a"), PLAIN, [message(b"a")]),
    case("ping", frame(PING, b"abc"), PLAIN, [("ping", b"abc")]),
    case("empty ping", frame(PING), PLAIN, [("ping", b"")]),
    case("long ping", frame(PING, b"\xff" * 125), PLAIN, [("ping", b"\xff" * 125)]),
    case("pong", frame(PONG, b"abc"), PLAIN, [("pong", b"abc")]),
    case("close", frame(CLOSE), PLAIN, [("close", 1005, "")]),
    case("code", frame(CLOSE, b"\x03\xe8"), PLAIN, [("close", 1000, "")]),
    case("reason", frame(CLOSE, b"\x0f\xa0h\xc3\xa9"), PLAIN, [("close", 4000, "hé")]),
    case(
        "long reason", frame(CLOSE, b"\x03\xe9" + b"r" * 123), PLAIN, [("close", 1001, "r" * 123)]
    ),
    case("two bytes of length", frame(BINARY, b"a" * 126), PLAIN, [message(b"a" * 126)]),
    case("fragments", fragments(TEXT, [b"a", b"b", b"c"]), PLAIN, [message("abc")]),
    case("binary fragments", fragments(BINARY, [b"a", b"", b"c"]), PLAIN, [message(b"ac")]),
    case("empty fragments", fragments(TEXT, [b"", b"", b""]), PLAIN, [message("")]),
    case(
        "a cut character", fragments(TEXT, [b"\xe2", b"", b"\x82", b"\xac"]), PLAIN, [message("€")]
    ),
    case(
        "control frames between fragments",
        fragments(BINARY, [b"ab", b"cd", b"ef"], between=frame(PING, b"p") + frame(PONG)),
        PLAIN,
        [("ping", b"p"), ("pong", b""), ("ping", b"p"), ("pong", b""), message(b"abcdef")],
    ),
    case(
        "a control frame within a character",
        fragments(TEXT, [b"\xf0\x9d", b"\x84\x9e"], between=frame(PING, b"\xff")),
        PLAIN,
        [("ping", b"\xff"), message("𝄞")],
    ),
    case(
        "a close between fragments",
        frame(TEXT, b"a", fin=False) + frame(CLOSE, b"\x03\xe8"),
        PLAIN,
        [("close", 1000, "")],
    ),
    case(
        "one after the other",
        frame(TEXT, b"a") + frame(BINARY, b"b") + fragments(TEXT, [b"c", b"d"]) + frame(PING),
        PLAIN,
        [message("a"), message(b"b"), message("cd"), ("ping", b"")],
    ),
    # RFC 7692 section 7.2.3, by its numbers
    case("7.2.3.1", packed(TEXT, bytes.fromhex("f248cdc9c90700")), DEFLATE, [message("Hello")]),
    case(
        "7.2.3.1 in fragments",
        fragments(TEXT, [bytes.fromhex("f248cd"), bytes.fromhex("c9c90700")], rsv=RSV1),
        DEFLATE,
        [message("Hello")],
    ),
    case(
        "7.2.3.2",
        packed(TEXT, bytes.fromhex("f248cdc9c90700")) + packed(TEXT, bytes.fromhex("f200110000")),
        TAKEOVER,
        [message("Hello")] * 2,
    ),
    case("7.2.3.3", packed(TEXT, b"\x00\x05\x00\xfa\xffHello\x00"), DEFLATE, [message("Hello")]),
    case("7.2.3.4", packed(TEXT, bytes.fromhex("f348cdc9c9070000")), DEFLATE, [message("Hello")]),
    case(
        "7.2.3.5",
        packed(TEXT, bytes.fromhex("f248050000 00ffffcac9c90700")),
        DEFLATE,
        [message("Hello")],
    ),
    case("7.2.3.6", packed(TEXT, b"\x00"), DEFLATE, [message("")]),
    case("an empty payload", packed(TEXT, b""), DEFLATE, [message("")]),
    case("empty compressed binary", packed(BINARY, b"\x00"), DEFLATE, [message(b"")]),
    case("not compressed", frame(TEXT, b"Hello"), DEFLATE, [message("Hello")]),
    case(
        "in turns",
        (packed(TEXT, HELLO) + frame(TEXT, b"a") + packed(BINARY, HELLO) + frame(BINARY, b"b")) * 2,
        DEFLATE,
        [message("Hello"), message("a"), message(b"Hello"), message(b"b")] * 2,
    ),
    case(
        "in turns, taken over",
        packed(TEXT, HELLO) + frame(TEXT, b"a") + packed(TEXT, bytes.fromhex("f200110000")),
        TAKEOVER,
        [message("Hello"), message("a"), message("Hello")],
    ),
    case(
        "control frames between compressed fragments",
        fragments(TEXT, [HELLO[:1], HELLO[1:4], b"", HELLO[4:]], rsv=RSV1, between=frame(PING)),
        DEFLATE,
        [("ping", b"")] * 3 + [message("Hello")],
    ),
    case(
        "a final block before another",
        packed(TEXT, finished(b"Hello")[:-1] + deflated(b" you")),
        DEFLATE,
        [message("Hello you")],
    ),
    case(
        "a final block, and the next message",
        packed(TEXT, finished(b"Hello")) + packed(TEXT, deflated(b"you")),
        TAKEOVER,
        [message("Hello"), message("you")],
    ),
    case(
        "a compressed character, cut",
        fragments(TEXT, [deflated(b"\xe2\x82") + TAIL, deflated(b"\xac")], rsv=RSV1),
        DEFLATE,
        [message("€")],
    ),
]


@pytest.mark.parametrize("data, agreed, expected", VALID)
def test_valid(data: bytes, agreed: Agreed, expected: Events) -> None:
    assert decode_every_way(data, agreed) == expected


CORRUPT = [
    case("a reserved block type", b"\x07"),
    case("a stored block's lengths", b"\x00\x05\x00\xfa\xfeHello\x00"),
    case("a distance too far back", bytes.fromhex("f200110000")),
    case("bad code lengths", b"\x04\x00\xfe\xff\xff"),
    case("not deflate", b"\xff" * 20),
    case("good, then bad", TAIL.join([HELLO, b"\x07"])),
]

INVALID = [
    case("no mask", frame(TEXT, b"a", mask=None), PLAIN, 1002),
    case("no mask, control", frame(PING, mask=None), PLAIN, 1002),
    case("no mask, close", frame(CLOSE, b"\x03\xe8", mask=None), PLAIN, 1002),
    case("no mask, long", frame(BINARY, b"a" * 126, mask=None), PLAIN, 1002),
    case("RSV1", frame(TEXT, b"a", rsv=RSV1), PLAIN, 1002),
    case("RSV2", frame(TEXT, b"a", rsv=RSV2), DEFLATE, 1002),
    case("RSV3", frame(TEXT, b"a", rsv=RSV3), DEFLATE, 1002),
    case("RSV1 of a ping", frame(PING, rsv=RSV1), DEFLATE, 1002),
    case("RSV1 of a close", frame(CLOSE, rsv=RSV1), DEFLATE, 1002),
    case("RSV1 of an unknown opcode", frame(3, rsv=RSV1), DEFLATE, 1002),
    case("opcode 3", frame(3), PLAIN, 1002),
    case("opcode 7", frame(7, fin=False), PLAIN, 1002),
    case("opcode 11", frame(11), PLAIN, 1002),
    case("opcode 15", frame(15), PLAIN, 1002),
    case("no beginning", frame(CONTINUATION, b"a"), PLAIN, 1002),
    case("no beginning, more", frame(CONTINUATION, b"a", fin=False), PLAIN, 1002),
    case("a fragmented ping", frame(PING, b"a", fin=False), PLAIN, 1002),
    case("a fragmented close", frame(CLOSE, fin=False), PLAIN, 1002),
    case("a long ping", frame(PING, b"a" * 126), PLAIN, 1002),
    case("a long ping by its length", frame(PING, b"a", form=2), PLAIN, 1002),
    case("a huge close", frame(CLOSE, form=8, length=2**40), PLAIN, 1002),
    case("one byte of a code", frame(CLOSE, b"\x03"), PLAIN, 1002),
    case("a bad code", frame(CLOSE, b"\x03\xed"), PLAIN, 1002),
    case("a bad code and reason", frame(CLOSE, b"\x03\xed\xff"), PLAIN, 1002),
    case("a bad reason", frame(CLOSE, b"\x03\xe8\xff"), PLAIN, 1007),
    case("a cut reason", frame(CLOSE, b"\x03\xe8ab\xe2\x82"), PLAIN, 1007),
    case("a surrogate in a reason", frame(CLOSE, b"\x03\xe8\xed\xa0\x80"), PLAIN, 1007),
    case("0 in two bytes", frame(BINARY, b"", form=2), PLAIN, 1002),
    case("125 in two bytes", frame(BINARY, b"a" * 125, form=2), PLAIN, 1002),
    case("0 in eight bytes", frame(BINARY, b"", form=8), PLAIN, 1002),
    case("126 in eight bytes", frame(BINARY, b"a" * 126, form=8), PLAIN, 1002),
    case("65535 in eight bytes", frame(BINARY, form=8, length=65535), PLAIN, 1002),
    case("2**63", frame(BINARY, form=8, length=2**63), PLAIN, 1002),
    case("2**63, compressed", packed(BINARY, b"", form=8, length=2**63), DEFLATE, 1002),
    case("2**64 - 1", frame(BINARY, form=8, length=2**64 - 1), PLAIN, 1002),
    case("2**63 - 1", frame(BINARY, form=8, length=2**63 - 1), PLAIN, 1009),
    case("2**32", frame(BINARY, form=8, length=2**32), PLAIN, 1009),
    case("not UTF-8", frame(TEXT, b"ab\xff"), PLAIN, 1007),
    case("a cut character", frame(TEXT, b"ab\xe2\x82"), PLAIN, 1007),
    case("a cut character in the last fragment", fragments(TEXT, [b"a", b"\xe2"]), PLAIN, 1007),
    case("nothing behind a cut character", fragments(TEXT, [b"\xe2", b""]), PLAIN, 1007),
    case("a surrogate in two fragments", fragments(TEXT, [b"\xed", b"\xa0\x80"]), PLAIN, 1007),
    case("compressed, not UTF-8", packed(TEXT, deflated(b"ab\xff")), DEFLATE, 1007),
    case("compressed, a cut character", packed(TEXT, deflated(b"ab\xe2\x82")), DEFLATE, 1007),
    case("a compressed surrogate", packed(TEXT, deflated(b"\xed\xa0\x80")), TAKEOVER, 1007),
    *(case(c.id, packed(BINARY, c.values[0]), DEFLATE, 1007) for c in CORRUPT),
    *(case(f"{c.id}, text", packed(TEXT, c.values[0]), TAKEOVER, 1007) for c in CORRUPT),
    # Two things are wrong: the first one counts, wherever the data are cut.
    case(
        "not UTF-8, then corrupt",
        packed(TEXT, deflated(b"\xff") + TAIL + b"\x07"),
        DEFLATE,
        1007,
    ),
    case(
        "not UTF-8, then too big",
        packed(TEXT, deflated(b"\xff" * 50)),
        Agreed(deflate=True, max_size=10),
        1007,
    ),
    case(
        "too big, then not UTF-8",
        packed(TEXT, deflated(b"a" * 11 + b"\xff" * 50)),
        Agreed(deflate=True, max_size=10),
        1009,
    ),
    case(
        "too big, then corrupt",
        packed(BINARY, deflated(b"a" * 11) + TAIL + b"\x07"),
        Agreed(deflate=True, max_size=10),
        1009,
    ),
    case(
        "corrupt before it is too big",
        packed(BINARY, deflated(b"a" * 10) + TAIL + b"\x07"),
        Agreed(deflate=True, max_size=10),
        1007,
    ),
]


@pytest.mark.parametrize("data, agreed, code", INVALID)
def test_invalid(data: bytes, agreed: Agreed, code: int) -> None:
    assert invalid(decode_every_way(data, agreed)) == code
    # What was good before it is still told, and nothing behind it.
    before, after = frame(TEXT, b"before"), frame(TEXT, b"after")
    events = decode_every_way(before + data + after, agreed)
    if agreed.max_size == LIMIT:
        assert events[0] == message("before")
        assert invalid(events[1:]) == code


def test_what_is_invalid_stays_so() -> None:
    decoder = FrameDecoder()
    first = decoder.feed(frame(TEXT, b"\xff") + frame(TEXT, b"a"))
    assert invalid(first) == 1007
    for data in (b"", frame(TEXT, b"a"), frame(CLOSE), b"\xff" * 100):
        assert decoder.feed(data) == first


STARTS = {0x01, 0x02, 0x81, 0x82}
COMPRESSED = {0x41, 0x42, 0xC1, 0xC2}
FOLLOW = {0x00, 0x80}
CONTROLS = {0x88, 0x89, 0x8A}


@pytest.mark.parametrize("agreed", ALL)
@pytest.mark.parametrize("begun", [False, True], ids=["between messages", "within a message"])
def test_every_first_byte(agreed: Agreed, begun: bool) -> None:
    """Opcode, reserved bits and FIN are judged before the length is even complete."""
    good = (FOLLOW if begun else STARTS | (COMPRESSED if agreed.deflate else set())) | CONTROLS
    for first in range(256):
        for second in (0x80, 0xFD, 0xFE, 0xFF):
            decoder = agreed.decoder()
            if begun:
                assert decoder.feed(frame(TEXT, b"a", fin=False)) == []
            events = decoder.feed(bytes([first, second]))
            if first in good and (first not in CONTROLS or second <= 0xFD):
                assert events == []
            else:
                assert invalid(events) == 1002
            # And never without a mask.
            decoder = agreed.decoder()
            if begun:
                decoder.feed(frame(TEXT, b"a", fin=False))
            assert invalid(decoder.feed(bytes([first, second & 0x7F]))) == 1002


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65535, 65536, 65537, 200_000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_length(opcode: int, length: int) -> None:
    data = b"a" * length
    expected = [message(data.decode() if opcode == TEXT else data)]
    sent = frame(opcode, data)
    assert decode([sent]) == expected
    for cut in (1, 2, 3, 4, 9, 10, 13, 14, 15, len(sent) // 2, len(sent) - 1):
        assert decode([sent[:cut], sent[cut:]]) == expected
    if length <= 127:
        decode_every_way(sent)


@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING])
def test_masks(opcode: int) -> None:
    """All lengths around a word's and a block's size, at all phases of the mask and of the
    memory, whole and in two parts."""
    for length in range(126 if opcode == PING else 201):
        data = bytes((7 * i + length) & 0x7F for i in range(length))
        told = (
            ("ping", data) if opcode == PING else message(data.decode() if opcode == TEXT else data)
        )
        # A ping before it moves it in memory.
        before = frame(PING, b"p" * (length % 8))
        for mask in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x01\x20\x40\x7f", b"\x80\0\0\0"):
            sent = frame(opcode, data, mask=mask)
            assert decode([before + sent])[1:] == [told]
        for cut in range(len(sent) - length, len(sent)):
            assert decode([sent[:cut], sent[cut:]]) == [told]
        thirds = [sent[i : i + 3] for i in range(0, len(sent), 3)]
        assert decode(thirds) == [told]


def test_long_masked_messages() -> None:
    source = random.Random(1)
    for length in (1023, 1024, 4097, 65537):
        data = source.randbytes(length)
        sent = frame(BINARY, data, mask=source.randbytes(4))
        for _ in range(20):
            cuts = sorted(source.randrange(len(sent)) for _ in range(5))
            parts = [sent[a:b] for a, b in itertools.pairwise([0, *cuts, len(sent)])]
            assert decode(parts) == [message(data)]


def test_many_fragments() -> None:
    text = MIXED * 500
    pieces = [bytes([byte]) for byte in text.encode()]
    sent = fragments(TEXT, pieces, between=frame(PING, b"p"))
    assert decode([sent]) == [("ping", b"p")] * (len(pieces) - 1) + [message(text)]
    half = len(sent) // 2
    assert decode([sent[:half], sent[half:]])[-1] == message(text)


def test_the_input_is_not_changed() -> None:
    sent = frame(TEXT, b"Hello")
    copy = bytes(bytearray(sent))
    assert decode([sent]) == [message("Hello")]
    assert sent == copy


# --------------------------------------------------------------------------- text

POINTS = [
    0, 0x7F, 0x80, 0x7FF, 0x800, 0xFFF, 0x1000, 0xCFFF, 0xD000, 0xD7FF, 0xE000, 0xFFFD, 0xFFFE,
    0xFFFF, 0x10000, 0x3FFFF, 0x40000, 0xFFFFF, 0x100000, 0x10FFFF,
]  # fmt: skip
BAD_TEXTS = [
    "80", "bf", "c0", "c080", "c1bf", "e08080", "e09fbf", "f0808080", "f08fbfbf", "eda080",
    "edadbf", "edae80", "edbfbf", "eda080edb080", "f4908080", "f5808080", "f7bfbfbf", "f880808080",
    "fc8080808080", "fe", "ff", "c2", "c241", "c2c2", "dfc0", "e0", "e0a0", "e0a041", "e0a0c0",
    "e180", "e18041", "ef", "efbf", "efbfc0", "f0", "f090", "f09080", "f0908041", "f09041", "f480",
    "f48fbf", "f48fbfc0", "c27f", "e27f80", "e2827f", "f07f8080", "f0907f80", "f090807f",
]  # fmt: skip
TEXTS = [
    *(chr(point).encode() for point in POINTS),
    *map(bytes.fromhex, BAD_TEXTS),
]


def first_bad(text: bytes) -> int | None:
    """Which byte cannot be part of any UTF-8, as Python sees it; but that it waits for the
    third byte of a surrogate, which no UTF-8 has."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for index in range(len(text)):
        try:
            decoder.decode(text[index : index + 1])
        except UnicodeDecodeError:
            return index
        pending = decoder.getstate()[0]
        if pending[:1] == b"\xed" and pending[1:] >= b"\xa0":
            return index
    return None


def first_refused(text: bytes, pieces: list[bytes], agreed: Agreed = PLAIN) -> int | None:
    """The index of the piece at which the decoder fails."""
    decoder = agreed.decoder()
    for index, piece in enumerate(pieces):
        if events := decoder.feed(piece):
            assert invalid(events) == 1007
            return index
    return None


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.hex())
@pytest.mark.parametrize("before", [b"", b"a", b"abcdefg", b"abcdefgh" * 4, "é€𝄞".encode()])
def test_utf8(text: bytes, before: bytes) -> None:
    for after in (b"", b"b", b"12345678", "€".encode()):
        data = before + text + after
        try:
            expected: Events | None = [message(data.decode())]
        except UnicodeDecodeError:
            expected = None
        zeros = frame(TEXT, data, mask=b"\0\0\0\0")
        ways = [(PLAIN, frame(TEXT, data)), (PLAIN, zeros), (DEFLATE, packed(TEXT, deflated(data)))]
        for cut in range(len(data) + 1):
            ways.append((PLAIN, fragments(TEXT, [data[:cut], data[cut:]])))
        for agreed, sent in ways:
            events = decode([sent], agreed)
            if expected is None:
                assert invalid(events) == 1007
            else:
                assert events == expected
        assert decode_every_way(zeros) == (expected or decode([zeros]))
        # In one piece, of a frame that is not complete.
        refused = decode([frame(TEXT, data + b"more")[:-4]]) != []
        assert refused == (first_bad(data) is not None)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.hex())
def test_utf8_fails_with_the_bad_byte(text: bytes) -> None:
    """As early as can be: in a frame that is not complete, in fragments, and compressed."""
    for before in (b"", b"a", b"1234567", b"12345678", "é".encode()):
        for after in (b"", b"b", b"\x80", b"\xff"):
            data = before + text + after
            bad = first_bad(data)
            single = [data[i : i + 1] for i in range(len(data))]
            sent = frame(TEXT, data + b"more")
            pieces = [sent[:6], *(sent[i : i + 1] for i in range(6, len(sent) - 4))]
            assert first_refused(data, pieces) == (None if bad is None else 1 + bad)
            one_each = [
                frame(CONTINUATION if i else TEXT, p, fin=False) for i, p in enumerate(single)
            ]
            assert first_refused(data, one_each) == bad
            compressor = zlib.compressobj(wbits=-15)
            one_each = [
                frame(
                    CONTINUATION if i else TEXT,
                    deflated(p, compressor) + TAIL,
                    fin=False,
                    rsv=0 if i else RSV1,
                )
                for i, p in enumerate(single)
            ]
            assert first_refused(data, one_each, DEFLATE) == bad


def test_utf8_of_all_pairs_of_bytes() -> None:
    head = frame(TEXT, b"\0\0\0", mask=b"\0\0\0\0")[:6]
    pair_head = frame(TEXT, b"\0\0", mask=b"\0\0\0\0")[:6]
    for pair in itertools.product(range(256), repeat=2):
        data = bytes(pair)
        assert bool(FrameDecoder().feed(head + data)) == (first_bad(data) is not None), data
        try:
            expected = message(data.decode())
        except UnicodeDecodeError:
            assert invalid(FrameDecoder().feed(pair_head + data)) == 1007
        else:
            assert FrameDecoder().feed(pair_head + data) == [expected]


def test_utf8_of_sequences() -> None:
    """Every lead of three and four bytes, with what lies on either side of each limit."""
    head = frame(TEXT, b"\0" * 5, mask=b"\0\0\0\0")[:6]
    edges = (0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF)
    for lead in range(0xE0, 0x100):
        for rest in itertools.product(edges, edges, (0x7F, 0x80, 0xBF, 0xC0)):
            data = bytes([lead, *rest])
            bad = first_bad(data)
            decoder = FrameDecoder()
            assert decoder.feed(head) == []
            for index in range(4):
                events = decoder.feed(data[index : index + 1])
                assert bool(events) == (index == bad), data
                if events:
                    break


# -------------------------------------------------------------------------- close

# RFC 6455 section 7.4 and IANA's registry; 1005, 1006 and 1015 are never sent.
CODES = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}


def test_every_close_code() -> None:
    for code in range(65536):
        events = FrameDecoder().feed(frame(CLOSE, code.to_bytes(2, "big") + b"r"))
        if code in CODES:
            assert events == [("close", code, "r")]
        else:
            assert invalid(events) == 1002


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.hex())
def test_close_reason(text: bytes) -> None:
    for before in (b"", b"a" * 50):
        events = decode_every_way(frame(CLOSE, b"\x03\xe8" + before + text))
        try:
            reason = (before + text).decode()
        except UnicodeDecodeError:
            assert invalid(events) == 1007
        else:
            assert events == [("close", 1000, reason)]


# -------------------------------------------------------------------------- sizes


def in_shape(shape: str, opcode: int, data: bytes) -> bytes:
    half = len(data) // 2
    if shape == "one frame":
        return frame(opcode, data)
    if shape == "fragments":
        return fragments(opcode, [data[:half], b"", data[half:]])
    if shape == "compressed":
        return packed(opcode, deflated(data))
    if shape == "stored":
        return packed(opcode, deflated(data, zlib.compressobj(0, wbits=-15)))
    if shape == "a final block":
        return packed(opcode, finished(data))
    assert shape == "compressed fragments"
    small = deflated(data)
    return fragments(opcode, [small[:1], b"", small[1:5], small[5:]], rsv=RSV1)


SHAPES = ["one frame", "fragments", "compressed", "stored", "a final block", "compressed fragments"]


@pytest.mark.parametrize("takes_over", [False, True])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("shape", SHAPES)
def test_max_size(shape: str, opcode: int, takes_over: bool) -> None:
    for size in (0, 1, 2, 125, 126, 1023, 1024, 1025, 2047, 2048, 2049, 65535, 65536, 70_001):
        agreed = Agreed(deflate=True, takes_over=takes_over, max_size=size)
        fits, exceeds = b"a" * size, b"a" * (size + 1)
        sent = in_shape(shape, opcode, fits) + frame(PING)
        expected = [message(fits.decode() if opcode == TEXT else fits), ("ping", b"")]
        assert decode([sent], agreed) == expected
        assert decode([sent[:-9], sent[-9:]], agreed) == expected
        # Each message for itself.
        assert decode([frame(opcode, b"a" * size) + sent], agreed)[1:] == expected
        sent = in_shape(shape, opcode, exceeds)
        assert invalid(decode([sent], agreed)) == 1009
        assert invalid(decode([sent[i : i + 1] for i in range(len(sent))], agreed)) == 1009


@pytest.mark.parametrize("size", [0, 1, 1000, 70_000, LIMIT])
def test_what_is_too_big_is_refused_by_its_head(size: int) -> None:
    decoder = FrameDecoder(max_size=size)
    assert invalid(decoder.feed(frame(BINARY, length=size + 1))) == 1009
    assert FrameDecoder(max_size=size).feed(frame(BINARY, length=size)[:-4]) == []
    if 0 < size < LIMIT:
        decoder = FrameDecoder(max_size=size)
        assert decoder.feed(frame(BINARY, b"a" * size, fin=False) + frame(PING, b"p")) == [
            ("ping", b"p")
        ]
        assert invalid(decoder.feed(frame(CONTINUATION, length=1))) == 1009


def test_control_frames_have_no_part_in_it() -> None:
    decoder = FrameDecoder(max_size=0)
    assert decoder.feed(frame(PING, b"p" * 125) + frame(TEXT)) == [
        ("ping", b"p" * 125), message(""),
    ]  # fmt: skip


# ------------------------------------------------------------------------- memory


def peak(call: Callable[[], object]) -> int:
    """Bytes that Python's objects took at most; zlib's own are a fixed number of KiB."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "sent, agreed",
    [
        case("a frame", frame(BINARY, b"a" * 100, length=LIMIT), PLAIN),
        case("text", frame(TEXT, b"a" * 100, length=LIMIT), PLAIN),
        case("a fragment", frame(BINARY, b"a" * 100, fin=False, length=LIMIT), PLAIN),
        case("compressed", packed(BINARY, HELLO, length=2**63 - 1), DEFLATE),
        case("compressed text", packed(TEXT, HELLO, length=2**63 - 1), TAKEOVER),
    ],
)
def test_an_announcement_costs_nothing(sent: bytes, agreed: Agreed) -> None:
    decoders = [agreed.decoder() for _ in range(20)]

    def begin() -> None:
        for decoder in decoders:
            assert decoder.feed(sent) == []

    assert peak(begin) < 20 * 4096


def test_memory_grows_with_what_has_come() -> None:
    decoder = FrameDecoder()
    part = b"a" * 4096

    def begin() -> None:
        decoder.feed(frame(BINARY, length=LIMIT, mask=b"\0\0\0\0"))
        for _ in range(256):
            assert decoder.feed(part) == []

    assert peak(begin) < 4 * 256 * 4096


def test_a_bomb() -> None:
    """1 GiB in 1 MiB: no more of it is made than a message may have, and one byte."""
    compressor = zlib.compressobj(9, wbits=-15)
    zeros = bytes(1 << 20)
    data = b"".join(compressor.compress(zeros) for _ in range(64))
    data = (data + compressor.flush(zlib.Z_FULL_FLUSH)) * 16 + b"\x00"
    assert len(data) > 1 << 19
    agreed = Agreed(deflate=True, max_size=1 << 20)
    for opcode in (TEXT, BINARY):
        sent = packed(opcode, data)
        # With the copy that `feed` makes of it.
        assert peak(partial(agreed.decoder().feed, sent)) < len(sent) + (2 << 20)
        assert invalid(agreed.decoder().feed(sent)) == 1009
    assert invalid(decode([packed(TEXT, data)], Agreed(deflate=True, max_size=0))) == 1009


def test_what_inflates_to_nothing_takes_no_room() -> None:
    decoder = DEFLATE.decoder()
    blocks = (b"\x00" + TAIL) * 100_000
    sent = packed(BINARY, blocks + b"\x00") * 3 + packed(BINARY, HELLO)
    events: Events = []
    assert peak(lambda: events.extend(decoder.feed(sent))) < len(sent) + 65536
    assert events == [message(b"")] * 3 + [message(b"Hello")]


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@measures_memory
def test_an_idle_decoder_keeps_no_zlib_state() -> None:
    """Without context takeover it is lent for a message; 40 KiB each would be 80 MiB."""
    pool = DeflatePool()
    sent = packed(TEXT, deflated(bytes(random.Random(1).choices(b"abcdefgh", k=40_000))))
    decoders = [FrameDecoder(pool=pool) for _ in range(2000)]
    assert len(decoders.pop().feed(sent)) == 1
    before = resident()
    for decoder in decoders:
        assert len(decoder.feed(sent)) == 1
    assert resident() - before < 8 << 20


def test_lent_states_do_not_mix() -> None:
    """Many messages arrive at once, over decoders that share what is lent."""
    pool = DeflatePool()
    source = random.Random(3)
    texts = [bytes(source.choices(b"abcdef", k=source.randrange(3000))) for _ in range(200)]
    for _ in range(2):
        decoders = [FrameDecoder(pool=pool) for _ in texts]
        halves = []
        for decoder, text in zip(decoders, texts, strict=True):
            small = packed(BINARY, deflated(text))
            cut = source.randrange(len(small))
            assert decoder.feed(small[:cut]) == []
            halves.append(small[cut:])
        for decoder, half, text in zip(decoders, halves, texts, strict=True):
            assert decoder.feed(half) == [message(text)]
        # One that fails or is dropped on its way spoils no other.
        assert invalid(FrameDecoder(pool=pool).feed(packed(BINARY, b"\x07"))) == 1007
        FrameDecoder(pool=pool).feed(frame(BINARY, HELLO[:3], fin=False, rsv=RSV1))


# ------------------------------------------------------------------------ inflate


def inflate(data: bytes) -> bytes | None:
    """What zlib makes of a message's payload; None if it refuses it."""
    data += TAIL
    made = b""
    while True:
        inflater = zlib.decompressobj(wbits=-15)
        try:
            made += inflater.decompress(data)
        except zlib.error:
            return None
        if not inflater.eof:
            return made
        data = inflater.unused_data


@pytest.mark.parametrize("agreed", [DEFLATE, TAKEOVER], ids=["no takeover", "takeover"])
@pytest.mark.parametrize("bits", range(9, 16))
def test_inflate(bits: int, agreed: Agreed) -> None:
    """What any compressor writes, in messages that refer to those before or do not."""
    source = random.Random(bits)
    strategies = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE)
    for level, strategy in itertools.product((0, 1, 6, 9), strategies):
        compressor = zlib.compressobj(level, zlib.DEFLATED, -bits, 9, strategy)
        sent = bytearray()
        expected: Events = []
        for length in (0, 1, 5, 0, 700, 40_000, 5, 3000):
            data = bytes(source.choices(b"abcdefgh\xff", k=length))
            if not agreed.takes_over:
                compressor = zlib.compressobj(level, zlib.DEFLATED, -bits, 9, strategy)
            # zlib flushes only once: then there is nothing to take the end of.
            small = compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
            small = small[:-4] if small else b"\x00"
            cut = source.randrange(len(small) + 1)
            sent += fragments(BINARY, [small[:cut], small[cut:]], rsv=RSV1, between=frame(PING))
            expected += [("ping", b""), message(data)]
        assert decode([bytes(sent)], agreed) == expected
        cuts = sorted(source.randrange(len(sent)) for _ in range(20))
        parts = [bytes(sent[a:b]) for a, b in itertools.pairwise([0, *cuts, len(sent)])]
        assert decode(parts, agreed) == expected


def test_a_window_that_was_not_agreed() -> None:
    data = random.Random(5).randbytes(2000)
    compressor = zlib.compressobj(wbits=-15)
    sent = [packed(BINARY, deflated(data, compressor)) for _ in range(2)]
    assert len(sent[1]) < 100
    assert decode(sent, TAKEOVER) == [message(data)] * 2
    events = decode(sent, DEFLATE)
    assert events[0] == message(data)
    assert invalid(events[1:]) == 1007


PAYLOADS = [
    case("fixed", deflated(b"Hello, hello, hello")),
    case("stored", deflated(b"Hello", zlib.compressobj(0, wbits=-15))),
    case("dynamic", deflated(bytes(random.Random(4).choices(b"abcdefgh", k=300)))),
    case("final", finished(b"Hello, hello")),
    case("two final", finished(b"Hello")[:-1] + finished(b"you")),
    case("blocks", TAIL.join([HELLO, HELLO, b"\x00"])),
]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_cut_and_corrupt_payloads(payload: bytes) -> None:
    """Whatever is missing, and whatever bit is wrong: what zlib makes of it, or 1007. The
    next message is not touched by it."""
    cut = [payload[:length] for length in range(len(payload) + 1)]
    flipped = []
    for bit in range(8 * len(payload)):
        copy = bytearray(payload)
        copy[bit // 8] ^= 1 << bit % 8
        flipped.append(bytes(copy))
    for data in cut + flipped:
        made = inflate(data)
        sent = packed(BINARY, data)
        events = decode([sent + packed(BINARY, HELLO)], DEFLATE)
        if made is None:
            assert invalid(events) == 1007
        else:
            assert events == [message(made), message(b"Hello")]
        single = [sent[i : i + 1] for i in range(len(sent))]
        assert decode(single, DEFLATE) == events[:1]


# ------------------------------------------------------------------------ deflate

MESSAGES = [
    b"Hello",
    b"",
    b"",
    b"Hello",
    b"a" * 100_000,
    random.Random(6).randbytes(100_000),
    b"Hello",
    "Grüße, €, 𝄞. ".encode() * 300,
    random.Random(6).randbytes(100_000),
    b"\x00" * 1_000_000,
    b"",
    b"a",
]


@pytest.mark.parametrize("takes_over", [False, True])
@pytest.mark.parametrize("bits", range(9, 16))
def test_deflater(bits: int, takes_over: bool) -> None:
    """zlib reads it with a window as small as was agreed, and so do we."""
    deflater = Deflater(bits, takes_over)
    inflater = zlib.decompressobj(wbits=-bits)
    decoder = (TAKEOVER if takes_over else DEFLATE).decoder()
    for data in MESSAGES:
        small = deflater.compress(data)
        assert small
        if not takes_over:
            inflater = zlib.decompressobj(wbits=-bits)
        assert inflater.decompress(small + TAIL) == data
        assert inflater.unconsumed_tail == inflater.unused_data == b""
        assert len(small) < len(data) + len(data) // 500 + 64
        assert decoder.feed(packed(BINARY, small)) == [message(data)]


def test_deflater_refers_to_earlier_messages_only_if_it_may() -> None:
    data = random.Random(7).randbytes(3000)
    alone, together = Deflater(15, False), Deflater(15, True)
    assert alone.compress(data) == alone.compress(data) == together.compress(data)
    assert len(together.compress(data)) < 100
    assert Deflater().compress(data) == alone.compress(data)


@pytest.mark.parametrize("bits", range(9, 15))
def test_deflater_keeps_to_its_window(bits: int) -> None:
    """What repeats further back than the peer remembers is written again."""
    block = random.Random(8).randbytes((1 << bits) + 50)
    data = block * 3
    small = Deflater(bits).compress(data)
    assert len(Deflater(15).compress(data)) < len(data) // 2 < len(data) - 100 < len(small)
    # Piece by piece, for within one call zlib sees all that it has made in it.
    inflater = zlib.decompressobj(wbits=-bits)
    assert b"".join(inflater.decompress(bytes([byte])) for byte in small + TAIL) == data


def test_deflater_refuses_what_is_too_long() -> None:
    with pytest.raises(ValueError, match="too many"):
        Deflater().compress(bytes(LIMIT + 1))
    assert len(Deflater().compress(bytes(LIMIT))) < LIMIT // 100


# -------------------------------------------------------------------- negotiation

NAME = "permessage-deflate"
Answer = tuple[str, int, bool, bool] | None


def answer(*parameters: str, bits: int = 15, server: bool = True, client: bool = True) -> Answer:
    return ("; ".join([NAME, *parameters]), bits, server, client)


@pytest.mark.parametrize(
    "offers, expected",
    [
        (NAME, answer()),
        (f" {NAME} ", answer()),
        (f"{NAME}; client_max_window_bits", answer("client_max_window_bits=15")),
        (f"{NAME}; client_max_window_bits=10", answer("client_max_window_bits=10")),
        (f'{NAME};\tclient_max_window_bits="10"', answer("client_max_window_bits=10")),
        (f"{NAME}; server_max_window_bits=10", answer("server_max_window_bits=10", bits=10)),
        (f'{NAME};server_max_window_bits="9"', answer("server_max_window_bits=9", bits=9)),
        (f"{NAME}; server_max_window_bits=15", answer("server_max_window_bits=15")),
        (
            f"{NAME} ; server_no_context_takeover",
            answer("server_no_context_takeover", server=False),
        ),
        (
            f"{NAME}; client_no_context_takeover",
            answer("client_no_context_takeover", client=False),
        ),
        (
            f"{NAME}; server_max_window_bits=12; client_no_context_takeover"
            "; client_max_window_bits; server_no_context_takeover",
            answer(
                "client_no_context_takeover",
                "server_no_context_takeover",
                "client_max_window_bits=15",
                "server_max_window_bits=12",
                bits=12,
                server=False,
                client=False,
            ),
        ),
        (f"{NAME}; server_max_window_bits = 10", answer("server_max_window_bits=10", bits=10)),
        # declined
        ("", None),
        (",", None),
        ("x-webkit-deflate-frame", None),
        ("Permessage-Deflate", None),
        (f"{NAME}x", None),
        (f"x{NAME}", None),
        (f"{NAME};", None),
        (f"{NAME}; unknown", None),
        (f"{NAME}; unknown=1", None),
        (f"{NAME}; Client_max_window_bits", None),
        (f"{NAME}; server_max_window_bits", None),
        (f"{NAME}; server_max_window_bits=8", None),
        (f"{NAME}; server_max_window_bits=7", None),
        (f"{NAME}; server_max_window_bits=16", None),
        (f"{NAME}; server_max_window_bits=010", None),
        (f"{NAME}; server_max_window_bits=+9", None),
        (f"{NAME}; server_max_window_bits=-9", None),
        (f"{NAME}; server_max_window_bits=1_0", None),
        (f"{NAME}; server_max_window_bits=1 0", None),
        (f"{NAME}; server_max_window_bits=1\t0", None),
        (f'{NAME}; server_max_window_bits="1 0"', None),
        (f'{NAME}; server_max_window_bits=" 10"', None),
        (f"{NAME}; server_max_window_bits=1\u00b2", None),
        (f"{NAME}; server_max_window_bits=\u0661\u0660", None),
        (f"{NAME}; server_max_window_bits=", None),
        (f'{NAME}; server_max_window_bits=""', None),
        (f'{NAME}; server_max_window_bits="10', None),
        (f'{NAME}; server_max_window_bits=10"', None),
        (f"{NAME}; server_max_window_bits==10", None),
        (f"{NAME}; server_max_window_bits=10=10", None),
        (f"{NAME}; server_max_window_bits=" + "1" * 5000, None),
        (f"{NAME}; client_max_window_bits=0", None),
        (f"{NAME}; client_max_window_bits=16", None),
        (f"{NAME}; client_max_window_bits=", None),
        (f"{NAME}; client_max_window_bits=a", None),
        (f"{NAME}; server_no_context_takeover=1", None),
        (f"{NAME}; client_no_context_takeover=", None),
        (f"{NAME}; server_max_window_bits=10; server_max_window_bits=10", None),
        (f"{NAME}; client_max_window_bits; client_max_window_bits=10", None),
        (f"{NAME}; server_no_context_takeover; server_no_context_takeover", None),
        (f"{NAME}; client_no_context_takeover; client_no_context_takeover", None),
        # the first that is acceptable
        (f"x, {NAME}", answer()),
        (f"{NAME}; unknown, {NAME}", answer()),
        (
            f"{NAME}; server_max_window_bits=8, {NAME}; server_max_window_bits=9, {NAME}",
            answer("server_max_window_bits=9", bits=9),
        ),
        (
            f"{NAME}; server_no_context_takeover, {NAME}",
            answer("server_no_context_takeover", server=False),
        ),
        # Nothing of an offer that is declined stays.
        (f"{NAME}; server_no_context_takeover; server_max_window_bits=8, {NAME}", answer()),
        (
            f"{NAME}; client_no_context_takeover; client_max_window_bits=7,{NAME}"
            "; client_max_window_bits",
            answer("client_max_window_bits=15"),
        ),
    ],
)
def test_negotiation(offers: str, expected: Answer) -> None:
    assert negotiate_deflate(offers, True) == expected
    # Without context takeover the same offers are good, and the answer says so.
    without = negotiate_deflate(offers, False)
    assert (without is None) == (expected is None)
    if expected is not None and without is not None:
        assert without[1:] == (expected[1], False, False)
        added = {"client_no_context_takeover", "server_no_context_takeover"}
        assert set(without[0].split("; ")) == set(expected[0].split("; ")) | added


BITS = ["8", "9", "10", "14", "15", "16", "7", "015", "x"]
PARAMETERS = st.one_of(
    st.sampled_from(
        [
            ("server_no_context_takeover", None),
            ("client_no_context_takeover", None),
            ("client_max_window_bits", None),
        ]
    ),
    st.tuples(
        st.sampled_from(["server_max_window_bits", "client_max_window_bits"]), st.sampled_from(BITS)
    ),
    st.sampled_from(
        [
            ("server_max_window_bits", None),
            ("server_no_context_takeover", "1"),
            ("unknown", None),
            ("unknown", "10"),
        ]
    ),
)


@st.composite
def offers(draw: st.DrawFn) -> str:
    space = st.sampled_from(["", " ", "\t"])
    written = []
    for _ in range(draw(st.integers(1, 3))):
        text = draw(st.sampled_from([NAME, NAME, NAME, "x-other"]))
        for name, value in draw(st.lists(PARAMETERS, max_size=4)):
            text += draw(space) + ";" + draw(space) + name
            if value is not None:
                quote = draw(st.sampled_from(["", "", '"']))
                text += f"={quote}{value}{quote}"
        written.append(text)
    return draw(st.sampled_from([",", ", ", " ,"])).join(written)


@examples
@given(offers(), st.booleans())
def test_negotiation_against_websockets(text: str, context_takeover: bool) -> None:
    ours = negotiate_deflate(text, context_takeover)
    server = ServerPerMessageDeflateFactory(not context_takeover, not context_takeover)
    for name, parameters in parse_extension(text):
        if name != NAME or ("client_max_window_bits", "8") in parameters:
            continue  # wsproto declines it, as it may; websockets can read such a window
        try:
            _, theirs = server.process_request_params(parameters, [])
        except NegotiationError:
            continue
        assert ours is not None
        assert ours[1] == theirs.local_max_window_bits
        assert ours[2] != theirs.local_no_context_takeover
        assert ours[3] != theirs.remote_no_context_takeover
        # And a client that has made this offer takes the answer to it.
        offered = dict(parameters)
        size = offered.get("client_max_window_bits", 0)
        client = ClientPerMessageDeflateFactory(
            "server_no_context_takeover" in offered,
            "client_no_context_takeover" in offered,
            int(offered["server_max_window_bits"] or 0)
            if "server_max_window_bits" in offered
            else None,
            True if size is None else int(size) if size else None,
        )
        [(name, parameters)] = parse_extension(ours[0])
        agreed = client.process_response_params(parameters, [])
        assert agreed.remote_max_window_bits == ours[1]
        assert agreed.remote_no_context_takeover != ours[2]
        assert agreed.local_no_context_takeover != ours[3]
        return
    assert ours is None


# ------------------------------------------------------------- against wsproto


def by_wsproto(data: bytes, agreed: Agreed) -> Events:
    extensions: list[Extension] = []
    if agreed.deflate:
        deflate = PerMessageDeflate(client_no_context_takeover=not agreed.takes_over)
        deflate.accept(NAME)
        extensions.append(deflate)
    protocol = FrameProtocol(client=False, extensions=extensions)
    events: Events = []
    pieces: list[Any] = []
    try:
        protocol.receive_bytes(data)
        for part in protocol.received_frames():
            if part.opcode is Opcode.PING or part.opcode is Opcode.PONG:
                events.append((part.opcode.name.lower(), part.payload))
            elif part.opcode is Opcode.CLOSE:
                assert isinstance(part.payload, tuple)
                events.append(("close", int(part.payload[0]), part.payload[1]))
                break
            else:
                pieces.append(part.payload)
                if part.message_finished:
                    events.append(message(("" if part.opcode is Opcode.TEXT else b"").join(pieces)))
                    pieces = []
    except ParseFailed as error:
        events.append(("invalid", int(error.code), str(error)))
    return events


def by_fastserve(data: bytes, agreed: Agreed) -> Events:
    """Up to the Close, behind which a connection reads nothing."""
    events = decode([data], agreed)
    closed = [index for index, event in enumerate(events) if event[0] == "close"]
    return events[: closed[0] + 1] if closed else events


@dataclass
class Mismatch:
    """`aspect`: "event", both tell something, but not the same;
    "code", both refuse it, with another code;
    "stricter", we refuse what they take, "laxer", they refuse what we take;
    "early", we refuse what they still wait for more of, "waits", the other way round;
    "more", we tell something that they do not, "less", the other way round."""

    aspect: str
    ours: tuple[Any, ...] | None
    theirs: tuple[Any, ...] | None


def compare(ours: Events, theirs: Events) -> Mismatch | None:
    for a, b in itertools.zip_longest(ours, theirs):
        if a == b:
            continue
        if a is None:
            return Mismatch("waits" if b[0] == "invalid" else "less", a, b)
        if b is None:
            return Mismatch("early" if a[0] == "invalid" else "more", a, b)
        if a[0] == b[0] == "invalid":
            return Mismatch("code", a, b) if a[1] != b[1] else None
        if a[0] == "invalid":
            return Mismatch("stricter", a, b)
        return Mismatch("laxer" if b[0] == "invalid" else "event", a, b)
    return None


def messages_of(data: bytes) -> Iterable[tuple[int, bytes, bool]]:
    """First byte, payload, and whether a control frame stood within: of what is well framed."""
    first, payload, within, begun = 0, b"", False, False
    while len(data) >= 6:
        length, at = data[1] & 0x7F, 2
        if length >= 126:
            at = 4 if length == 126 else 10
            length = int.from_bytes(data[2:at], "big")
        mask, coded = data[at : at + 4], data[at + 4 : at + 4 + length]
        part = bytes(byte ^ mask[i & 3] for i, byte in enumerate(coded))
        if data[0] & 0x08:
            within = within or begun
        else:
            if not begun:
                first, payload, within, begun = data[0], b"", False, True
            payload += part
            if data[0] & 0x80 or len(coded) < length:
                yield first, payload, within
                begun = False
        data = data[at + 4 + length :]
    if begun:
        yield first, payload, within


def has_control_within_compressed(data: bytes) -> bool:
    return any(first & 0x40 and within for first, _, within in messages_of(data))


def has_final_block(data: bytes) -> bool:
    """In a message of its own at least; what a window before it would say is not known."""
    for first, payload, _ in messages_of(data):
        inflater = zlib.decompressobj(wbits=-15, zdict=bytes(32768))
        with contextlib.suppress(zlib.error):
            inflater.decompress(payload + TAIL)
        if first & 0x40 and inflater.eof:
            return True
    return False


@dataclass
class Difference:
    """A known difference. Each of the patterns that is given has to be found."""

    aspect: str
    section: str  # which decides for us
    why: str
    ours: str = ""  # in our event
    theirs: str = ""  # in theirs
    data: Callable[[bytes], bool] | None = None  # of what was decoded

    def covers(self, data: bytes, m: Mismatch) -> bool:
        return (
            re.fullmatch(self.aspect, m.aspect) is not None
            and re.search(self.ours, repr(m.ours)) is not None
            and re.search(self.theirs, repr(m.theirs)) is not None
            and (self.data is None or self.data(data))
        )


# fmt: off
DIFFERENCES = [
    Difference("early|stricter|code", "6455 10.4", "it has no limit of size", ours="1009"),
    Difference("laxer|code", "6455 7.4.2", "IANA has registered 1014",
               ours="'close', 1014|1007.*reason", theirs="1002.*reserved code"),
    Difference("early", "6455 5.2", "the first two bytes say enough",
               ours="1002.*(reserved bits|not masked|unknown opcode|control frame|out of place)"),
    Difference("code", "6455 5.4", "a fragment out of place is not inflated",
               ours="1002.*out of place", theirs="1007"),
    Difference("event|laxer|code|stricter|early", "7692 6.1", "a control frame does not end the compressed message that it is within",
               data=has_control_within_compressed),
    Difference("event|laxer|code|stricter|early", "7692 7.2.3.4", "its inflater stops at a final block",
               data=has_final_block),
]
# fmt: on


def unlisted(data: bytes, agreed: Agreed) -> str:
    m = compare(by_fastserve(data, agreed), by_wsproto(data, agreed))
    if m is None or any(d.covers(data, m) for d in DIFFERENCES):
        return ""
    return f"{agreed}: {m}"


EVERYTHING = [
    *(c for c in [*VALID, *INVALID] if c.values[1].max_size == LIMIT),
    case("1014", frame(CLOSE, b"\x03\xf6"), PLAIN),
    case("1014 and a bad reason", frame(CLOSE, b"\x03\xf6\xff"), PLAIN),
    case("the start of a head", frame(BINARY, b"a" * 126, mask=None)[:2], PLAIN),
    case(
        "out of place, and corrupt", packed(TEXT, b"", fin=False) + packed(TEXT, b"\x07"), DEFLATE
    ),
]


@pytest.mark.parametrize("data, agreed", [case(c.id, *c.values[:2]) for c in EVERYTHING])
def test_table_against_wsproto(data: bytes, agreed: Agreed) -> None:
    assert unlisted(data, agreed) == ""


@pytest.mark.parametrize("number", range(len(DIFFERENCES)), ids=lambda n: DIFFERENCES[n].why)
def test_each_difference_exists(number: int) -> None:
    """A difference that no case shows any more is taken off the table."""
    for data, agreed in (c.values[:2] for c in EVERYTHING):
        m = compare(by_fastserve(data, agreed), by_wsproto(data, agreed))
        if m is not None and DIFFERENCES[number].covers(data, m):
            return
    pytest.fail("no case shows it")


CHARACTERS = "aaa \0\x7fé\u07ff\u0800€\ud7ff\ue000\uffff𝄞\U0010ffff"
LENGTHS = [*range(20), *range(20), 30, 64, 125, 126, 127, 200, 300, 3000]


class Sender:
    """A client that says anything, mostly well: what it sends is its seed's."""

    def __init__(self, seed: int) -> None:
        self.source = random.Random(seed)
        self.agreed = self.source.choice([PLAIN, DEFLATE, TAKEOVER])
        self.compressor: Any = None

    def control(self) -> bytes:
        opcode = self.source.choice([PING, PONG])
        return frame(
            opcode, self.source.randbytes(self.source.choice([0, 1, 5, 125])), mask=self.mask()
        )

    def mask(self) -> bytes:
        return self.source.choice([b"\0\0\0\0", self.source.randbytes(4)])

    def compressed(self, data: bytes) -> bytes:
        if self.compressor is None or not self.agreed.takes_over:
            level, bits = self.source.choice([0, 1, 9]), self.source.choice([9, 12, 15])
            self.compressor = zlib.compressobj(level, wbits=-bits)
        small = self.compressor.compress(data) + self.compressor.flush(zlib.Z_SYNC_FLUSH)
        return small[:-4] if small else b"\x00"

    def message(self) -> bytes:
        source = self.source
        length = source.choice(LENGTHS)
        if source.random() < 0.5:
            opcode, data = TEXT, "".join(source.choices(CHARACTERS, k=length)).encode()
        else:
            opcode, data = BINARY, source.randbytes(length)
        rsv = 0
        if self.agreed.deflate and source.random() < 0.7:
            rsv, data = RSV1, self.compressed(data)
        cuts = sorted(source.choices(range(len(data) + 1), k=source.choice([0, 0, 1, 2, 5])))
        sent = b""
        pieces = [data[a:b] for a, b in itertools.pairwise([0, *cuts, len(data)])]
        for index, piece in enumerate(pieces):
            sent += frame(
                CONTINUATION if index else opcode,
                piece,
                fin=index == len(pieces) - 1,
                rsv=0 if index else rsv,
                mask=self.mask(),
            )
            if source.random() < 0.1:
                sent += self.control()
        return sent

    def stream(self) -> bytes:
        source = self.source
        sent = b""
        for _ in range(source.randrange(1, 6)):
            sent += self.control() if source.random() < 0.2 else self.message()
        if source.random() < 0.2:
            code = source.choice([999, 1000, 1004, 1005, 1012, 1014, 1016, 3000, 5000])
            reason = "".join(source.choices(CHARACTERS, k=5)).encode()[: source.randrange(12)]
            sent += frame(CLOSE, code.to_bytes(2, "big") + reason)
        return sent

    def damaged(self, data: bytes) -> bytes:
        damaged = bytearray(data)
        for _ in range(self.source.randrange(1, 4)):
            place = self.source.randrange(len(damaged) + 1)
            kind = self.source.randrange(4)
            if kind == 0:
                damaged[place:place] = self.source.randbytes(1)
            elif kind == 1:
                del damaged[place : place + 1]
            elif kind == 2:
                damaged[place : place + 1] = self.source.randbytes(1)
            elif place < len(damaged):
                damaged[place] ^= 1 << self.source.randrange(8)
        return bytes(damaged)


def check_stream(data: bytes, agreed: Agreed, source: random.Random) -> None:
    if len(data) <= 64:
        whole = decode_every_way(data, agreed)
    else:
        whole = decode([data], agreed)
        for count in (1, 3, 10):
            cuts = sorted(source.randrange(len(data) + 1) for _ in range(count))
            parts = [data[a:b] for a, b in itertools.pairwise([0, *cuts, len(data)])]
            assert decode(parts, agreed) == whole, cuts
    for event in whole:
        if event[0] == "message":
            assert type(event[1]) in (str, bytes)
    assert unlisted(data, agreed) == ""


@pytest.mark.parametrize("block", range(10))
def test_streams_against_wsproto(block: int) -> None:
    for seed in range(200 * block, 200 * block + 200):
        sender = Sender(seed)
        data = sender.stream()
        check_stream(data, sender.agreed, sender.source)
        for _ in range(3):
            check_stream(sender.damaged(data), sender.agreed, sender.source)


PIECES = st.one_of(
    st.sampled_from([b"", b"a", b"\xe2", b"\x82\xac", b"\xff", b"\x03\xe8", b"\x03\xed", b"\x03"]),
    st.sampled_from([HELLO, HELLO[:3], HELLO[3:], b"\x00", b"\x07", b"\xf2\x00\x11\x00\x00", TAIL]),
    st.text(max_size=5).map(str.encode),
    st.binary(max_size=10),
    st.just(b"a" * 126),
)
FRAMES = st.builds(
    frame,
    st.sampled_from([0, 0, 0, 1, 1, 2, 2, 8, 9, 10, 3, 11]),
    PIECES,
    fin=st.booleans(),
    rsv=st.sampled_from([0, 0, 0, RSV1, RSV1, RSV2, RSV3]),
    mask=st.sampled_from([b"\x37\xfa\x21\x3d"] * 8 + [b"\0\0\0\0", None]),
    form=st.sampled_from([None] * 8 + [2, 8]),
)
AGREED = st.sampled_from([PLAIN, DEFLATE, TAKEOVER])


@examples
@given(st.lists(FRAMES, min_size=1, max_size=5), st.binary(max_size=4), AGREED)
def test_frames_against_wsproto(frames: list[bytes], rest: bytes, agreed: Agreed) -> None:
    check_stream(b"".join(frames) + rest, agreed, random.Random(0))
