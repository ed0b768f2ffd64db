"""Listening sockets: made here, inherited, or handed over by systemd."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import socket
import stat
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from fastserve import systemd
from fastserve.checks import Bind, ConfigError, parse_bind
from fastserve.config import DEFAULT_BIND, Config
from fastserve.errors import ServerError

__all__ = ["Handed", "ListenError", "Listeners", "Listening", "Sockets"]

# Sockets that another process has opened, by the address that it was asked for.
Handed = dict[str, list[socket.socket]]


class ListenError(ServerError):
    """One line: which address, and why not."""


class Listening(NamedTuple):
    """A socket that accepts; whether its connections begin with TLS, whether somebody else has
    the socket too, who may go on with it, what was asked for, and whether it is this worker's
    alone."""

    socket: socket.socket
    secure: bool
    shared: bool
    bind: str = ""
    own: bool = False

    @property
    def address(self) -> tuple[str, int | None] | None:
        """The ASGI `server` of all its connections, if it is the same for all."""
        address = self.socket.getsockname()
        if self.socket.family == socket.AF_UNIX:
            return (_name(address), None)
        return None if address[0] in ("0.0.0.0", "::") else (address[0], address[1])

    @property
    def url(self) -> str:
        address = self.socket.getsockname()
        if self.socket.family == socket.AF_UNIX:
            return f"unix:{_name(address)}"
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"{'https' if self.secure else 'http'}://{host}:{address[1]}"


class Listeners:
    """Sockets that accept. What belongs to them in the file system is another process's.

    Resource handling: `close()` closes them all.
    """

    def __init__(self, listening: Iterable[Listening] = ()) -> None:
        self.listening = list(listening)

    def listen(self, backlog: int) -> None:
        """From now on all of them accept: an address that is only reserved gets a socket of this
        process's own. Raises OSError."""
        for index, each in enumerate(self.listening):
            if not _accepts(each.socket):
                own = _twin(each.socket)
                self.listening[index] = each._replace(socket=own, own=True)
                each.socket.close()
                own.listen(backlog)

    def close(self) -> None:
        for listening in self.listening:
            listening.socket.close()
        self.listening = []


