"""Checks by the number of what they check, and how they are run."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from inspect import isgeneratorfunction
from typing import Any

from conformance.client import Failed, NotApplicable
from conformance.server import Target

PASS, FAIL, NOT_APPLICABLE = "pass", "fail", "not applicable"


@dataclass(frozen=True)
class Check:
    """`run` raises Failed or NotApplicable; what it returns was seen when it passed. A generator
    begins before all others and is gone on with after them: what it waits for takes its time."""

    number: str
    run: Callable[[Target], Any]

    @property
    def name(self) -> str:
        return self.run.__name__


@dataclass(frozen=True)
class Outcome:
    check: Check
    result: str
    seen: str

    @property
    def text(self) -> str:
        """What was seen; where it should not have been, with what was looked at."""
        if self.result != FAIL:
            return self.seen
        return f"{self.check.name.replace('_', ' ')}: {self.seen}"


CHECKS: list[Check] = []


def check(number: str) -> Callable[[Callable[[Target], Any]], Callable[[Target], Any]]:
    def register(run: Callable[[Target], Any]) -> Callable[[Target], Any]:
        CHECKS.append(Check(number, run))
        return run

    return register


def expect(condition: Any, seen: str) -> None:
    """Fails, with what was seen in place of it, unless the condition holds."""
    if not condition:
        raise Failed(seen)


def outcome_of(check: Check, step: Callable[[], Any]) -> Outcome:
    try:
        seen = step()
    except Failed as failure:
        return Outcome(check, FAIL, str(failure))
    except NotApplicable as reason:
        return Outcome(check, NOT_APPLICABLE, str(reason))
    except OSError as error:
        return Outcome(check, FAIL, f"the connection failed: {error!r}")
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome(check, FAIL, f"{error!r} in {where.name}, line {where.lineno}")
    return Outcome(check, PASS, seen or "")


def run(checks: Iterable[Check], target: Target) -> Iterator[Outcome]:
    """The outcome of each check as soon as it is there."""
    begun: list[tuple[Check, Generator[None, None, Any]]] = []
    at_once = []
    try:
        for each in checks:
            if isgeneratorfunction(each.run):
                begun.append((each, each.run(target)))
            else:
                at_once.append(each)
        waiting = []
        for each, generator in begun:
            outcome = outcome_of(each, partial(next, generator))
            if outcome.result == PASS:
                waiting.append((each, generator))
            else:
                yield outcome
        for each in at_once:
            yield outcome_of(each, partial(each.run, target))
            target.tidy()
        for each, generator in waiting:
            yield outcome_of(each, partial(finish, generator))
    finally:
        target.end()


def finish(generator: Generator[None, None, Any]) -> Any:
    try:
        next(generator)
    except StopIteration as end:
        return end.value
    raise RuntimeError("a check paused twice")
