"""The asyncio and uvloop workers: they differ in the loop's factory alone."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from typing import Any, ClassVar

from fastserve._conversation import ApplicationCall, Conversation, TaskStarter
from fastserve._reactor import Reactor
from fastserve.worker import READABLE, WRITABLE, Worker

__all__ = ["AsyncioWorker", "UvloopWorker"]


class AsyncioWorker(Worker):
    """The running asyncio loop, whichever made it."""

    name: ClassVar[str] = "asyncio"

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        # A task that nobody holds may be collected while it waits.
        self.calls: set[asyncio.Task[None]] = set()
        self.background: set[asyncio.Task[None]] = set()
        self.signals: tuple[int, ...] = ()
        self.timer: asyncio.TimerHandle | None = None
        self.reactor: Reactor
        # uvloop tells of a reset once and then of nothing more, although there may be something
        # to read before it: so it is read until there is nothing, but not for ever.
        self.reads = 32 if type(self.loop).__module__.startswith("uvloop") else 1

    @staticmethod
    def new_loop() -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop()

    @classmethod
    def run(cls, main: Callable[[], Coroutine[Any, Any, None]], *, debug: bool = False) -> None:
        # None leaves it to PYTHONASYNCIODEBUG.
        with asyncio.Runner(debug=debug or None, loop_factory=cls.new_loop) as runner:
            runner.run(main())

    if sys.version_info >= (3, 12):

        @property
        def spawn(self) -> Callable[[ApplicationCall], None]:
            tasks = TaskStarter(
                asyncio.Task, self.calls, self.context, loop=self.loop, eager_start=True
            )
            return tasks.start
    else:

        def spawn(self, call: ApplicationCall) -> None:
            task = self.loop.create_task(call, context=self.context.copy())
            self.calls.add(task)
            task.add_done_callback(self.calls.discard)

    def raised(self, conversation: Conversation, error: BaseException) -> bool:
        if isinstance(error, asyncio.CancelledError):
            # An application may also raise it of its own accord: that is its error.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                conversation.cancelled()
                return True
        conversation.finished(error)
        if isinstance(error, KeyboardInterrupt):
            # Not through the reactor, which it would tear apart: as the signal that it is.
            signal.raise_signal(signal.SIGINT)
        return False

    def waiter(self) -> asyncio.Future[None]:
        return self.loop.create_future()

    def wake(self, waiter: asyncio.Future[None]) -> None:
        if not waiter.done():
            waiter.set_result(None)

    def checkpoint(self) -> Coroutine[Any, Any, None]:
        return asyncio.sleep(0)

    def soon(self, callback: Callable[[], object]) -> None:
        self.loop.call_soon(callback)

    def later(self, seconds: float, callback: Callable[[], object]) -> None:
        self.loop.call_later(seconds, callback)

    def cancel(self, calls: Collection[ApplicationCall]) -> None:
        for task in self.calls:
            if task.get_coro() in calls:
                task.cancel()

    def watch(self, fd: int, token: int, before: int, interest: int) -> None:
        if (before ^ interest) & READABLE:
            if interest & READABLE:
                self.loop.add_reader(fd, self._readable, token)
            else:
                self.loop.remove_reader(fd)
        if (before ^ interest) & WRITABLE:
            if interest & WRITABLE:
                self.loop.add_writer(fd, self.reactor.ready, token, WRITABLE)
            else:
                self.loop.remove_writer(fd)

    def _readable(self, token: int) -> None:
        for _ in range(self.reads):
            if not self.reactor.ready(token, READABLE):
                break

    def forget(self, fd: int, before: int) -> None:
        self.watch(fd, 0, before, 0)

    async def __aenter__(self) -> AsyncioWorker:
        return self

    async def __aexit__(self, *error: object) -> None:
        if self.timer is not None:
            self.timer.cancel()
        for number in self.signals:
            self.loop.remove_signal_handler(number)
        tasks = self.calls | self.background
        for task in tasks:
            task.cancel()
        with contextlib.closing(self.threads):
            await asyncio.gather(*tasks, return_exceptions=True)

    def drive(self, reactor: Reactor) -> None:
        self.reactor = reactor
        if reactor.fileno() >= 0:
            self.loop.add_reader(reactor.fileno(), reactor.poll)
        else:
            self._tick()

    def stop_driving(self) -> None:
        if self.reactor.fileno() >= 0:
            self.loop.remove_reader(self.reactor.fileno())

    def _tick(self) -> None:
        self.timer = self.loop.call_later(self.reactor.tick_interval, self._tick)
        self.reactor.tick()

    def start(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        task = self.loop.create_task(function(*args))
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    async def within(
        self, seconds: float, function: Callable[[], Awaitable[object]], *, shielded: bool = False
    ) -> bool:
        if shielded:
            return await self._undisturbed(self.within(seconds, function))
        try:
            async with asyncio.timeout(seconds):
                await function()
        except TimeoutError:
            return False
        return True

    async def _undisturbed(self, coroutine: Coroutine[Any, Any, bool]) -> bool:
        # A cancel scope of anyio's cancels again and again until it is left.
        task = self.loop.create_task(coroutine)
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait((task,))
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
        return task.result()

    def cancel_calls(self) -> None:
        for task in self.calls:
            task.cancel()

    def tasks(self) -> Iterable[tuple[str, Any]]:
        return [(task.get_name(), task.get_coro()) for task in asyncio.all_tasks(self.loop)]

    def call_threadsafe(self, callback: Callable[..., object], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(callback, *args)

    def on_signals(self, signals: tuple[int, ...], callback: Callable[[int], None]) -> None:
        self.signals = signals
        for number in signals:
            self.loop.add_signal_handler(number, callback, number)


class UvloopWorker(AsyncioWorker):
    """A uvloop loop."""

    name = "uvloop"

    @staticmethod
    def new_loop() -> asyncio.AbstractEventLoop:
        import uvloop

        return uvloop.new_event_loop()
