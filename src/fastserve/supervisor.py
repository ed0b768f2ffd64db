"""The supervisor: it owns the listening sockets, and the processes that serve on them.

It knows processes, signals and the configuration, and neither a loop nor the application. What
it wants is a number of workers of the current generation that serve; after whatever happens it
starts and ends processes until that is so. A reload is a generation that is coming: it becomes
the current one when all its workers are ready, and is given up when one of them fails before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from fastserve import cpus, handover, systemd
from fastserve._shared import Row, Table
from fastserve.channel import Channel
from fastserve.config import OPTIONS, Config, ConfigError
from fastserve.errors import ServerError
from fastserve.log import logger, reopen, set_up
from fastserve.memory import resident
from fastserve.metrics import Snapshot, WorkerStatus
from fastserve.monitoring import Monitoring
from fastserve.pidfile import pid_file
from fastserve.sockets import Listeners, Sockets
from fastserve.watchdog import Pulse
from fastserve.watcher import Watcher

__all__ = ["Supervisor"]

SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCHLD,
)
# What the listening sockets were made of, or what the process itself is: not for a reload.
FIXED = (
    "application",
    "bind",
    "insecure_bind",
    "umask",
    "user",
    "group",
    "backlog",
    "reuse_port",
    "pid",
    "preload",
    "reload",
    "reload_dir",
    "reload_include",
    "reload_exclude",
    "admin_bind",
    "statsd_host",
    "statsd_prefix",
    "dogstatsd_tags",
)
# What a worker must not believe to be its own.
NOT_INHERITED = ("NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
# A worker that dies after less than this has not served: the next one is kept waiting.
SHORT_LIFE = 1.0
FIRST_DELAY = 0.1
LONGEST_DELAY = 10.0
# So many failed starts in a row, while no worker serves, are the end.
MOST_FAILURES = 5
# Rows of the workers' table: some for each worker that may be there at once, old and new.
MOST_PROCESSES = 4096
# For the application's import, before the lifespan's start-up.
IMPORT = 60.0
# What is left of a worker's life when nobody wants to wait: its own HURRY, twice, and a bit.
HURRY = 12.0
# For a worker whose time is over to say where it stands, and then to end.
LAST_WORDS = 5.0


class State(enum.Enum):
    """Of a worker process."""

    STARTING = enum.auto()
    SERVING = enum.auto()
    RETIRING = enum.auto()  # serves until another one has taken its place
    DRAINING = enum.auto()
    HANGING = enum.auto()  # its loop does not turn: it has to say where it stands, and ends


@dataclass
class Generation:
    """Workers that were started with one configuration."""

    number: int
    config: Config


@dataclass(eq=False)
class Process:
    """A worker process; `poll()` tells its exit status, or the signal below zero."""

    pid: int
    poll: Callable[[], int | None]
    channel: Channel
    generation: Generation
    row: Row
    state: State = State.STARTING
    deadline: float = math.inf  # when its time is over, unless it has got further by then
    pressed: int = 0  # how often its time was over
    started_at: float = field(default_factory=time.monotonic)
    ready_at: float = math.inf
    pulse: Pulse | None = None  # of its loop, if that may not hang for ever
    failure: tuple[str, int] | None = None  # what it said, and the exit status that it asks for

    @property
    def exit_status(self) -> int:
        """Of the command, if it ends because of this worker."""
        return self.failure[1] if self.failure else 1

    @property
    def serves(self) -> bool:
        return self.state in (State.SERVING, State.RETIRING)

    @property
    def is_current(self) -> bool:
        return self.state in (State.STARTING, State.SERVING)

    @property
    def is_ending(self) -> bool:
        return self.state in (State.DRAINING, State.HANGING)

    @property
    def next_look(self) -> float:
        """When something is to be done about it even if nothing happens."""
        if self.pulse is None or not self.serves:
            return self.deadline
        return min(self.deadline, self.pulse.next_look)

    def status(self) -> WorkerStatus:
        now = time.monotonic()
        row = self.row
        return WorkerStatus(
            worker=row.index,
            pid=self.pid,
            state=self.state.name.lower(),
            generation=self.generation.number,
            age=round(now - self.started_at, 3),
            connections=row.connections,
            websockets=row.websockets,
            in_flight=row.in_flight,
            requests=sum(row.responses.values()),
            memory=resident(self.pid),
            heartbeat_age=round(max(now - row.beat / 1000, 0), 3) if row.beat else None,
        )


@dataclass
class Restarts:
    """When the next worker may be started after some have died early."""

    failures: int = 0  # in a row
    at: float = 0.0

    @property
    def delay(self) -> float:
        return min(FIRST_DELAY * 2 ** (self.failures - 1), LONGEST_DELAY) if self.failures else 0.0

    def succeeded(self) -> None:
        self.failures = 0
        self.at = 0.0

    def failed(self) -> None:
        self.failures += 1
        self.at = time.monotonic() + self.delay


class Supervisor:
    """Workers on the addresses of a configuration, until a signal ends them.

    `reread()` makes the configuration anew for a reload; it raises ConfigError. With `work`
    workers are forked, and do that, the channel, configuration, sockets and row being given;
    without it they are fresh interpreters.
    """

    def __init__(
        self,
        config: Config,
        reread: Callable[[], Config],
        work: Callable[[Channel, Config, Listeners, Row], int] | None = None,
    ) -> None:
        self._config = config
        self._reread = reread
        self._work = work
        self._count = _number(config)
        self._processes: list[Process] = []
        self._generations = 0
        self._current: Generation | None = None
        self._coming: Generation | None = None
        self._restarts = Restarts()
        self._replaced = Counter(died=0, failed=0, hung=0, recycled=0)
        self._ended_counts = Row.alone()  # of the workers that are no more
        self._replaces_again = ""  # the reason
        self._main_pid: tuple[str, ...] = ()  # which the service manager does not know yet
        self._stopping = False
        self._error: ServerError | None = None
        self._predecessor = handover.Predecessor() if handover.is_under_way() else None
        self._successor: handover.Successor | None = None
        self._sockets: Sockets
        self._table: Table
        self._monitoring: Monitoring
        self._stack = contextlib.ExitStack()
        self._selector = selectors.PollSelector()
        self._actions: dict[int, Callable[[int], None]] = {
            signal.SIGINT: self._end,
            signal.SIGTERM: self._end,
            signal.SIGQUIT: self._end_at_once,
            signal.SIGHUP: self._reload,
            signal.SIGTTIN: self._change_count,
            signal.SIGTTOU: self._change_count,
            signal.SIGUSR1: self._reopen,
            signal.SIGUSR2: self._upgrade,
            signal.SIGCHLD: lambda number: None,  # every turn looks who has died
        }

    def run(self) -> None:
        """Raises ServerError, ConfigError."""
        handed = self._predecessor.handed if self._predecessor else None
        with self._stack as stack:
            stack.enter_context(self._selector)
            signals = stack.enter_context(_signals())
            if self._config.reload:
                watcher = stack.enter_context(Watcher(self._config))
                changed = functools.partial(self._files_changed, watcher)
                self._selector.register(watcher, selectors.EVENT_READ, changed)
            self._selector.register(signals, selectors.EVENT_READ)
            reserve = self._config.reuse_port
            sockets = Sockets(self._config, handed, with_admin=True, reserve=reserve)
            self._sockets = stack.enter_context(contextlib.closing(sockets))
            self._table = stack.enter_context(contextlib.closing(Table.create(MOST_PROCESSES)))
            monitoring = Monitoring(self._config, self._selector, self._snapshot, self._totals)
            self._monitoring = stack.enter_context(contextlib.closing(monitoring))
            if self._predecessor is None:
                self._write_pid()
                self._open_admin()
            stack.callback(self._kill_all)
            self._begin(self._config)
            while self._work_on_it():
                self._wait(signals)
        if self._error is not None:
            raise self._error

    def _write_pid(self) -> None:
        if self._config.pid:
            self._stack.enter_context(pid_file(self._config.pid))

    def _open_admin(self) -> None:
        for each in self._sockets.admin:
            logger.info("admin listener on %s", each.url)
        self._monitoring.listen([each.socket for each in self._sockets.admin])

    # What happens.

    def _wait(self, signals: socket.socket) -> None:
        soonest = min(self._next_turn(), self._monitoring.due)
        timeout = None if soonest == math.inf else max(soonest - time.monotonic(), 0)
        for key, _ in self._selector.select(timeout):
            if key.data is not None:
                key.data()
        for number in _received(signals):
            self._actions[number](number)
        self._monitoring.turn()
        if self._successor is not None and self._successor.popen.poll() is not None:
            self._successor_ended(self._successor)
        for process in list(self._processes):
            status = process.poll()
            if status is not None:
                self._hear(process)  # its last words
                self._ended(process, status)
            elif process.deadline <= time.monotonic():
                self._overdue(process)
            elif process.next_look <= time.monotonic():
                self._feel_pulse(process)

    def _hear(self, process: Process) -> None:
        messages = process.channel.receive()
        if messages is None:
            self._unregister(process.channel)
            return
        for message in messages:
            if "ready" in message:
                self._ready(process)
            elif "failed" in message:
                process.failure = (message["failed"], message["status"])
            elif "enough" in message and process.state is State.SERVING:
                process.state = State.RETIRING
                self._replaced["recycled"] += 1
                logger.info("worker %d is replaced after %s", process.pid, message["enough"])

    def _ready(self, process: Process) -> None:
        if process.state is State.STARTING:
            process.state = State.SERVING
            process.deadline = math.inf
            process.ready_at = time.monotonic()
            if process.generation.config.loop_timeout:
                process.pulse = Pulse(process.row, process.generation.config.loop_timeout)
            logger.info("worker %d is ready", process.pid)

    def _ended(self, process: Process, status: int) -> None:
        self._unregister(process.channel)
        process.channel.close()
        self._processes.remove(process)
        self._ended_counts.add(process.row)
        process.row.clear()
        how = process.failure[0] if process.failure else _how(status)
        early = process.state is State.STARTING
        # One that dies as soon as it serves would do so again and again.
        early = early or (process.serves and process.generation is self._coming)
        if early and not self._stopping:
            if process.failure is None:
                when = "it was ready" if process.state is State.STARTING else "all were ready"
                how = f"worker {process.pid} {how} before {when}"
            self._failed_to_start(process.generation, how, process.exit_status)
        elif process.serves:
            if time.monotonic() - process.ready_at < SHORT_LIFE:
                self._restarts.failed()
            else:
                self._restarts.succeeded()
            self._replaced["died"] += 1
            logger.error("worker %d %s; another one takes its place", process.pid, _how(status))
        elif status != 0:
            logger.warning("worker %d, which was to end, %s", process.pid, how)

    def _failed_to_start(self, generation: Generation, how: str, exit_status: int = 1) -> None:
        if self._current is None and not self._config.reload:
            self._give_up(how, exit_status)
        elif generation is self._coming:
            self._call_off(how)
        else:
            logger.error("a worker cannot be started: %s", how)
            self._restarts.failed()
            self._replaced["failed"] += 1
            too_many = self._restarts.failures >= MOST_FAILURES and not self._serving()
            if too_many and not self._config.reload:
                self._give_up(how, exit_status)

    def _feel_pulse(self, process: Process) -> None:
        assert process.pulse is not None
        process.pulse.look()
        still = process.pulse.still
        if still < process.generation.config.loop_timeout:
            return
        if _is_stopped(process.pid):
            logger.warning("worker %d was stopped, by SIGSTOP or a debugger", process.pid)
            process.pulse.still = 0.0
            return
        logger.error(
            "worker %d: its loop has not turned for %.1f s; another one takes its place",
            process.pid,
            still,
        )
        self._replaced["hung"] += 1
        process.state = State.HANGING
        self._press(process)

    def _overdue(self, process: Process) -> None:
        if process.pressed == 0:
            what = "start" if process.state is State.STARTING else "end"
            logger.error("worker %d did not %s in time: it has to say why", process.pid, what)
        self._press(process)

    def _press(self, process: Process) -> None:
        """Its time is over: it has to say where it stands and to end. If it cannot, the interpreter
        says it."""
        process.deadline = time.monotonic() + LAST_WORDS
        process.pressed += 1
        if process.pressed == 1:
            process.channel.send(do="explain")
        elif process.pressed == 2:
            logger.error("worker %d cannot say where it hangs: sending SIGABRT", process.pid)
            os.kill(process.pid, signal.SIGABRT)
        else:
            logger.error("worker %d did not even end by that, and is killed", process.pid)
            process.deadline = math.inf
            os.kill(process.pid, signal.SIGKILL)

    def _give_up(self, text: str, exit_status: int) -> None:
        self._error = ServerError(text, exit_status)
        self._drain_all()
        for process in self._processes:
            self._hasten(process)

    # What is to be.

    def _work_on_it(self) -> bool:
        """Start and drain workers until there are those that there should be; False when
        nothing is left to do."""
        if not self._stopping and self._coming is not None:
            self._bring(self._coming)
        if not self._stopping and self._coming is None and self._current is not None:
            self._maintain(self._current)
        return bool(self._processes) or not self._stopping

    def _next_turn(self) -> float:
        """When there is something to do even if nothing happens."""
        soonest = min([each.next_look for each in self._processes], default=math.inf)
        if self._stopping or (self._current is None and self._coming is None):
            return soonest
        if self._coming is not None:
            begun = any(each.generation is self._coming for each in self._processes)
            return soonest if begun else 0.0
        lacks = len([each for each in self._processes if each.is_current]) < self._count
        return min(soonest, self._restarts.at) if lacks else soonest

    def _begin(self, config: Config) -> None:
        self._generations += 1
        self._coming = Generation(self._generations, config)

    def _bring(self, coming: Generation) -> None:
        """The first worker alone, so that what is wrong with all of them is told once."""
        mine = [each for each in self._processes if each.generation is coming]
        ready = [each for each in mine if each.serves]
        if len(ready) >= self._count:
            self._take_over(coming)
        elif not mine:
            self._start(coming)
        elif ready:
            self._start(coming, self._count - len(mine))

    def _take_over(self, coming: Generation) -> None:
        if self._current is None:
            for each in self._sockets.listening:
                logger.info("Running on %s (%d workers)", each.url, self._count)
            self._succeed()
        else:
            logger.info("reloaded: %d new workers serve", self._count)
        for process in self._processes:
            if process.generation is not coming and not process.is_ending:
                self._dismiss(process)
        self._current = coming
        self._restarts.succeeded()
        self._settle()

    def _call_off(self, reason: str) -> None:
        if self._current is None:
            logger.error("nothing is served until a file has changed: %s", reason)
        else:
            logger.error("nothing is reloaded, the old workers go on: %s", reason)
        for process in self._processes:
            if process.generation is self._coming:
                end = self._dismiss if process.serves else self._hasten
                end(process)
        self._settle()

    def _settle(self) -> None:
        """Nothing is coming any more, unless it was asked for in the meantime."""
        self._coming = None
        systemd.notify("READY=1", *self._main_pid)
        if self._replaces_again:
            reason, self._replaces_again = self._replaces_again, ""
            self._replace(reason)

    def _maintain(self, current: Generation) -> None:
        missing = self._count - len([each for each in self._processes if each.is_current])
        if missing > 0 and time.monotonic() >= self._restarts.at:
            self._start(current, missing)
        serving = self._serving()
        for process in serving[: max(len(serving) - self._count, 0)]:
            self._dismiss(process)

    def _serving(self) -> list[Process]:
        """Those that retire come first."""
        serving = [each for each in self._processes if each.serves]
        return sorted(serving, key=lambda each: each.state is not State.RETIRING)

    # What is to be seen of it.

    def _totals(self) -> Row:
        """What all workers have counted, those that are no more included."""
        totals = Row.alone()
        for row in (self._ended_counts, *(process.row for process in self._processes)):
            totals.add(row)
        return totals

    def _snapshot(self) -> Snapshot:
        is_ready = self._current is not None and self._serving()
        return Snapshot(
            state="draining" if self._stopping else "ready" if is_ready else "starting",
            generation=self._current.number if self._current else 0,
            restarts=self._replaced,
            totals=self._totals(),
            workers=[process.status() for process in self._processes],
        )

    # Processes.

    def _start(self, generation: Generation, number: int = 1) -> None:
        try:
            for _ in range(number):
                self._start_one(generation)
        except OSError as error:
            self._failed_to_start(generation, f"there can be no process: {error.strerror}")
        except ServerError as error:
            self._failed_to_start(generation, str(error))

    def _start_one(self, generation: Generation) -> None:
        row = self._free_row()
        ours, theirs = socket.socketpair()
        channel = Channel(ours)
        try:
            with theirs:
                begin = self._spawn if self._work is None else self._fork
                pid, poll = begin(generation, channel, theirs, row)
        except BaseException:
            channel.close()
            raise
        channel.setblocking(False)
        process = Process(pid, poll, channel, generation, row)
        process.deadline = time.monotonic() + IMPORT + generation.config.startup_timeout
        self._processes.append(process)
        hear = functools.partial(self._hear, process)
        self._selector.register(channel, selectors.EVENT_READ, hear)

    def _free_row(self) -> Row:
        taken = {each.row.index for each in self._processes}
        for index in range(self._table.rows):
            if index not in taken:
                self._table.used = max(taken | {index}) + 1
                return self._table.row(index)
        raise ServerError(f"there can be no more than {self._table.rows} processes")

    def _spawn(
        self, generation: Generation, channel: Channel, theirs: socket.socket, row: Row
    ) -> tuple[int, Callable[[], int | None]]:
        listening = [
            (each.socket.fileno(), each.secure, each.shared) for each in self._sockets.listening
        ]
        channel.send(
            path=sys.path,
            argv=sys.argv,
            config=dataclasses.asdict(generation.config),
            listening=listening,
            table=self._table.fd,
            row=row.index,
        )
        with _blocked():
            popen = subprocess.Popen(
                [
                    sys.executable,
                    *_interpreter_flags(),
                    "-m",
                    "fastserve.child",
                    str(theirs.fileno()),
                ],
                pass_fds=(theirs.fileno(), self._table.fd, *(fd for fd, _, _ in listening)),
                env={
                    name: value for name, value in os.environ.items() if name not in NOT_INHERITED
                },
            )
        return popen.pid, popen.poll

    def _fork(
        self, generation: Generation, channel: Channel, theirs: socket.socket, row: Row
    ) -> tuple[int, Callable[[], int | None]]:
        _refuse_threads()
        with _blocked():
            pid = os.fork()
            if pid == 0:
                # The others' ends too: a copy of one would keep its channel from ending.
                for each in (channel, *(process.channel for process in self._processes)):
                    each.close()
                self._monitoring.abandon()
                for listening in self._sockets.admin:
                    listening.socket.close()
                self._become_worker(generation.config, Channel(theirs), row)
        return pid, functools.partial(_poll, pid)

    def _become_worker(self, config: Config, channel: Channel, row: Row) -> NoReturn:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for name in NOT_INHERITED:
                os.environ.pop(name, None)
            assert self._work is not None
            status = self._work(channel, config, Listeners(self._sockets.listening), row)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(status)

    def _unregister(self, channel: Channel) -> None:
        with contextlib.suppress(KeyError):  # it was, at the channel's end
            self._selector.unregister(channel)

    def _drain(self, process: Process, **how: bool) -> None:
        """`how`: as for Server.stop()."""
        process.state = State.DRAINING
        process.deadline = time.monotonic() + process.generation.config.stop_timeout
        process.channel.send(do="stop", **how)

    def _dismiss(self, process: Process) -> None:
        """While others go on."""
        self._drain(process, others_accept=True)

    def _hasten(self, process: Process) -> None:
        process.state = State.DRAINING
        process.deadline = min(process.deadline, time.monotonic() + HURRY)
        process.channel.send(do="skip_waiting")

    def _kill_all(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    # Signals.

    def _end(self, number: int) -> None:
        if self._stopping:
            for process in self._processes:
                self._hasten(process)
            return
        logger.info("%s: finishing what is under way", signal.Signals(number).name)
        systemd.notify("STOPPING=1")
        if self._successor is not None:
            self._successor.popen.terminate()
        self._drain_all(at_keyboard=number == signal.SIGINT)

    def _drain_all(self, **how: bool) -> None:
        """`how`: as for Server.stop(). Unless others accept, what waits at the sockets is the
        workers' to serve."""
        self._stopping = True
        # Else connections would be accepted that nobody serves.
        self._sockets.stop_listening()
        for process in self._processes:
            if not process.is_ending:
                self._drain(process, **how)

    def _end_at_once(self, number: int) -> None:
        logger.info("%s: ending at once", signal.Signals(number).name)
        self._stopping = True
        if self._successor is not None:
            self._successor.popen.kill()
        self._kill_all()

    def _files_changed(self, watcher: Watcher) -> None:
        changed = watcher.take()
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            self._replace(f"{changed[0]}{more} changed")

    def _reload(self, number: int) -> None:
        self._replace("SIGHUP")

    def _replace(self, reason: str) -> None:
        """The workers by new ones, with the configuration read again."""
        if self._stopping:
            return
        if self._coming is not None:
            self._replaces_again = reason
            return
        preloaded = "" if self._work is None else "; the application stays as it was imported"
        logger.info("%s: starting new workers%s", reason, preloaded)
        systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        before = self._config if self._current is None else self._current.config
        try:
            config = _fit(self._reread(), before)
            set_up(**config.logging)
        except ConfigError as error:
            self._call_off(str(error))
            return
        if config.workers != before.workers:
            self._count = _number(config)
        self._begin(config)

    def _change_count(self, number: int) -> None:
        step = 1 if number == signal.SIGTTIN else -1
        self._count = max(self._count + step, 1)
        logger.info("%s: %d workers from now on", signal.Signals(number).name, self._count)

    def _reopen(self, number: int) -> None:
        reopen()
        for process in self._processes:
            process.channel.send(do="reopen_logs")
            process.channel.send(do="reload_certificates")

    # The next program on the same sockets.

    def _upgrade(self, number: int) -> None:
        if self._stopping or self._successor is not None or self._current is None:
            logger.warning("SIGUSR2: not now")
            return
        try:
            self._successor = handover.Successor.start(self._sockets)
        except OSError as error:
            logger.error("the new program cannot be started: %s", error.strerror)
            return
        logger.info("SIGUSR2: starting the new program as %d", self._successor.popen.pid)
        hear = functools.partial(self._hear_successor, self._successor)
        self._selector.register(self._successor.channel, selectors.EVENT_READ, hear)

    def _hear_successor(self, successor: handover.Successor) -> None:
        messages = successor.channel.receive()
        if messages == []:
            return
        self._unregister(successor.channel)
        if messages is not None and not self._stopping:
            logger.info("%d serves now: finishing what is under way", successor.popen.pid)
            self._successor = None
            successor.channel.close()
            self._sockets.hand_over()
            self._monitoring.stop_listening()
            self._drain_all(others_accept=True)

    def _successor_ended(self, successor: handover.Successor) -> None:
        self._hear_successor(successor)  # its last word, which may be that it was ready
        if self._successor is None:
            return
        self._successor = None
        successor.channel.close()
        if not self._stopping:
            logger.error("the new program has not started, this one goes on")

    def _succeed(self) -> None:
        """Now that this program serves, the one before it may end."""
        if self._predecessor is None:
            return
        self._write_pid()
        self._open_admin()
        self._sockets.take_over()
        self._main_pid = (f"MAINPID={os.getpid()}",)
        self._predecessor.channel.send(ready=True)
        self._predecessor.channel.close()


