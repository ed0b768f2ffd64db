"""Writes docs/performance.md, its charts and the README's table, from the figures that were published.

No figure is typed by hand. Those of the last run are in results/, which nobody else sees; `--publish`
copies of them what the page needs into published/. What is not there, the page says so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import environment
import harness
import servers
from figures import Cell, Figures, Summary
from targets import TARGETS

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
PUBLISHED = BENCH / "published"
PAGE = ROOT / "docs" / "performance.md"
README = ROOT / "README.md"
MARKERS = ("<!-- made by bench/report.py -->", "<!-- end -->")
SCRIPTS = ("http", "websocket", "workers", "memory", "instructions")
# What a run is judged by has fewer.
FEWEST_ROUNDS, FEWEST_SECONDS = 2, 2

# Scenarios by chart; the first is what the project began with.
CHARTS = {
    "requests": {"seed-get": "get requests/second", "seed-post": "post requests/second"},
    "frameworks": {
        "starlette": "Starlette, JSON, requests/second",
        "fastapi": "FastAPI with validation, requests/second",
    },
}

# The other tables of http.py, and the columns of those of other scripts.
GROUPS = {
    "Other requests": ("echo", "browser", "pipelined", "one", "many"),
    "Large bodies and files": ("body-256k", "streamed", "upload", "file-256k", "file-100m"),
    "TLS, proxies, logs, supervisor": (
        "tls",
        "handshakes",
        "forwarded",
        "distrusted",
        "logged",
        "supervised",
    ),
}
OF_REQUESTS = (("per_second", "requests/s"), ("cpu_us", "CPU us"), ("p99_us", "p99 us"))
WEBSOCKET = [
    ("small", "cpu_us", "CPU us"),
    ("large", "cpu_us", "CPU us"),
    ("broadcast", "cpu_us", "CPU us"),
    ("idle", "kib", "KiB"),
]
SEVERAL = [
    ("one", "per_second", "requests/s"),
    ("two", "per_second", "requests/s"),
    ("share", "least_percent", "least %"),
    ("share", "most_percent", "most %"),
    ("calm", "p99_us", "p99 us"),
    ("blocked", "p99_us", "p99 us"),
    ("start-1", "ms", "ms"),
    ("start-4", "ms", "ms"),
    ("start-1", "mib", "MiB"),
    ("start-4", "mib", "MiB"),
]
MEMORY = [("idle", "kib", "KiB"), ("idle", "cpu_us", "CPU us to open it")]
INSTRUCTIONS = ("plaintext", "instructions", "instructions")

HEAD = """\
<!-- Made by bench/report.py from bench/published: `make bench OPTIONS=--publish` measures again. -->

# Performance

Each server has one core and the load another; all have one worker but where it says otherwise, and
take turns, round after round. A cell is the median of the rounds, with the least and the most in
brackets. Ratios are taken round by round, so that both sides met the same minute of the machine: read
them before microseconds. The floor is `bench/floor.c`, a bare epoll loop with a constant answer: what
the kernel alone costs.

