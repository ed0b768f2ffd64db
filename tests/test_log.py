"""The set-up of the server's own messages."""

import json
import logging
import os
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


# What a message looks like.


def test_json_lines() -> None:
    text = run_python(
        "from fastserve.log import logger, set_up; set_up('info', format='json')\n"
        "logger.warning('two\\nlines \\x1b[1m %s', 'é\\udcff')\n"
        "try: 1 / 0\n"
        "except ZeroDivisionError: logger.exception('failed')\n"
    )
    first, second = map(json.loads, text.splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert isinstance(first.pop("pid"), int)
    message = "two\nlines \x1b[1m é\udcff"
    assert first == {"level": "warning", "logger": "fastserve", "message": message}
    assert second["exception"].startswith("Traceback") and "ZeroDivisionError" in text


def colored(colors: str, terminal: bool, **environment: str) -> bool:
    """Whether a fresh interpreter writes the level in colour."""
    program = (
        f"from fastserve.log import logger, set_up; set_up('info', colors={colors!r});"
        "logger.info('hello')"
    )
    ours, theirs = os.openpty() if terminal else os.pipe()
    with open(ours, "rb", buffering=0) as screen:
        environment = {**os.environ, "NO_COLOR": "", "TERM": "xterm", **environment}
        subprocess.run(
            [sys.executable, "-c", program], stderr=theirs, check=True, timeout=30, env=environment
        )
        text = screen.read(1000).decode()
        os.close(theirs)
    assert "hello" in text
    return "\033[32mINFO\033[0m hello" in text


def test_colors_are_for_terminals() -> None:
    assert colored("auto", terminal=True)
    assert not colored("auto", terminal=False)
    assert colored("always", terminal=False)
    assert not colored("never", terminal=True)
    assert not colored("auto", terminal=True, NO_COLOR="1")
    assert not colored("auto", terminal=True, TERM="dumb")


# A file that configures logging.

CONFIGURATIONS = {
    "log.toml": """
        [formatters.plain]
        format = "MINE %(name)s %(message)s"
        [handlers.stderr]
        class = "logging.StreamHandler"
        formatter = "plain"
        [root]
        level = "INFO"
        handlers = ["stderr"]
    """,
    "log.json": json.dumps(
        {
            "version": 1,
            "formatters": {"plain": {"format": "MINE %(name)s %(message)s"}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
            "loggers": {"fastserve": {"level": "INFO", "handlers": ["stderr"]}},
        }
    ),
    "log.ini": """
[loggers]
keys = root
[handlers]
keys = stderr
[formatters]
keys = plain
[logger_root]
level = INFO
handlers = stderr
[handler_stderr]
class = StreamHandler
args = (sys.stderr,)
formatter = plain
[formatter_plain]
format = MINE %(name)s %(message)s
""",
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("prefix", ["", "toml:", "json:"])
def test_a_configuration_of_logging(name: str, prefix: str, tmp_path: Path) -> None:
    file = tmp_path / (name if not prefix else "conf")
    kind = prefix[:-1] or name[4:]
    file.write_text(CONFIGURATIONS[f"log.{kind}"])
    text = run_python(
        "import logging; from fastserve.log import logger, set_up; before = logging.getLogger('a')\n"
        f"set_up('info', file={prefix + str(file)!r}); logger.info('hello'); logger.debug('no')\n"
        "assert not before.disabled"
    )
    assert text == "MINE fastserve hello\n"


def test_a_configuration_that_says_nothing_of_the_server(tmp_path: Path) -> None:
    file = tmp_path / "log.toml"
    file.write_text('[loggers.other]\nlevel = "INFO"\n')
    text = run_python(
        f"from fastserve.log import logger, set_up; set_up('info', file={str(file)!r});"
        "logger.info('hello')"
    )
    assert text.endswith("INFO hello\n")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.toml", None),
        ("log.toml", "= 1"),
        ("log.json", "[]"),
        ("log.json", '{"handlers": {"a": {"class": "no.such"}}}'),
        ("log.ini", None),
        ("log.ini", "nothing"),
    ],
)
def test_a_bad_configuration_is_a_config_error(name: str, text: str | None, tmp_path: Path) -> None:
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match="^--log-config: ") as caught:
        set_up("info", file=str(file))
    assert "\n" not in str(caught.value)
