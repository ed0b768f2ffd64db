"""The command line: Config's fields as click options, and errors as one line.

No option is spelled here but --help and --version. Values travel to Config as
the strings they are: it checks them, and says what is wrong, for every way in.
"""

from __future__ import annotations

import dataclasses
import platform
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from fastserve import __version__
from fastserve.config import OPTIONS, Config, ConfigError, Option

__all__ = ["main"]

COMMAND = "fastserve"

COLUMN = 28

HELP = """Serve an ASGI application.

MODULE:ATTR names it: the attribute of the module that is imported, as in
example.web:app. ASGI 3 and ASGI 2 applications are told apart."""


class _Failure(Exception):
    """The command ends with this line and this exit status."""

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class _SectionOption(click.Option):
    """An option that knows under which heading the help shows it."""

    section = "Other"


class _Command(click.Command):
    """click's command, with headings in the help."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                section = getattr(parameter, "section", _SectionOption.section)
                # Padded, so that every section has its text in the same column.
                sections.setdefault(section, []).append((record[0].ljust(COLUMN), record[1]))
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)


def _parameter(option: Option, default: Any) -> click.Option:
    spellings = [option.name, *filter(None, (option.flag, option.alias, option.short))]
    kind: dict[str, Any] = {"is_flag": True, "flag_value": not default, "default": default}
    if not option.is_switch:
        kind = {
            "type": click.UNPROCESSED,
            "metavar": option.check.metavar,
            "multiple": option.repeatable,
        }
    parameter = _SectionOption(spellings, help=_help(option, default), **kind)
    parameter.section = option.section
    return parameter


def _help(option: Option, default: Any) -> str:
    if option.is_switch or default is None or default == "":
        return option.help
    shown = ", ".join(default) if isinstance(default, tuple) else default
    if isinstance(default, bool):
        shown = str(default).lower()
    return (
        f"{option.help}  [{shown:g}]" if isinstance(shown, float) else f"{option.help}  [{shown}]"
    )


@click.pass_context
def _serve(context: click.Context, /, application: str, **options: Any) -> None:
    given = {
        name: value
        for name, value in options.items()
        # What was not given is Config's to decide.
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    config = Config.from_options(**given)

    # Not before it is needed: --help and --version wait for no compiled module.
    from fastserve.application import ApplicationError
    from fastserve.server import ServerError, run

    try:
        run(application, config)
    except ApplicationError as error:
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        raise _Failure(str(error)) from None
    except ServerError as error:
        raise _Failure(str(error), error.exit_status) from None
    except OSError as error:
        raise _Failure(str(error)) from None


def _command() -> click.Command:
    fields = dataclasses.fields(Config)
    command = _Command(
        COMMAND,
        callback=_serve,
        help=HELP,
        params=[
            click.Argument(["application"], metavar="MODULE:ATTR"),
            *(_parameter(OPTIONS[field.name], field.default) for field in fields),
        ],
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    version = click.version_option(
        __version__,
        message=f"%(prog)s %(version)s, {platform.python_implementation()} "
        f"{platform.python_version()}, {platform.system()}",
    )
    return version(command)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        # click's own handling would print a usage block around each error.
        status = _command().main(arguments, prog_name=COMMAND, standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.UsageError as error:
        message = " ".join(error.format_message().split())
        return _complain(f"{message} (see {COMMAND} --help)", error.exit_code)
    except ConfigError as error:
        return _complain(str(error), 1)
    except _Failure as error:
        return _complain(str(error), error.exit_status)
    except click.exceptions.Abort:  # Ctrl-C before the server took signals over
        return 130


def _complain(message: str, exit_status: int) -> int:
    print(f"{COMMAND}: error: {message}", file=sys.stderr)
    return exit_status


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console entry."""
    sys.exit(_run(arguments))
