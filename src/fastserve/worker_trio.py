"""The trio worker: a pool of tasks, and a pump that polls the reactor."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, ClassVar

import trio
from trio.lowlevel import Abort, RaiseCancelT, Task

from fastserve._http1 import HttpExchange
from fastserve._reactor import Reactor
from fastserve.worker import READABLE, WRITABLE, Worker

__all__ = ["TrioWorker"]

# Tasks kept for the next exchanges when there is nothing to do.
MOST_IDLE = 128


class TrioWaiter:
    """A task that waits, at most one at a time."""

    __slots__ = ("task",)

    def __init__(self) -> None:
        self.task: Task | None = None

    def __await__(self) -> Generator[Any, Any, None]:
        return self._wait().__await__()

    async def _wait(self) -> None:
        def abort(_: RaiseCancelT) -> Abort:
            self.task = None
            return Abort.SUCCEEDED

        self.task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def wake(self) -> None:
        # Rescheduling a task twice, or after its abort, would end trio.run itself.
        if self.task is not None:
            task, self.task = self.task, None
            trio.lowlevel.reschedule(task)


class PooledTask:
    """A task of the pool, and the exchange that it is to run next."""

    __slots__ = ("exchange", "task", "waiter")

    def __init__(self, task: Task) -> None:
        self.task = task
        self.waiter = TrioWaiter()
        self.exchange: HttpExchange | None = None


class TrioWorker(Worker):
    """The running trio loop."""

    name: ClassVar[str] = "trio"

    def __init__(self) -> None:
        super().__init__()
        self.idle: list[PooledTask] = []
        self.scopes: set[trio.CancelScope] = set()
        self.callbacks: list[Callable[[], object]] = []
        self.caller = TrioWaiter()
        self.watchers: dict[tuple[int, int], trio.CancelScope] = {}
        self.reactor: Reactor
        self.nursery: trio.Nursery
        self.nursery_manager = trio.open_nursery()

    @classmethod
    def run(cls, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        trio.run(main)

    def spawn(self, exchange: HttpExchange) -> None:
        if not self.idle:
            self.nursery.start_soon(self._run_exchanges, exchange)
            return
        pooled = self.idle.pop()
        pooled.exchange = exchange
        # Before it is rescheduled: the switch of contexts comes with the task's next step.
        pooled.task.context = self.context.copy()
        pooled.waiter.wake()

    async def _run_exchanges(self, exchange: HttpExchange) -> None:
        task = trio.lowlevel.current_task()
        pooled = PooledTask(task)
        following: HttpExchange | None = exchange
        sound = True
        # One scope for the task's whole life: one for each exchange costs far more.
        scope = trio.CancelScope()
        self.scopes.add(scope)
        try:
            with scope:
                status = _cancel_status(task)
                while following is not None:
                    await _run_exchange(following)
                    # A scope or nursery that the application left open, in a generator
                    # that it never closed, would surround the next exchange.
                    sound = status is not None and _cancel_status(task) is status
                    following = await self._next(pooled) if sound else None
        except RuntimeError:
            if sound:
                raise  # otherwise trio complains of what this task ends for
        finally:
            self.scopes.discard(scope)

    async def _next(self, pooled: PooledTask) -> HttpExchange | None:
        """Wait in the pool for another exchange; None: there are tasks enough."""
        if len(self.idle) >= MOST_IDLE:
            return None
        pooled.exchange = None
        self.idle.append(pooled)
        try:
            await pooled.waiter
        except BaseException:
            if pooled in self.idle:
                self.idle.remove(pooled)
            raise
        return pooled.exchange

    def waiter(self) -> TrioWaiter:
        return TrioWaiter()

    def wake(self, waiter: TrioWaiter) -> None:
        waiter.wake()

    def checkpoint(self) -> Coroutine[Any, Any, None]:
        return trio.lowlevel.checkpoint()

    def soon(self, callback: Callable[[], object]) -> None:
        self.callbacks.append(callback)
        self.caller.wake()

    async def _call_soon(self) -> None:
        while True:
            await trio.lowlevel.checkpoint()
            if not self.callbacks:
                await self.caller
            callbacks, self.callbacks = self.callbacks, []
            for callback in callbacks:
                callback()

    def watch(self, fd: int, token: int, before: int, interest: int) -> None:
        for direction in (READABLE, WRITABLE):
            if (before ^ interest) & direction:
                if interest & direction:
                    scope = self.watchers[fd, direction] = trio.CancelScope()
                    self.nursery.start_soon(self._watch, fd, token, direction, scope)
                else:
                    self.watchers.pop((fd, direction)).cancel()

    async def _watch(self, fd: int, token: int, direction: int, scope: trio.CancelScope) -> None:
        wait = trio.lowlevel.wait_readable if direction == READABLE else trio.lowlevel.wait_writable
        with scope, contextlib.suppress(trio.ClosedResourceError):
            while not scope.cancel_called:
                await wait(fd)
                self.reactor.ready(token, direction)

    def forget(self, fd: int, before: int) -> None:
        self.watch(fd, 0, before, 0)
        # Else a waiter would stay for ever, or wait for the next owner of the number.
        trio.lowlevel.notify_closing(fd)

    async def __aenter__(self) -> TrioWorker:
        outer = await self.nursery_manager.__aenter__()
        self.nursery = await outer.start(self._keep_nursery)
        return self

    async def _keep_nursery(self, task_status: trio.TaskStatus[trio.Nursery]) -> None:
        # When serve() is cancelled, its tasks go on until it has had them finish.
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.shield = True
            nursery.start_soon(self._call_soon)
            task_status.started(nursery)

    async def __aexit__(self, *error: Any) -> bool | None:
        self.nursery.cancel_scope.cancel()
        return await self.nursery_manager.__aexit__(*error)

    def drive(self, reactor: Reactor, tick_interval: float) -> None:
        self.reactor = reactor
        if reactor.fileno() >= 0:
            self.nursery.start_soon(self._pump, reactor)
        self.nursery.start_soon(self._tick, reactor, tick_interval)

    async def _pump(self, reactor: Reactor) -> None:
        # No scope or deadline here: each would cost more than the request.
        while True:
            await trio.lowlevel.wait_readable(reactor.fileno())
            while reactor.poll():
                await trio.lowlevel.checkpoint()

    async def _tick(self, reactor: Reactor, interval: float) -> None:
        while True:
            await trio.sleep(interval)
            reactor.tick()

    def start(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        self.nursery.start_soon(function, *args)

    async def within(self, seconds: float, function: Callable[[], Awaitable[object]]) -> bool:
        with trio.move_on_after(seconds, shield=True) as scope:
            await function()
        return not scope.cancelled_caught

    def cancel_exchanges(self) -> None:
        for scope in self.scopes:
            scope.cancel()

    def on_signals(self, signals: tuple[int, ...], callback: Callable[[int], None]) -> None:
        self.nursery.start_soon(self._receive_signals, signals, callback)

    async def _receive_signals(
        self, signals: tuple[int, ...], callback: Callable[[int], None]
    ) -> None:
        with trio.open_signal_receiver(*(signal.Signals(number) for number in signals)) as received:
            async for number in received:
                callback(number)


def _cancel_status(task: Task) -> object | None:
    """What tells the scopes that surround a task; None where trio has it no longer."""
    return getattr(task, "_cancel_status", None)


async def _run_exchange(exchange: HttpExchange) -> None:
    try:
        await exchange.start()
    except trio.Cancelled:
        exchange.cancelled()
        raise
    except KeyboardInterrupt as error:
        # Not through the nursery, which it would end: as the signal that it is.
        exchange.finished(error)
        signal.raise_signal(signal.SIGINT)
    except BaseExceptionGroup as group:
        cancelled, rest = group.split(trio.Cancelled)
        if rest is None:
            exchange.cancelled()
        else:
            exchange.finished(rest)
        if cancelled is not None:
            raise cancelled from None
    except BaseException as error:
        exchange.finished(error)
    else:
        exchange.finished(None)
