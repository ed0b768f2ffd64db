"""The command line: Config's fields as click options, and errors as one line.

What serves has no name of its own; `reload-certs` is the one command beside it. No option is spelled here but those that are about the options themselves, and
--help and --version. Values travel to Config as the strings they are: it checks
them, and says what is wrong, for every way in.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from fastserve import __version__
from fastserve.checks import nearest
from fastserve.config import (
    ALIASES,
    IGNORED,
    OPTIONS,
    REFUSED,
    Alias,
    ConfigError,
    Option,
    Resolved,
    resolve,
)
from fastserve.errors import ServerError
from fastserve.pidfile import read_pid
from fastserve.sources import Environment, Flags, Source, read

__all__ = ["main"]

COMMAND = "fastserve"
RELOAD_CERTS = "reload-certs"

COLUMN = 28
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

HELP = """Serve an ASGI application.

MODULE:ATTR names it: the attribute of the module that is imported, as in
example.web:app. ASGI 3, ASGI 2 and WSGI are told apart.

Every option may also stand in the environment (--backlog as FASTSERVE_BACKLOG) and in
the file that --config names (as backlog). A flag beats the environment, which beats
the file. A TIME is in seconds, or like 500ms, 30s, 5m, 2h, 1d; a SIZE in bytes, or
like 64K, 16M, 1G.

"fastserve reload-certs --pid FILE" has the server that wrote FILE load its
certificates again."""

RELOAD_HELP = """Have a running server load its certificates again.

No connection is dropped. The server is the one that wrote the file with its process's
id: --pid, or what the environment or --config says of it."""

CONFIGURATION = "Configuration"
SPELLINGS = "Spellings of Hypercorn and uvicorn"
CONFIG_VARIABLE = "FASTSERVE_CONFIG"


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


def _parameters() -> Iterator[click.Parameter]:
    for option in OPTIONS.values():
        if option.is_argument:
            yield click.Argument([option.name], metavar=option.check.metavar, required=False)
        else:
            yield _parameter(option)
    yield _config_file()
    yield _env_file()
    for name, help in {
        "check_config": "Import the application, say what is wrong, and do not serve.",
        "print_config": "Show each option's value and where it comes from.",
    }.items():
        yield _option(CONFIGURATION, [name, f"--{name.replace('_', '-')}"], help, is_flag=True)
    for alias, option in ALIASES.values():
        if alias.spelling:
            yield _alias(alias, option)
    for name, ignored in IGNORED.items():
        flag = f"--{name.replace('_', '-')}"
        kind = {"metavar": "X"} if ignored.has_value else {"is_flag": True}
        yield _option(SPELLINGS, [name, flag], f"Ignored: {ignored.reason}.", **kind)


def _env_file() -> click.Option:
    return _option(
        CONFIGURATION,
        ["env_file", "--env-file"],
        "A file of NAME=VALUE lines for the environment, where what is there already stays."
        " Needs python-dotenv.",
        metavar="FILE",
    )


def _config_file() -> click.Option:
    return _option(
        CONFIGURATION,
        ["config", "-c", "--config"],
        "A TOML file, file:conf.py, or python:package.module.",
        metavar="FILE",
    )


def _option(section: str, spellings: list[str], help: str, **kind: Any) -> click.Option:
    if "is_flag" not in kind:
        kind["type"] = click.UNPROCESSED
    parameter = _SectionOption(spellings, help=help, **kind)
    parameter.section = section
    return parameter


def _parameter(option: Option) -> click.Option:
    spellings = [option.name, *filter(None, (option.short, option.flag))]
    if option.is_switch:
        value = not option.default
        return _option(option.section, spellings, _help(option), is_flag=True, flag_value=value)
    kind = {"metavar": option.check.metavar, "multiple": option.repeatable}
    return _option(option.section, spellings, _help(option), **kind)


def _alias(alias: Alias, option: Option) -> click.Option:
    kind: dict[str, Any] = {"metavar": alias.metavar or option.check.metavar}
    if alias.switch:
        kind = {"is_flag": True}
    return _option(SPELLINGS, [alias.name, alias.spelling], f"See {option.flag}.", **kind)


def _help(option: Option) -> str:
    if option.is_switch or not option.default_text:
        return option.help
    return f"{option.help}  [{option.default_text}]"


@click.pass_context
def _main(context: click.Context, /, **options: Any) -> None:
    given = _given(context, options)
    prints, checks = (given.pop(name, False) for name in ("print_config", "check_config"))
    if env_file := given.pop("env_file", ""):
        _read_env_file(env_file)
    file = given.pop("config", "")

    def read_all() -> Resolved:
        return resolve(_sources(file, given))

    resolved = read_all()
    for warning in resolved.warnings:
        print(f"{COMMAND}: warning: {warning}", file=sys.stderr)
    if prints:
        if isinstance(sys.stdout, io.TextIOWrapper):  # not every path can be written to it
            sys.stdout.reconfigure(errors="backslashreplace")
        print("\n".join(_shown(resolved)))
    if prints and not checks:
        return
    if resolved.config.application is None:
        raise click.UsageError(f"Missing argument {OPTIONS['application'].check.metavar!r}.")
    if checks:
        _check(resolved)
    else:
        _serve(resolved, read_all)


@click.pass_context
def _reload_certs(context: click.Context, /, **options: Any) -> None:
    given = _given(context, options)
    config = resolve(_sources(given.pop("config", ""), given)).config
    if not config.pid:
        raise click.UsageError(f"{RELOAD_CERTS}: which server? Give the --pid it was started with.")
    pid = read_pid(config.pid)
    try:
        os.kill(pid, signal.SIGUSR1)
    except OSError as error:
        raise _Failure(f"--pid: process {pid}: {error.strerror}") from None


def _given(context: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """Without the options that are Config's to decide."""
    return {
        name: value
        for name, value in options.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }


