"""A function that blocks, in a thread, and the task that waits for it.

What the function needs of the loop it asks its task for, so that nothing of the loop's is
ever touched from another thread, and the same code runs on every loop.
"""

from __future__ import annotations

import collections
import contextvars
import functools
import threading
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from fastserve.worker import Event, Waiter, Worker

__all__ = ["Abandoned", "Attended"]

T = TypeVar("T")

# For a thread whose task was cancelled: until then it may end in order.
PATIENCE = 5.0


class Abandoned(ConnectionError):
    """The task was cancelled, or has ended: nobody does what the thread asks for."""


class Attended:
    """One function in one of the worker's threads, and the task that attends it.

    Error handling: what the function raises comes out of `attend`, what an errand raises out
    of `ask`; nobody waits for what was told, so its error ends the task. When the task has
    ended, or was cancelled, `ask` and `tell` raise Abandoned; the task gives the function some
    seconds to end, then leaves it alone.
    """

    def __init__(self, worker: Worker) -> None:
        self.thread = 0  # the id of the one that runs the function
        self._worker = worker
        self._one_at_a_time = threading.Lock()
        self._answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._errands: collections.deque[tuple[Callable[[], Awaitable[Any]], bool]]
        self._errands = collections.deque()
        self._waiter: Waiter | None = None
        self._begun = False
        self._abandoned = False
        self._ended = Event(worker)
        self._error: BaseException | None = None

    async def attend(self, function: Callable[[], None]) -> None:
        """Run `function()` in a thread, in a copy of this context, and do its errands."""
        context = contextvars.copy_context()
        try:
            # Where no thread can be started, the function still waits for the first that is.
            self._worker.threads.start(functools.partial(context.run, self._run, function))
            await self._do_errands()
        finally:
            self._abandoned = True
            # For whoever asks just now: an errand that nobody will do has an answer too.
            self._answers.put((None, Abandoned("nobody attends any more")))
            if self._begun and not self._ended.is_set:
                await self._worker.within(PATIENCE, self._ended.wait, shielded=True)
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback has this frame

    def ask(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """From the thread: have the task await `function(*args)`, and wait for what it returns."""
        with self._one_at_a_time:
            if self._abandoned:
                raise Abandoned("nobody attends any more")
            self._worker.call_threadsafe(self._take, functools.partial(function, *args), True)
            answer: tuple[T, BaseException | None] = self._answers.get()
        result, error = answer
        if error is None:
            return result
        del answer
        try:
            raise error
        finally:
            del error

    def tell(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        """From the thread: have the task await `function(*args)`, and go on."""
        if self._abandoned:
            raise Abandoned("nobody attends any more")
        self._worker.call_threadsafe(self._take, functools.partial(function, *args), False)

    async def _do_errands(self) -> None:
        while True:
            while not self._errands:
                if self._ended.is_set:
                    return
                self._waiter = self._worker.waiter()
                await self._waiter
            errand, is_awaited = self._errands.popleft()
            try:
                answer = await errand()
            except Exception as error:
                if not is_awaited:
                    raise
                self._answers.put((None, error))
            else:
                if is_awaited:
                    self._answers.put((answer, None))
                del answer
            del errand

    def _run(self, function: Callable[[], None]) -> None:
        # Whoever is second of this and `attend` sees what the other has set.
        self._begun = True
        if not self._abandoned:
            self.thread = threading.get_ident()
            try:
                function()
            except BaseException as error:
                self._error = error
            self.thread = 0
        self._worker.call_threadsafe(self._end)

    def _take(self, errand: Callable[[], Awaitable[Any]], is_awaited: bool) -> None:
        self._errands.append((errand, is_awaited))
        self._wake()

    def _end(self) -> None:
        self._ended.set()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None:
            self._worker.wake(self._waiter)
