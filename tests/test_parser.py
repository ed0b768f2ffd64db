"""The request parser: every rule, every cut, and two other parsers as witnesses.

Each case is fed whole, byte by byte and in two parts at every offset; all must give
the same events. The differential part at the end holds it against llhttp and h11:
what differs is either in the table DIFFERENCES, with the section that decides it, or
it is a failure.
"""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11
import httptools
import pytest
from conftest import measures_memory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastserve._parser import FieldCache, RequestParser

Events = list[tuple[Any, ...]]

# Derandomized: the same examples on every run, so a failure is somebody's change.
examples = settings(
    derandomize=True,
    max_examples=400,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


# ------------------------------------------------------------------------ helpers


# For all cases, so that they find each other's fields there.
CACHE = FieldCache()


def parse(parts: Iterable[bytes], cache: FieldCache | None = None, **limits: int) -> Events:
    """The events of one connection, neighbouring body pieces joined."""
    parser = RequestParser(cache=cache, **limits)
    events: Events = []
    for part in parts:
        for event in parser.feed(part):
            if event[0] == "data" and events and events[-1][0] == "data":
                events[-1] = ("data", events[-1][1] + event[1])
            else:
                events.append(event)
        if events and events[-1][0] == "invalid":
            break
    return events


def parse_every_way(data: bytes, **limits: int) -> Events:
    """Parse whole, twice with the fields of before, byte by byte and in two parts at every
    offset; all must agree."""
    whole = parse([data], **limits)
    for _ in range(2):
        assert parse([data], CACHE, **limits) == whole, "with fields seen before"
    single = parse((data[i : i + 1] for i in range(len(data))), **limits)
    assert single == whole, "byte by byte"
    for cut in range(len(data) + 1):
        assert parse([data[:cut], data[cut:]], **limits) == whole, f"cut at {cut}"
    return whole


def head(**facts: Any) -> tuple[str, dict[str, Any]]:
    """A head event: that of a plain `GET / HTTP/1.1`, but for what is given."""
    plain = {
        "method": "GET",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [(b"host", b"a")],
        "minor_version": 1,
        "keep_alive": True,
        "expect_continue": False,
        "chunked": False,
        "content_length": -1,
        "upgrade": None,
        "accepts_trailers": False,
    }
    assert facts.keys() <= plain.keys()
    return ("head", plain | facts)


def get(target: bytes = b"/", *lines: bytes, host: bytes = b"a", version: bytes = b"1.1") -> bytes:
    head_lines = [b"GET " + target + b" HTTP/" + version, b"Host: " + host, *lines]
    return b"\r\n".join([*head_lines, b"", b""])


def post(body: bytes, *lines: bytes, version: bytes = b"1.1") -> bytes:
    head_lines = [b"POST / HTTP/" + version, b"Host: a", *lines]
    return b"\r\n".join([*head_lines, b"", b""]) + body


def chunked(body: bytes) -> bytes:
    return post(body, b"Transfer-Encoding: chunked")


def fields(*pairs: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"a"), *pairs]


END = ("end",)
CHUNKED = head(method="POST", chunked=True, headers=fields((b"transfer-encoding", b"chunked")))


def sized(length: int) -> tuple[str, dict[str, Any]]:
    return head(
        method="POST",
        content_length=length,
        headers=fields((b"content-length", b"%d" % length)),
    )


def case(name: str, data: bytes, *expected: Any) -> Any:
    return pytest.param(data, *expected, id=name)


def value_of(parameter: Any) -> bytes:
    data = parameter.values[0]
    assert isinstance(data, bytes)
    return data


# ------------------------------------------------------------------- what is valid

ALL_VALUE_BYTES = bytes(c for c in range(256) if c == 9 or (c >= 0x20 and c != 0x7F))
ALL_TOKEN_BYTES = bytes(c for c in range(128) if chr(c).isalnum() or c in b"!#$%&'*+-.^_`|~")
ALL_TARGET_BYTES = bytes(c for c in range(0x21, 0x7F) if c not in b"#?%")


def plain(name: str, data: bytes, **facts: Any) -> Any:
    return case(name, data, [head(**facts), END])


def with_fields(name: str, *lines: bytes, version: bytes = b"1.1", **facts: Any) -> Any:
    """A GET with more lines, whose headers are taken from the lines themselves."""
    pairs = [(n.lower(), v.strip(b" \t")) for n, _, v in (line.partition(b":") for line in lines)]
    return case(
        name, get(b"/", *lines, version=version), [head(headers=fields(*pairs), **facts), END]
    )


