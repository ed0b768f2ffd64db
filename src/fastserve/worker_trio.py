"""The trio worker: a pool of tasks, and a pump that polls the reactor."""

from __future__ import annotations

import collections
import contextlib
import signal
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Generator,
    Iterable,
)
from typing import Any, ClassVar

import trio
from trio.lowlevel import Abort, RaiseCancelT, Task

from fastserve._conversation import ApplicationCall, Conversation
from fastserve._reactor import Reactor
from fastserve.worker import READABLE, WRITABLE, Worker

__all__ = ["TrioWorker"]

# Tasks kept for the next calls when there is nothing to do.
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
    """A task of the pool, in which nothing runs."""

    __slots__ = ("idle", "task")

    def __init__(self, task: Task, idle: list[PooledTask]) -> None:
        self.task = task
        self.idle = idle

    def abort(self, _: RaiseCancelT) -> Abort:
        self.idle.remove(self)
        return Abort.SUCCEEDED


class TrioWorker(Worker):
    """The running trio loop."""

    name: ClassVar[str] = "trio"
    can_debug: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.calls: collections.deque[ApplicationCall] = collections.deque()
        self.has_runner = False
        self.idle: list[PooledTask] = []
        self.scopes: dict[Task, trio.CancelScope] = {}
        self.callbacks: list[Callable[[], object]] = []
        self.caller = TrioWaiter()
        self.watchers: dict[tuple[int, int], trio.CancelScope] = {}
        self.driving = False
        self.pumping = trio.CancelScope()
        self.signals = contextlib.ExitStack()
        self.reactor: Reactor
        self.nursery: trio.Nursery
        self.nursery_manager = trio.open_nursery()
        self.token = trio.lowlevel.current_trio_token()
        self.root = trio.lowlevel.current_root_task()

    @classmethod
    def run(cls, main: Callable[[], Coroutine[Any, Any, None]], *, debug: bool = False) -> None:
        trio.run(main)

    def spawn(self, call: ApplicationCall) -> None:
        self.calls.append(call)
        if self.has_runner:
            return
        self.has_runner = True
        if self.idle:
            trio.lowlevel.reschedule(self.idle.pop().task)
        else:
            # The new task's context is a copy of the one it is started in.
            self.context.run(self.nursery.start_soon, self._run_calls)

    def _give_way(self) -> None:
        """The runner is suspended in a call, or ends: the rest is for another task."""
        self.has_runner = False
        if self.calls:
            self.spawn(self.calls.pop())  # put back as it was, and a runner called

    async def _run_calls(self) -> None:
        """A task of the pool. While it is the runner it makes one call after the other in a
        single step, since a step of trio's costs more than most calls. A call that suspends
        keeps the task, and another one becomes the runner."""
        task = trio.lowlevel.current_task()
        pooled = PooledTask(task, self.idle)
        # Looked up once for the task's life, not for each call.
        calls, idle, give_way, abort = self.calls, self.idle, self._give_way, pooled.abort
        new_context, park = self.context.copy, trio.lowlevel.wait_task_rescheduled
        is_runner = True
        sound = True
        # One scope for the task's whole life: one for each call costs far more.
        scope = trio.CancelScope()
        self.scopes[task] = scope
        try:
            with scope:
                status = getattr(task, "_cancel_status", None)
                while True:
                    while is_runner and sound and calls:
                        call = calls.popleft()
                        # What trio makes the task's next step in, if the call suspends.
                        task.context = context = new_context()
                        call.enter(context, give_way)
                        try:
                            await call
                        finally:
                            is_runner = not call.suspended
                        # A scope or nursery that the application left open, in a generator
                        # that it never closed, would surround the next call.
                        sound = status is not None and task._cancel_status is status
                        del call  # not to be kept while the task waits
                    if not sound or len(idle) >= MOST_IDLE:
                        break
                    if is_runner:
                        is_runner = self.has_runner = False
                    idle.append(pooled)
                    await park(abort)
                    is_runner = True
        except RuntimeError:
            if sound:
                raise  # otherwise trio complains of what this task ends for
        finally:
            del self.scopes[task]
            if is_runner:
                give_way()

    def raised(self, conversation: Conversation, error: BaseException) -> bool:
        if isinstance(error, trio.Cancelled):
            conversation.cancelled()
            return True
        cancelled = None
        if isinstance(error, BaseExceptionGroup):
            cancelled, rest = error.split(trio.Cancelled)
            if rest is None:
                conversation.cancelled()
                return True
            error = rest
        conversation.finished(error)
        if isinstance(error, KeyboardInterrupt):
            # Not through the nursery, which it would end: as the signal that it is.
            signal.raise_signal(signal.SIGINT)
        if cancelled is not None:
            raise cancelled from None
        return False

    def waiter(self) -> TrioWaiter:
        return TrioWaiter()

    def wake(self, waiter: TrioWaiter) -> None:
        waiter.wake()

    def checkpoint(self) -> Coroutine[Any, Any, None]:
        return trio.lowlevel.checkpoint()

    def soon(self, callback: Callable[[], object]) -> None:
        self.callbacks.append(callback)
        self.caller.wake()

    def later(self, seconds: float, callback: Callable[[], object]) -> None:
        self.nursery.start_soon(self._call_later, seconds, callback)

    async def _call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        await trio.sleep(seconds)
        callback()

    async def _call_soon(self) -> None:
        while True:
            await trio.lowlevel.checkpoint()
            if not self.callbacks:
                await self.caller
            callbacks, self.callbacks = self.callbacks, []
            for callback in callbacks:
                callback()

    def cancel(self, calls: Collection[ApplicationCall]) -> None:
        for task, scope in self.scopes.items():
            # What `_run_calls` awaits.
            if getattr(task.coro, "cr_await", None) in calls:
                scope.cancel()

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
        with self.signals, contextlib.closing(self.threads):
            return await self.nursery_manager.__aexit__(*error)

    def drive(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.driving = True
        self.nursery.start_soon(self._pump if reactor.fileno() >= 0 else self._tick, reactor)

    async def _pump(self, reactor: Reactor) -> None:
        # No scope or deadline in the loop: each would cost more than the request.
        fd, wait_readable = reactor.fileno(), trio.lowlevel.wait_readable
        with self.pumping:
            while self.driving:
                await wait_readable(fd)
                # After a batch there is likely more: asking costs less than waiting. After
                # a single event there is likely nothing.
                while reactor.poll() > 1:
                    await trio.lowlevel.checkpoint()

    def stop_driving(self) -> None:
        # A task that waits for a descriptor must not meet the number's next owner.
        self.driving = False
        self.pumping.cancel()

    async def _tick(self, reactor: Reactor) -> None:
        while True:
            await trio.sleep(reactor.tick_interval)
            reactor.tick()

    def start(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        self.nursery.start_soon(function, *args)

    async def within(
        self, seconds: float, function: Callable[[], Awaitable[object]], *, shielded: bool = False
    ) -> bool:
        with trio.move_on_after(seconds, shield=shielded) as scope:
            await function()
        return not scope.cancelled_caught

    def cancel_calls(self) -> None:
        for scope in self.scopes.values():
            scope.cancel()

    def tasks(self) -> Iterable[tuple[str, Any]]:
        left = [] if self.root is None else [self.root]
        while left:
            task = left.pop()
            yield task.name, task.coro
            for nursery in task.child_nurseries:
                left += nursery.child_tasks

    def call_threadsafe(self, callback: Callable[..., object], *args: Any) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self.token.run_sync_soon(callback, *args)

    def on_signals(self, signals: tuple[int, ...], callback: Callable[[int], None]) -> None:
        # Here, not in the task, which may begin after the application has.
        received = self.signals.enter_context(
            trio.open_signal_receiver(*(signal.Signals(number) for number in signals))
        )
        self.nursery.start_soon(self._receive_signals, received, callback)

    async def _receive_signals(
        self, received: AsyncIterator[int], callback: Callable[[int], None]
    ) -> None:
        async for number in received:
            callback(number)
