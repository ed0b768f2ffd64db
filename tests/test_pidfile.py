"""The file with the process's id."""

import os
from pathlib import Path

import pytest

from fastserve.config import ConfigError
from fastserve.pidfile import pid_file


def test_it_is_there_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("1 left behind by another server, and longer\n")
    with pid_file(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()


def test_it_goes_with_an_error(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pytest.raises(RuntimeError), pid_file(str(path)):
        raise RuntimeError
    assert not path.exists()


def test_another_ones_is_left(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pid_file(str(path)):
        path.write_text("1\n")
    assert path.read_text() == "1\n"


def test_a_child_of_a_fork_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pid"
    with pid_file(str(path)):
        text = path.read_text()
        monkeypatch.setattr(os, "getpid", lambda: 1)
    assert path.read_text() == text


def test_it_may_be_gone(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pid_file(str(path)):
        path.unlink()
    assert not path.exists()


def test_an_unusable_path_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="^--pid: .*: Is a directory$"), pid_file(str(tmp_path)):
        pass
