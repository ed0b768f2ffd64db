"""The access log: its lines, its file, and every atom of the format."""

import base64
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from fastserve.access import AccessLog
from fastserve.config import Config, ConfigError

FORMAT = Config().access_logformat
MOMENT = 1_795_334_400  # 2026-11-22 08:00:00 UTC


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.fixture
def access_log(log_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AccessLog]:
    monkeypatch.setattr(time, "time", lambda: MOMENT + 0.9)
    log = AccessLog(str(log_file), FORMAT)
    yield log
    log.close()


def test_a_line(access_log: AccessLog, log_file: Path) -> None:
    access_log.write(("127.0.0.1", 5000), "GET", b"/path", b"x=1", "1.1", 200, 13, 345)
    # Nothing is held back: the line is there before the file is closed.
    assert log_file.read_text() == (
        '127.0.0.1 - - [22/Nov/2026:08:00:00 +0000] "GET /path?x=1 HTTP/1.1" 200 13 345us\n'
    )


def test_a_line_without_query_and_client(access_log: AccessLog, log_file: Path) -> None:
    access_log.write(None, "GET", b"/", b"", "1.0", 204, 0, 7)
    access_log.write("::1", "GET", b"/", b"", "1.0", 204, 0, 7)
    first, second = log_file.read_text().splitlines()
    assert first == '- - - [22/Nov/2026:08:00:00 +0000] "GET / HTTP/1.0" 204 0 7us'
    assert second.startswith("::1 - - [")


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b'/"', r"/\x22"),
        (b"/\\", r"/\x5C"),
        (b"/\r\n", r"/\x0D\x0A"),
        (b"/\x00\x1b\x7f", r"/\x00\x1B\x7F"),
        (b"/\xc3\xa9\xff", r"/\xC3\xA9\xFF"),
        (b"/a b", r"/a\x20b"),
        (b"/%22~!#[]", "/%22~!#[]"),
    ],
)
def test_what_a_client_could_inject_is_escaped(
    access_log: AccessLog, log_file: Path, raw: bytes, shown: str
) -> None:
    access_log.write(("::1", 1), "GET", raw, raw, "1.1", 400, 0, 1)
    assert f'"GET {shown}?{shown} HTTP/1.1" 400 0 1us\n' in log_file.read_text()


def test_no_byte_ends_the_field_or_the_line(access_log: AccessLog, log_file: Path) -> None:
    access_log.write(("::1", 1), "GET", bytes(range(256)), b"", "1.1", 200, 0, 1)
    text = log_file.read_text()
    assert text.count("\n") == 1 and text.endswith("\n")
    assert text.count('"') == 2
    assert text.isascii() and text[:-1].isprintable()


def test_the_date_follows_the_clock(
    access_log: AccessLog, log_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for second in (0, 0, 86_400 + 3_661):
        monkeypatch.setattr(time, "time", lambda second=second: MOMENT + second)
        access_log.write(None, "GET", b"/", b"", "1.1", 200, 0, 1)
    dates = re.findall(r"\[(.*?)\]", log_file.read_text())
    assert dates == ["22/Nov/2026:08:00:00 +0000"] * 2 + ["23/Nov/2026:09:01:01 +0000"]


def test_a_file_is_appended_to(log_file: Path) -> None:
    log_file.write_text("before\n")
    log = AccessLog(str(log_file), FORMAT)
    log.write(None, "GET", b"/", b"", "1.1", 200, 0, 1)
    log.close()
    first, second = log_file.read_text().splitlines()
    assert first == "before" and second.endswith("1us")


def test_two_writers_keep_their_lines_whole(log_file: Path) -> None:
    logs = [AccessLog(str(log_file), FORMAT) for _ in range(2)]
    for number in range(100):
        for log in logs:
            log.write(None, "GET", b"/" * 20_000, b"", "1.1", 200, number, 1)
    for log in logs:
        log.close()
    lines = log_file.read_text().splitlines()
    assert len(lines) == 200
    assert all(line.startswith("- - - [") and line.endswith(" 1us") for line in lines)


@pytest.mark.parametrize("name", [".", "missing/access.log"])
def test_an_unusable_file_is_a_config_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="^--access-logfile: ") as caught:
        AccessLog(str(tmp_path / name), FORMAT)
    assert "\n" not in str(caught.value)


