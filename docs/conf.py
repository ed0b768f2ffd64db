"""How Sphinx builds the site: `make docs`.

Its pages are read on a forge too, so they link to each other, and to pages outside this folder, as
files. The site has those as well, each in a page that includes it.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

project = "fastserve"
author = "The fastserve authors"
# Read from the source text: nothing need be compiled for the site.
source = (ROOT / "src" / "fastserve" / "__init__.py").read_text()
release = version = re.findall(r'^__version__ = "(.*)"', source, re.MULTILINE)[0]

extensions = ["myst_parser"]
# A heading's address is the one that a forge gives it.
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"fastserve {release}"
html_copy_source = False

# Where the site has what lies outside this folder.
OUTSIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "LICENSE": "../LICENSE",
    "SECURITY.md": "reporting.md",
    "bench/README.md": "benchmarks.md",
}
LINK = re.compile(r"\]\((?:\.\./)*({})\)".format("|".join(map(re.escape, OUTSIDE))))


def lead_inside(text):
    return LINK.sub(lambda match: f"]({OUTSIDE[match[1]]})", text)


def read_page(app, name, content):
    content[0] = lead_inside(content[0])


def read_included(app, path, name, content):
    content[0] = lead_inside(content[0])


def setup(app):
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