class Sockets(Listeners):
    """Every address of a configuration, listened on; that of the admin listener, if it is asked
    for, in `admin`.

    `handed` are those that are there already; those that are not asked for are closed. With
    `reserve` TCP addresses are bound and not listened on, so that each worker can do that itself.

    Resource handling: `close()` also removes the unix sockets that were made here, unless
    somebody else's are in their place by then, or they were handed over; `stop_listening()`
    leaves them for later.

    Raises ListenError, ConfigError.
    """

    def __init__(
        self,
        config: Config,
        handed: Handed | None = None,
        *,
        with_admin: bool = False,
        reserve: bool = False,
    ) -> None:
        super().__init__()
        self.admin: list[Listening] = []
        self._config = config
        self._reserve = reserve
        self._handed = handed or {}
        self._promised: dict[str, tuple[int, int]] = {}
        self._paths: dict[str, tuple[int, int]] = {}
        self._asked: Counter[str] = Counter()
        self._activated = systemd.activated()
        binds = config.bind
        if (self._activated or "systemd:" in self._handed) and binds == (DEFAULT_BIND,):
            binds = ("systemd:",)
        try:
            for address in binds:
                self.listening += self._listen(parse_bind(address), bool(config.certfile))
            for address in config.insecure_bind:
                self.listening += self._listen(parse_bind(address), False)
            if with_admin and config.admin_bind:
                self.admin += self._listen(parse_bind(config.admin_bind), False)
                for admin in self.admin:
                    admin.socket.listen()  # also where the others are only reserved
        except BaseException:
            self.close()
            raise
        finally:
            for unwanted in self._handed.values():
                for each in unwanted:
                    each.close()

    def hand_over(self) -> None:
        """From now on the unix sockets' paths are another process's to remove."""
        self._paths = {}

    def take_over(self) -> None:
        """From now on those of the sockets that were handed down are this process's."""
        self._paths |= self._promised

    def stop_listening(self) -> None:
        """Close the descriptors of this process, but for the admin listener's."""
        super().close()

    def close(self) -> None:
        super().close()
        for each in self.admin:
            each.socket.close()
        for path, made in self._paths.items():
            with contextlib.suppress(OSError):
                if _identity(path) == made:
                    os.unlink(path)
        self._paths = {}

    def _listen(self, bind: Bind, secure: bool) -> list[Listening]:
        shared = bind.kind in ("fd", "systemd")
        name = str(bind)
        self._asked[name] += 1
        if self._asked[name] > 1:  # as with port 0: each time another one
            name += f" ({self._asked[name]})"
        try:
            return [Listening(made, secure, shared, name) for made in self._open(bind, name)]
        except UnicodeError:
            # Out of getaddrinfo: a label that is empty, or longer than 63 bytes.
            raise ListenError(f"cannot listen on {bind}: not a host name") from None
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ListenError(f"cannot listen on {bind}: {reason}") from None

    def _open(self, bind: Bind, name: str) -> list[socket.socket]:
        """`name`: of those that were handed over."""
        if name in self._handed:
            if bind.kind == "unix":
                self._promised[bind.path] = _identity(bind.path)
            handed = self._handed.pop(name)
            for each in handed:
                if not self._reserve and not _accepts(each):
                    each.listen(self._config.backlog)
            return handed
        if bind.kind == "unix":
            return [self._open_unix(bind.path)]
        if bind.kind == "fd":
            return [_inherited(bind.fd, self._config.backlog)]
        if bind.kind == "systemd":
            descriptors = [fd for fd, name in self._activated if bind.name in ("", name)]
            if not descriptors:
                raise OSError(errno.ENOENT, "systemd has handed over no such socket")
            return [_inherited(fd, self._config.backlog) for fd in descriptors]
        return self._open_tcp(bind)

    def _open_tcp(self, bind: Bind) -> list[socket.socket]:
        opened: list[socket.socket] = []
        port = bind.port
        try:
            for family, *_, address in socket.getaddrinfo(
                bind.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                listening = _tcp_socket(
                    family,
                    # Every address of a name gets the port that the first one was given.
                    (address[0], port, *address[2:]),
                    reuse_port=self._config.reuse_port,
                    v6_only=self._has_every_v4(port),
                )
                opened.append(listening)
                port = listening.getsockname()[1]
                if not self._reserve:
                    listening.listen(self._config.backlog)
        except BaseException:
            for listening in opened:
                listening.close()
            raise
        return opened

    def _has_every_v4(self, port: int) -> bool:
        """Whether 0.0.0.0 is asked for as well, which [::] would otherwise include."""
        binds = map(parse_bind, (*self._config.bind, *self._config.insecure_bind))
        return any((bind.host, bind.port) == ("0.0.0.0", port) for bind in binds)

    def _open_unix(self, path: str) -> socket.socket:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise FileExistsError(errno.EEXIST, "the path exists and is no socket")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.setblocking(False)
                # Whatever else it says, that its queue is full for one, somebody has it open.
                if probe.connect_ex(path) != errno.ECONNREFUSED:
                    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            os.unlink(path)  # left behind by a server that is gone
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # From the first moment on nobody may connect who may not later.
        before = os.umask(int(self._config.umask, 8))
        try:
            listening.bind(path)
            self._paths[path] = _identity(path)
            self._give_away(path)
            listening.listen(self._config.backlog)
            listening.setblocking(False)
        except BaseException:
            listening.close()
            raise
        finally:
            os.umask(before)
        return listening

    def _give_away(self, path: str) -> None:
        user, group = self._config.user, self._config.group
        if user is not None or group is not None:
            os.chown(
                path,
                -1 if user is None else _number("--user", user),
                -1 if group is None else _number("--group", group),
            )


def _tcp_socket(
    family: int, address: tuple[Any, ...], *, reuse_port: bool, v6_only: bool = False
) -> socket.socket:
    """Bound, and not blocking."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Accepted sockets inherit it.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6 and v6_only:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def _twin(reserved: socket.socket) -> socket.socket:
    """Another socket of the same address."""
    v6_only = reserved.family == socket.AF_INET6 and bool(
        reserved.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    )
    address = reserved.getsockname()
    return _tcp_socket(reserved.family, address, reuse_port=True, v6_only=v6_only)


def _accepts(listening: socket.socket) -> bool:
    return bool(listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _number(flag: str, name: str) -> int:
    if name.isdecimal() and int(name) < 2**32 - 1:
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid if flag == "--user" else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"{flag}: there is no {name!r} on this machine") from None


def _inherited(fd: int, backlog: int) -> socket.socket:
    # Only that the descriptor is one of ours from here on; the other end may keep its own.
    ours = os.dup(fd)
    try:
        made = socket.socket(fileno=ours)
    except OSError:  # it is no socket
        os.close(ours)
        raise
    try:
        if made.type != socket.SOCK_STREAM or made.family not in (
            socket.AF_INET,
            socket.AF_INET6,
            socket.AF_UNIX,
        ):
            raise OSError(errno.EINVAL, "it is no stream socket")
        if not _accepts(made):
            made.listen(backlog)
        if made.family != socket.AF_UNIX:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _name(address: str | bytes) -> str:
    """A path, or the name of an abstract socket."""
    return address if isinstance(address, str) else "@" + address[1:].decode("utf-8", "replace")
