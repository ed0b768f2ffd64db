"""One worker process: the application's lifespan, the reactor, and the end.

Whoever runs a Server gives it sockets, hears from it when it is ready, and gives it commands,
which are its methods: signals do where the process is alone, a supervisor's channel where it
is one of several.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from fastserve import stacks, systemd
from fastserve._conversation import ApplicationCall, Host
from fastserve._forwarded import Trust
from fastserve._http1 import Gate, Http1Factory
from fastserve._proxy import ProxyFactory
from fastserve._reactor import Reactor
from fastserve._shared import Row
from fastserve._tls import TlsFactory
from fastserve._transport import ProtocolFactory, Stage
from fastserve._websocket import WebSocketUpgrade
from fastserve.access import AccessLog
from fastserve.application import load
from fastserve.asgi import ASGI3
from fastserve.config import Config, ConfigError
from fastserve.errors import ServerError
from fastserve.extensions import negotiate_deflate
from fastserve.lifespan import Lifespan, LifespanError
from fastserve.log import logger, reopen
from fastserve.pidfile import pid_file
from fastserve.recycling import Recycling
from fastserve.sockets import Listeners, Sockets
from fastserve.tls import Certificates
from fastserve.watchdog import watching
from fastserve.worker import Event, MissingLibrary, Worker, find
from fastserve.wsgi import WSGI

__all__ = [
    "Server",
    "ServerError",
    "configured",
    "opened_sockets",
    "serve",
    "target_of",
    "worker_class_of",
]

# What returns when a server is to stop.
Trigger = Callable[[], Awaitable[object]]

# For lifespan shutdown, and for cancelled applications, once nobody wants to wait.
HURRY = 5.0
# Between two looks at what this process has done, and what memory it has.
USE_INTERVAL = 0.5
# Deadlines are checked four times in the shortest of them, but not more often than this.
FINEST_TICK = 0.05
COARSEST_TICK = 1.0


async def serve(
    application: object | str | None = None,
    config: Config | None = None,
    *,
    shutdown_trigger: Trigger | None = None,
    **options: Any,
) -> None:
    """Serve inside a running asyncio, uvloop or trio program, until `shutdown_trigger()`
    returns or this is cancelled. The signals stay the program's own.

    `options`: the fields of Config. Raises ConfigError, ApplicationError, ServerError."""
    config = configured(config, options)
    server = Server(load(target_of(application, config), config), config)
    with server.opened(), opened_sockets(config) as sockets:
        async with find(_running_loop())() as worker:
            await server.serve(worker, sockets, shutdown_trigger)
    if server.error is not None:
        raise server.error


def configured(config: Config | None, options: dict[str, Any]) -> Config:
    """The Config that is given, or is made of `options`. Raises ConfigError."""
    if config is None:
        return Config.from_options(**options)
    if options:
        raise TypeError("give a Config or its options, not both")
    return config


def target_of(application: object | str | None, config: Config) -> object | str:
    """What is to be served, or its name. Raises ConfigError."""
    target = config.application if application is None else application
    if target is None:
        raise ConfigError("application: none is given")
    return target


def worker_class_of(config: Config) -> type[Worker]:
    """Raises ServerError if its library is not installed."""
    try:
        return find(config.worker_class)
    except MissingLibrary as error:
        raise ServerError(str(error)) from None


def _running_loop() -> str:
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return "trio"
    return "asyncio"


@contextlib.contextmanager
def opened_sockets(config: Config) -> Iterator[Sockets]:
    """The listening sockets, and the file with the process's id, of a server without a
    supervisor. Raises ServerError, ConfigError."""
    with contextlib.closing(Sockets(config)) as sockets, contextlib.ExitStack() as stack:
        # Last, so that a server that cannot start leaves the other one's file alone.
        if config.pid:
            stack.enter_context(pid_file(config.pid))
        yield sockets


def announce(worker: Worker, sockets: Listeners) -> None:
    """What a server without a supervisor says when it is ready."""
    for each in sockets.listening:
        logger.info("Running on %s (%s)", each.url, worker.name)
    systemd.notify("READY=1")


class Server:
    """An application on the addresses that it is given.

    `on_ready` is called when it accepts connections, after the lifespan's start-up, and
    `on_enough(reason)` when another process should take its place (fastserve.recycling). `row` is
    this process's in the table of the workers, if there are several.

    Resource handling: `opened()` has the files; `serve()` everything else, and gives it up
    in every case, also when it is cancelled.
    """

    def __init__(
        self,
        application: ASGI3,
        config: Config,
        *,
        on_ready: Callable[[Worker, Listeners], None] = announce,
        on_enough: Callable[[str], None] | None = None,
        row: Row | None = None,
    ) -> None:
        self.application = application
        self.config = config
        self.error: BaseException | None = None
        self._on_ready = on_ready
        self._on_enough = on_enough
        self._row = row
        self._sockets: Listeners
        self._certificates: Certificates | None = None
        self._access: AccessLog | None = None
        self._serving = False
        self._stop: Event
        self._over: Event  # nothing is under way any more, or nobody will wait for it
        self._lifespan: Lifespan | None = None
        self._at_keyboard = False  # somebody who has pressed Ctrl-C waits
        self._others_accept = False  # other processes go on with the sockets
        self._hurry = False

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """The access log and the certificates. Raises ConfigError."""
        config = self.config
        with contextlib.ExitStack() as stack:
            if config.access_logfile is not None:
                self._access = AccessLog(
                    config.access_logfile,
                    config.access_logformat,
                    sample=config.access_log_sample,
                    exclude=config.access_log_exclude,
                )
                stack.callback(self._access.close)
            if config.certfile:
                self._certificates = Certificates(config)
            elif config.keyfile or config.verify_mode != "none":
                raise ConfigError("--certfile: without a certificate there is no TLS")
            yield

    @property
    def is_ready(self) -> bool:
        """Whether new clients are welcome: for whoever answers a balancer that asks. False from
        the moment on in which the server is told to stop."""
        return self._serving and not self._stop.is_set

    def run(self, sockets: Listeners, connect: Callable[[Worker], None]) -> None:
        """Serve in a loop of its own, in this thread. `connect(worker)` is called in it, and
        has the commands arrive. Raises ServerError."""
        worker_class = worker_class_of(self.config)

        async def main() -> None:
            async with worker_class() as worker:
                connect(worker)
                await self.serve(worker, sockets)

        worker_class.run(main, debug=self.config.debug)
        if self.error is not None:
            raise self.error

    # The commands. All of them are given in the worker's loop.

    def stop(self, *, at_keyboard: bool = False, others_accept: bool = False) -> None:
        """Finish what is under way, then end. If somebody waits `at_keyboard`, those who only
        might go on are not waited for. If `others_accept`, the clients need not notice: other
        processes go on with the sockets, and with what waits there."""
        self._at_keyboard = at_keyboard
        self._others_accept = others_accept
        self._stop.set()

    def skip_waiting(self) -> None:
        """End soon: what is under way is cancelled, lifespan shutdown still has its time."""
        self._stop.set()
        self._skip_waiting()

    def reload_certificates(self) -> None:
        if self._certificates is not None:
            try:
                self._certificates.load()
            except ConfigError as error:
                logger.error("the certificates in use stay: %s", error)
            else:
                logger.info("certificates loaded again")

    def reopen_logs(self) -> None:
        """Go on in new files of the same names."""
        reopen()
        if self._access is not None:
            self._access.reopen()

    async def _watch_certificates(self, worker: Worker, certificates: Certificates) -> None:
        interval = self.config.ssl_reload_interval
        while not await worker.within(interval, self._stop.wait):
            if certificates.have_changed():
                self.reload_certificates()

    async def _watch_use(
        self, worker: Worker, host: Host, on_enough: Callable[[str], None]
    ) -> None:
        recycling = Recycling(self.config)
        while not await worker.within(USE_INTERVAL, self._stop.wait):
            reason = recycling.reason(host.calls)
            if reason is not None:
                on_enough(reason)
                break

    def _skip_waiting(self) -> None:
        self._hurry = True
        self._stop.set()
        if self._lifespan is not None:
            self._lifespan.interrupt()
        self._over.set()

    async def _stop_after(self, trigger: Trigger) -> None:
        try:
            await trigger()
        except Exception as error:
            self.error = error
        finally:
            self._stop.set()

    async def serve(
        self, worker: Worker, sockets: Listeners, trigger: Trigger | None = None
    ) -> None:
        """Start up, serve, drain, shut down. What went wrong at start-up is in `error`. When
        `trigger()` returns, it is as if `stop()` was called."""
        self._sockets = sockets
        self._stop = Event(worker)
        self._over = Event(worker)
        if trigger is not None:
            worker.start(self._stop_after, trigger)
        worker.threads.limit = self.config.wsgi_threads
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
        # Its own watchdog looks at it, too.
        row = Row.alone() if self._row is None else self._row
        with contextlib.ExitStack() as stack:
            reactor = Reactor(
                worker,
                poller=self.config.poller,
                tick_interval=_tick_interval(self.config),
                write_timeout=self.config.write_timeout,
                write_min_rate=self.config.body_min_rate,
                report=_report_reactor,
                max_connections=self.config.max_connections or 0,
                max_per_address=self.config.max_connections_per_address or 0,
                row=row,
            )
            stack.callback(reactor.close)
            host = Host(
                self.application,
                worker,
                report=_report_application,
                report_late=functools.partial(_report_late, self.config.request_timeout),
            )
            trust = _trust(self.config)
            notice = Event(worker)
            factory = _factory(
                host,
                self.config,
                lifespan.state,
                self._access,
                self._row,
                trust,
                notice,
                # A thread that writes has nothing else that could tell it.
                raises=self.config.raise_on_disconnect or isinstance(self.application, WSGI),
            )
            worker.drive(reactor)
            stack.callback(worker.stop_driving)
            stack.enter_context(watching(row, self.config.loop_lag_warn))
            certificates = self._certificates
            factories: dict[bool, ProtocolFactory] = {False: factory}
            if certificates is not None:
                factories[True] = TlsFactory(
                    factory,
                    certificates.wrap,
                    describe=certificates.describe,
                    handshake_timeout=self.config.ssl_handshake_timeout,
                )
                if self.config.ssl_reload_interval:
                    worker.start(self._watch_certificates, worker, certificates)
            if self.config.proxy_protocol:
                for secure, inner in factories.items():
                    factories[secure] = ProxyFactory(
                        inner, trust, timeout=self.config.header_timeout
                    )
            self._sockets.listen(self.config.backlog)
            for each in self._sockets.listening:
                reactor.listen(
                    each.socket.fileno(),
                    factories[each.secure],
                    each.address,
                    shared=each.shared,
                    own=each.own,
                )
            draining = Draining(
                worker, reactor, host, factory, self._sockets, notice=notice, over=self._over
            )
            self._serving = True
            self._on_ready(worker, self._sockets)
            if self._on_enough is not None and self.config.recycles:
                worker.start(self._watch_use, worker, host, self._on_enough)
            try:
                await self._stop.wait()
                systemd.notify("STOPPING=1")
                await draining.wait(
                    self.config,
                    at_keyboard=self._at_keyboard,
                    others_accept=self._others_accept,
                )
            except BaseException:
                self._skip_waiting()
                raise
            finally:
                await draining.end()


class Draining:
    """The end of what is under way, in stages (docs/operations.md). Each of them begins whether
    or not the waiting before it was cut short."""

    def __init__(
        self,
        worker: Worker,
        reactor: Reactor,
        host: Host,
        factory: Http1Factory,
        sockets: Listeners,
        *,
        notice: Event,
        over: Event,
    ) -> None:
        """`sockets`: closed when nobody is accepted any more. `notice`: set then, for the
        applications. `over`: set when nothing is under way any more."""
        self._worker = worker
        self._reactor = reactor
        self._host = host
        self._factory = factory
        self._sockets = sockets
        self._notice = notice
        self._over = over

    async def wait(self, config: Config, *, at_keyboard: bool, others_accept: bool) -> None:
        """Until nothing is under way, or the time is over for what still is."""
        graceful = config.graceful_timeout
        idle = 0.0 if at_keyboard else min(config.drain_idle_timeout, graceful)
        self._enter(Stage.LAST_ANSWERS)
        if config.drain_delay and not (at_keyboard or others_accept):
            await self._within(config.drain_delay)
        self._stop_accepting(others_accept=others_accept)
        if idle:
            await self._within(idle)
        self._enter(Stage.END_ENDLESS if at_keyboard else Stage.END_IDLE)
        await self._within(graceful - idle)
        self._enter(Stage.END_ALL)
        await self._within(config.farewell)

    async def end(self) -> None:
        """End what is left: closed, cancelled and awaited."""
        self._stop_accepting()
        self._enter(Stage.END_ALL)
        if self._host.in_flight:
            logger.warning("cancelling %d requests that are still under way", self._host.in_flight)
            self._worker.cancel_calls()
            ended = Event(self._worker)
            self._host.drain(ended.set)
            await self._worker.within(HURRY, ended.wait, shielded=True)

    async def _within(self, seconds: float) -> None:
        await self._worker.within(seconds, self._over.wait)

    def _enter(self, stage: Stage) -> None:
        self._factory.drain(stage)
        self._reactor.drain(stage)

    def _stop_accepting(self, *, others_accept: bool = False) -> None:
        self._reactor.stop_accepting(self._check, others_accept=others_accept)
        self._sockets.close()
        self._host.drain(self._check)
        self._notice.set()

    def _check(self) -> None:
        if self._reactor.connections == 0 and self._host.in_flight == 0:
            self._over.set()


def _factory(
    host: Host,
    config: Config,
    state: dict[str, Any] | None,
    access: AccessLog | None,
    row: Row | None,
    trust: Trust,
    notice: Event,
    *,
    raises: bool,
) -> Http1Factory:
    server, fields = _own_fields(config)
    return Http1Factory(
        host,
        upgrade=_upgrade(config),
        gate=_gate(config),
        trust=trust if config.proxy_headers else None,
        access=None if access is None else access.lines,
        row=row,
        state=state,
        wait_for_shutdown=notice.wait,
        is_shutting_down=lambda: notice.is_set,
        root_path=config.root_path,
        server_header=server,
        date_header=config.include_date_header,
        fields=fields,
        names=config.server_name,
        raise_on_disconnect=raises,
        limit_request_line=config.limit_request_line,
        limit_request_fields=config.limit_request_fields,
        limit_request_field_bytes=config.limit_request_field_bytes,
        limit_request_body=config.limit_request_body,
        header_timeout=config.header_timeout,
        body_timeout=config.body_timeout,
        keep_alive_timeout=config.keep_alive_timeout,
        keep_alive_requests=config.keep_alive_max_requests or 0,
        body_min_rate=config.body_min_rate,
        request_timeout=config.request_timeout,
    )


def _own_fields(config: Config) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The value of Server, empty for none, and what else every response has."""
    server = b"fastserve" if config.include_server_header else b""
    fields = []
    for line in config.header:
        name, _, value = line.encode("latin-1").partition(b": ")
        if name.lower() == b"server":
            server = value
        else:
            fields.append((name, value))
    return server, fields


