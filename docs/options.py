"""Writes docs/options.md, the table of the options, from Config: `make options`."""

from __future__ import annotations

from pathlib import Path

from fastserve.config import IGNORED, OPTIONS, REFUSED, Option

HEAD = """# Options

<!-- Made by docs/options.py from src/fastserve/config.py: change it there, and run `make options`. -->

Every option has one name and can be given in six ways:

| where | how |
|---|---|
| on the command line | `--backlog 100` |
| in the environment | `FASTSERVE_BACKLOG=100`: `FASTSERVE_` and the name in capitals |
| in a TOML file | `backlog = 100`, with `--config conf.toml` or `FASTSERVE_CONFIG=conf.toml` |
| in a Python file or module | `backlog = 100`, with `--config file:conf.py` or `--config python:package.conf` |
| in a file for the environment | `FASTSERVE_BACKLOG=100`, with `--env-file FILE`, which needs `python-dotenv` |
| from Python | `fastserve.run(app, backlog=100)`, `serve(...)`, `fastserve.Config(backlog=100)` |

A flag beats the environment, which beats the file, and only what is really given counts.
`fastserve --print-config` shows each value and where it comes from; its output is a file that
`--config` takes. `fastserve --check-config example.web:app` reads everything, imports the
application and does not serve; its exit status is 0 if all is well. From Python there are
`Config.from_mapping`, `from_toml`, `from_pyfile` and `from_object`.

* A time is a number of seconds, or text with a unit: `500ms`, `30s`, `5m`, `2h`, `1d`.
* A size is a number of bytes, or text with a unit: `64K`, `16M`, `1G`, powers of 1024.
* A switch has a flag without a value; in the other ways it is true or false. In the
  environment `true`, `1`, `yes`, `on` and `false`, `0`, `no`, `off` will do.
* In the environment several values have commas between them (several of `header` line breaks),
  and an empty variable counts as not given.
* A name that is no option's is an error, with the nearest one that is; in the environment it is
  a warning, since Kubernetes sets `FASTSERVE_SERVICE_HOST` and others for a service of that name.
  In a Python file names that begin with `_`, names in capitals, modules, functions and classes
  are nobody's business.

The names in the last column are those of Hypercorn, uvicorn, gunicorn and Daphne: they may be used
in the same places, so that a command line or a configuration file can be moved
([from Hypercorn](from-hypercorn.md), [from uvicorn](from-uvicorn.md)). `--host` and `--port`
replace a part of the address that was given before, in the file or the environment.
Two names of one option in the same place are an error.
"""

# Where the default is not the same on every system.
DEFAULTS = {"poller": "epoll, or loop where there is none"}


def text() -> str:
    parts = [HEAD]
    for section in dict.fromkeys(option.section for option in OPTIONS.values()):
        parts.append(f"\n## {section}\n")
        parts.append("| flag | name | default | | also |\n|---|---|---|---|---|")
        parts += [_row(option) for option in OPTIONS.values() if option.section == section]
    parts.append("\n## Of other servers\n")
    parts.append("These change nothing, which is said at the start:\n")
    parts.append("| name | reason |\n|---|---|")
    parts += [f"| `{name}` | {ignored.reason} |" for name, ignored in IGNORED.items()]
    parts.append("\nThese are errors:\n\n| name | reason |\n|---|---|")
    parts += [f"| `{name}` | {reason} |" for name, reason in REFUSED.items()]
    return "\n".join(parts) + "\n"


def _row(option: Option) -> str:
    flag = ", ".join(f"`{word}`" for word in (option.short, option.flag) if word)
    if option.is_argument:
        flag = f"`{option.check.metavar}`"
    elif not option.is_switch:
        flag += f" {option.check.metavar}"
    also = ", ".join(f"`{alias.spelling or alias.name}`" for alias in option.aliases)
    default = DEFAULTS.get(option.name, option.default_text)
    cells = [flag, f"`{option.name}`", f"`{default}`" if default else "", option.help, also]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    file = Path(__file__).with_suffix(".md")
    file.write_text(text())
