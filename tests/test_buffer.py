"""The send buffer against a bytearray: what is appended leaves once, and in order."""

from __future__ import annotations

import gc
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fastserve._buffer import SendBuffer

REFERENCED = 16 * 1024  # a bytes object at least this long is not copied
INLINE = 4 * 1024  # bytes that the buffer holds without memory of its own
KEPT = 64 * 1024  # a block that grew beyond this is given back when it is empty
PIECES = 8  # pieces that need no memory of their own

EDGES = [0, 1, 2]
for _edge in (INLINE // 2, INLINE, 2 * INLINE, REFERENCED, 2 * REFERENCED, KEPT, 2 * KEPT):
    EDGES += [_edge - 1, _edge, _edge + 1]

numbers = random.Random(20240229)


def content(length: int) -> bytes:
    """Bytes in which a mistake cannot hide: no two stretches are alike."""
    return numbers.randbytes(length)


FILE = Path(tempfile.gettempdir(), f"test_buffer.{os.getpid()}")
IN_FILE = numbers.randbytes(3 * KEPT)


@pytest.fixture(scope="module", autouse=True)
def file() -> Iterator[None]:
    FILE.write_bytes(IN_FILE)
    yield
    FILE.unlink()


class Model:
    """A SendBuffer and what must be in it."""

    def __init__(self) -> None:
        self.buffer = SendBuffer()
        self.expected = bytearray()

    def write(self, data: bytes) -> None:
        self.buffer.write(data)
        self.expected += data

    def write_file(self, start: int, length: int) -> None:
        self.buffer.write_file(str(FILE), start, length)
        self.expected += IN_FILE[start : start + length]

    def load(self, most: int) -> bool:
        """Its bytes are the same whether they are in a file or were read from it."""
        loaded = self.buffer.load_file(most)
        self.check()
        return bool(loaded)

    def drop(self, length: int) -> None:
        self.buffer.drop(length)
        del self.expected[:length]

    def check(self) -> None:
        assert self.buffer.pending == len(self.buffer) == len(self.expected)
        assert self.buffer.peek() == self.expected


def test_new() -> None:
    buffer = SendBuffer()
    assert len(buffer) == buffer.pending == 0
    assert buffer.peek() == b""
    buffer.drop(0)


@pytest.mark.parametrize("length", EDGES)
def test_one_write(length: int) -> None:
    model = Model()
    model.write(content(length))
    model.check()
    for part in (length // 3, 0, length // 3):
        model.drop(part)
        model.check()
    model.drop(len(model.expected))
    model.check()
    model.write(b"again")
    model.check()


@pytest.mark.parametrize("first", EDGES)
@pytest.mark.parametrize("second", EDGES)
def test_two_writes(first: int, second: int) -> None:
    model = Model()
    model.write(content(first))
    model.write(content(second))
    model.check()
    model.drop(min(first + second, first + 1))
    model.check()
    model.write(content(10))
    model.check()
    model.drop(len(model.expected))
    model.check()


@pytest.mark.parametrize("dropped", range(25))
def test_small_and_big_in_turn(dropped: int) -> None:
    """Every other piece is a reference, so none of them can be joined."""
    model = Model()
    for number in range(3 * PIECES):
        model.write(content(REFERENCED + number if number % 2 else 10 + number))
    for number in range(dropped):
        model.drop(REFERENCED + number if number % 2 else 10 + number)
    model.check()
    for number in range(3 * PIECES):
        model.write(content(10 + number if number % 2 else REFERENCED + number))
        model.check()
    while model.expected:
        model.drop(min(len(model.expected), 9_999))
        model.check()


def test_small_writes_around_a_big_one_keep_their_order() -> None:
    buffer = SendBuffer()
    big = content(REFERENCED)
    buffer.write(b"before ")
    buffer.write(big)
    buffer.write(b" after")
    buffer.write(b" all")
    assert buffer.peek() == b"before " + big + b" after all"


def test_a_queue_that_never_empties() -> None:
    """What was sent is overwritten in the end, not what waits."""
    model = Model()
    model.write(content(3000))
    for _ in range(2000):
        length = numbers.randrange(1, 700)
        model.write(content(length))
        model.drop(min(length, len(model.expected) - 1))
        assert model.buffer.peek() == model.expected


def test_blocks_do_not_pile_up() -> None:
    """A queue of the same length needs no more memory however much goes through it."""
    buffer = SendBuffer()
    buffer.write(content(1000))
    piece = content(1000)
    buffer.write(piece)
    buffer.drop(1000)
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(20_000):
        buffer.write(piece)
        buffer.drop(1000)
    assert sys.getallocatedblocks() - before < 50
    assert buffer.peek() == piece


def test_a_large_block_is_used_again() -> None:
    model = Model()
    for _ in range(20):
        for _ in range(20):
            model.write(content(REFERENCED - 1))
        model.check()
        model.drop(len(model.expected) - 5)
        model.check()
        model.write(content(INLINE + 1))
        model.check()
        model.drop(len(model.expected))
        model.check()


class TestReferences:
    def test_short_bytes_are_copied(self) -> None:
        buffer = SendBuffer()
        data = content(REFERENCED - 1)
        before = sys.getrefcount(data)
        buffer.write(data)
        assert sys.getrefcount(data) == before

    @pytest.mark.parametrize("length", [REFERENCED, REFERENCED + 1, 1_000_000])
    def test_long_bytes_are_held_until_their_last_byte(self, length: int) -> None:
        buffer = SendBuffer()
        data = content(length)
        before = sys.getrefcount(data)
        buffer.write(b"head")
        buffer.write(data)
        buffer.write(b"tail")
        assert sys.getrefcount(data) == before + 1
        buffer.drop(4)
        buffer.drop(length - 1)
        assert sys.getrefcount(data) == before + 1
        buffer.drop(1)
        assert sys.getrefcount(data) == before
        assert buffer.peek() == b"tail"

    def test_dropped_with_others(self) -> None:
        buffer = SendBuffer()
        data = content(REFERENCED)
        before = sys.getrefcount(data)
        for _ in range(5 * PIECES):
            buffer.write(data)
            buffer.write(b"-")
        assert sys.getrefcount(data) == before + 5 * PIECES
        buffer.drop(3 * (REFERENCED + 1) + 7)
        assert sys.getrefcount(data) == before + 5 * PIECES - 3
        buffer.drop(len(buffer))
        assert sys.getrefcount(data) == before

    @pytest.mark.parametrize("count", [1, PIECES, PIECES + 1, 10 * PIECES])
    def test_freed_with_the_buffer(self, count: int) -> None:
        data = content(REFERENCED)
        before = sys.getrefcount(data)
        buffer = SendBuffer()
        for _ in range(count):
            buffer.write(data)
            buffer.write(b"between")
        buffer.drop(1)
        assert sys.getrefcount(data) == before + count
        del buffer
        assert sys.getrefcount(data) == before

    def test_the_buffer_keeps_the_bytes_alive(self) -> None:
        buffer = SendBuffer()
        for number in range(3 * PIECES):
            buffer.write(bytes([number]) * REFERENCED)  # nobody else holds it
        for number in range(3 * PIECES):
            assert buffer.peek()[:REFERENCED] == bytes([number]) * REFERENCED
            buffer.drop(REFERENCED)


class TestFiles:
    @pytest.mark.parametrize("start", [0, 1, 1000])
    @pytest.mark.parametrize("length", [0, 1, REFERENCED, 2 * KEPT])
    def test_between_others(self, start: int, length: int) -> None:
        model = Model()
        model.write(b"before")
        model.write_file(start, length)
        model.write(b"after")
        model.write(content(REFERENCED))
        model.check()
        model.drop(3)
        for part in (3, length // 2, length - length // 2, 2):
            model.drop(part)
            model.check()

    @pytest.mark.parametrize("most", [1, 1000, REFERENCED, REFERENCED + 1, KEPT])
    def test_loaded_piece_by_piece(self, most: int) -> None:
        """As a transport does that cannot send from files."""
        model = Model()
        model.write(b"<")
        model.write_file(7, REFERENCED)
        model.write(b"|")
        model.write_file(9, 2)
        assert not model.load(most)  # what is in memory is first
        model.drop(1)
        while model.expected:
            model.load(most)
            model.drop(1 if most == 1 else min(len(model.expected), 1 + most // 2))
        model.check()

    def test_many(self) -> None:
        """More pieces than fit into the object, each cut in two when it is read."""
        model = Model()
        for number in range(5 * PIECES):
            model.write_file(number, 100)
        for _ in range(5 * PIECES):
            assert model.load(60)
            assert not model.load(60)
            model.drop(60)
            assert model.load(60)
            model.drop(40)
        assert not model.load(1)

    @pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
    def test_descriptors_are_closed(self) -> None:
        before = len(os.listdir("/proc/self/fd"))
        buffer = SendBuffer()
        for _ in range(3 * PIECES):
            buffer.write_file(str(FILE), 0, 10)
        assert len(os.listdir("/proc/self/fd")) == before + 3 * PIECES
        buffer.drop(10 * PIECES + 9)
        assert len(os.listdir("/proc/self/fd")) == before + 2 * PIECES
        buffer.drop(1)
        assert buffer.load_file(10)
        assert len(os.listdir("/proc/self/fd")) == before + 2 * PIECES - 2
        del buffer
        assert len(os.listdir("/proc/self/fd")) == before

    def test_a_file_that_has_become_shorter(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"x" * 1000)
        buffer = SendBuffer()
        buffer.write_file(str(path), 0, 1000)
        os.truncate(path, 500)
        for most in (501, 1000, 10**6):
            with pytest.raises(OSError, match="shorter"):
                buffer.load_file(most)
            assert buffer.pending == 1000
        assert buffer.load_file(500)
        buffer.drop(500)
        with pytest.raises(OSError, match="shorter"):
            buffer.load_file(1)

    @pytest.mark.parametrize(
        "start, length", [(-1, 1), (1, -1), (1, sys.maxsize), (sys.maxsize, 1), (0, sys.maxsize)]
    )
    def test_more_than_can_be_counted(self, start: int, length: int) -> None:
        buffer = SendBuffer()
        with pytest.raises(ValueError):
            buffer.write_file(str(FILE), start, length)
        assert buffer.peek() == b""


class TestErrors:
    @pytest.mark.parametrize("held", [0, 1, 5, INLINE + 1, 2 * REFERENCED])
    def test_drop_of_what_is_not_there(self, held: int) -> None:
        model = Model()
        model.write(content(held))
        for length in (-1, held + 1, held + REFERENCED, sys.maxsize, -sys.maxsize):
            with pytest.raises(ValueError, match=f"^{length} of {held} bytes"):
                model.buffer.drop(length)
            model.check()

    @pytest.mark.parametrize("data", [None, "text", bytearray(b"x"), memoryview(b"x"), 1, [b"x"]])
    def test_only_bytes(self, data: Any) -> None:
        buffer = SendBuffer()
        with pytest.raises(TypeError):
            buffer.write(data)
        assert buffer.peek() == b""

    def test_pending_cannot_be_set(self) -> None:
        with pytest.raises(AttributeError):
            SendBuffer().pending = 1


class Sequences(RuleBasedStateMachine):
    """Any sequence of calls; hypothesis shortens the ones that fail."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.big = [bytes([n]) * length for n, length in enumerate(EDGES) if length >= REFERENCED]
        self.counts = [sys.getrefcount(data) for data in self.big]

    @rule(length=st.one_of(st.integers(0, 600), st.sampled_from(EDGES)))
    def write(self, length: int) -> None:
        self.model.write(content(length))

    @rule(index=st.integers(0, 100))
    def write_shared(self, index: int) -> None:
        self.model.write(self.big[index % len(self.big)])

    @rule(start=st.integers(0, 1000), length=st.integers(0, 2 * REFERENCED))
    def write_file(self, start: int, length: int) -> None:
        self.model.write_file(start, length)

    @rule(most=st.integers(0, 2 * REFERENCED))
    def load(self, most: int) -> None:
        self.model.load(most)

    @rule(count=st.integers(1, 12), length=st.integers(1, 300))
    def write_many(self, count: int, length: int) -> None:
        for number in range(count):
            self.model.write(content(length))
            self.model.write(self.big[number % len(self.big)])

    @rule(fraction=st.floats(0, 1))
    def drop_part(self, fraction: float) -> None:
        self.model.drop(int(fraction * len(self.model.expected)))

    @rule(length=st.one_of(st.integers(0, 600), st.sampled_from(EDGES)))
    def drop_some(self, length: int) -> None:
        self.model.drop(min(length, len(self.model.expected)))

    @rule(left=st.integers(0, 3))
    def drop_nearly_all(self, left: int) -> None:
        self.model.drop(max(0, len(self.model.expected) - left))

    @rule(over=st.integers(1, 10))
    def drop_too_much(self, over: int) -> None:
        with pytest.raises(ValueError):
            self.model.buffer.drop(len(self.model.expected) + over)

    @invariant()
    def same_bytes(self) -> None:
        self.model.check()

    def teardown(self) -> None:
        self.model.drop(len(self.model.expected))
        assert [sys.getrefcount(data) for data in self.big] == self.counts


Sequences.TestCase.settings = settings(max_examples=25, stateful_step_count=30, print_blob=True)
TestSequences = Sequences.TestCase


@given(
    st.lists(st.integers(1, 3 * INLINE), min_size=1, max_size=60),
    st.lists(st.integers(1, 3 * INLINE), min_size=1, max_size=60),
)
def test_small_writes_and_drops_in_turn(writes: list[int], drops: list[int]) -> None:
    """All in the block: growth, and the return of what was sent."""
    model = Model()
    for number in range(max(len(writes), len(drops))):
        if number < len(writes):
            model.write(content(writes[number]))
        if number < len(drops):
            model.drop(min(drops[number], len(model.expected)))
        model.check()
