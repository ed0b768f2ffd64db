"""Where threads and coroutines stand, as text for the log. No event loop is known here."""

from __future__ import annotations

import collections
import gc
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

__all__ = ["of_call", "of_coroutine", "of_tasks", "of_thread", "of_threads"]

# The innermost frames of each stack, and the most kinds of stacks that are written.
MOST_FRAMES = 50
MOST_STACKS = 200
# Of a call: the most tasks in its groups.
MOST_CHILDREN = 10
# What coroutines, generators and asynchronous generators call their frame and what they await.
FRAMES = ("cr_frame", "gi_frame", "ag_frame")
AWAITED = ("cr_await", "gi_yieldfrom", "ag_await")
# Types that hold the tasks which a coroutine waits for: asyncio's and anyio's, and trio's.
GROUPS = ("TaskGroup", "Nursery")
# And those that have a thread work for it, whose id is their `thread`: ours.
ATTENDED = ("Attended",)

NOWHERE = "  (not in Python code)\n"


def of_thread(ident: int) -> str:
    """The stack of a running thread, as in a traceback."""
    frame = sys._current_frames().get(ident)
    return NOWHERE if frame is None else _of_frame(frame)


def of_threads() -> str:
    """Those of all other threads, each below its name."""
    own = threading.get_ident()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "".join(
        f"Thread {names.get(ident, ident)}:\n{_of_frame(frame)}"
        for ident, frame in sys._current_frames().items()
        if ident != own
    )


def of_coroutine(coroutine: Any) -> str:
    """Of a coroutine and what it awaits, as in a traceback; of one that runs only its own."""
    return _of_frames(list(_awaited(coroutine)))


def of_call(coroutine: Any) -> str:
    """The same, with the tasks in the groups that these have open, and in theirs, and the threads
    that they wait for."""
    seen: set[int] = set()
    left = [coroutine]
    parts: list[str] = []
    while left and len(parts) <= MOST_CHILDREN:
        frames = list(_awaited(left.pop(0)))
        parts.append(_of_frames(frames))
        for frame in frames:
            for each in _values(frame, ATTENDED, seen):
                if each.thread:
                    parts[-1] += f"and in a thread of its own\n{of_thread(each.thread)}"
            left += _children(frame, seen)
    return "and in a task of its own\n".join(parts)


def of_tasks(tasks: Iterable[tuple[str, Any]]) -> str:
    """Of tasks, by name and coroutine; those at the same place are told of together."""
    kinds: dict[str, list[str]] = collections.defaultdict(list)
    for name, coroutine in tasks:
        kinds[of_coroutine(coroutine)].append(name)
    parts = []
    for stack, names in list(kinds.items())[:MOST_STACKS]:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        parts.append(f"Task {names[0]}{more}:\n{stack}")
    if len(kinds) > MOST_STACKS:
        parts.append(f"and tasks at {len(kinds) - MOST_STACKS} other places\n")
    return "".join(parts)


def _of_frame(frame: FrameType) -> str:
    return "".join(traceback.format_stack(frame, MOST_FRAMES))


def _of_frames(frames: list[FrameType]) -> str:
    pairs = ((frame, frame.f_lineno) for frame in frames[-MOST_FRAMES:])
    return "".join(traceback.StackSummary.extract(pairs).format()) or NOWHERE


def _children(frame: FrameType, seen: set[int]) -> list[Any]:
    """The coroutines of the tasks in groups that it has as local variables and that were not
    `seen` before."""
    found: list[Any] = []
    for value in _values(frame, GROUPS, seen):
        nursery: Any = getattr(value, "_nursery", value)
        tasks: Any = getattr(nursery, "child_tasks", None) or getattr(value, "_tasks", ())
        found += [task.get_coro() if hasattr(task, "get_coro") else task.coro for task in tasks]
    return found


def _values(frame: FrameType, types: Iterable[str], seen: set[int]) -> Iterator[Any]:
    """Its local variables of types of these names that were not `seen` before."""
    for value in frame.f_locals.values():
        if type(value).__name__ in types and id(value) not in seen:
            seen.add(id(value))
            yield value


def _awaited(awaitable: Any) -> Iterator[FrameType]:
    """The outermost frame first."""
    while awaitable is not None:
        frame = _first(awaitable, FRAMES)
        if frame is not None:
            yield frame
        if type(awaitable).__name__ in ("async_generator_asend", "async_generator_athrow"):
            awaitable = _generator_of(awaitable)
        else:
            awaitable = _first(awaitable, AWAITED)


def _first(found: Any, names: tuple[str, ...]) -> Any:
    values = (getattr(found, name, None) for name in names)
    return next((value for value in values if value is not None), None)


def _generator_of(step: Any) -> Any:
    """What `anext()` and its kin have returned does not tell of which generator it is a step."""
    return next((each for each in gc.get_referents(step) if hasattr(each, "ag_frame")), None)
