"""Outcomes of checks as verdicts on requirements; as text, JSON, and a page for the documentation."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from conformance.checks import FAIL, NOT_APPLICABLE, PASS, Outcome
from conformance.requirements import GROUPS, REQUIREMENTS, group_of

SIGNS = {PASS: "yes", FAIL: "**no**", NOT_APPLICABLE: "-"}


@dataclass(frozen=True)
class Verdict:
    """On one requirement: the worst result of its checks, and what they saw."""

    number: str
    result: str
    seen: str


@dataclass(frozen=True)
class Report:
    """On one server."""

    name: str
    version: str
    command: str
    verdicts: dict[str, Verdict]

    def count(self, result: str) -> int:
        return sum(verdict.result == result for verdict in self.verdicts.values())

    def as_json(self) -> dict[str, Any]:
        return {
            "server": self.name,
            "version": self.version,
            "command": self.command,
            "requirements": {
                number: {"result": verdict.result, "seen": verdict.seen}
                for number, verdict in self.verdicts.items()
            },
        }


def verdicts(outcomes: Sequence[Outcome]) -> dict[str, Verdict]:
    """By number, in the order of the requirements."""
    found = {}
    for number in REQUIREMENTS:
        own = [outcome for outcome in outcomes if outcome.check.number == number]
        for result in (FAIL, PASS, NOT_APPLICABLE):
            seen = [outcome.text for outcome in own if outcome.result == result]
            if seen:
                found[number] = Verdict(
                    number, result, "; ".join(dict.fromkeys(filter(None, seen)))
                )
                break
    return found


def table(report: Report) -> str:
    """For a terminal."""
    lines = []
    for number, verdict in report.verdicts.items():
        lines.append(f"{number:4} {verdict.result:15} {REQUIREMENTS[number].text}")
        if verdict.seen:
            lines.append(f"{'':21}{verdict.seen}")
    counts = ", ".join(f"{report.count(result)} {result}" for result in SIGNS)
    return "\n".join([*lines, "", f"{report.name} {report.version}: {counts}"])


def page(reports: Sequence[Report], today: date) -> str:
    """docs/conformance.md."""
    parts = [_INTRODUCTION, _circumstances(reports, today), _totals(reports)]
    for group in GROUPS:
        numbers = [number for number in REQUIREMENTS if group_of(number) == group]
        parts += [f"## {group}", _group(reports, numbers)]
    parts += ["## What was seen", *(_failures(report) for report in reports)]
    parts += ["## How they were started", _commands(reports)]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """\
# Conformance

<!-- Written by `make conformance`. -->

What ASGI, HTTP and WebSocket ask of a server, and who does it. Everything here was seen from
outside: each server is started as a process with an application that keeps a journal, is talked to
in bytes over a socket, and judged by what comes back and by what its application was given. The
checks are in `tests/conformance`, need nothing but Python, and take any server by its command:

```
cd tests && python -m conformance --cmd 'uvicorn --port {port} {app}'
```

*yes*: all checks of the requirement passed. **no**: one failed, and below is what was seen.
*-*: there is nothing to judge, since the server does not offer it, or claims a version of the
specification that does not ask for it. R1 to R91 are ASGI's (3.0; HTTP and WebSocket 2.5, lifespan
2.0, extensions), H1 to H13 are those of HTTP/1.1 and WebSocket that ASGI leaves to the server, X1
to X8 are nobody's rule, but what a server needs in service. Servers have reasons for some of what
they do otherwise; this says only what they do."""


def _circumstances(reports: Sequence[Report], today: date) -> str:
    versions: dict[str, str] = {}
    for report in reports:
        versions.setdefault(report.name.partition("-")[0], report.version)
    servers = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"Seen on {today.isoformat()}, {platform.system()} {platform.machine()}, "
        f"CPython {platform.python_version()}: {servers}."
    )


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _head(first: Sequence[str], reports: Sequence[Report]) -> list[str]:
    names = [report.name.replace("-", " ") for report in reports]
    rule = ["---"] * len(first) + [":-:"] * len(names)
    return [_row([*first, *names]), _row(rule)]


def _totals(reports: Sequence[Report]) -> str:
    words = {PASS: "yes", FAIL: "no", NOT_APPLICABLE: "-"}
    rows = [
        _row([word, *(str(report.count(result)) for report in reports)])
        for result, word in words.items()
    ]
    return "\n".join([*_head([""], reports), *rows])


def _group(reports: Sequence[Report], numbers: Sequence[str]) -> str:
    rows = []
    for number in numbers:
        level, text = REQUIREMENTS[number]
        note = "" if level == "must" else f" ({level})"
        signs = [SIGNS[report.verdicts[number].result] for report in reports]
        rows.append(_row([number, text + note, *signs]))
    return "\n".join([*_head(["", ""], reports), *rows])


def _failures(report: Report) -> str:
    lines = [f"### {report.name}", ""]
    failed = [each for each in report.verdicts.values() if each.result == FAIL]
    lines += [f"- {each.number}: {_escaped(each.seen)}" for each in failed]
    if not failed:
        lines.append("No check failed. Nothing to judge:")
        lines.append("")
        left = [each for each in report.verdicts.values() if each.result == NOT_APPLICABLE]
        lines += [f"- {each.number}: {_escaped(each.seen)}" for each in left]
    return "\n".join(lines)


def _commands(reports: Sequence[Report]) -> str:
    commands = [report.command for report in reports]
    return "```\n" + "\n".join(commands) + "\n```"


def _escaped(text: str) -> str:
    """What servers say is no markup."""
    text = " ".join(text.split())
    for sign in "\\`*_<>|[]":
        text = text.replace(sign, "\\" + sign)
    return text
