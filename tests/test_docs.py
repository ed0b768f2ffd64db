"""What the documentation says of the options is what the code does."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from fastserve import cli
from fastserve._shared import Row
from fastserve.access import ATOMS, MEMBERS
from fastserve.config import ALIASES, IGNORED, OPTIONS, REFUSED
from fastserve.metrics import Exposition, Snapshot

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("bench/*.md")]


def test_the_table_of_options_is_made_from_config() -> None:
    made = runpy.run_path(str(DOCS / "options.py"))["text"]()
    assert (DOCS / "options.md").read_text() == made, "make options"


def test_the_figures_are_those_that_were_measured() -> None:
    command = [sys.executable, str(ROOT / "bench" / "report.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_table_has_every_option() -> None:
    text = (DOCS / "options.md").read_text()
    for option in OPTIONS.values():
        assert f"| `{option.name}` |" in text
        for alias in option.aliases:
            assert f"`{alias.spelling or alias.name}`" in text


def rows_of(page: str) -> list[tuple[str, str]]:
    """Each name of the first column with the word of the second."""
    rows = re.findall(r"^\| (`[^|]*`) \| (\w[\w ]*) \|", (DOCS / page).read_text(), re.MULTILINE)
    return [(name, word) for names, word in rows for name in re.findall("`([^`]+)`", names)]


def kind_of(name: str) -> set[str]:
    """What may be said of a flag or a key."""
    if name.startswith("--"):
        own = {option.flag for option in OPTIONS.values()} | {"--config", "--env-file"}
        others = {alias.spelling for alias, _ in ALIASES.values()}
    else:
        own, others = set(OPTIONS), set(ALIASES)
    if name in own:
        return {"same", "different"}
    if name in others:
        return {"alias", "different"}
    key = name.removeprefix("--").replace("-", "_")
    return {"ignored"} if key in IGNORED else {"refused"} if key in REFUSED else set()


ROWS = rows_of("from-hypercorn.md") + rows_of("from-uvicorn.md")


@pytest.mark.parametrize(("name", "word"), ROWS)
def test_the_way_from_another_server(name: str, word: str) -> None:
    assert word in kind_of(name)


def test_the_reader_of_the_tables_sees_them() -> None:
    assert len(ROWS) > 120
    assert {word for _, word in ROWS} == {"same", "alias", "different", "ignored", "refused"}


def test_every_flag_that_is_known_is_a_flag() -> None:
    flags = {word for parameter in cli._parameters() for word in parameter.opts}
    for name, word in ROWS:
        if name.startswith("--"):
            assert (name in flags) == (word != "refused")


def test_every_atom_is_described() -> None:
    text = (DOCS / "logging.md").read_text()
    assert set(re.findall(r"%\((\w+)\)s", text)) == {*ATOMS, "l", "p"}
    example = json.loads(re.findall("```json\n(.*?)```", text, re.DOTALL)[0])
    assert list(example) == [*MEMBERS, "pid"]
    assert OPTIONS["access_logformat"].default in text


def metrics() -> dict[str, str]:
    """The type of each metric in /metrics."""
    nothing = Snapshot("ready", 0, {}, Row.alone(), [])
    text = Exposition(lambda: nothing).render().decode()
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))


def test_every_metric_is_described() -> None:
    text = (DOCS / "operations.md").read_text()
    table = re.findall(r"^\| (`fastserve_.*?`) \|", text, re.MULTILINE)
    described = [name for cell in table for name in re.findall("`([^`]+)`", cell)]
    assert sorted(described) == sorted(metrics())


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    board = json.loads((DOCS / "deployment" / "grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [variable["query"] for variable in board["templating"]["list"]]
    asked = {name for query in queries for name in re.findall(r"fastserve_\w+", query)}
    there = set()
    for name, kind in metrics().items():
        there |= {f"{name}_bucket", f"{name}_count"} if kind == "histogram" else {name}
    assert asked <= there
    # And none that is not shown.
    assert {name.removesuffix("_bucket") for name in asked} == set(metrics())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert len({tuple(panel["gridPos"].values()) for panel in board["panels"]}) == len(
        board["panels"]
    )


def anchors_of(page: Path) -> set[str]:
    """What a forge calls the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http:", "https:")):
            name, _, anchor = target.partition("#")
            other = page.parent / name if name else page
            assert other.exists(), target
            assert not anchor or anchor in anchors_of(other), target


def test_every_page_is_in_the_site() -> None:
    named = set(
        re.findall(r"^(?:.* <)?([\w/-]+)>?$", (DOCS / "index.md").read_text(), re.MULTILINE)
    )
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.rglob("*.md")}
    assert pages - named == {"index"}
