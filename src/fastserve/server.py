"""One worker process: its sockets, the application's lifespan, the reactor, and the end."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import signal
import socket
import stat
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from fastserve._conversation import Host
from fastserve._http1 import Http1Factory
from fastserve._proxy import ProxyFactory, Trust
from fastserve._reactor import Reactor
from fastserve._transport import ProtocolFactory
from fastserve._websocket import WebSocketUpgrade
from fastserve.application import ASGI3, load
from fastserve.config import Bind, Config, parse_bind
from fastserve.extensions import negotiate_deflate
from fastserve.lifespan import Lifespan, LifespanError
from fastserve.log import AccessLog, logger, set_up
from fastserve.worker import Event, MissingLibrary, Worker, find

__all__ = ["Server", "ServerError", "run", "serve"]

# For lifespan shutdown, and for cancelled applications, once nobody wants to wait.
HURRY = 5.0
# Deadlines are checked four times in the shortest of them, but not more often than this.
FINEST_TICK = 0.05
COARSEST_TICK = 1.0


class ServerError(Exception):
    """The server cannot start; one line for whoever started it."""

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def run(application: object | str, config: Config | None = None, **options: Any) -> None:
    """Serve until SIGINT or SIGTERM. `application`: an ASGI callable or "module:attr".

    `options`: the fields of Config. Raises ConfigError, ApplicationError, ServerError."""
    config = _configured(config, options)
    set_up(config.log_level)
    try:
        worker_class = find(config.worker_class)
    except MissingLibrary as error:
        raise ServerError(str(error)) from None
    server = Server(load(application, config), config)

    async def main() -> None:
        async with worker_class() as worker:
            worker.on_signals((signal.SIGINT, signal.SIGTERM), server.on_signal)
            await server.serve(worker)

    with server.opened():
        worker_class.run(main)
    if server.error is not None:
        raise server.error


async def serve(
    application: object | str,
    config: Config | None = None,
    *,
    shutdown_trigger: Callable[[], Awaitable[object]] | None = None,
    **options: Any,
) -> None:
    """Serve inside a running asyncio, uvloop or trio program, until `shutdown_trigger()`
    returns or this is cancelled. The signals stay the program's own.

    `options`: the fields of Config. Raises ConfigError, ApplicationError, ServerError."""
    config = _configured(config, options)
    server = Server(load(application, config), config)
    with server.opened():
        async with find(_running_loop())() as worker:
            if shutdown_trigger is not None:
                worker.start(server.stop_after, shutdown_trigger)
            await server.serve(worker)
    if server.error is not None:
        raise server.error


def _configured(config: Config | None, options: dict[str, Any]) -> Config:
    if config is None:
        return Config.from_options(**options)
    if options:
        raise TypeError("give a Config or its options, not both")
    return config


def _running_loop() -> str:
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return "trio"
    return "asyncio"


class Server:
    """An application on its addresses.

    Resource handling: `opened()` has the listening sockets and the access log; `serve()`
    everything else, and gives it up in every case, also when it is cancelled.
    """

    def __init__(self, application: ASGI3, config: Config) -> None:
        self.application = application
        self.config = config
        self.error: BaseException | None = None
        self._listening: list[socket.socket] = []
        self._access: AccessLog | None = None
        self._signals = 0
        self._stop: Event
        self._lifespan: Lifespan | None = None
        self._over: Event | None = None  # while draining: nothing is under way any more
        self._hurry = False

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """The listening sockets and the access log, open. Raises ServerError, ConfigError."""
        paths: list[str] = []
        try:
            if self.config.access_logfile is not None:
                self._access = AccessLog(self.config.access_logfile)
            for text in self.config.bind:
                bind = parse_bind(text)
                try:
                    self._listening += _listen(bind, self.config.backlog)
                except OSError as error:
                    raise ServerError(f"cannot listen on {bind}: {_reason(error)}") from None
                if bind.kind == "unix":
                    paths.append(bind.path)
            yield
        finally:
            for listening in self._listening:
                listening.close()
            if self._access is not None:
                self._access.close()
            for path in paths:
                with contextlib.suppress(OSError):
                    os.unlink(path)

    def on_signal(self, number: int) -> None:
        """The first one ends the server gracefully, the next one skips the waiting."""
        self._signals += 1
        if self._signals == 1:
            logger.info("%s: finishing what is under way", signal.Signals(number).name)
            self._stop.set()
        else:
            self._skip_waiting()

    def _skip_waiting(self) -> None:
        self._hurry = True
        if self._lifespan is not None:
            self._lifespan.interrupt()
        if self._over is not None:
            self._over.set()

    async def stop_after(self, trigger: Callable[[], Awaitable[object]]) -> None:
        try:
            await trigger()
        except Exception as error:
            self.error = error
        finally:
            self._stop.set()

    async def serve(self, worker: Worker) -> None:
        """Start up, serve, drain, shut down. What went wrong at start-up is in `error`."""
        self._stop = Event(worker)
        lifespan = self._lifespan = Lifespan(self.application, worker, self.config)
        try:
            await lifespan.startup()
        except LifespanError as error:
            if error.__cause__ is not None:
                logger.error("the application's lifespan raised", exc_info=error.__cause__)
            self.error = ServerError(str(error), exit_status=3)
            return
        try:
            await self._serve(worker, lifespan)
        finally:
            await self._shut_down(lifespan)

    async def _shut_down(self, lifespan: Lifespan) -> None:
        patience = self.config.shutdown_timeout
        try:
            if not self._hurry:
                await lifespan.shutdown(patience)
        except BaseException:
            self._skip_waiting()
            raise
        finally:
            if self._hurry:
                await lifespan.shutdown(min(patience, HURRY), hurry=True)

    async def _serve(self, worker: Worker, lifespan: Lifespan) -> None:
        with contextlib.ExitStack() as stack:
            reactor = Reactor(
                worker,
                poller=self.config.poller,
                tick_interval=_tick_interval(self.config),
                write_timeout=self.config.write_timeout,
                report=_report_reactor,
            )
            stack.callback(reactor.close)
            host = Host(self.application, worker, report=_report_application)
            trust = _trust(self.config)
            factory = _factory(host, self.config, lifespan.state, self._access, trust)
            accepted: ProtocolFactory = factory
            if self.config.proxy_protocol:
                accepted = ProxyFactory(factory, trust, timeout=self.config.header_timeout)
            worker.drive(reactor)
            stack.callback(worker.stop_driving)
            for listening in self._listening:
                reactor.listen(listening.fileno(), accepted, _constant_address(listening))
            for listening in self._listening:
                logger.info("Running on %s (%s)", _url(listening), worker.name)
            try:
                await self._stop.wait()
            except BaseException:
                self._skip_waiting()
                raise
            finally:
                await self._drain(worker, reactor, host, factory)

    async def _drain(
        self, worker: Worker, reactor: Reactor, host: Host, factory: Http1Factory
    ) -> None:
        reactor.stop_accepting()
        for listening in self._listening:
            listening.close()
        over = self._over = Event(worker)

        def check() -> None:
            if reactor.connections == 0 and host.in_flight == 0:
                over.set()

        factory.drain()
        host.drain(check)
        reactor.drain(check)
        try:
            if not self._hurry:
                await worker.within(self.config.graceful_timeout, over.wait)
        except BaseException:
            self._skip_waiting()
            raise
        finally:
            if host.in_flight:
                logger.warning("cancelling %d requests that are still under way", host.in_flight)
                worker.cancel_calls()
                ended = Event(worker)
                host.drain(ended.set)
                await worker.within(HURRY, ended.wait, shielded=True)


def _factory(
    host: Host,
    config: Config,
    state: dict[str, Any] | None,
    access: AccessLog | None,
    trust: Trust,
) -> Http1Factory:
    return Http1Factory(
        host,
        upgrade=_upgrade(config),
        trust=trust if config.proxy_headers else None,
        access=None if access is None else access.write,
        state=state,
        root_path=config.root_path,
        server_header=b"fastserve" if config.include_server_header else b"",
        date_header=config.include_date_header,
        raise_on_disconnect=config.raise_on_disconnect,
        limit_request_line=config.limit_request_line,
        limit_request_fields=config.limit_request_fields,
        limit_request_field_bytes=config.limit_request_field_bytes,
        limit_request_body=config.limit_request_body,
        header_timeout=config.header_timeout,
        body_timeout=config.body_timeout,
        keep_alive_timeout=config.keep_alive_timeout,
        body_min_rate=config.body_min_rate,
    )


def _upgrade(config: Config) -> WebSocketUpgrade:
    def negotiate(offers: str) -> tuple[str, int, bool, bool] | None:
        return negotiate_deflate(offers, config.ws_context_takeover)

    return WebSocketUpgrade(
        negotiate=negotiate if config.ws_per_message_deflate else None,
        max_size=config.ws_max_size,
        max_queue=config.ws_max_queue,
        ping_interval=config.ws_ping_interval,
        ping_timeout=config.ws_ping_timeout,
        close_timeout=config.ws_close_timeout,
    )


def _trust(config: Config) -> Trust:
    networks = [
        ipaddress.ip_network(peer)
        for peer in config.forwarded_allow_ips
        if peer not in ("unix", "*")
    ]
    return Trust(
        [(network.network_address.packed, network.prefixlen) for network in networks],
        unix="unix" in config.forwarded_allow_ips,
        anyone="*" in config.forwarded_allow_ips,
        names=config.proxy_headers,
        hops=config.forwarded_hops,
    )


def _tick_interval(config: Config) -> float:
    seconds = (
        config.header_timeout,
        config.body_timeout,
        config.write_timeout,
        config.keep_alive_timeout,
        config.ws_ping_interval,
        config.ws_ping_timeout,
        config.ws_close_timeout,
    )
    shortest = min(filter(None, seconds))
    return min(max(shortest / 4, FINEST_TICK), COARSEST_TICK)


def _report_application(error: BaseException) -> None:
    logger.error("exception in the application", exc_info=error)


def _report_reactor(error: BaseException) -> None:
    if isinstance(error, OSError):
        logger.error("%s", error)  # the system's trouble: the message says it all
    else:
        logger.error("exception in the server", exc_info=error)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _listen(bind: Bind, backlog: int) -> list[socket.socket]:
    if bind.kind == "unix":
        return [_listen_unix(bind.path, backlog)]
    opened: list[socket.socket] = []
    port = bind.port
    try:
        for family, *_, address in socket.getaddrinfo(
            bind.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            listening = socket.socket(family, socket.SOCK_STREAM)
            opened.append(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted sockets inherit it.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Every address of a name gets the port that the first one was given.
            listening.bind((address[0], port, *address[2:]))
            port = listening.getsockname()[1]
            listening.listen(backlog)
            listening.setblocking(False)
    except BaseException:
        for listening in opened:
            listening.close()
        raise
    return opened


def _listen_unix(path: str, backlog: int) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "the path exists and is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(path) == 0:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        os.unlink(path)  # left behind by a server that is gone
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listening.bind(path)
        listening.listen(backlog)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    finally:
        os.umask(before)
    return listening


def _constant_address(listening: socket.socket) -> tuple[str, int | None] | None:
    """The ASGI `server` of all connections, if it is the same for all."""
    address = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return (address, None)
    return None if address[0] in ("0.0.0.0", "::") else (address[0], address[1])


def _url(listening: socket.socket) -> str:
    address = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return f"unix:{address}"
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"http://{host}:{address[1]}"
