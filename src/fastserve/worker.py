"""The contract between an event loop and everything else.

A worker is the one place that knows its loop. The compiled core asks it to run an
application as a task, to suspend a task until it is woken, and to poll the reactor;
the server asks it for time, signals and background tasks. It knows no HTTP and no
ASGI message.
"""

from __future__ import annotations

import contextvars
import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Coroutine, Generator, Iterable
from typing import Any, ClassVar, Protocol

from fastserve._conversation import ApplicationCall, Conversation
from fastserve._reactor import Reactor
from fastserve.threads import Threads

__all__ = [
    "READABLE",
    "WORKERS",
    "WRITABLE",
    "Event",
    "MissingLibrary",
    "Waiter",
    "Worker",
    "find",
    "running",
]

# Interest in a descriptor, for the loop's poller: the bits that the reactor uses.
READABLE = 1
WRITABLE = 2

WORKERS = {
    "asyncio": "fastserve.worker_asyncio:AsyncioWorker",
    "uvloop": "fastserve.worker_asyncio:UvloopWorker",
    "trio": "fastserve.worker_trio:TrioWorker",
}
LIBRARIES = {"uvloop": "uvloop", "trio": "fastserve-asgi[trio]"}


class MissingLibrary(Exception):
    """The worker's event loop is not installed; says what to install."""


class Waiter(Protocol):
    """Suspends whoever awaits it until it is woken by `Worker.wake`."""

    def __await__(self) -> Generator[Any, Any, None]: ...


class Worker(ABC):
    """One event loop, running.

    Resource handling: `async with` begins and ends it. At the end every task that it
    started is cancelled and awaited; the reactor is no longer watched, and the threads end.
    """

    name: ClassVar[str]
    can_debug: ClassVar[bool] = True

    def __init__(self) -> None:
        # Each call of the application gets a copy: none inherits what another application has set.
        self.context = contextvars.copy_context()
        self.context.run(_running.set, self)
        self.threads = Threads()

    @classmethod
    @abstractmethod
    def run(cls, main: Callable[[], Coroutine[Any, Any, None]], *, debug: bool = False) -> None:
        """Run the coroutine function `main` in a new loop, in its debug mode if it has
        one, until it returns."""

    # What the compiled core asks for.

    @abstractmethod
    def spawn(self, call: ApplicationCall) -> None:
        """Run the coroutine `call` as a task in a fresh context. The task may or may not
        have run when this returns."""

    @abstractmethod
    def raised(self, conversation: Conversation, error: BaseException) -> bool:
        """An application raised: tell its conversation whether it failed or was cancelled;
        True if the error is to go on into the loop."""

    @abstractmethod
    def waiter(self) -> Waiter: ...

    @abstractmethod
    def wake(self, waiter: Any) -> None:
        """Idempotent; does nothing after the waiting task was cancelled."""

    @abstractmethod
    def checkpoint(self) -> Coroutine[Any, Any, None]:
        """Let the loop run once."""

    @abstractmethod
    def soon(self, callback: Callable[[], object]) -> None:
        """Call `callback` when the loop has its next turn."""

    @abstractmethod
    def cancel(self, calls: Collection[ApplicationCall]) -> None:
        """Cancel those of `calls` that are still under way."""

    @abstractmethod
    def later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call `callback`, which raises nothing, in so many seconds."""

    @abstractmethod
    def watch(self, fd: int, token: int, before: int, interest: int) -> None:
        """Call `reactor.ready(token, READABLE or WRITABLE)` for what is in `interest`,
        and no longer for what was only in `before`."""

    @abstractmethod
    def forget(self, fd: int, before: int) -> None:
        """The descriptor will be closed; it was watched for `before`."""

    # What the server asks for.

    @abstractmethod
    async def __aenter__(self) -> Worker: ...

    @abstractmethod
    async def __aexit__(self, *error: object) -> bool | None: ...

    @abstractmethod
    def drive(self, reactor: Reactor) -> None:
        """Poll the reactor whenever its descriptor is readable; where it has none, tick it
        each `tick_interval`."""

    @abstractmethod
    def stop_driving(self) -> None:
        """No longer poll the reactor, whose descriptor will be closed."""

    @abstractmethod
    def start(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run a coroutine function, which handles its own errors, in the background."""

    @abstractmethod
    async def within(
        self, seconds: float, function: Callable[[], Awaitable[object]], *, shielded: bool = False
    ) -> bool:
        """Await `function()`, for so long at the most; False if the time was over. When
        shielded, it runs to its end even if the caller has been cancelled before."""

    @abstractmethod
    def cancel_calls(self) -> None:
        """Cancel every call of the application that is under way."""

    @abstractmethod
    def tasks(self) -> Iterable[tuple[str, Any]]:
        """From any thread: the name of each task in the loop, and its coroutine."""

    @abstractmethod
    def call_threadsafe(self, callback: Callable[..., object], *args: Any) -> None:
        """From any thread: call `callback`, which raises nothing, in the loop. Does nothing
        once the loop has ended."""

    @abstractmethod
    def on_signals(self, signals: tuple[int, ...], callback: Callable[[int], None]) -> None:
        """Call `callback` with each of `signals` from now on, while the worker lasts."""


_running: contextvars.ContextVar[Worker] = contextvars.ContextVar("running")


def running() -> Worker:
    """The worker that runs the application that asks. Raises RuntimeError if there is none."""
    worker = _running.get(None)
    if worker is None:
        raise RuntimeError("this runs on fastserve only")
    return worker


class Event:
    """Set once; wakes all who wait. The same for every loop."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        # In order; a dict, since there may be thousands, each of which may leave.
        self._waiters: dict[Waiter, None] = {}
        self.is_set = False

    def set(self) -> None:
        self.is_set = True
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            self._worker.wake(waiter)

    async def wait(self) -> None:
        while not self.is_set:
            waiter = self._worker.waiter()
            self._waiters[waiter] = None
            try:
                await waiter
            finally:
                self._waiters.pop(waiter, None)


def find(name: str) -> type[Worker]:
    """The class of the worker `name`; its module is imported only now.

    Raises MissingLibrary."""
    if name in LIBRARIES and importlib.util.find_spec(name) is None:
        raise MissingLibrary(f"worker class {name!r} needs {name}: pip install {LIBRARIES[name]!r}")
    module, _, attribute = WORKERS[name].partition(":")
    found: type[Worker] = getattr(importlib.import_module(module), attribute)
    return found
