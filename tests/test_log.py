"""The set-up of the server's own messages."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastserve.config import ConfigError
from fastserve.log import set_up


def run_python(program: str) -> str:
    """stderr of a fresh interpreter: pytest's own handlers would hide the set-up."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    return done.stderr


def test_messages_have_time_pid_and_level() -> None:
    text = run_python(
        "from fastserve.log import logger, set_up; set_up('info');"
        "logger.info('hello'); logger.debug('not this')"
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \[\d+\] INFO hello\n", text)


def test_a_second_set_up_changes_the_level_alone() -> None:
    text = run_python(
        "from fastserve.log import logger, set_up; set_up('info'); set_up('debug');"
        "logger.debug('once')"
    )
    assert text.count("DEBUG once") == 1 and text.count("\n") == 1


def test_lines_are_not_repeated_by_a_root_handler() -> None:
    text = run_python(
        "import logging; from fastserve.log import logger, set_up; set_up('info');"
        "logging.basicConfig(level='INFO'); logger.info('once')"
    )
    assert text.count("once") == 1


def test_a_program_with_its_own_logging_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("fastserve")
    handler = logging.NullHandler()
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    set_up("debug")
    assert logger.handlers == [handler]
    assert logger.level == logging.NOTSET


def test_messages_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "errors"
    file.write_text("before\n")
    text = run_python(
        "from fastserve.log import logger, set_up\n"
        f"set_up('info', {str(file)!r}); logger.info('first')\n"
        f"set_up('info', {str(file)!r}); logger.info('second \\udcff')\n"
    )
    assert text == ""
    before, first, second = file.read_text().splitlines()
    assert before == "before"
    assert first.endswith(" INFO first") and second.endswith(r" INFO second \udcff")


@pytest.mark.parametrize("name", [".", "missing/errors"])
def test_an_unusable_file_is_a_config_error(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("fastserve"), "handlers", [])
    monkeypatch.setattr(logging.getLogger("fastserve"), "hasHandlers", lambda: False)
    with pytest.raises(ConfigError, match="^--error-logfile: ") as caught:
        set_up("info", str(tmp_path / name))
    assert "\n" not in str(caught.value)