To repeat everything: `make bench`. What the scripts do and what the words mean is in
[bench/README.md](../bench/README.md). What profiles have shown, and what was tried, is in
[profile.md](profile.md).
"""

BEGINNING = """
In 2018 Hypercorn's author compared its three workers by an echo application, GET and POST, and trio paid
several times uvloop's price. The same benchmark, with more servers:
"""

REAL = """
An application of a framework does most of the work itself. What is left is what a user gains.
"""

WORKERS = """
Here only the load is pinned to a core. Where there are no more cores than workers, they share them with
it, so two workers cannot be twice as fast as one.
"""

COUNTED = """
In user space alone, counted under callgrind: these do not depend on what else the machine does.
"""


# --- words ------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def cell(found: Summary | None) -> str:
    if found is None:
        return ""
    if found.least == found.most:
        return number(found.median)
    return f"{number(found.median)} ({number(found.least)}..{number(found.most)})"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def label(server: str) -> str:
    return f"**{server}**" if servers.is_ours(server) else server


def servers_of(figures: Figures, script: str, scenarios: Iterable[str]) -> list[str]:
    """Those that were asked for any of the scenarios, in the order in which they are known."""
    found = {name for key in scenarios for name in figures.measured(script, key)}
    known = dict.fromkeys(
        [*servers.COMMANDS, *servers.WEBSOCKET_COMMANDS, *servers.WORKERS_COMMANDS, *sorted(found)]
    )
    return [name for name in known if name in found]


# --- parts of the page ------------------------------------------------------------------------


def provenance(figures: Figures) -> str:
    """What was measured when, and on what."""
    parts = ["\n## What was measured\n\n"]
    rows = []
    for script in SCRIPTS:
        machine = figures.runs.get(script, {}).get("machine")
        if machine is None:
            rows.append([f"`{script}.py`", "not measured", "", "", ""])
            continue
        rounds = f"{machine['rounds']} of {machine['seconds']} s" if "rounds" in machine else ""
        rows.append(
            [
                f"`{script}.py`",
                f"`{machine['commit']}`",
                str(machine["date"]).partition("T")[0],
                rounds,
                str(machine.get("load before", "")),
            ]
        )
    parts.append(table(["", "commit", "date", "rounds", "load average before"], rows))
    for machine in dict.fromkeys(machine_of(run["machine"]) for run in figures.runs.values()):
        parts.append(f"\n{machine}\n")
    environments = dict.fromkeys(
        (whose, versions(facts))
        for run in figures.runs.values()
        for whose, facts in run["packages"].items()
    )
    parts.append("\n" + table(["environment", ""], environments))
    return "".join(parts) + warnings(figures)


def machine_of(machine: dict[str, Any]) -> str:
    return (
        f"{machine['cores']} cores of {machine['cpu']}, {machine['architecture']},"
        f" Linux {machine['kernel']}; {machine['cc']}; {machine['wrk'].partition(' Copyright')[0]}."
    )


def versions(facts: dict[str, Any]) -> str:
    optimized = ", optimized by a profile" if facts["optimized"] else ""
    python = f"{facts['implementation']} {facts['version']} ({facts['compiler']}{optimized})"
    return ", ".join([python, *(f"{name} {found}" for name, found in facts["versions"].items())])


def warnings(figures: Figures) -> str:
    """What takes weight from the figures."""
    parts = [doubts(script, run["machine"]) for script, run in figures.runs.items()]
    for script, run in figures.runs.items():
        for key, by_server in run["rounds"].items():
            for name, rounds in by_server.items():
                if None in rounds:
                    failed = f"{rounds.count(None)} of {len(rounds)} runs did not count"
                    parts.append(f"`{script}.py` {key}, {name}: {failed}.")
    return "".join(f"\n{part}\n" for part in parts if part)


def doubts(script: str, machine: dict[str, Any]) -> str:
    short = machine.get("rounds", FEWEST_ROUNDS) < FEWEST_ROUNDS
    short |= machine.get("seconds", FEWEST_SECONDS) < FEWEST_SECONDS
    parts = []
    if short:
        parts.append("a short run, which says that everything works, and no more")
    if machine["commit"].endswith("-dirty"):
        parts.append("with changes that are in no commit")
    return f"**`{script}.py`: {'; '.join(parts)}.**" if parts else ""


def judged(figures: Figures) -> str:
    rows = []
    for target in TARGETS:
        bound = "at least" if target.least else "at most"
        limit = f"{bound} {target.limit:,g}{target.unit}"
        found = target.measured(figures)
        if found is None:
            rows.append([target.what, limit, "", "not measured"])
            continue
        peer = target.peer(figures)
        verdict = "met" if target.met(found) else "**missed**"
        rows.append([target.what, limit, cell(found) + (f", {peer}" if peer else ""), verdict])
    return "\n## Against the targets\n\n" + table(["", "target", "measured", ""], rows)


def plaintext(figures: Figures) -> str:
    """The one scenario with all that is known of it."""
    names = figures.measured("http", "plaintext")
    if not names:
        return missing("Plaintext GET, 64 connections", "http")
    rows = []
    for name in names:
        one = Cell("http", "plaintext", name)
        columns = (
            figures.summary(Cell("http", "plaintext", name, "per_second")),
            figures.summary(one),
            figures.ratio(one, Cell("http", "plaintext", harness.BASELINE)),
            figures.ratio(one, Cell("http", "plaintext", "floor")),
            figures.summary(Cell("http", "plaintext", name, "p99_us")),
        )
        rows.append([label(name), *map(cell, columns)])
    head = ["server", "requests/s", "CPU us/request", "x uvloop", "x floor", "p99 us"]
    return f"\n## Plaintext GET, 64 connections\n\n{table(head, rows)}"


Column = tuple[str, str, str]


def grid(
    figures: Figures, heading: str, script: str, columns: Iterable[Column], prose: str = ""
) -> str:
    """Servers by scenarios. A column is a scenario, a figure, and what that is called."""
    there = [column for column in columns if figures.measured(script, column[0])]
    if not there:
        return missing(heading, script)
    keys = list(dict.fromkeys(key for key, _, _ in there))
    rows = [
        [label(name)]
        + [cell(figures.summary(Cell(script, key, name, figure))) for key, figure, _ in there]
        for name in servers_of(figures, script, keys)
    ]
    titles = "".join(f"* `{key}`: {figures.title(script, key)}\n" for key in keys)
    head = ["server", *(f"`{key}`, {unit}" for key, _, unit in there)]
    return f"\n## {heading}\n{prose}\n{titles}\n{table(head, rows)}"


def missing(heading: str, script: str) -> str:
    return f"\n## {heading}\n\nNot measured: `{script}.py` was not run for it.\n"


def recorded() -> str:
    """The counts that `make instructions` compares with."""
    counts = json.loads((BENCH / "instructions.json").read_text())
    rows = [
        [key, worker, f"{count:,}"]
        for key, by_worker in counts.items()
        for worker, count in by_worker.items()
    ]
    return "\nThose that a change is judged by, of each interpreter:\n\n" + table(
        ["", "worker", "instructions"], rows
    )


def page(figures: Figures) -> str:
    return "".join(
        [
            HEAD,
            provenance(figures),
            judged(figures),
            plaintext(figures),
            charted(figures, "The benchmark this began with", "requests", BEGINNING),
            charted(figures, "With a framework", "frameworks", REAL),
            *(
                grid(figures, heading, "http", [(key, "cpu_us", "CPU us") for key in keys])
                for heading, keys in GROUPS.items()
            ),
            grid(figures, "WebSockets", "websocket", WEBSOCKET),
            grid(figures, "Several workers", "workers", SEVERAL, WORKERS),
            grid(figures, "Memory of idle connections", "memory", MEMORY),
            grid(figures, "Instructions", "instructions", [INSTRUCTIONS], COUNTED),
            recorded(),
        ]
    )


def charted(figures: Figures, heading: str, name: str, prose: str) -> str:
    """A table of all that is known of a chart's scenarios, and the chart."""
    columns = [(key, *column) for key in CHARTS[name] for column in OF_REQUESTS]
    text = grid(figures, heading, "http", columns, prose)
    if not chart(figures, name):
        return text
    titles = " and ".join(CHARTS[name].values())
    return f"{text}\n![{titles}, by server and worker]({name}.svg)\n\nThe same as a [PNG]({name}.png).\n"


