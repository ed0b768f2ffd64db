"""The response head writer, driven by bytes alone: no socket, no server."""

from __future__ import annotations

import calendar
import collections
import http
import re
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve._headers import DateLine, ResponseHead

OK_LINE = b"HTTP/1.1 200 OK\r\n"
INLINE = 1024  # bytes of a head that need no memory of their own
TCHAR = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
FIELD_BYTES = frozenset([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
INT64_MAX = 2**63 - 1


def begun(headers: Any = (), status: Any = 200) -> ResponseHead:
    head = ResponseHead()
    head.begin(status, headers)
    return head


def fields(headers: Any, status: int = 200) -> list[tuple[bytes, bytes]]:
    """What is left of the headers, taken from the rendered lines."""
    line, *lines, end = begun(headers, status).render().split(b"\r\n")
    assert line.startswith(b"HTTP/1.1 %d " % status)
    assert end == b""
    pairs = []
    for line in lines:
        name, colon, value = line.partition(b": ")
        assert colon
        pairs.append((name, value))
    return pairs


class TestStatusLine:
    @pytest.mark.parametrize("status", [s for s in http.HTTPStatus if s >= 200])
    def test_known_reason_phrase(self, status: http.HTTPStatus) -> None:
        expected = f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
        assert begun((), status.value).render() == expected
        assert begun((), status).render() == expected  # an IntEnum is an int

    def test_every_status_has_a_line(self) -> None:
        known = {status.value for status in http.HTTPStatus}
        for status in range(200, 1000):
            head = begun((), status)
            assert head.status == status
            if status not in known:
                # RFC 9112 section 4: the space stays when the phrase is empty.
                assert head.render() == b"HTTP/1.1 %d \r\n" % status

    @pytest.mark.parametrize("status", [-200, -1, 0, 1, 99, 100, 101, 103, 199, 1000, 2**31, 2**64])
    def test_out_of_bounds(self, status: int) -> None:
        with pytest.raises(ValueError, match=rf"^http\.response\.start: status .*not {status}$"):
            begun((), status)

    @pytest.mark.parametrize("status", ["200", b"200", None, 200.0, (200,), object()])
    def test_not_an_int(self, status: Any) -> None:
        with pytest.raises(TypeError, match=r"^http\.response\.start: status must be an int") as e:
            begun((), status)
        assert type(status).__name__ in str(e.value)

    @pytest.mark.parametrize("status", [True, False])
    def test_a_bool_is_no_status(self, status: bool) -> None:
        with pytest.raises((TypeError, ValueError), match=r"^http\.response\.start: status"):
            begun((), status)

    def test_nothing_before_begin(self) -> None:
        head = ResponseHead()
        assert head.render() == b""
        assert head.content_length == -1
        assert (head.close, head.has_date, head.has_server) == (False, False, False)


class TestFields:
    def test_none(self) -> None:
        head = ResponseHead()
        head.begin(200)
        assert head.render() == OK_LINE

    def test_order_case_and_duplicates_are_kept(self) -> None:
        pairs = [
            (b"X-Second", b"2"),
            (b"set-cookie", b"a=1"),
            (b"Content-TYPE", b"text/Plain"),
            (b"Set-Cookie", b"b=2"),
            (b"set-cookie", b"a=1"),
            (b"a-first", b"1"),
        ]
        assert fields(pairs) == pairs
        assert begun(pairs).render() == OK_LINE + b"".join(b"%b: %b\r\n" % pair for pair in pairs)

    @pytest.mark.parametrize("value", [b"", b" ", b" padded\t", b"a: b", b"\t", b",;=\"'<>"])
    def test_values_are_copied_as_they_are(self, value: bytes) -> None:
        assert begun([(b"x", value)]).render() == OK_LINE + b"x: " + value + b"\r\n"

    @pytest.mark.parametrize("name", [b"Date", b"date", b"DATE"])
    def test_own_date_is_noted(self, name: bytes) -> None:
        head = begun([(name, b"whenever")])
        assert head.has_date and not head.has_server
        assert head.render() == OK_LINE + name + b": whenever\r\n"

    @pytest.mark.parametrize("name", [b"Server", b"server", b"SERVER"])
    def test_own_server_is_noted(self, name: bytes) -> None:
        head = begun([(name, b"mine")])
        assert head.has_server and not head.has_date
        assert head.render() == OK_LINE + name + b": mine\r\n"

    @pytest.mark.parametrize("name", [b"dat", b"dates", b"data", b"serve", b"servers", b"x-server"])
    def test_similar_names_mean_nothing(self, name: bytes) -> None:
        head = begun([(name, b"x")])
        assert not head.has_date and not head.has_server
        assert fields([(name, b"x")]) == [(name, b"x")]

    def test_later_changes_do_not_reach_the_wire(self) -> None:
        pair = [b"x-a", b"1"]
        pairs: list[Any] = [pair, (b"x-b", b"2")]
        head = begun(pairs)
        before = head.render()
        pair[1] = b"1\r\ninjected: yes"
        pairs.append((b"transfer-encoding", b"chunked"))
        del pairs[0]
        assert head.render() == before == OK_LINE + b"x-a: 1\r\nx-b: 2\r\n"

    @given(
        st.integers(200, 999),
        st.lists(
            st.tuples(
                st.binary(max_size=20).map(
                    lambda b: b"x-" + bytes(sorted(TCHAR)[c % len(TCHAR)] for c in b)
                ),
                st.lists(st.sampled_from(sorted(FIELD_BYTES)), max_size=60).map(bytes),
            ),
            max_size=60,
        ),
    )
    def test_any_that_are_allowed(self, status: int, pairs: list[tuple[bytes, bytes]]) -> None:
        head, _, rest = begun(pairs, status).render().partition(b"\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert rest == b"".join(b"%b: %b\r\n" % pair for pair in pairs)


class TestHopByHop:
    @pytest.mark.parametrize(
        "name", [b"transfer-encoding", b"keep-alive", b"proxy-connection", b"te", b"upgrade"]
    )
    def test_dropped(self, name: bytes) -> None:
        around = [(b"x-before", b"1"), (b"x-after", b"2")]
        for spelled in (name, name.upper(), name.title()):
            assert fields([around[0], (spelled, b"chunked"), around[1]]) == around

    @pytest.mark.parametrize(
        "name",
        [
            b"transfer-encodings",
            b"transfer_encoding",
            b"x-transfer-encoding",
            b"transfer-encodin",
            b"keepxalive",
            b"t",
            b"tee",
            b"tf",
            b"trailer",
            b"upgrades",
            b"upgrad",
            b"connections",
            b"content-lengths",
            b"content-lengtg",
        ],
    )
    def test_similar_names_stay(self, name: bytes) -> None:
        assert fields([(name, b"x")]) == [(name, b"x")]

    @pytest.mark.parametrize("name", [b"connection", b"Connection", b"CONNECTION"])
    @pytest.mark.parametrize("value", [b"keep-alive", b"", b" ", b",", b"Keep-Alive, ,"])
    def test_connection_itself(self, name: bytes, value: bytes) -> None:
        head = begun([(name, value), (b"x", b"y")])
        assert not head.close
        assert head.render() == OK_LINE + b"x: y\r\n"

    @pytest.mark.parametrize(
        "value", [b"close", b"Close", b"CLOSE", b" close\t", b"x, close", b"close,keep-alive"]
    )
    def test_close_is_noted(self, value: bytes) -> None:
        head = begun([(b"connection", value)])
        assert head.close
        assert head.render() == OK_LINE

    @pytest.mark.parametrize("value", [b"closed", b"clos e", b"close;q=1", b"x-close", b'"close"'])
    def test_what_is_not_close(self, value: bytes) -> None:
        assert not begun([(b"connection", value)]).close

    def test_fields_that_connection_names(self) -> None:
        pairs = [
            (b"X-One", b"1"),
            (b"Connection", b"x-one, X-Two ,\tclose"),
            (b"x-two", b"2"),
            (b"x-TWO", b"again"),
            (b"x-three", b"3"),
            (b"connection", b"X-Four"),
            (b"x-four", b"4"),
            (b"x-fours", b"5"),
        ]
        assert fields(pairs) == [(b"x-three", b"3"), (b"x-fours", b"5")]
        assert begun(pairs).close

    @pytest.mark.parametrize("kind", [tuple, iter])
    def test_named_fields_from_another_iterable(self, kind: Any) -> None:
        pairs = [(b"x-one", b"1"), (b"connection", b"x-one"), (b"x-two", b"2")]
        assert fields(kind(pairs)) == [(b"x-two", b"2")]

    def test_named_fields_in_pairs_that_are_lists(self) -> None:
        pairs = [[b"x-one", b"1"], [b"connection", b"x-one"], [b"x-two", b"2"]]
        assert fields(pairs) == [(b"x-two", b"2")]

    def test_what_a_message_needs_is_never_dropped(self) -> None:
        needed = [(b"Content-Length", b"5"), (b"Content-Type", b"a/b"), (b"Date", b"today")]
        head = begun([*needed, (b"connection", b"Content-Length, content-type, DATE")])
        assert head.content_length == 5
        assert head.has_date
        assert fields([*needed, (b"connection", b"Content-Length, content-type, DATE")]) == needed

    def test_content_length_is_counted_once_beside_named_fields(self) -> None:
        pairs = [(b"content-length", b"5"), (b"connection", b"x"), (b"x", b"1")]
        assert begun(pairs).content_length == 5
        assert fields(pairs) == [(b"content-length", b"5")]

    def test_a_named_server_field_is_not_taken_for_sent(self) -> None:
        head = begun([(b"server", b"mine"), (b"connection", b"server")])
        assert head.render() == OK_LINE
        assert not head.has_server  # the connection appends its own then

    def test_connection_may_name_itself(self) -> None:
        head = begun([(b"connection", b"connection, close"), (b"x", b"y")])
        assert head.close
        assert head.render() == OK_LINE + b"x: y\r\n"


class TestContentLength:
    @pytest.mark.parametrize("value", [b"0", b"1", b"42", b"007", b"%d" % INT64_MAX])
    def test_kept(self, value: bytes) -> None:
        head = begun([(b"Content-Length", value)])
        assert head.content_length == int(value)
        assert head.render() == OK_LINE + b"Content-Length: " + value + b"\r\n"

    @pytest.mark.parametrize(
        "value",
        [
            b"", b" ", b"-1", b"+1", b" 1", b"1 ", b"1\t", b"1.0", b"1e3", b"0x10", b"1_000",
            b"ten", b"1,1", b"1, 1", b"1,2", b"\xb2", "٣".encode(), b"/", b":", b"5:", b"/5",
            b"%d" % (INT64_MAX + 1), b"%d" % (INT64_MAX + 3), b"9" * 19, b"1" * 20, b"9" * 5000,
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("status", [200, 204])
    def test_refused(self, value: bytes, status: int) -> None:
        with pytest.raises(ValueError, match=r"^http\.response\.start: content-length b"):
            begun([(b"content-length", value)], status)

    def test_equal_duplicates_become_one(self) -> None:
        pairs = [(b"Content-Length", b"5"), (b"x", b"y"), (b"content-length", b"05")]
        assert begun(pairs).content_length == 5
        assert fields(pairs) == [(b"Content-Length", b"5"), (b"x", b"y")]

    @pytest.mark.parametrize("second", [b"0", b"6", b"50", b"%d" % INT64_MAX])
    def test_different_duplicates(self, second: bytes) -> None:
        with pytest.raises(ValueError, match=r"^http\.response\.start: two .* content-length"):
            begun([(b"content-length", b"5"), (b"Content-Length", second)])

    def test_not_in_204(self) -> None:
        # RFC 9110 section 8.6
        head = begun([(b"a", b"b"), (b"content-length", b"5"), (b"c", b"d")], 204)
        assert head.content_length == -1
        assert head.render() == b"HTTP/1.1 204 No Content\r\na: b\r\nc: d\r\n"

    @pytest.mark.parametrize("status", [200, 205, 206, 304, 404, 999])
    def test_in_others(self, status: int) -> None:
        assert fields([(b"content-length", b"5")], status) == [(b"content-length", b"5")]


class TestInjection:
    @pytest.mark.parametrize("byte", range(256), ids=lambda byte: f"{byte:02x}")
    def test_each_byte(self, byte: int) -> None:
        for name in (bytes([byte]), b"x" + bytes([byte]), bytes([byte]) + b"x", b"x%cy" % byte):
            if byte in TCHAR:
                assert fields([(name, b"v")]) == [(name, b"v")]
            else:
                with pytest.raises(ValueError, match=r"^http\.response\.start: header name") as e:
                    begun([(name, b"v")])
                assert repr(name) in str(e.value)
        for value in (bytes([byte]), b"x%c" % byte, b"%cx" % byte, b"x" * 70 + b"%cy" % byte):
            if byte in FIELD_BYTES:
                assert begun([(b"n", value)]).render() == OK_LINE + b"n: " + value + b"\r\n"
            else:
                with pytest.raises(ValueError, match=r"^http\.response\.start: .* control") as e:
                    begun([(b"n", value)])
                assert "b'n'" in str(e.value)

    @pytest.mark.parametrize(
        "name", [b"transfer-encoding", b"connection", b"upgrade", b"date", b"server", b"x"]
    )
    @pytest.mark.parametrize("bad", [b"\r", b"\n", b"\r\n", b"\x00", b"\x7f"])
    def test_in_fields_that_are_special(self, name: bytes, bad: bytes) -> None:
        with pytest.raises(ValueError, match=r"^http\.response\.start: "):
            begun([(name, b"a" + bad + b"b")])
        with pytest.raises(ValueError, match=r"^http\.response\.start: "):
            begun([(name + bad, b"a")])

    def test_empty_name(self) -> None:
        with pytest.raises(ValueError, match=r"^http\.response\.start: header name b''"):
            begun([(b"", b"x")])

    @pytest.mark.parametrize("length", [INLINE - 30, INLINE, 5 * INLINE])
    def test_at_the_end_of_something_long(self, length: int) -> None:
        with pytest.raises(ValueError, match="control character"):
            begun([(b"x", b"v" * length + b"\n")])
        with pytest.raises(ValueError, match="not a token") as e:
            begun([(b"x" * length + b"\n", b"v")])
        assert len(str(e.value)) < 400  # the log does not have to hold all of it


class Bytes(bytes):
    pass


class TestShapes:
    @pytest.mark.parametrize(
        "headers",
        [
            [(b"a", b"1"), (b"b", b"2")],
            ((b"a", b"1"), (b"b", b"2")),
            [[b"a", b"1"], [b"b", b"2"]],
            ([b"a", b"1"], (b"b", b"2")),
            iter([(b"a", b"1"), (b"b", b"2")]),
            ((name, value) for name, value in [(b"a", b"1"), (b"b", b"2")]),
            {b"a": b"1", b"b": b"2"}.items(),
            zip([b"a", b"b"], [b"1", b"2"], strict=True),
            collections.deque([(b"a", b"1"), (b"b", b"2")]),
            [(Bytes(b"a"), Bytes(b"1")), (b"b", b"2")],
        ],
        ids=lambda headers: type(headers).__name__,
    )
    def test_iterables_of_pairs(self, headers: Iterable[Any]) -> None:
        assert begun(headers).render() == OK_LINE + b"a: 1\r\nb: 2\r\n"

    @pytest.mark.parametrize(
        "headers", ["a: b", b"a: b", {b"a": b"b"}, {}, ""], ids=lambda h: repr(h)
    )
    def test_what_iterates_but_is_not_meant(self, headers: Any) -> None:
        message = f"http.response.start: headers must be pairs, not {type(headers).__name__}"
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            begun(headers)

    @pytest.mark.parametrize("headers", [None, 5, 1.5, object(), len])
    def test_what_does_not_iterate(self, headers: Any) -> None:
        with pytest.raises(TypeError, match=r"^http\.response\.start: headers") as e:
            begun(headers)
        assert type(headers).__name__ in str(e.value)

    @pytest.mark.parametrize(
        "pair",
        [None, 1, b"ab", "ab", (), (b"a",), (b"a", b"b", b"c"), [], [b"a"], [b"a"] * 3,
         {b"a": b"b"}, {b"a", b"b"}, iter((b"a", b"b"))],
        # The same in every process: the order of a set is not, nor is an address.
        ids=lambda pair: type(pair).__name__ if isinstance(pair, (set, Iterator)) else repr(pair),
    )  # fmt: skip
    @pytest.mark.parametrize("kind", [list, tuple, iter])
    def test_wrong_pairs(self, pair: Any, kind: Any) -> None:
        with pytest.raises(TypeError, match=r"^http\.response\.start: headers must be pairs") as e:
            begun(kind([(b"x", b"y"), pair]))
        assert repr(pair)[:50] in str(e.value)

    @pytest.mark.parametrize(
        "name, value",
        [
            ("a", b"b"), (b"a", "b"), ("a", "b"), (None, b"b"), (b"a", None), (b"a", 1),
            (1, b"b"), (bytearray(b"a"), b"b"), (b"a", bytearray(b"b")),
            (memoryview(b"a"), b"b"), (b"a", memoryview(b"b")),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("kind", [list, tuple])
    def test_wrong_types(self, name: Any, value: Any, kind: Any) -> None:
        with pytest.raises(TypeError) as e:
            begun([kind((name, value))])
        text = str(e.value)
        assert text.startswith("http.response.start: headers must be pairs of bytes, not ")
        assert f"{type(name).__name__} and {type(value).__name__}" in text

    def test_an_iterable_that_raises(self) -> None:
        def pairs() -> Iterator[tuple[bytes, bytes]]:
            yield b"a", b"b"
            raise LookupError("the application's own")

        with pytest.raises(LookupError, match="own"):
            begun(pairs())


class TestSizes:
    @pytest.mark.parametrize("total", [*range(INLINE - 3, INLINE + 4), 2047, 2048, 2049, 4097])
    def test_one_field_up_to(self, total: int) -> None:
        value = b"v" * (total - len(OK_LINE) - len(b"x: \r\n"))
        head = begun([(b"x", value)]).render()
        assert len(head) == total
        assert head == OK_LINE + b"x: " + value + b"\r\n"

    @pytest.mark.parametrize("total", [*range(INLINE - 3, INLINE + 4), 2047, 2048, 2049])
    @pytest.mark.parametrize("last", [5, 6, 100, 512])
    def test_many_fields_up_to(self, total: int, last: int) -> None:
        """The last field is the one that fits, or that does not."""
        pairs = []
        left = total - len(OK_LINE) - last
        while left >= 10:
            size = min(left, 37)
            if 0 < left - size < 5:
                size -= 5
            pairs.append((b"n", b"v" * (size - 5)))
            left -= size
        pairs.append((b"n", b"w" * (last - 5 + left)))
        head = begun(pairs).render()
        assert len(head) == total
        assert head == OK_LINE + b"".join(b"%b: %b\r\n" % pair for pair in pairs)

    @pytest.mark.parametrize("total", range(INLINE - 3, INLINE + 4))
    def test_long_name(self, total: int) -> None:
        name = b"N" * (total - len(OK_LINE) - len(b": \r\n"))
        assert begun([(name, b"")]).render() == OK_LINE + name + b": \r\n"

    @pytest.mark.parametrize("count", [1, 10, 100, 5000])
    def test_grows_again_and_again(self, count: int) -> None:
        pairs = [(b"x-%d" % n, b"v" * (n % 50)) for n in range(count)]
        assert fields(pairs) == pairs

    def test_one_very_long(self) -> None:
        assert fields([(b"x", b"v" * 1_000_000)]) == [(b"x", b"v" * 1_000_000)]

    @pytest.mark.parametrize("length", [10, INLINE, 10 * INLINE])
    def test_a_dropped_field_leaves_no_trace(self, length: int) -> None:
        pairs = [(b"a", b"1"), (b"upgrade", b"u" * length), (b"b", b"2")]
        assert fields(pairs) == [(b"a", b"1"), (b"b", b"2")]

    def test_second_pass_after_growth(self) -> None:
        pairs = [(b"x", b"v" * 3000), (b"y", b"w" * 3000), (b"connection", b"x")]
        assert fields(pairs) == [(b"y", b"w" * 3000)]


class TestDateLine:
    @staticmethod
    def expected(second: int) -> bytes:
        text = format_datetime(datetime.fromtimestamp(second, UTC), usegmt=True)
        return f"date: {text}\r\n".encode()

    def assert_is_now(self, line: DateLine) -> int:
        # The clock of time(2) may be some milliseconds behind that of time.time().
        before = int(time.time() - 0.05)
        rendered = line.render()
        after = int(time.time())
        assert rendered in [self.expected(second) for second in range(before, after + 1)]
        text = rendered.decode().removeprefix("date: ").removesuffix(" GMT\r\n")
        return calendar.timegm(time.strptime(text, "%a, %d %b %Y %H:%M:%S"))

    def test_now(self) -> None:
        line = DateLine()
        self.assert_is_now(line)
        assert len(line.render()) == len(b"date: Sun, 06 Nov 1994 08:49:37 GMT\r\n")

    def test_changes_with_the_second(self) -> None:
        line = DateLine()
        first = self.assert_is_now(line)
        seen = {first}
        while max(seen) < first + 2:
            time.sleep(0.02)
            seen.add(self.assert_is_now(line))
        assert seen == {first, first + 1, first + 2}

    def test_two_lines_are_independent(self) -> None:
        one, other = DateLine(), DateLine()
        self.assert_is_now(one)
        self.assert_is_now(other)