def _read_env_file(path: str) -> None:
    """For the application as well as for our own variables."""
    try:
        from dotenv import load_dotenv
    except ImportError:
        raise _Failure(
            "--env-file needs python-dotenv: pip install 'fastserve-asgi[dotenv]'"
        ) from None
    try:
        with open(path, encoding="utf-8") as file:
            load_dotenv(stream=file)
    except OSError as error:
        raise ConfigError(f"--env-file: {path!r}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--env-file: {path!r}: not UTF-8") from None


def _sources(file: str, flags: dict[str, Any]) -> list[Source]:
    environment = dict(os.environ)
    file = file or environment.get(CONFIG_VARIABLE, "")
    environment.pop(CONFIG_VARIABLE, None)
    return [*([read(file)] if file else []), Environment(environment), Flags(flags)]


def _shown(resolved: Resolved) -> Iterator[str]:
    """Each option, as TOML that --config would take."""
    for name, option in OPTIONS.items():
        value = getattr(resolved.config, name)
        line = f"{name} = {json.dumps(value, ensure_ascii=False)}"
        if value is None or option.secret:
            line = f"# {name} is {'not set' if value is None else 'set, and not shown'}"
        yield f"{line:47} # {resolved.origins.get(name, 'default')}"


def _serve(resolved: Resolved, read_again: Callable[[], Resolved]) -> None:
    # Not before it is needed: --help and --version wait for no compiled module.
    from fastserve.launch import run

    with _failures():
        run(
            resolved.config.application,
            resolved.config,
            reread=lambda: read_again().config,
        )


def _check(resolved: Resolved) -> None:
    from fastserve.launch import check

    application = resolved.config.application
    with _failures():
        check(application, resolved.config)
    print(f"{application} can be served")


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """What a server can end with, as one line; before it the application's own traceback."""
    from fastserve.application import ApplicationError

    try:
        yield
    except ApplicationError as error:
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        raise _Failure(str(error)) from None
    except ServerError as error:
        raise _Failure(str(error), error.exit_status) from None
    except OSError as error:
        raise _Failure(str(error)) from None


def _reload_command() -> click.Command:
    return _Command(
        RELOAD_CERTS,
        callback=_reload_certs,
        help=RELOAD_HELP,
        params=[_parameter(OPTIONS["pid"]), _config_file()],
        context_settings=CONTEXT,
    )


def _command() -> click.Command:
    command = _Command(
        COMMAND,
        callback=_main,
        help=HELP,
        params=list(_parameters()),
        context_settings=CONTEXT,
    )
    version = click.version_option(
        __version__,
        message=f"%(prog)s %(version)s, {platform.python_implementation()} "
        f"{platform.python_version()}, {platform.system()}",
    )
    return version(command)


def _run(arguments: list[str]) -> int:
    command, name = _command(), COMMAND
    if arguments[:1] == [RELOAD_CERTS]:
        command, name = _reload_command(), f"{COMMAND} {RELOAD_CERTS}"
        arguments = arguments[1:]
    try:
        # click's own handling would print a usage block around each error.
        status = command.main(arguments, prog_name=name, standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.NoSuchOption as error:
        return _unknown(error)
    except click.UsageError as error:
        message = " ".join(error.format_message().split())
        return _complain(f"{message} (see {COMMAND} --help)", error.exit_code)
    except ConfigError as error:
        return _complain(str(error), 1)
    except _Failure as error:
        return _complain(str(error), error.exit_status)
    except click.exceptions.Abort:  # Ctrl-C before the server took signals over
        return 130


def _unknown(error: click.NoSuchOption) -> int:
    flag = error.option_name
    reason = REFUSED.get(flag.lstrip("-").replace("-", "_"))
    if reason is not None:
        return _complain(f"{flag}: {reason}", error.exit_code)
    flags = [word for parameter in _parameters() for word in parameter.opts]
    message = f"{flag}: there is no such option{nearest(flag, flags)}"
    return _complain(f"{message} (see {COMMAND} --help)", error.exit_code)


def _complain(message: str, exit_status: int) -> int:
    print(f"{COMMAND}: error: {message}", file=sys.stderr)
    return exit_status


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console entry."""
    sys.exit(_run(sys.argv[1:] if arguments is None else list(arguments)))