def _gate(config: Config) -> Gate | None:
    if config.limit_concurrency is None:
        return None
    return Gate(
        config.limit_concurrency,
        queue_size=config.queue_size,
        queue_timeout=config.queue_timeout,
        exempt=config.probe_path,
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
        config.ssl_handshake_timeout,
        config.queue_timeout,
        config.request_timeout,
        config.loop_lag_warn,
        config.loop_timeout,
    )
    shortest = min(filter(None, seconds))
    return min(max(shortest / 4, FINEST_TICK), COARSEST_TICK)


def _report_application(error: BaseException) -> None:
    _report(error, "exception in the application")


def _report_late(seconds: float, request: str, call: ApplicationCall | None) -> None:
    where = ", as others are"
    if call is not None:
        where = f", it stood at\n{stacks.of_call(call).rstrip()}"
    message = "%s: no whole answer within %g s; the application is cancelled%s"
    logger.error(message, request, seconds, where)


def _report_reactor(error: BaseException) -> None:
    # The system's trouble says it all by its message.
    _report(error, "" if isinstance(error, OSError) else "exception in the server")


def _report(error: BaseException, message: str) -> None:
    """`message` with the error's traceback, or the error's own message alone. The filters and
    handlers are the program's: what one of them raises must not undo the end of a request."""
    try:
        logger.error("%s", message or error, exc_info=error if message else None)
    except Exception:
        traceback.print_exception(error)
        traceback.print_exc()