def readme(figures: Figures) -> str:
    """The README with its part made again."""
    before, _, rest = README.read_text().partition(MARKERS[0])
    _, _, after = rest.partition(MARKERS[1])
    return f"{before}{MARKERS[0]}\n{brief(figures)}{MARKERS[1]}{after}"


def brief(figures: Figures) -> str:
    rows = []
    for name in figures.measured("http", "plaintext"):
        one = Cell("http", "plaintext", name)
        ratio = figures.ratio(one, Cell("http", "plaintext", "floor"))
        columns = (figures.summary(one), ratio)
        rows.append([label(name), *(number(found.median) if found else "" for found in columns)])
    machine = figures.runs["http"]["machine"]
    doubt = doubts("http", machine)
    picture = "![get and post requests/second, by server and worker](docs/requests.svg)\n\n"
    return (
        (picture if chart(figures, "requests") else "")
        + (f"{doubt}\n\n" if doubt else "")
        + f"Measured at `{machine['commit']}`, on {machine['cores']} cores of {machine['cpu']}. CPU\n"
        "microseconds of a request, plaintext GET, 64 connections, one core:\n\n"
        + table(["", "us", "x floor, a bare epoll loop in C"], rows)
    )


# --- charts -----------------------------------------------------------------------------------


def chart(figures: Figures, name: str) -> dict[str, Any]:
    """What chart.py is to draw; empty, if nothing was measured. The digest is kept in the files, so
    that they can be told from those of another run."""
    panels = []
    for key, title in CHARTS[name].items():
        bars = [bar(figures, key, server) for server in figures.measured("http", key)]
        known = sorted((found for found in bars if found), key=lambda found: found["median"])
        if known:
            panels.append({"title": title, "bars": known})
    if not panels:
        return {}
    machine = figures.runs["http"]["machine"]
    note = f"median, least and most of {machine['rounds']} x {machine['seconds']} s"
    content = {"note": f"{note}, at {machine['commit']}", "panels": panels}
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return {"digest": digest, **content}