def test_dash_is_stdout_and_stays_open(capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        log = AccessLog("-", FORMAT)
        log.write(None, "GET", b"/", b"", "1.1", 200, 0, 1)
        log.close()
    assert capfd.readouterr().out.count("1us\n") == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_told_once_and_raises_nothing(caplog: pytest.LogCaptureFixture) -> None:
    log = AccessLog("/dev/full", FORMAT)
    for _ in range(3):
        log.write(None, "GET", b"/", b"", "1.1", 200, 0, 1)
    log.close()
    assert [record.message for record in caplog.records] == [
        "access log /dev/full: No space left on device"
    ]


# The format.

FIELDS = (
    (b"referer", b"http://a/?b"),
    (b"user-agent", b'A "b"\r\n\x1b[1m c'),
    (b"authorization", b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
    (b"x-two", b"1"),
    (b"x-two", b"2"),
)
ANSWERED = ((b"Content-Type", b"text/plain"),)


def line_of(format: str, file: Path, *, fields: Any = FIELDS, client: Any = ("::1", 5)) -> str:
    log = AccessLog(str(file), format)
    facts = (client, "GET", b"/a b", b"c=1", "1.1", 200, 13, 1_234_567)
    log.write(*facts, *((fields, ANSWERED) if log.wants_fields else ()))
    log.close()
    text = file.read_text()
    assert text.endswith("\n") and text[:-1].isprintable()
    return text[:-1]


ATOM_CASES = {
    "h": "::1",
    "l": "-",
    "u": "Aladdin",
    "t": "[22/Nov/2026:08:00:00 +0000]",
    "r": r"GET /a\x20b?c=1 HTTP/1.1",
    "s": "200",
    "m": "GET",
    "U": r"/a\x20b",
    "q": "c=1",
    "H": "HTTP/1.1",
    "b": "13",
    "B": "13",
    "f": "http://a/?b",
    "a": r"A \x22b\x22\x0D\x0A\x1B[1m c",
    "T": "1",
    "D": "1234567",
    "L": "1.234567",
    "M": "1234",
    "p": f"<{os.getpid()}>",
    "{X-Two}i": "1, 2",
    "{User-Agent}i": r"A \x22b\x22\x0D\x0A\x1B[1m c",
    "{Missing}i": "-",
    "{content-type}o": "text/plain",
    "{x-two}o": "-",
    "{FASTSERVE_TEST_ATOM}e": r"a\x0Ab",
    "{FASTSERVE_NO_ATOM}e": "-",
    "x": "-",
    "unknown": "-",
    "": "-",
    "{a}x": "-",
}


@pytest.mark.parametrize("atom", ATOM_CASES)
def test_an_atom(atom: str, log_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: MOMENT)
    monkeypatch.setenv("FASTSERVE_TEST_ATOM", "a\nb")
    expected = f"50% <{ATOM_CASES[atom]}>"
    assert line_of(f"50%% <%({atom})s>", log_file) == expected


def test_no_body_is_a_dash_where_the_common_format_has_one(log_file: Path) -> None:
    log = AccessLog(str(log_file), "%(b)s %(B)s")
    log.write(None, "GET", b"/", b"", "1.1", 204, 0, 1)
    log.close()
    assert log_file.read_text() == "- 0\n"


def test_gunicorns_format(log_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: MOMENT)
    format = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'
    assert line_of(format, log_file) == (
        r'::1 - Aladdin [22/Nov/2026:08:00:00 +0000] "GET /a\x20b?c=1 HTTP/1.1" 200 13'
        r' "http://a/?b" "A \x22b\x22\x0D\x0A\x1B[1m c"'
    )


def test_a_width(log_file: Path) -> None:
    assert line_of("%(m)-5s|%(s)5s|", log_file) == "GET  |  200|"


def test_nothing_of_a_format_is_code(log_file: Path) -> None:
    assert line_of("{client} %({'+client+'}i)s \\ ' \" %%s", log_file) == "{client} - \\ ' \" %s"


def test_fields_are_asked_for_only_by_atoms_that_show_them(log_file: Path) -> None:
    for format, wants in {
        FORMAT: False,
        "%(s)s %({HOME}e)s": False,
        "%(a)s": True,
        "%(f)s": True,
        "%(u)s": True,
        "%({x}i)s": True,
        "%({x}o)s": True,
    }.items():
        log = AccessLog(str(log_file), format)
        log.close()
        assert log.wants_fields is wants


@pytest.mark.parametrize("value", [b"Basic", b"Basic !", b"Bearer QTpi", b"Basic OmI=", b""])
def test_credentials_without_a_name(log_file: Path, value: bytes) -> None:
    assert line_of("%(u)s", log_file, fields=((b"authorization", value),)) == "-"


@pytest.mark.parametrize(
    ("client", "shown"),
    [
        ('a "b"\n', r"a\x20\x22b\x22\x0A"),
        ("", "-"),
        ("\udcff", r"\xED\xB3\xBF"),
        ("\ud800", r"\xED\xA0\x80"),
    ],
)
def test_a_client_that_a_proxy_names_is_escaped(log_file: Path, client: str, shown: str) -> None:
    assert line_of("%(h)s", log_file, client=client) == shown


@hypothesis.given(st.lists(st.tuples(st.binary(min_size=1), st.binary())), st.binary(), st.text())
def test_no_request_ends_the_line(
    tmp_path_factory: pytest.TempPathFactory, fields: Any, path: bytes, client: str
) -> None:
    file = tmp_path_factory.mktemp("log") / "access.log"
    fields = [*fields, (b"authorization", b"Basic " + base64.b64encode(path))]
    log = AccessLog(str(file), '%(h)s "%(r)s" "%(f)s" "%(a)s" "%(u)s" "%({x}i)s" "%({x}o)s"')
    fields += [(name, path) for name in (b"referer", b"user-agent", b"x")]
    log.write(client, "GET", path, path, "1.1", 200, 1, 1, fields, fields)
    log.close()
    text = file.read_text()
    assert text.count("\n") == 1 and text.endswith("\n")
    assert text.count('"') == 12
    assert text.isascii() and text[:-1].isprintable()


@pytest.mark.parametrize(
    "bad", ["%", "%h", "%(h)", "%(h)d", "%(h", "100% %(h)s", "a\nb", "", "%({a)s"]
)
def test_a_wrong_format_is_a_config_error(bad: str) -> None:
    with pytest.raises(ConfigError, match="^--access-logformat: "):
        Config(access_logformat=bad)
