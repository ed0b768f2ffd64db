"""From a configuration to processes: the server in this one, or workers and their supervisor."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

from fastserve import child, handover
from fastserve.application import load
from fastserve.config import Config, ConfigError
from fastserve.log import logger, set_up
from fastserve.server import Server, configured, opened_sockets, target_of, worker_class_of
from fastserve.supervisor import Supervisor
from fastserve.worker import Worker

__all__ = ["check", "run"]


def run(
    application: object | str | None = None,
    config: Config | None = None,
    *,
    reread: Callable[[], Config] | None = None,
    **options: Any,
) -> None:
    """Serve until a signal ends it (docs/operations.md). `application`: an ASGI callable or
    "module:attr"; None is the one that `config` names.

    `reread()` makes the configuration anew when the workers are replaced. `options`: the
    fields of Config. Raises ConfigError, ApplicationError, ServerError."""
    config = configured(config, options)
    set_up(**config.logging)
    target = target_of(application, config)
    if config.needs_supervisor or handover.is_under_way():
        _supervise(target, config, reread)
    else:
        _serve(target, config)


def check(application: object | str | None, config: Config) -> None:
    """Raise what `run` would raise before it listens."""
    worker_class_of(config)
    load(target_of(application, config), config)


def _supervise(target: object | str, config: Config, reread: Callable[[], Config] | None) -> None:
    work = None
    if isinstance(target, str):
        config = dataclasses.replace(config, application=target)
    elif not config.preload:
        raise ConfigError(
            "application: several processes need its name, as MODULE:ATTR, or --preload"
        )
    if config.preload and config.reload:
        raise ConfigError("--reload: not with --preload, by which the application is imported once")
    if config.preload:
        work = functools.partial(child.work, application=load(target, config))
        # What is there by now is not looked at again, which would copy the pages it is in.
        gc.collect()
        gc.freeze()
    Supervisor(config, reread or (lambda: config), work).run()


def _serve(target: object | str, config: Config) -> None:
    worker_class = worker_class_of(config)
    if config.debug and not worker_class.can_debug:
        logger.warning("--debug is ignored: %s has no debug mode", worker_class.name)
    server = Server(load(target, config), config)
    signals = _Signals(server)
    with server.opened(), contextlib.ExitStack() as stack:
        sockets = stack.enter_context(opened_sockets(config))
        with _ending_at_once(stack):
            server.run(sockets, signals.connect)


@contextlib.contextmanager
def _ending_at_once(stack: contextlib.ExitStack) -> Iterator[None]:
    """On SIGQUIT, also while the loop is stuck; of what `stack` has, nothing is left behind."""

    def end(number: int, frame: object) -> None:
        stack.close()
        os._exit(0)

    before = signal.signal(signal.SIGQUIT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGQUIT, before)


class _Signals:
    """The signals of a process that serves alone, as commands to its server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stopping = False
        self._actions: dict[int, Callable[[int], None]] = {
            signal.SIGINT: self._end,
            signal.SIGTERM: self._end,
            signal.SIGHUP: self._reload,
            signal.SIGUSR1: self._reload,
            signal.SIGTTIN: self._refuse,
            signal.SIGTTOU: self._refuse,
            signal.SIGUSR2: self._refuse,
        }

    def connect(self, worker: Worker) -> None:
        worker.on_signals(tuple(self._actions), self._act)

    def _act(self, number: int) -> None:
        self._actions[number](number)

    def _end(self, number: int) -> None:
        if self._stopping:
            self._server.skip_waiting()
            return
        self._stopping = True
        logger.info("%s: finishing what is under way", signal.Signals(number).name)
        self._server.stop(at_keyboard=number == signal.SIGINT)

    def _reload(self, number: int) -> None:
        self._server.reload_certificates()
        self._server.reopen_logs()

    def _refuse(self, number: int) -> None:
        logger.warning("%s is for a supervisor, as with --workers 2", signal.Signals(number).name)