def bar(figures: Figures, scenario: str, server: str) -> dict[str, Any] | None:
    found = figures.summary(Cell("http", scenario, server, "per_second"))
    if found is None or server == "floor":
        return None
    return {
        "name": server,
        "ours": servers.is_ours(server),
        "median": found.median,
        "least": found.least,
        "most": found.most,
    }


def draw(figures: Figures, folder: Path, python: str) -> None:
    charts = {name: found for name in CHARTS if (found := chart(figures, name))}
    if not charts:
        return
    libraries = environment.libraries(python, BENCH / "chart.txt")
    # With -P this folder's http.py hides nothing.
    subprocess.run(
        [python, "-P", str(BENCH / "chart.py")],
        input=json.dumps({"folder": str(folder), "charts": charts}),
        env=os.environ | environment.path_first(libraries),
        text=True,
        check=True,
        timeout=300,
    )


# --- what it does -----------------------------------------------------------------------------


def publish(python: str) -> None:
    """From results/ into published/, and from there into the documentation."""
    PUBLISHED.mkdir(exist_ok=True)
    for path in harness.RESULTS.glob("*.json"):
        if path.stem in SCRIPTS:
            content = json.loads(path.read_text())
            kept = {key: content[key] for key in ("machine", "packages", "scenarios", "rounds")}
            for facts in kept["packages"].values():
                del facts["executable"]  # a path says nothing elsewhere
            (PUBLISHED / path.name).write_text(dump(kept) + "\n")
    write(python)


def dump(value: Any, depth: int = 3, indent: str = "") -> str:
    """JSON with a line for each server."""
    if not depth or not isinstance(value, dict) or not value:
        return json.dumps(value)
    inner = indent + " "
    lines = (f"{inner}{json.dumps(key)}: {dump(v, depth - 1, inner)}" for key, v in value.items())
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def write(python: str) -> None:
    figures = Figures(PUBLISHED)
    draw(figures, PAGE.parent, python)
    PAGE.write_text(page(figures))
    README.write_text(readme(figures))
    print(judged(figures))
    print(f"written: {PAGE}, its charts, and the table in {README}")


def draft(python: str) -> None:
    """The same page beside the results of the last run."""
    figures = Figures(harness.RESULTS)
    draw(figures, harness.RESULTS, python)
    path = harness.RESULTS / PAGE.name
    path.write_text(page(figures))
    print(judged(figures))
    print(f"written: {path}")


def check() -> int:
    """Is all that is published made of the same figures?"""
    figures = Figures(PUBLISHED)
    wrong = []
    if PAGE.read_text() != page(figures):
        wrong.append(PAGE)
    if README.read_text() != readme(figures):
        wrong.append(README)
    for name in CHARTS:
        digest = chart(figures, name).get("digest", "").encode()
        for suffix in (".svg", ".png"):
            path = PAGE.with_name(name + suffix)
            if digest and digest not in path.read_bytes():
                wrong.append(path)
    for path in wrong:
        print(f"{path} is not what bench/published gives: make report", file=sys.stderr)
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--publish", action="store_true", help="the last run's figures")
    action.add_argument("--draft", action="store_true", help="the same page, in results/ alone")
    action.add_argument("--check", action="store_true", help="only say whether they fit together")
    arguments = parser.parse_args()
    if arguments.check:
        return check()
    if arguments.publish:
        publish(sys.executable)
    elif arguments.draft:
        draft(sys.executable)
    else:
        write(sys.executable)
    return 0


if __name__ == "__main__":
    harness.leave(main)