VALID = [
    # request line
    plain("plain", get()),
    *(
        plain(
            f"method-{method}",
            f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
            method=method,
        )
        for method in (
            "GET HEAD POST PUT DELETE OPTIONS TRACE PATCH get Get GETS GOT PUT2 HEAP POSH"
            " PATCHY TRACK DELETED OPTIONZ CONNECTS connect M-SEARCH PROPFIND X"
        ).split()
    ),
    plain(
        "method-every-tchar",
        ALL_TOKEN_BYTES + b" / HTTP/1.1\r\nHost: a\r\n\r\n",
        method=ALL_TOKEN_BYTES.decode(),
    ),
    plain(
        "target-every-byte",
        get(b"/" + ALL_TARGET_BYTES),
        path="/" + ALL_TARGET_BYTES.decode(),
        raw_path=b"/" + ALL_TARGET_BYTES,
    ),
    plain(
        "query",
        get(b"/some/path?x=1"),
        path="/some/path",
        raw_path=b"/some/path",
        query_string=b"x=1",
    ),
    plain("query-empty", get(b"/?")),
    plain("query-alone", get(b"/?a"), query_string=b"a"),
    plain("query-of-queries", get(b"/?a?b??%zz&"), query_string=b"a?b??%zz&"),
    plain("query-every-byte", get(b"/?" + ALL_TARGET_BYTES), query_string=ALL_TARGET_BYTES),
    plain("two-slashes", get(b"//foo"), path="//foo", raw_path=b"//foo"),
    plain("escape", get(b"/a%20b"), path="/a b", raw_path=b"/a%20b"),
    plain("escape-slash", get(b"/%2F%2f"), path="///", raw_path=b"/%2F%2f"),
    plain("escape-question-mark", get(b"/%3Fa"), path="/?a", raw_path=b"/%3Fa"),
    plain("escape-nul", get(b"/%00"), path="/\0", raw_path=b"/%00"),
    plain(
        "escape-utf-8", get(b"/%c3%a9%F0%9F%8D%B0"), path="/é🍰", raw_path=b"/%c3%a9%F0%9F%8D%B0"
    ),
    plain("escape-not-utf-8", get(b"/%ff%c3"), path="/\ufffd\ufffd", raw_path=b"/%ff%c3"),
    plain(
        "escape-surrogate", get(b"/%ed%a0%80"), path="/\ufffd\ufffd\ufffd", raw_path=b"/%ed%a0%80"
    ),
    plain(
        "escape-malformed",
        get(b"/%%zz%1%g1%1g%"),
        path="/%%zz%1%g1%1g%",
        raw_path=b"/%%zz%1%g1%1g%",
    ),
    plain("escape-percent", get(b"/%2541"), path="/%41", raw_path=b"/%2541"),
    plain("escape-long", get(b"/%41" * 300), path="/A" * 300, raw_path=b"/%41" * 300),
    plain(
        "escape-512",
        get(b"/" + b"%41" + b"b" * 508),
        path="/A" + "b" * 508,
        raw_path=b"/%41" + b"b" * 508,
    ),
    plain(
        "asterisk",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        method="OPTIONS",
        path="*",
        raw_path=b"*",
    ),
    # absolute-form, RFC 9112 section 3.2.2
    plain(
        "absolute",
        get(b"http://b/c?d"),
        headers=[(b"host", b"b")],
        path="/c",
        raw_path=b"/c",
        query_string=b"d",
    ),
    plain(
        "absolute-https",
        get(b"HTTPS://b:443/c"),
        headers=[(b"host", b"b:443")],
        path="/c",
        raw_path=b"/c",
    ),
    plain("absolute-no-path", get(b"hTTp://b"), headers=[(b"host", b"b")]),
    plain(
        "absolute-no-path-query",
        get(b"http://b?c/d"),
        headers=[(b"host", b"b")],
        query_string=b"c/d",
    ),
    plain(
        "absolute-escaped",
        get(b"http://b/%41"),
        headers=[(b"host", b"b")],
        path="/A",
        raw_path=b"/%41",
    ),
    plain("absolute-empty-host-field", get(b"http://b/", host=b""), headers=[(b"host", b"b")]),
    plain("absolute-ipv6", get(b"http://[::1]:8000/"), headers=[(b"host", b"[::1]:8000")]),
    plain(
        "absolute-at-in-path",
        get(b"http://b/@"),
        headers=[(b"host", b"b")],
        path="/@",
        raw_path=b"/@",
    ),
    plain(
        "absolute-1.0-host",
        get(b"http://b/", version=b"1.0"),
        headers=[(b"host", b"b")],
        minor_version=0,
        keep_alive=False,
    ),
    plain(
        "absolute-1.0-no-host",
        b"GET http://b/ HTTP/1.0\r\nX: y\r\n\r\n",
        headers=[(b"host", b"b"), (b"x", b"y")],
        minor_version=0,
        keep_alive=False,
    ),
    plain(
        "absolute-host-second",
        b"GET http://b/ HTTP/1.1\r\nX: y\r\nHost: a\r\n\r\n",
        headers=[(b"x", b"y"), (b"host", b"b")],
    ),
    # version
    plain("1.0", get(version=b"1.0"), minor_version=0, keep_alive=False),
    plain("1.0-no-host", b"GET / HTTP/1.0\r\n\r\n", headers=[], minor_version=0, keep_alive=False),
    plain("1.2", get(version=b"1.2")),
    plain("1.9", get(version=b"1.9")),
    # empty lines, RFC 9112 section 2.2
    plain("empty-line", b"\r\n" + get()),
    plain("four-empty-lines", b"\r\n" * 4 + get()),
    case("four-empty-lines-twice", (b"\r\n" * 4 + get()) * 2, [head(), END] * 2),
    # field lines
    with_fields("value-empty", b"X:"),
    with_fields("value-only-blanks", b"X: \t \t"),
    with_fields("value-no-space", b"X:y"),
    with_fields("value-blanks-around", b"X: \t y \t"),
    with_fields("value-blanks-inside", b"X: a\tb  c"),
    with_fields("value-every-byte", b"X: y" + ALL_VALUE_BYTES + b"y"),
    with_fields(
        "value-tabs-at-each-place", *(b"X: " + b"a" * n + b"\t" + b"b" * n for n in range(20))
    ),
    with_fields("value-colons", b"X: a:b:c:"),
    with_fields("value-long", b"X: " + b"y" * 300),
    with_fields("name-every-tchar", ALL_TOKEN_BYTES.replace(b":", b"") + b": y"),
    with_fields("name-64", b"N" * 64 + b": y"),
    with_fields("name-65", b"N" * 65 + b": y"),
    with_fields("name-300", b"N" * 300 + b": y"),
    with_fields("name-one-byte", *(bytes([c]) + b": y" for c in ALL_TOKEN_BYTES)),
    with_fields(
        "name-near-known", b"Hosu: a", b"Ho: b", b"Hoost: c", b"Content-Lengt: 1", b"Acccpt: d"
    ),
    with_fields("names-repeated", b"Cookie: a", b"X: 1", b"Cookie: b", b"cookie: c"),
    with_fields("pseudo-like", b"Te: gzip", b"Trailer: x", b"Keep-Alive: timeout=5"),
    # Host, RFC 9112 section 3.2
    *(
        plain(f"host-{host.decode()}", get(host=host), headers=[(b"host", host)])
        for host in (
            b"",
            b"example.com",
            b"EXAMPLE.com.",
            b"example.com:80",
            b"example.com:",
            b"example.com:0",
            b"example.com:65535",
            b"example.com:00080",
            b"1.2.3.4:1",
            b"[::1]",
            b"[::1]:8000",
            b"[2001:DB8::ff]",
            b"[::ffff:1.2.3.4]",
            b"[v1.a:b]",
            b"[vF.~!]:1",
            b"under_score",
            b"a%2Fb",
            b"~!$&'()*+;=-._",
        )
    ),
    plain("host-blanks", get(host=b" \ta \t"), headers=[(b"host", b"a")]),
    plain("host-upper-case-name", b"GET / HTTP/1.1\r\nHOST: a\r\n\r\n"),
    # Connection, RFC 9112 section 9.3
    with_fields("close", b"Connection: close", keep_alive=False),
    with_fields("close-any-case", b"CONNECTION: cLOSE", keep_alive=False),
    with_fields("keep-alive", b"Connection: keep-alive"),
    with_fields("close-wins", b"Connection: keep-alive", b"Connection: close", keep_alive=False),
    with_fields("close-in-list", b"Connection: , x ,close\t,,", keep_alive=False),
    with_fields("close-no-token", b"Connection: closed, not close, xclose, clos"),
    with_fields("connection-empty", b"Connection:"),
    with_fields("1.0-keep-alive", b"Connection: Keep-Alive", version=b"1.0", minor_version=0),
    with_fields(
        "1.0-keep-alive-list", b"Connection: x, keep-alive", version=b"1.0", minor_version=0
    ),
    with_fields(
        "1.0-close",
        b"Connection: keep-alive, close",
        version=b"1.0",
        minor_version=0,
        keep_alive=False,
    ),
    # Upgrade, RFC 9110 section 7.8
    with_fields("upgrade", b"Connection: Upgrade", b"Upgrade: websocket", upgrade=b"websocket"),
    with_fields("upgrade-first", b"Upgrade: h2c", b"Connection: x, UPGRADE", upgrade=b"h2c"),
    with_fields(
        "upgrade-twice", b"Upgrade: a/1", b"Upgrade: b", b"Connection: upgrade", upgrade=b"a/1, b"
    ),
    with_fields("upgrade-not-named", b"Upgrade: websocket"),
    with_fields("upgrade-named-only", b"Connection: upgrade"),
    with_fields(
        "upgrade-1.0",
        b"Connection: upgrade, keep-alive",
        b"Upgrade: websocket",
        version=b"1.0",
        minor_version=0,
    ),
    # Expect, RFC 9110 section 10.1.1
    # TE, RFC 9110 section 10.1.4
    with_fields("te", b"TE: trailers", accepts_trailers=True),
    with_fields("te-case", b"te: Trailers", accepts_trailers=True),
    with_fields("te-list", b"TE: gzip;q=0.5, ,\ttrailers ", accepts_trailers=True),
    with_fields("te-twice", b"TE: gzip", b"TE: trailers", accepts_trailers=True),
    with_fields("te-other", b"TE: gzip, trailer, xtrailers, trailers;q=1, close"),
    with_fields("te-empty", b"TE:"),
    with_fields("te-is-no-option", b"Connection: trailers, TE"),
    with_fields("te-1.0", b"TE: trailers", version=b"1.0", minor_version=0, keep_alive=False),
    with_fields("expect", b"Expect: 100-Continue", expect_continue=True),
    with_fields(
        "expect-twice", b"Expect: 100-continue", b"expect: 100-CONTINUE", expect_continue=True
    ),
    with_fields(
        "expect-1.0", b"Expect: 100-continue", version=b"1.0", minor_version=0, keep_alive=False
    ),
    with_fields(
        "expect-other-1.0", b"Expect: tea", version=b"1.0", minor_version=0, keep_alive=False
    ),
    # Content-Length, RFC 9112 section 6.2
    with_fields("length-0", b"Content-Length: 0", content_length=0),
    with_fields("length-000", b"Content-Length: 000", content_length=0),
    case("length-5", post(b"hello", b"Content-Length: 5"), [sized(5), ("data", b"hello"), END]),
    case("length-short", post(b"hell", b"Content-Length: 5"), [sized(5), ("data", b"hell")]),
    case("length-no-body-yet", post(b"", b"Content-Length: 5"), [sized(5)]),
    case(
        "length-zeros",
        post(b"hello", b"Content-Length: 0000000000000000000000005"),
        [
            head(
                method="POST",
                content_length=5,
                headers=fields((b"content-length", b"0" * 24 + b"5")),
            ),
            ("data", b"hello"),
            END,
        ],
    ),
    case(
        "length-most",
        post(b"x", b"Content-Length: 9223372036854775807"),
        [sized(2**63 - 1), ("data", b"x")],
    ),
    case(
        "length-1.0",
        post(b"hello", b"Content-Length: 5", version=b"1.0"),
        [
            head(
                method="POST",
                content_length=5,
                minor_version=0,
                keep_alive=False,
                headers=fields((b"content-length", b"5")),
            ),
            ("data", b"hello"),
            END,
        ],
    ),
    case(
        "body-of-anything",
        post(bytes(range(256)), b"Content-Length: 256"),
        [sized(256), ("data", bytes(range(256))), END],
    ),
    # chunked, RFC 9112 section 7.1
    case(
        "chunks", chunked(b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"), [CHUNKED, ("data", b"hello!"), END]
    ),
    case("chunks-none", chunked(b"0\r\n\r\n"), [CHUNKED, END]),
    case("chunk-zeros", chunked(b"0000000000000000\r\n\r\n"), [CHUNKED, END]),
    case(
        "chunk-hex",
        chunked(b"0a\r\n0123456789\r\nB\r\n0123456789a\r\n000\r\n\r\n"),
        [CHUNKED, ("data", b"01234567890123456789a"), END],
    ),
    case(
        "chunk-of-line-ends",
        chunked(b"4\r\n\r\n\r\n\r\n0\r\n\r\n"),
        [CHUNKED, ("data", b"\r\n\r\n"), END],
    ),
    case("chunk-most", chunked(b"7fffffffffffffff\r\nx"), [CHUNKED, ("data", b"x")]),
    case("chunk-open", chunked(b"5\r\nhel"), [CHUNKED, ("data", b"hel")]),
    case(
        "chunk-extension",
        chunked(b'1;a=b;c="d\t\xe9"\r\nx\r\n0;\r\n\r\n'),
        [CHUNKED, ("data", b"x"), END],
    ),
    case(
        "chunk-extension-bws",
        chunked(b"1 \t;a\r\nx\r\n0 ;b \r\n\r\n"),
        [CHUNKED, ("data", b"x"), END],
    ),
    case(
        "trailers",
        chunked(b"0\r\nX: y\r\nHost: b\r\nContent-Length: z\r\nE:\r\n\r\n"),
        [CHUNKED, END],
    ),
    *(
        case(
            f"coding-{value.decode()}",
            post(b"1\r\nx\r\n0\r\n\r\n", b"Transfer-Encoding:" + value),
            [
                head(
                    method="POST",
                    chunked=True,
                    headers=fields((b"transfer-encoding", value.strip())),
                ),
                ("data", b"x"),
                END,
            ],
        )
        for value in (b"chunked", b" CHUNKED ", b"\tcHuNkEd\t")
    ),
    # one after the other
    case("pipeline", get() * 3, [head(), END] * 3),
    case(
        "pipeline-bodies",
        post(b"hello", b"Content-Length: 5") + chunked(b"1\r\nx\r\n0\r\n\r\n") + b"\r\n" + get(),
        [sized(5), ("data", b"hello"), END, CHUNKED, ("data", b"x"), END, head(), END],
    ),
    case(
        "nothing-left-over-from-the-request-before",
        get(b"http://b/", b"Connection: close, upgrade", b"Upgrade: x", b"Expect: 100-continue")
        + get(b"/"),
        [
            head(
                keep_alive=False,
                expect_continue=True,
                upgrade=b"x",
                headers=[
                    (b"host", b"b"),
                    (b"connection", b"close, upgrade"),
                    (b"upgrade", b"x"),
                    (b"expect", b"100-continue"),
                ],
            ),
            END,
            head(),
            END,
        ],
    ),
    case(
        "pipeline-then-wrong",
        get() + b"\0",
        [head(), END, ("invalid", 400, "illegal byte in a line")],
    ),
    case("nothing", b"", []),
    case("only-empty-lines", b"\r\n\r\n", []),
    case("half-a-head", get()[:-1], []),
    case("half-a-line", chunked(b"not a size"), [CHUNKED]),
]


@pytest.mark.parametrize(("data", "expected"), VALID)
def test_valid(data: bytes, expected: Events) -> None:
    assert parse_every_way(data) == expected


# ----------------------------------------------------------------- what is invalid


def wrong_field(name: str, line: bytes, status: int = 400) -> Any:
    return case(name, get(b"/", line), status)


def wrong_coding(name: str, value: bytes, status: int = 400) -> Any:
    return case("coding-" + name, post(b"0\r\n\r\n", b"Transfer-Encoding: " + value), status)


INVALID = [
    # line ends and bytes, RFC 9112 section 2.2
    case("bare-lf-request-line", b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
    case("bare-cr-request-line", b"GET / HTTP/1.1\rHost: a\r\n\r\n", 400),
    case("bare-lf-field", b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400),
    case("bare-cr-field", b"GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n", 400),
    case("bare-cr-in-value", b"GET / HTTP/1.1\r\nHost: a\r\nX: \ry\r\n\r\n", 400),
    case("bare-lf-end", b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
    case("bare-cr-end", b"GET / HTTP/1.1\r\nHost: a\r\n\r\r", 400),
    case("cr-cr-lf", b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", 400),
    case("bare-lf-first", b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    case("bare-cr-first", b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    case("five-empty-lines", b"\r\n" * 5 + get(), 400),
    case("five-empty-lines-at-once", b"\r\n" * 4 + b"\r", 400),
    *(
        case(f"byte-{code:02x}-in-{where}", data.replace(b"@", bytes([code])), 400)
        for code in (0, 1, 8, 9, 0x0B, 0x0C, 0x1B, 0x1F, 0x7F)
        for where, data in (
            ("method", b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("target", b"GET /@ HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("query", b"GET /?@ HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("name", b"GET / HTTP/1.1\r\nHost: a\r\nX@Y: z\r\n\r\n"),
            ("value", b"GET / HTTP/1.1\r\nHost: a\r\nX: y@z\r\n\r\n"),
        )
        if (code, where) != (9, "value")
    ),
    *(
        case(
            f"control-{code:02x}-at-{place}",
            b"GET / HTTP/1.1\r\nHost: a\r\nX: "
            + b"y" * place
            + bytes([code])
            + b"y" * 9
            + b"\r\n\r\n",
            400,
        )
        for code in (0, 0x1F, 0x7F)
        for place in range(17)
    ),
    case("tls-client-hello", b"\x16\x03\x01", 400),
    case("tls-first-byte", b"\x16", 400),
    case("obs-text-in-target", b"GET /\xe9", 400),
    # request line, RFC 9112 section 3
    case("no-method", b" / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    case("method-not-token", b"GE(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    case("no-target", b"GET HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    case("empty-target", b"GET  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    case("two-spaces-first", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    case("two-spaces-second", b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    case("space-at-start", b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    case("space-at-end", b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
    case("space-in-target", b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    case("tab-for-space", b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    case("http-0.9", b"GET /\r\n", 400),
    case("http-0.9-with-fields", b"GET /\r\nHost: a\r\n\r\n", 400),
    case("only-a-method", b"GET\r\n", 400),
    case("fragment", get(b"/#a"), 400),
    case("fragment-in-query", get(b"/?#a"), 400),
    case("no-slash", get(b"foo"), 400),
    case("only-query", get(b"?foo"), 400),
    case("asterisk-get", get(b"*"), 400),
    case("asterisk-more", b"OPTIONS *a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    case("asterisk-query", b"OPTIONS *?a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    case("asterisk-options-lower", b"options * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    *(
        case(f"absolute-{target.decode()}", get(target), 400)
        for target in (
            b"http://",
            b"http:///",
            b"http://?",
            b"http:/b",
            b"http:b",
            b"http//b",
            b"http",
            b"ftp://b/",
            b"httpss://b/",
            b"ws://b/",
            b"http://u@b/",
            b"http://u:p@b/",
            b"http://b:x/",
            b"http://b:65536/",
            b"http://:80/",
            b"http://b,c/",
            b"http://[::1/",
            b"http://[]/",
            b"http://b%zz/",
            b"http://b%4",
            b"mailto:a",
            b"b:80",
            b"https:/",
            b"https://",
            b"https:///a",
        )
    ),
    case("absolute-malformed-host", get(b"http://b/", host=b"a b"), 400),
    case("absolute-no-host", b"GET http://b/ HTTP/1.1\r\n\r\n", 400),
    case("absolute-two-hosts", get(b"http://b/", b"Host: b"), 400),
    *(
        case(f"version-{version.decode()}", b"GET / " + version + b"\r\nHost: a\r\n\r\n", 400)
        for version in (
            b"http/1.1",
            b"Http/1.1",
            b"HTTP/1",
            b"HTTP/1.",
            b"HTTP/.1",
            b"HTTP/1.10",
            b"HTTP/11.1",
            b"HTTP/01.1",
            b"HTTP/1,1",
            b"HTTP 1.1",
            b"HTTP/a.1",
            b"HTTP/1.a",
            b"HTTP/-1.1",
            b"HTTP/1.1x",
            b"HTTPS/1.1",
            b"HTP/1.1",
            b"/1.1",
            b"RTSP/1.0",
        )
    ),
    *(
        case(f"version-{version.decode()}", b"GET / " + version + b"\r\nHost: a\r\n\r\n", 505)
        for version in (b"HTTP/0.9", b"HTTP/2.0", b"HTTP/3.0", b"HTTP/9.9", b"HTTP/0.0")
    ),
    case("http2-preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    case("connect", b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501),
    case("connect-path", b"CONNECT / HTTP/1.0\r\n\r\n", 501),
    case("connect-nonsense", b"CONNECT \0 HTTP/1.1\r\n\r\n", 400),
    case("connect-2.0", b"CONNECT a:443 HTTP/2.0\r\n\r\n", 505),
    # field lines, RFC 9112 section 5
    wrong_field("no-colon", b"X"),
    wrong_field("no-name", b": y"),
    wrong_field("space-before-colon", b"X : y"),
    wrong_field("tab-before-colon", b"X\t: y"),
    wrong_field("space-in-name", b"X Y: z"),
    wrong_field("obs-fold-space", b" y"),
    wrong_field("obs-fold-tab", b"\ty"),
    wrong_field("obs-fold-with-colon", b" X: y"),
    wrong_field("obs-text-in-name", b"\xe9: y"),
    wrong_field("name-with-slash", b"a/b: y"),
    wrong_field("name-long-wrong", b"N" * 80 + b"(: y"),
    case("obs-fold-first", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    # Host, RFC 9112 section 3.2
    case("host-missing", b"GET / HTTP/1.1\r\n\r\n", 400),
    case("host-missing-1.9", b"GET / HTTP/1.9\r\nX: y\r\n\r\n", 400),
    wrong_field("host-twice", b"Host: a"),
    wrong_field("host-twice-empty", b"Host:"),
    case("host-twice-1.0", get(b"/", b"host: b", version=b"1.0"), 400),
    *(
        case(f"host-{host!r}", get(host=host), 400)
        for host in (
            b"a b",
            b"a\tb",
            b"a,b",
            b"a@b",
            b"a/b",
            b"a?",
            b"a#",
            b"a\\b",
            b'"a"',
            b"<a>",
            b"a|b",
            b"\xe9",
            b":80",
            b":",
            b"a:65536",
            b"a:99999999999999999999",
            b"a:-1",
            b"a:+1",
            b"a:8o",
            b"a:1:2",
            b"::1",
            b"[::1",
            b"[]",
            b"[:]",
            b"[::1]x",
            b"[::1]:x",
            b"[::1]]",
            b"[g::1]",
            b"[fe80::1%25eth0]",
            b"[v.a]",
            b"[v1.]",
            b"[v1]",
            b"[vg.a]",
            b"[v1.a",
            b"[1.2.3.4]",
            b"%",
            b"%4",
            b"%zz",
            b"%4z",
            b"http://a",
            b"a, a",
        )
    ),
    # Content-Length, RFC 9112 section 6.3
    *(
        wrong_field(f"length-{value!r}", b"Content-Length: " + value)
        for value in (
            b"",
            b"+1",
            b"-1",
            b"1,1",
            b"1, 1",
            b"1 1",
            b"0x1",
            b"1a",
            b"a",
            b"1.0",
            b"1_0",
            b"\xb2",
            b"9223372036854775808",
            b"18446744073709551615",
            b"18446744073709551616",
            b"1" * 100,
        )
    ),
    case("length-twice", post(b"x", b"Content-Length: 1", b"Content-Length: 1"), 400),
    case("length-twice-differs", post(b"x", b"Content-Length: 1", b"content-length: 2"), 400),
    # Transfer-Encoding, RFC 9112 section 6.1
    case(
        "coding-and-length",
        post(b"0\r\n\r\n", b"Transfer-Encoding: chunked", b"Content-Length: 5"),
        400,
    ),
    case(
        "length-and-coding",
        post(b"0\r\n\r\n", b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        400,
    ),
    case(
        "other-coding-and-length",
        post(b"", b"Content-Length: 5", b"Transfer-Encoding: gzip, chunked"),
        400,
    ),
    case("coding-1.0", post(b"0\r\n\r\n", b"Transfer-Encoding: chunked", version=b"1.0"), 400),
    wrong_coding("empty", b""),
    wrong_coding("identity", b"identity"),
    wrong_coding("gzip", b"gzip"),
    wrong_coding("xchunked", b"xchunked"),
    wrong_coding("chunked-parameter", b"chunked;a=b"),
    wrong_coding("chunked-semicolon", b"chunked;"),
    wrong_coding("chunked-twice", b"chunked, chunked"),
    wrong_coding("chunked-not-last", b"chunked, gzip"),
    wrong_coding("chunked-inside", b"gzip, chunked, gzip"),
    wrong_coding("comma-before", b",chunked"),
    wrong_coding("comma-behind", b"chunked,"),
    wrong_coding("two-commas", b"gzip,,chunked"),
    wrong_coding("space-inside", b"chun ked"),
    wrong_coding("quoted", b'"chunked"'),
    wrong_coding("vertical", b"\xa0chunked"),
    wrong_coding("parameter-no-value", b"a;b, chunked"),
    wrong_coding("parameter-empty-value", b"a;b=, chunked"),
    wrong_coding("parameter-no-name", b"a;=c, chunked"),
    wrong_coding("parameter-open-quote", b'a;b="c, chunked'),
    wrong_coding("parameter-open-escape", b'a;b="c\\'),
    wrong_coding("parameter-quote-end", b'a;b="c"d, chunked'),
    wrong_coding("quoted-chunked-not-last", b'a;b=", chunked"'),
    wrong_coding("other-first", b"gzip, chunked", 501),
    wrong_coding("others-first", b'a;b=c;d="e,\\"f" , g ; h = i\t,chunked', 501),
    case(
        "coding-two-lines",
        post(b"", b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"),
        501,
    ),
    case(
        "coding-two-lines-not-last",
        post(b"", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip"),
        400,
    ),
    case(
        "coding-two-lines-twice",
        post(b"", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        400,
    ),
    case(
        "coding-two-lines-empty",
        post(b"", b"Transfer-Encoding: chunked", b"Transfer-Encoding:"),
        400,
    ),
    # Expect, RFC 9110 section 10.1.1
    wrong_field("expect-other", b"Expect: tea", 417),
    wrong_field("expect-empty", b"Expect:", 417),
    wrong_field("expect-list", b"Expect: 100-continue, 100-continue", 417),
    case("expect-one-wrong", get(b"/", b"Expect: 100-continue", b"Expect: 200-ok"), 417),
    case("expect-and-malformed", post(b"", b"Expect: x", b"Transfer-Encoding: gzip"), 400),
]

BAD_BODIES = [
    # chunked, RFC 9112 section 7.1: the body and the data that is passed on before it
    *(
        case(f"size-{size!r}", size + b"\r\nx\r\n0\r\n\r\n", b"")
        for size in (
            b"",
            b"g",
            b"0x1",
            b"-1",
            b"+1",
            b" 1",
            b"1 ",
            b"1\t",
            b"1 a",
            b"1,",
            b"1.",
            b"1=a",
            b"8000000000000000",
            b"ffffffffffffffff",
            b"00000000000000001",
            b"10000000000000001",
            b"1;\0",
            b"1;\n",
            b"1;\r",
            b"1;\x7f",
            b"1\0",
            b"\xb2",
            b"1 \0;a",
        )
    ),
    case("size-bare-lf", b"1\nx\r\n0\r\n\r\n", b""),
    case("size-bare-lf-extension", b"1;a\nx\r\n0\r\n\r\n", b""),
    case("data-no-line-end", b"1\r\nxy", b"x"),
    case("data-bare-lf", b"1\r\nx\n0\r\n\r\n", b"x"),
    case("data-bare-cr", b"1\r\nx\r0\r\n\r\n", b"x"),
    case("data-cr-cr-lf", b"1\r\nx\r\r\n0\r\n\r\n", b"x"),
    case("data-two-line-ends", b"1\r\nx\r\n\r\n0\r\n\r\n", b"x"),
    case("trailer-no-colon", b"0\r\nX\r\n\r\n", b""),
    case("trailer-space-before-colon", b"0\r\nX : y\r\n\r\n", b""),
    case("trailer-fold", b"0\r\nX: y\r\n z\r\n\r\n", b""),
    case("trailer-nul", b"0\r\nX: \0\r\n\r\n", b""),
    case("trailer-bare-lf", b"0\r\nX: y\n\r\n", b""),
    case("trailer-end-bare-lf", b"0\r\n\n", b""),
    case("trailer-request", b"0\r\nGET / HTTP/1.1\r\n\r\n", b""),
]


@pytest.mark.parametrize(("data", "status"), INVALID)
def test_invalid(data: bytes, status: int) -> None:
    events = parse_every_way(data)
    assert [event[:2] for event in events] == [("invalid", status)]
    assert events[0][2], "no reason given"


@pytest.mark.parametrize(("body", "passed_on"), BAD_BODIES)
def test_invalid_body(body: bytes, passed_on: bytes) -> None:
    events = parse_every_way(chunked(body))
    assert events[0] == CHUNKED
    assert events[-1][:2] == ("invalid", 400)
    assert events[1:-1] == ([("data", passed_on)] if passed_on else [])


@pytest.mark.parametrize("data", [value_of(c) for c in INVALID[:8]])
def test_what_came_before_is_told_first(data: bytes) -> None:
    events = parse_every_way(get(b"/first") + data)
    assert [event[0] for event in events] == ["head", "end", "invalid"]


# ------------------------------------------------------------------------- limits


@pytest.mark.parametrize("limit", [0, 14, 15, 100])
def test_limit_line(limit: int) -> None:
    """The line may be as long as the limit, without its CRLF."""
    for length in (limit - 1, limit, limit + 1):
        if length < len(b"GET / HTTP/1.1"):
            continue
        line = b"GET /" + b"a" * (length - len(b"GET / HTTP/1.1")) + b" HTTP/1.1"
        events = parse_every_way(line + b"\r\nHost: a\r\n\r\n", limit_line=limit)
        if length <= limit:
            assert [e[0] for e in events] == ["head", "end"]
        else:
            assert [e[:2] for e in events] == [("invalid", 414)]


def test_limit_line_early() -> None:
    """A line that never ends is refused with the byte that is too much."""
    parser = RequestParser()
    assert parser.feed(b"GET /" + b"a" * 8185) == []
    assert parser.feed(b"a")[0][:2] == ("invalid", 414)


def test_limit_line_default() -> None:
    line = b"GET /" + b"a" * (8190 - 14) + b" HTTP/1.1\r\nHost: a\r\n\r\n"
    assert [e[0] for e in parse([line])] == ["head", "end"]
    assert parse([line.replace(b"/a", b"/aa")])[0][:2] == ("invalid", 414)


def test_garbage_beyond_the_limit_is_too_long() -> None:
    """The first wrong byte decides, and the limit comes before what lies behind it."""
    assert parse_every_way(b"a" * 20 + b"\0", limit_line=20)[0][1] == 414
    assert parse_every_way(b"a" * 19 + b"\0", limit_line=20)[0][1] == 400


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_limit_fields(limit: int) -> None:
    more = [b"X: y"] * (limit - 1)
    assert [e[0] for e in parse_every_way(get(b"/", *more), limit_fields=limit)] == ["head", "end"]
    events = parse_every_way(get(b"/", *more, b"X: y"), limit_fields=limit)
    assert [e[:2] for e in events] == [("invalid", 431)]


def test_limit_fields_default() -> None:
    assert len(parse([get(b"/", *[b"X: y"] * 99)])[0][1]["headers"]) == 100
    assert parse([get(b"/", *[b"X: y"] * 100)])[0][:2] == ("invalid", 431)


def test_limit_fields_none_at_all() -> None:
    bare = b"GET / HTTP/1.0\r\n"
    assert [e[0] for e in parse_every_way(bare + b"\r\n", limit_fields=0)] == ["head", "end"]
    assert parse_every_way(bare + b"X: y\r\n\r\n", limit_fields=0)[0][:2] == ("invalid", 431)


def test_limit_field_bytes() -> None:
    """All lines with their CRLF count, the empty line behind them does not."""
    data = get(b"/", b"X: y", b"Long: " + b"z" * 40)
    size = len(data) - len(b"GET / HTTP/1.1\r\n") - 2
    assert [e[0] for e in parse_every_way(data, limit_field_bytes=size)] == ["head", "end"]
    for limit in (*range(25), *range(size - 4, size)):
        events = parse_every_way(data, limit_field_bytes=limit)
        assert [e[:2] for e in events] == [("invalid", 431)], limit


def test_limit_field_bytes_early() -> None:
    parser = RequestParser()
    assert parser.feed(b"GET / HTTP/1.1\r\nX: " + b"y" * (65536 - 3 - 2)) == []
    assert parser.feed(b"y")[0][:2] == ("invalid", 431)


def test_limit_trailer_bytes() -> None:
    fitting = b"X: " + b"y" * (8192 - 5) + b"\r\n"
    assert parse([chunked(b"0\r\n" + fitting + b"\r\n")]) == [CHUNKED, END]
    two = b"X: " + b"y" * (4096 - 5) + b"\r\n"
    assert parse([chunked(b"0\r\n" + two * 2 + b"\r\n")]) == [CHUNKED, END]
    for long in (b"X: y" + fitting[3:], two + b"y" + two):
        for parts in ([long], [long[:100], long[100:]], [long[:-2]]):
            events = parse([chunked(b"0\r\n"), *parts])
            assert events[-1][:2] == ("invalid", 431)


def test_limit_trailer_bytes_is_not_that_of_the_head() -> None:
    data = chunked(b"0\r\n" + b"X: " + b"y" * 100 + b"\r\n\r\n")
    assert parse_every_way(data, limit_field_bytes=50) == [CHUNKED, END]


def test_limit_trailer_fields() -> None:
    data = chunked(b"0\r\n" + b"X: y\r\n" * 3 + b"\r\n")
    assert parse_every_way(data, limit_fields=3) == [CHUNKED, END]
    short = data.replace(b"\r\nX: y", b"\r\nX: y\r\nX: y", 1)
    assert parse_every_way(short, limit_fields=3)[-1][:2] == ("invalid", 431)


def test_limit_chunk_extension_of_a_line() -> None:
    for size in (b"1", b"0000000000000001"):
        fitting = chunked(size + b";" + b"a" * 4095 + b"\r\nx\r\n0\r\n\r\n")
        long = chunked(size + b";" + b"a" * 4096 + b"\r\nx\r\n0\r\n\r\n")
        for parts in (lambda d: [d], lambda d: [d[:200], d[200:]]):
            assert parse(parts(fitting)) == [CHUNKED, ("data", b"x"), END]
            assert [e[:2] for e in parse(parts(long))[1:]] == [("invalid", 400)]
    assert parse([chunked(b"1;" + b"a" * 5000)])[-1][:2] == ("invalid", 400)


def test_limit_chunk_extension_of_a_body() -> None:
    chunk = b"1;" + b"a" * 1023 + b"\r\nx\r\n"
    fitting = chunked(chunk * 16 + b"0\r\n\r\n")
    # per body: a second one begins to count from nothing
    assert parse([fitting * 2]) == [CHUNKED, ("data", b"x" * 16), END] * 2
    long = chunked(chunk * 16 + b"0;\r\n\r\n")
    events = parse([long])
    assert events[:-1] == [CHUNKED, ("data", b"x" * 16)]
    assert events[-1][:2] == ("invalid", 400)


@pytest.mark.parametrize("name", ["limit_line", "limit_fields", "limit_field_bytes"])
def test_limits_are_not_negative(name: str) -> None:
    with pytest.raises(ValueError, match="negative"):
        RequestParser(**{name: -1})


# ---------------------------------------------------------------- the object itself


def test_mid_message() -> None:
    parser = RequestParser()
    assert not parser.mid_message
    parser.feed(b"\r\n\r")
    assert not parser.mid_message, "empty lines are no message"
    parser.feed(b"\nG")
    assert parser.mid_message
    parser.feed(b"ET / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n")
    assert parser.mid_message
    parser.feed(b"x")
    assert parser.mid_message
    assert parser.feed(b"x") == [("data", b"x"), END]
    assert not parser.mid_message
    parser.feed(chunked(b"0\r\n\r"))
    assert parser.mid_message
    parser.feed(b"\n")
    assert not parser.mid_message
    parser.feed(b"\0")
    assert parser.mid_message


def test_invalid_is_for_good() -> None:
    parser = RequestParser()
    first = parser.feed(b"GET / HTTP/1.1\n")
    assert first == [("invalid", 400, "bare LF")]
    assert parser.feed(get()) == first
    assert parser.feed(b"") == first
    assert (parser.error_status, parser.error_reason) == (400, "bare LF")


def test_no_error_before_one() -> None:
    parser = RequestParser()
    parser.feed(get())
    assert parser.error_status == 0
    assert parser.error_reason is None


def test_facts_are_released_and_the_body_still_framed() -> None:
    parser = RequestParser()
    (event,) = parser.feed(post(b"", b"Content-Length: 3", b"Connection: upgrade", b"Upgrade: x"))
    assert event[1]["upgrade"] == b"x"
    assert parser.method == "POST"
    assert (parser.path, parser.raw_path, parser.query_string) == (None, None, None)
    assert (parser.headers, parser.upgrade) == (None, None)
    assert parser.content_length == 3
    assert parser.feed(b"xyz" + get(b"/next"))[0:2] == [("data", b"xyz"), END]


def test_no_facts_of_the_request_before_an_invalid_one() -> None:
    parser = RequestParser()
    parser.feed(get())
    assert parser.method == "GET"
    parser.feed(b"PUT / HTTP/1.1\r\nX : y\r\n")
    assert parser.method is None
    assert parser.headers is None


def test_shared_objects() -> None:
    """Known methods and names cost nothing but a reference."""
    first, second = (
        parse([b"DELETE / HTTP/1.1\r\nHOST: a\r\nuser-agent: b\r\nX-Own: c\r\n\r\n"])[0][1]
        for _ in range(2)
    )
    assert first["method"] is second["method"]
    for (one, _), (other, _) in zip(first["headers"][:2], second["headers"][:2], strict=True):
        assert one is other
    assert first["headers"][2][0] is not second["headers"][2][0]
    assert first["headers"] is not second["headers"]


def test_fields_that_repeat_are_shared() -> None:
    """But for what is secret, long, or has a name that is not known."""
    cache = FieldCache()
    shared = [b"User-Agent: b", b"Accept:", b"Sec-Fetch-Site: " + 160 * b"x", b"TE: trailers"]
    own = [
        b"Cookie: a=b",
        b"Authorization: c",
        b"Sec-WebSocket-Protocol: c",
        b"X-Own: c",
        b"Accept: " + 161 * b"x",
    ]
    first, second = (parse([get(b"/", *shared, *own)], cache)[0][1]["headers"] for _ in range(2))
    assert first == second
    assert first is not second
    same = [one is other for one, other in zip(first, second, strict=True)]
    assert same == [True] + [True] * len(shared) + [False] * len(own)


def test_host_of_the_target_is_not_shared() -> None:
    cache = FieldCache()
    absolute = b"GET http://%b/ HTTP/1.1\r\nHost: a\r\n\r\n"
    for data, host in [
        (get(), b"a"),
        (absolute % b"b", b"b"),
        (get(), b"a"),
        (absolute % b"c", b"c"),
    ]:
        assert parse([data], cache)[0][1]["headers"] == [(b"host", host)]


def test_fields_are_never_mistaken() -> None:
    """Of more values than are kept, that differ in one byte or in length alone."""
    cache = FieldCache()
    values = [b"x" * length for length in range(161)]
    for length in (1, 2, 7, 8, 9, 20, 160):
        for place in range(length):
            values += [b"x" * place + other + b"x" * (length - place - 1) for other in (b"y", b"z")]
    for _ in range(2):
        for value in values:
            lines = [b"Accept: " + value, b"Origin: " + value]
            headers = parse([get(b"/", *lines)], cache)[0][1]["headers"]
            assert headers == fields((b"accept", value), (b"origin", value))


KNOWN = (
    "host user-agent accept accept-encoding accept-language connection content-length "
    "content-type cookie authorization cache-control pragma referer origin "
    "upgrade-insecure-requests sec-fetch-dest sec-fetch-mode sec-fetch-site sec-fetch-user "
    "sec-ch-ua sec-ch-ua-mobile sec-ch-ua-platform dnt te transfer-encoding expect upgrade "
    "if-match if-none-match if-modified-since if-unmodified-since if-range range "
    "x-forwarded-for x-forwarded-proto x-forwarded-host x-real-ip x-request-id forwarded via "
    "traceparent tracestate sec-websocket-key sec-websocket-version sec-websocket-protocol "
    "sec-websocket-extensions priority date from trailer keep-alive"
).split()
VALUES = {"content-length": b"0", "expect": b"100-continue", "host": b"b"}


@pytest.mark.parametrize("name", KNOWN)
def test_known_name(name: str) -> None:
    """Any case gives the same object, and a look-alike gives another name."""
    if name == "transfer-encoding":
        line = b"%b: chunked\r\n"
    else:
        line = b"%b: " + VALUES.get(name, b"b") + b"\r\n"
    start = b"GET / HTTP/1.1\r\n" + (b"" if name == "host" else b"Host: a\r\n")
    found = []
    for spelled in (name, name.upper(), name.title(), name.swapcase()):
        events = parse_every_way(start + line % spelled.encode() + b"\r\n")
        found.append(events[0][1]["headers"][-1][0])
    assert all(one is found[0] for one in found)
    assert found[0] == name.encode()
    for i in range(len(name)):
        other = (name[:i] + "z" + name[i + 1 :]).encode()
        if other.decode() != name:
            headers = parse([get(b"/", other + b": q")])[0][1]["headers"]
            assert headers[1] == (other, b"q")


@pytest.mark.parametrize("data", [bytearray(b"GET"), memoryview(b"GET"), "GET", None, 1])
def test_only_bytes(data: Any) -> None:
    parser = RequestParser()
    with pytest.raises(TypeError):
        parser.feed(data)
    assert [e[0] for e in parser.feed(get())] == ["head", "end"]


def test_object_is_small() -> None:
    """Connections idle in tens of thousands."""
    assert sys.getsizeof(RequestParser()) < 300


# --------------------------------------------------------------------------- leaks

EVERYTHING = [value_of(c) for c in [*VALID, *INVALID]] + [chunked(value_of(c)) for c in BAD_BODIES]


def parse_everything() -> None:
    for data in EVERYTHING:
        parse([data])
        parse([data], FieldCache())
        parse([data[:40], data[40:]])
        RequestParser().feed(data[:-3])  # dropped in the middle


def test_no_object_leaks() -> None:
    host = parse([get()])[0][1]["headers"][0][0]
    assert host == b"host"
    for _ in range(3):
        parse_everything()
    blocks = sys.getallocatedblocks()
    references = sys.getrefcount(host)
    for _ in range(30):
        parse_everything()
    # More than 40,000 parses, so one block or reference lost in one of them shows.
    assert abs(sys.getallocatedblocks() - blocks) < 25
    assert sys.getrefcount(host) == references


@measures_memory
def test_no_held_line_leaks() -> None:
    """The memory for a line in parts is not Python's, so the process is asked."""
    long = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 50_000

    def rounds(count: int) -> None:
        for _ in range(count):
            assert parse([long, b"y", b"\r\n\r\n"])[-1] == END  # completed
            assert parse([long, b"\0"])[-1][0] == "invalid"  # found wrong
            assert parse([long, b"\r", b"y"])[-1][0] == "invalid"
            assert parse([long, b"y" * 16_000])[-1][0] == "invalid"  # too long
            assert parse([long, b"y"]) == []  # given up

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    rounds(20)
    before = resident()
    rounds(600)  # 30 MB for each way that would leak
    assert resident() - before < 15_000_000


# ------------------------------------------------------------ any cut, any pipeline

MESSAGES = [
    value_of(c)
    for c in VALID
    if (events := c.values[1]) and events[-1] == END and len(value_of(c)) < 400
]


@examples
@given(st.lists(st.sampled_from(MESSAGES), min_size=1, max_size=6), st.data())
def test_pipelines_in_any_parts(messages: list[bytes], data: st.DataObject) -> None:
    """A pipeline gives the events of its requests, wherever it is cut."""
    alone = [event for message in messages for event in parse([message])]
    joined = b"".join(messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(joined)), max_size=12)))
    parts = [joined[a:b] for a, b in zip([0, *cuts], [*cuts, len(joined)], strict=True)]
    assert parse(parts) == alone


@examples
@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes(data: bytes, cut: int) -> None:
    """Whatever comes is answered with the documented events, in their order."""
    for start in (b"", b"GET / HTTP/1.1\r\n", chunked(b""), chunked(b"0\r\n")):
        events = parse([start + data])
        assert parse([start, data[:cut], data[cut:]]) == events
        state = "idle"
        for event in events:
            assert state != "invalid"
            if event[0] == "head":
                assert state == "idle"
                state = "body"
            elif event[0] == "data":
                assert state == "body" and event[1]
            elif event[0] == "end":
                assert state == "body"
                state = "idle"
            else:
                assert event[0] == "invalid"
                assert event[1] in (400, 414, 417, 431, 501, 505)
                state = "invalid"


# ------------------------------------------------------- two other parsers as witnesses


@dataclass
class Seen:
    """One request as a parser saw it."""

    method: str
    target: bytes
    headers: list[tuple[bytes, bytes]]
    minor_version: int = 1
    keep_alive: bool | None = None  # None: it does not say
    body: bytes = b""
    complete: bool = False


@dataclass
class Verdict:
    """What a parser made of one input: requests, and whether it refused the rest."""

    requests: list[Seen] = field(default_factory=list)
    refused: str = ""
    handed_over: bool = False  # it took what follows an upgrade for another protocol


def by_fastserve(data: bytes) -> Verdict:
    verdict = Verdict()
    for event in parse([data]):
        if event[0] == "head":
            facts = event[1]
            target = facts["raw_path"]
            if facts["query_string"]:
                target += b"?" + facts["query_string"]
            verdict.requests.append(
                Seen(
                    facts["method"],
                    target,
                    facts["headers"],
                    facts["minor_version"],
                    facts["keep_alive"],
                )
            )
        elif event[0] == "data":
            verdict.requests[-1].body += event[1]
        elif event[0] == "end":
            verdict.requests[-1].complete = True
            if not verdict.requests[-1].keep_alive:
                return verdict  # what follows is for nobody
        else:
            verdict.refused = f"{event[1]} {event[2]}"
    return verdict


class Recorder:
    """The callbacks that llhttp wants."""

    def __init__(self) -> None:
        self.verdict = Verdict()
        self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        major, _, minor = self.parser.get_http_version().partition(".")
        assert major
        self.verdict.requests.append(
            Seen(
                self.parser.get_method().decode(),
                self.target,
                self.headers.copy(),
                int(minor),
                self.parser.should_keep_alive(),
            )
        )

    def on_body(self, body: bytes) -> None:
        self.verdict.requests[-1].body += body

    def on_message_complete(self) -> None:
        self.verdict.requests[-1].complete = True


def by_llhttp(data: bytes) -> Verdict:
    recorder = Recorder()
    verdict = recorder.verdict
    try:
        recorder.parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        verdict.handed_over = True
    except httptools.HttpParserError as error:
        last = verdict.requests[-1] if verdict.requests else None
        if last is None or last.keep_alive or not last.complete:
            verdict.refused = str(error)
    return verdict


def by_h11(data: bytes) -> Verdict:
    verdict = Verdict()
    # it counts head and trailers together; the limits of ours have tests of their own
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=200_000)
    if data:  # none at all would mean the end of the connection
        connection.receive_data(data)
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                return verdict
            if event is h11.PAUSED:
                if connection.their_state is not h11.DONE:  # it may want an upgrade
                    verdict.handed_over = True
                    return verdict
                connection.send(h11.Response(status_code=404, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    return verdict
                connection.start_next_cycle()
            elif isinstance(event, h11.Request):
                verdict.requests.append(
                    Seen(
                        event.method.decode(),
                        event.target,
                        list(event.headers),
                        int(event.http_version.partition(b".")[2]),
                    )
                )
            elif isinstance(event, h11.Data):
                verdict.requests[-1].body += event.data
            elif isinstance(event, h11.EndOfMessage):
                last = verdict.requests[-1]
                last.complete = True
                if connection.their_state is h11.MUST_CLOSE:
                    last.keep_alive = False
                    return verdict
                if connection.their_state is h11.DONE:
                    last.keep_alive = True
    except h11.RemoteProtocolError as error:
        verdict.refused = str(error)
    return verdict


WITNESSES: dict[str, Callable[[bytes], Verdict]] = {"llhttp": by_llhttp, "h11": by_h11}


@dataclass
class Mismatch:
    """`aspect`: a fact that differs, or
    "body";
    "stricter": they take a request that we do not, "laxer": we take one;
    "early": both took the same, but we refuse what follows while they still wait for
    more of it, "waits": the other way round.
    """

    aspect: str
    ours: Seen | None = None
    theirs: Seen | None = None


def compare(ours: Verdict, theirs: Verdict) -> list[Mismatch]:
    found: list[Mismatch] = []
    for a, b in zip(ours.requests, theirs.requests, strict=False):
        for aspect in ("method", "target", "headers", "minor_version", "keep_alive"):
            if None not in (x := (getattr(a, aspect), getattr(b, aspect))) and x[0] != x[1]:
                found.append(Mismatch(aspect, a, b))
        if a.complete != b.complete:
            found.append(Mismatch("laxer" if a.complete else "stricter", a, b))
            return found
        if a.complete and a.body != b.body:
            found.append(Mismatch("body", a, b))
            return found
        if b.keep_alive is not None and a.keep_alive != b.keep_alive:
            return found  # one of them stopped here
    if theirs.handed_over and len(ours.requests) >= len(theirs.requests):
        return found
    if len(ours.requests) != len(theirs.requests):
        longer = len(ours.requests) > len(theirs.requests)
        extra = ours.requests[len(theirs.requests)] if longer else None
        found.append(Mismatch("laxer" if longer else "stricter", extra))
    elif bool(ours.refused) != bool(theirs.refused):
        found.append(Mismatch("early" if ours.refused else "waits"))
    return found


@dataclass
class Difference:
    """A known difference. Each of the patterns that is given has to be found."""

    who: str  # the witness, or "both"
    aspect: str
    section: str  # which decides for us
    why: str
    ours: str = ""  # in our reason to refuse
    theirs: str = ""  # in theirs
    data: bytes = b""  # in what was parsed
    also: Callable[[Seen, Seen], bool] | None = None

    def covers(self, who: str, data: bytes, ours: Verdict, theirs: Verdict, m: Mismatch) -> bool:
        return (
            self.who in (who, "both")
            and self.aspect == m.aspect
            and re.search(self.ours, ours.refused) is not None
            and re.search(self.theirs, theirs.refused) is not None
            and re.search(self.data, data) is not None
            and (
                self.also is None
                or (m.ours is not None and m.theirs is not None and self.also(m.ours, m.theirs))
            )
        )


def absolute(target: bytes) -> bool:
    return re.match(rb"(?i)https?://", target) is not None


def without_authority(target: bytes) -> bytes:
    rest = re.sub(rb"(?i)\Ahttps?://[^/?]*", b"", target)
    rest = rest if rest.startswith(b"/") else b"/" + rest
    return rest.removesuffix(b"?") if rest.count(b"?") == 1 else rest


def but(name: bytes, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [pair for pair in headers if pair[0] != name]


LLHTTP_METHODS = set(
    "DELETE GET HEAD POST PUT CONNECT OPTIONS TRACE COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH"
    " UNLOCK BIND REBIND UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE"
    " UNSUBSCRIBE PATCH PURGE MKCALENDAR LINK UNLINK SOURCE QUERY PRI DESCRIBE ANNOUNCE SETUP PLAY"
    " PAUSE TEARDOWN GET_PARAMETER SET_PARAMETER REDIRECT RECORD FLUSH".split()
)

# fmt: off
DIFFERENCES = [
    # facts
    Difference("both", "target", "9112 3.2.2", "of an absolute-form we give the path",
               also=lambda a, b: absolute(b.target) and a.target == without_authority(b.target)),
    Difference("both", "headers", "9112 3.2.2", "its authority replaces or becomes Host",
               also=lambda a, b: absolute(b.target) and but(b"host", a.headers) == but(b"host", b.headers)),
    Difference("both", "target", "9110 4.2.3", "an empty query and none are the same to ASGI",
               also=lambda a, b: not absolute(b.target) and b.target == a.target + b"?"),
    Difference("h11", "headers", "9112 7", "it lower-cases the coding, we keep values as sent",
               also=lambda a, b: [(n, v.lower() if n == b"transfer-encoding" else v)
                                  for n, v in a.headers] == b.headers),
    Difference("h11", "minor_version", "9110 2.5", "a higher minor version is read as 1",
               also=lambda a, b: a.minor_version == 1 and b.minor_version > 1),
    Difference("llhttp", "keep_alive", "9112 9.3", "close wins over keep-alive",
               data=rb"(?i)connection:[^\n]*close", also=lambda a, b: not a.keep_alive),
    Difference("h11", "keep_alive", "9112 9.3", "it keeps no HTTP/1.0 connection",
               data=rb"(?i)keep-alive", also=lambda a, b: a.minor_version == 0),
    # what we take and they do not
    Difference("llhttp", "laxer", "9110 9.1", "any token is a method",
               theirs="Invalid method|Expected space after method|Invalid char in method"),
    Difference("llhttp", "laxer", "9110 2.5", "HTTP/1.2 is read as 1.1",
               theirs="Invalid HTTP version", data=rb" HTTP/1\.[2-9]\r\n"),
    Difference("llhttp", "laxer", "9112 7.1.1", "chunk extensions are skipped unread",
               theirs="chunk extension", data=rb"\n[0-9A-Fa-f]+[ \t]*;"),
    Difference("both", "laxer", "9112 7.1.1", "blanks before a chunk extension",
               theirs="Invalid character in chunk size|illegal chunk header",
               data=rb"\n[0-9A-Fa-f]+[ \t]+;"),
    Difference("both", "laxer", "9110 6.5.1", "trailers are dropped, whatever they say",
               theirs="Content-Length|Transfer-Encoding", data=rb"(?i)0\r\n(.*\r\n)*(content-length|transfer-encoding):"),
    Difference("llhttp", "laxer", "9110 5.6.3", "OWS may be a tab",
               theirs="Transfer-Encoding", data=rb"(?i)transfer-encoding: *\t"),
    Difference("h11", "laxer", "9112 2.2", "empty lines before a request line are skipped",
               theirs="no request line received", data=rb"(\A|\r\n)\r\n"),
    Difference("h11", "laxer", "9110 8.6", "leading zeros do not make a length too long",
               theirs="bad Content-Length", data=rb"(?i)content-length:[ \t]*0+[0-9]+"),
    # what nobody takes, but not all refuse at once
    Difference("both", "early", "9112 2.2", "no need to wait for the rest of a head that is wrong", ours="."),
    Difference("both", "waits", "9112 2.2", "a line is judged when it is whole", theirs=".", data=rb"[^\n]\Z"),
    Difference("h11", "waits", "9112 2.2", "empty lines before a request line are skipped",
               theirs="no request line received", data=rb"\r\n\Z"),
    # what they take and we do not
    Difference("both", "stricter", "9112 2.2", "bare LF", ours="bare LF", data=rb"(\A|[^\r])\n"),
    Difference("both", "stricter", "9112 2.2", "bare CR", ours="bare CR", data=rb"\r([^\n]|\Z)"),
    Difference("both", "stricter", "9112 2.2", "no more than four empty lines",
               ours="empty lines", data=rb"(\r\n){4}\r"),
    Difference("h11", "stricter", "9110 5.5", "control bytes in values",
               ours="illegal byte", data=rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"),
    Difference("llhttp", "stricter", "9112 3", "a request line needs its version",
               ours="malformed request line", data=rb"(?m)^[A-Z]+ [^ \r\n]+\r$"),
    Difference("llhttp", "stricter", "9112 3", "single spaces in the request line",
               ours="malformed request line", data=rb"[!-~]  +[!-~]"),
    Difference("both", "stricter", "9112 3.2", "no fragment in a target",
               ours="malformed request line", data=rb"#"),
    Difference("llhttp", "stricter", "9112 2.3", "RTSP and ICE are not HTTP",
               ours="malformed request line", data=rb"RTSP/|ICE/"),
    Difference("both", "stricter", "9112 3.2.4", "* is for OPTIONS", ours=r"target \*", data=rb" \* "),
    Difference("both", "stricter", "9112 3.2", "a target begins with / or http(s)://",
               ours="malformed request target", data=rb" [^/ ]\S* HTTP/"),
    Difference("both", "stricter", "9112 3.2.2", "the authority is checked; 9110 4.2.4: no userinfo",
               ours="malformed authority", data=rb"(?i) https?://"),
    Difference("both", "stricter", "9112 3.2", "Host is checked", ours="malformed Host", data=rb"(?i)host:"),
    Difference("both", "stricter", "9112 3.2", "Host is needed", ours="no Host", data=rb"HTTP/1\.[1-9]\r\n"),
    Difference("both", "stricter", "9112 3.2", "and only one", ours="more than one Host",
               data=rb"(?is)\nhost:.*\nhost:"),
    Difference("both", "stricter", "9110 15.6.6", "other versions are refused",
               ours="not HTTP/1.x", data=rb"HTTP/(0|[2-9])\.\d"),
    Difference("both", "stricter", "9110 9.3.6", "CONNECT is refused", ours="CONNECT", data=rb"CONNECT "),
    Difference("h11", "stricter", "9112 5.2", "obs-fold", ours="malformed field line", data=rb"\r\n[ \t]"),
    Difference("h11", "stricter", "9112 6.3", "a list of lengths", ours="malformed Content-Length",
               data=rb"(?i)content-length:[^\n]*,"),
    Difference("both", "stricter", "9112 6.3", "lengths beyond 2**63 - 1",
               ours="Content-Length too large", data=rb"[0-9]{19}"),
    Difference("h11", "stricter", "9112 6.3", "equal lengths repeated", ours="more than one Content-Length",
               data=rb"(?is)content-length:.*content-length:"),
    Difference("h11", "stricter", "9112 6.1", "both framings",
               ours="both Content-Length and Transfer-Encoding", data=rb"(?is)transfer-encoding:"),
    Difference("both", "stricter", "9112 6.1", "codings in HTTP/1.0",
               ours="Transfer-Encoding in HTTP/1.0", data=rb"HTTP/1\.0\r\n"),
    Difference("llhttp", "stricter", "9112 6.1", "it refuses these too, but only behind the head",
               ours="Transfer-Encoding", theirs="Transfer-Encoding"),
    Difference("llhttp", "stricter", "9110 10.1.4", "the list of codings is checked",
               ours="malformed Transfer-Encoding", data=rb"(?i)transfer-encoding:"),
    Difference("llhttp", "stricter", "9112 6.1", "an unknown coding before chunked is 501",
               ours="unknown transfer coding", data=rb"(?i)chunked"),
    Difference("both", "stricter", "9110 10.1.1", "417", ours="unknown expectation", data=rb"(?i)expect:"),
    Difference("both", "stricter", "9112 7.1", "chunk sizes up to 2**63 - 1, in 16 digits",
               ours="malformed chunk size", data=rb"[0-9A-Fa-f]{16}"),
    Difference("h11", "stricter", "9112 7.1", "blanks behind a size without an extension",
               ours="malformed chunk size", data=rb"[0-9A-Fa-f][ \t]"),
]
# fmt: on


def unlisted(data: bytes) -> list[str]:
    ours = by_fastserve(data)
    left = []
    for who, witness in WITNESSES.items():
        theirs = witness(data)
        for m in compare(ours, theirs):
            if not any(d.covers(who, data, ours, theirs, m) for d in DIFFERENCES):
                left.append(f"{who}: {m}, we {ours.refused!r}, they {theirs.refused!r}")
    return left


@pytest.mark.parametrize(
    "data",
    [
        *(pytest.param(value_of(c), id=c.id) for c in [*VALID, *INVALID]),
        *(pytest.param(chunked(value_of(c)), id=f"body-{c.id}") for c in BAD_BODIES),
    ],
)
def test_table_against_witnesses(data: bytes) -> None:
    assert unlisted(data) == []


@pytest.mark.parametrize("number", range(len(DIFFERENCES)), ids=lambda n: DIFFERENCES[n].why)
def test_each_difference_exists(number: int) -> None:
    """A difference that no case shows any more is taken off the table."""
    difference = DIFFERENCES[number]
    for data in EVERYTHING:
        ours = by_fastserve(data)
        for who, witness in WITNESSES.items():
            if difference.who in (who, "both"):
                theirs = witness(data)
                if any(
                    difference.covers(who, data, ours, theirs, m) for m in compare(ours, theirs)
                ):
                    return
    pytest.fail("no case shows it")


TOKENS = st.sampled_from(
    [
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b":",
        b",",
        b";",
        b"0",
        b"1",
        b"\0",
        b"#",
        b"\x7f",
        b"\xe9",
        b"chunked",
        b"%",
        b"?",
        b"a",
        b"\r\n ",
        b"-",
        b"+",
        b'"',
    ]
)
LINES = st.lists(
    st.sampled_from(
        [
            b"Host: b",
            b"Content-Length: 3",
            b"Content-Length: 03",
            b"Transfer-Encoding: chunked",
            b"transfer-encoding: gzip",
            b"Connection: close",
            b"Connection: keep-alive",
            b"X: y",
            b"X-Long-Name-Of-Our-Own:\tz ",
            b"Expect: 100-continue",
            b"Accept: */*",
            b'Cookie: a=b; c="d"',
        ]
    ),
    max_size=4,
)
BODIES = st.sampled_from(
    [b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"0\r\n\r\n", b"1;x\r\na\r\n0\r\nT: u\r\n\r\n"]
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    line = b" ".join(
        [
            draw(st.sampled_from([b"GET", b"POST", b"OPTIONS", b"HEAD", b"DELETE"])),
            draw(st.sampled_from([b"/", b"/a?b=c", b"/%20", b"*", b"http://b/c", b"//d", b"/e/"])),
            draw(st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0"])),
        ]
    )
    lines = [line, *draw(st.sampled_from([[b"Host: a"], [b"Host: a"], []])), *draw(LINES)]
    return b"\r\n".join([*lines, b"", b""]) + draw(BODIES)


@examples
@given(st.lists(requests(), min_size=1, max_size=3).map(b"".join))
def test_generated_against_witnesses(data: bytes) -> None:
    assert unlisted(data) == []


@examples
@given(
    requests(),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 2), TOKENS), min_size=1, max_size=3),
)
def test_hostile_against_witnesses(data: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    """One to three bytes of a request are put in, replaced or taken out."""
    for place, length, token in edits:
        place = min(place, len(data))
        data = data[:place] + (token if length < 2 else b"") + data[place + length :]
    assert unlisted(data) == []
