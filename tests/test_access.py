"""The access log: its lines, its file, and every atom of the format."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

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
