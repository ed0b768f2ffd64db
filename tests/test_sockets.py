"""Where a server listens: addresses, unix sockets, inherited descriptors, systemd."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PATIENCE, Client
from process import Process, activated

from fastserve import Config
from fastserve.checks import ConfigError, parse_bind
from fastserve.sockets import ListenError, Sockets

Address = tuple[str, int] | str


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.listen()
        yield made


def open_sockets(*binds: str, **options: object) -> Sockets:
    return Sockets(Config.from_options(bind=binds, **options))


def hears(made: Sockets, address: Address) -> bool:
    """Whether one of the sockets gets a connection to `address`."""
    with Client(address):
        for listening in made.listening:
            listening.socket.setblocking(True)
            listening.socket.settimeout(0.05)
            try:
                listening.socket.accept()[0].close()
            except TimeoutError:
                continue
            return True
    return False


def test_every_kind_at_once(tmp_path: Path, listening: socket.socket) -> None:
    path = str(tmp_path / "web.sock")
    made = open_sockets("127.0.0.1:0", f"unix:{path}", f"fd://{listening.fileno()}")
    try:
        tcp, unix, inherited = made.listening
        assert tcp.url.startswith("http://127.0.0.1:")
        assert (unix.url, unix.address) == (f"unix:{path}", (path, None))
        assert inherited.address == listening.getsockname()
        for address in (tcp.address, path, listening.getsockname()):
            assert hears(made, address)  # type: ignore[arg-type]
    finally:
        made.close()
    assert not os.path.exists(path)
    assert listening.fileno() >= 0  # the one who gave it still has it


def test_a_name_is_every_address_of_it() -> None:
    made = open_sockets("localhost:0")
    try:
        ports = {each.socket.getsockname()[1] for each in made.listening}
        assert len(ports) == 1
        found = {each.socket.getsockname()[0] for each in made.listening}
        expected = {
            str(info[4][0]) for info in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)
        }
        assert found == expected
    finally:
        made.close()


@pytest.mark.parametrize("host", ["a" * 64, "a..b", ".."])
def test_a_host_that_is_no_name(host: str) -> None:
    with pytest.raises(
        ListenError, match=f"^cannot listen on {re.escape(host)}:0: not a host name$"
    ):
        open_sockets(f"{host}:0")


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_both_families_on_one_port() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = open_sockets(f"0.0.0.0:{port}", f"[::]:{port}")
    try:
        assert len(made.listening) == 2
        assert hears(made, ("127.0.0.1", port))
    finally:
        made.close()


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_both_families_on_the_same_port_written_differently() -> None:
    for port in range(9000, 10000):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("0.0.0.0", port))
            break
    made = open_sockets(f"0.0.0.0:0{port}", f"[::]:{port}")
    try:
        assert [each.socket.getsockname()[1] for each in made.listening] == [port, port]
    finally:
        made.close()


@pytest.mark.parametrize(
    ("umask", "mode"), [(None, 0o600), ("007", 0o770), ("0", 0o777), (0o117, 0o660)]
)
def test_permissions(tmp_path: Path, umask: object, mode: int) -> None:
    path = tmp_path / "web.sock"
    options = {} if umask is None else {"umask": umask}
    made = open_sockets(f"unix:{path}", **options)
    try:
        assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        made.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owner(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    for user, group in (("nobody", "nogroup"), ("65534", "65534"), ("nobody", None)):
        if group == "nogroup" and "nogroup" not in {each.gr_name for each in grp.getgrall()}:
            continue
        made = open_sockets(f"unix:{path}", user=user, group=group)
        try:
            assert path.stat().st_uid == pwd.getpwnam("nobody").pw_uid
            assert (path.stat().st_gid == 0) == (group is None)
        finally:
            made.close()
    with pytest.raises(ConfigError, match="^--user: there is no 'nobody-at-all'"):
        open_sockets(f"unix:{path}", user="nobody-at-all")
    with pytest.raises(ConfigError, match="^--user: there is no '99999999999'"):
        open_sockets(f"unix:{path}", user="99999999999")
    with pytest.raises(ConfigError, match="^--group: there is no 'nobody-at-all'"):
        open_sockets(f"unix:{path}", group="nobody-at-all")
    assert not path.exists()


def test_what_is_no_socket_is_given_back() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(ListenError, match="non-socket|not a socket"):
            open_sockets(f"fd://{reading}")
        unused = os.dup(reading)  # the lowest number that is free
        os.close(unused)
        with pytest.raises(ListenError, match="non-socket|not a socket"):
            open_sockets(f"fd://{reading}")
        again = os.dup(reading)
        os.close(again)
        assert again == unused
    finally:
        os.close(reading)
        os.close(writing)


def test_any_free_port_more_than_once() -> None:
    """What is handed over is what was asked for, each as often."""
    options = {"insecure_bind": ["127.0.0.1:0"]}
    before = open_sockets("127.0.0.1:0", "localhost:0", "127.0.0.1:0", **options)
    handed: dict[str, list[socket.socket]] = {}
    for each in before.listening:
        handed.setdefault(each.bind, []).append(each.socket.dup())
    config = Config.from_options(bind=["localhost:0", "127.0.0.1:0", "127.0.0.1:0"], **options)
    after = Sockets(config, handed)
    try:
        assert sorted(each.url for each in after.listening) == sorted(
            each.url for each in before.listening
        )
        assert after.listening[-1].url == before.listening[-1].url
    finally:
        before.close()
        after.close()


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    made = open_sockets(f"unix:{path}")
    try:
        with pytest.raises(ListenError, match="address already in use"):
            open_sockets(f"unix:{path}")
        assert path.exists()
    finally:
        made.close()
    path.write_text("somebody's file")
    with pytest.raises(ListenError, match="the path exists and is no socket"):
        open_sockets(f"unix:{path}")
    assert path.read_text() == "somebody's file"


def test_a_live_socket_that_refuses_streams_is_left(tmp_path: Path) -> None:
    path = tmp_path / "datagrams.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        inode = path.stat().st_ino
        with pytest.raises(ListenError, match="address already in use"):
            open_sockets(f"unix:{path}")
        assert path.stat().st_ino == inode


def test_a_live_socket_whose_owner_does_not_accept_is_left(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    with contextlib.ExitStack() as stack:
        busy = stack.enter_context(socket.socket(socket.AF_UNIX))
        busy.bind(str(path))
        busy.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:  # until its queue is full
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(path))
        inode = path.stat().st_ino
        with pytest.raises(ListenError, match="address already in use"):
            open_sockets(f"unix:{path}")
        assert path.stat().st_ino == inode


def test_somebody_elses_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    first = open_sockets(f"unix:{path}")
    path.unlink()
    second = open_sockets(f"unix:{path}")
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


def test_what_cannot_be_inherited(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="fd://987: bad file descriptor"):
        open_sockets("fd://987")
    with open(tmp_path / "file", "w") as file, pytest.raises(ListenError, match="socket"):
        open_sockets(f"fd://{file.fileno()}")
    with (
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
        pytest.raises(ListenError, match="no stream socket"),
    ):
        open_sockets(f"fd://{datagrams.fileno()}")
    with pytest.raises(ListenError, match="systemd has handed over no such socket"):
        open_sockets("systemd:web")
    for bad in ("fd://", "fd://x", "fd://-1"):
        with pytest.raises(ConfigError, match="^--bind: a descriptor's number expected"):
            parse_bind(bad)


# In a process, as it is started by others.


@pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")
class TestSystemd:
    def test_activation_and_readiness(self, listening: socket.socket, tmp_path: Path) -> None:
        """No --bind: the sockets are systemd's, which learns when they are served."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(tmp_path / "notify"))
            manager.settimeout(3 * PATIENCE)
            server = activated(
                "served:app", sockets=[listening], NOTIFY_SOCKET=str(tmp_path / "notify")
            )
            try:
                assert manager.recv(100) == b"READY=1"
                with Client(listening.getsockname()) as client:
                    assert client.get("/").status == 200
                server.send_signal(signal.SIGTERM)
                assert manager.recv(100) == b"STOPPING=1"
                assert server.wait() == 0
            finally:
                server.end()

    def test_by_name(self, listening: socket.socket) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            server = activated(
                *("-b", "systemd:web", "served:app"),
                sockets=[other, listening],
                LISTEN_FDNAMES="admin:web",
            )
            try:
                assert server.address == listening.getsockname()
                with Client(listening.getsockname()) as client:
                    assert client.get("/").status == 200
            finally:
                server.end()

    def test_sockets_for_another_process(self, listening: socket.socket) -> None:
        server = Process(
            *("-b", "systemd:", "served:app"),
            env={"LISTEN_FDS": "1", "LISTEN_PID": "1"},
            pass_fds=(listening.fileno(),),
        )
        try:
            assert server.wait() == 1
            assert "systemd has handed over no such socket" in server.err.all()[-1]
        finally:
            server.end()


def test_two_kinds_in_a_process(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    server = Process("-b", f"unix:{path}", "-b", "127.0.0.1:0", "served:app")
    try:
        address = server.address
        with Client(address) as client, Client(str(path)) as local:
            assert client.get("/").status == local.get("/").status == 200
    finally:
        server.end()
