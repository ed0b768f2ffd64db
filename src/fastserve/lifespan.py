"""The lifespan conversation (ASGI lifespan spec 2.0), once for every loop."""

from __future__ import annotations

from typing import Any

from fastserve.asgi import ASGI3, Message
from fastserve.config import Config
from fastserve.log import logger
from fastserve.worker import Event, Worker

__all__ = ["Lifespan", "LifespanError"]

# What asgiref called the last event for some days in 2018; apps of that time still send it.
ALIASES = {"lifespan.cleanup.complete": "lifespan.shutdown.complete"}


class LifespanError(Exception):
    """The application did not start up, or must not be served."""


class Lifespan:
    """Start-up and shutdown of one application in one loop.

    With `auto`, an application that raises before it has answered is served without
    lifespan, as the spec asks; with `on` that is a LifespanError.
    """

    def __init__(self, application: ASGI3, worker: Worker, config: Config) -> None:
        self.application = application
        self.worker = worker
        self.config = config
        # Offered to the application; each request gets a shallow copy, or nothing at
        # all when the application takes no part.
        self.state: dict[str, Any] | None = None
        self._state: dict[str, Any] = {}
        self._started = Event(worker)
        self._stopping = Event(worker)
        self._ended = Event(worker)  # the application has answered shutdown, or returned
        self._waited = Event(worker)  # that, or nobody has the time to wait for it
        self._asked = 0  # how many events were received
        self._failure: str | None = None
        self._error: BaseException | None = None

    async def startup(self) -> None:
        """Raises LifespanError."""
        if self.config.lifespan == "off":
            return
        self.worker.start(self._run)
        if not await self.worker.within(self.config.startup_timeout, self._started.wait):
            raise LifespanError(
                f"the application did not start up within {self.config.startup_timeout:g} s"
            )
        if self._failure is not None:
            raise LifespanError(f"the application failed to start up: {self._failure}")
        if self._error is not None:
            if self.config.lifespan == "on":
                raise LifespanError("the application raised on lifespan") from self._error
            logger.info("the application has no lifespan: %r", self._error)
        elif not self._ended.is_set:
            self.state = self._state

    def interrupt(self) -> None:
        """Whoever waits for the application waits no longer."""
        self._waited.set()
        if not self._started.is_set:
            self._failure = "it was interrupted"
            self._started.set()

    async def shutdown(self, seconds: float, *, hurry: bool = False) -> None:
        """Has the application shut down, for so many seconds at the most, and until it is
        interrupted or cancelled; but not in a hurry, when it has been already."""
        if not self._started.is_set or self._ended.is_set:
            return
        self._stopping.set()
        end = self._ended if hurry else self._waited
        if not await self.worker.within(seconds, end.wait, shielded=hurry):
            logger.error("the application did not shut down within %g s", seconds)

    def _end(self) -> None:
        self._ended.set()
        self._waited.set()

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self._state,
        }
        try:
            await self.application(scope, self._receive, self._send)
        except Exception as error:
            if not self._started.is_set:
                self._error = error
            elif not self._ended.is_set:
                logger.error("the application's lifespan raised", exc_info=error)
        except SystemExit as error:
            self._failure = f"it called exit({error.code!r})"
        finally:
            self._end()
            self._started.set()

    async def _receive(self) -> Message:
        self._asked += 1
        if self._asked == 1:
            return {"type": "lifespan.startup"}
        await self._stopping.wait()
        if self._asked > 2:
            await Event(self.worker).wait()  # nothing follows: until the worker ends
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        kind = ALIASES.get(kind, kind)
        if kind == "lifespan.startup.complete" and not self._started.is_set:
            self._started.set()
        elif kind == "lifespan.startup.failed" and not self._started.is_set:
            self._failure = message.get("message") or "it gave no reason"
            self._started.set()
        elif kind == "lifespan.shutdown.complete" and self._stopping.is_set:
            self._end()
        elif kind == "lifespan.shutdown.failed" and self._stopping.is_set:
            logger.error("the application failed to shut down: %s", message.get("message", ""))
            self._end()
        else:
            raise RuntimeError(f"send(): {kind!r} is not what the lifespan waits for")