def _number(config: Config) -> int:
    return config.workers if isinstance(config.workers, int) else cpus.usable()


def _fit(config: Config, before: Config) -> Config:
    """A new configuration with what cannot be changed by a reload. Raises ConfigError."""
    if bool(config.certfile) != bool(before.certfile):
        raise ConfigError("--certfile: TLS begins or ends with the next start")
    for name in FIXED:
        if getattr(config, name) != getattr(before, name):
            logger.warning("%s: the new value is for the next start", OPTIONS[name].label)
    kept = {name: getattr(before, name) for name in FIXED}
    return dataclasses.replace(config, **kept)


def _how(status: int) -> str:
    """How a process has ended, for the log."""
    if status >= 0:
        return f"has exited with status {status}"
    text = f"was ended by {signal.Signals(-status).name}"
    if -status == signal.SIGKILL:
        text += " (somebody's, or the kernel's for want of memory)"
    return text


def _poll(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _is_stopped(pid: int) -> bool:
    """By a signal, or by a debugger."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


def _refuse_threads() -> None:
    """A thread is not there after a fork, but the locks that it holds are."""
    try:
        number = len(os.listdir("/proc/self/task"))
    except OSError:
        number = threading.active_count()
    if number > 1:
        names = [each.name for each in threading.enumerate() if each is not threading.main_thread()]
        raise ServerError(
            f"--preload: the application has started a thread ({', '.join(names) or 'not Python'}),"
            " and a process with threads cannot be forked"
        )


def _interpreter_flags() -> list[str]:
    """The options of this interpreter, which a worker's should have as well."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return flags


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket that the numbers of the signals arrive on, from now on."""
    receiver, sender = socket.socketpair()
    with receiver, sender:
        receiver.setblocking(False)
        sender.setblocking(False)
        before = {number: signal.signal(number, _taken_note_of) for number in SIGNALS}
        wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        try:
            yield receiver
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)


def _taken_note_of(number: int, frame: object) -> None:
    """The number has been written to the socket already."""


def _received(signals: socket.socket) -> bytes:
    try:
        return signals.recv(4096)
    except BlockingIOError:
        return b""


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    """A process that is started here begins with the signals held back: until it is able to
    handle them, none of those that reach the whole group may end it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
