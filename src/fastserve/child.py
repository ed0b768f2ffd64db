"""A worker process under a supervisor: `python -m fastserve.child FD`, or forked."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import signal
import socket
import sys
import threading
import time
from typing import NoReturn

from fastserve import stacks
from fastserve._shared import Row, Table
from fastserve.application import ApplicationError, load
from fastserve.asgi import ASGI3
from fastserve.channel import Channel
from fastserve.config import Config, ConfigError
from fastserve.errors import ServerError
from fastserve.log import logger, set_up
from fastserve.server import Server, target_of
from fastserve.sockets import Listeners, Listening
from fastserve.worker import Worker

__all__ = ["main", "work"]

# They reach the whole group from a terminal, or mean the supervisor: it says what they are here.
# Not SIG_IGN, which what the application starts would inherit.
IGNORED = (
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
)


def main() -> NoReturn:
    """The process that the supervisor starts; what it is to do comes over the channel."""
    channel = Channel(_socket(int(sys.argv[1])))
    order = channel.wait()
    if order is None:
        sys.exit(1)  # the supervisor is gone already
    sys.path[:] = order["path"]
    sys.argv[:] = order["argv"]
    listening = [
        Listening(_socket(fd), secure, shared) for fd, secure, shared in order["listening"]
    ]
    table = Table(order["table"])
    table.close()
    row = table.row(order["row"])
    sys.exit(work(channel, Config(**order["config"]), Listeners(listening), row))


def work(
    channel: Channel,
    config: Config,
    sockets: Listeners,
    row: Row,
    *,
    application: ASGI3 | None = None,
) -> int:
    """Serve until the supervisor says so, or is gone. `row`: where the others see this
    process. `application`: None is the one that `config` names. Returns the exit status."""
    _take_signals()
    _explain_crashes()
    row.take()
    try:
        set_up(**config.logging)
        server = Server(
            application or load(target_of(None, config), config),
            config,
            on_ready=lambda worker, sockets: channel.send(ready=True),
            on_enough=lambda reason: channel.send(enough=reason),
            row=row,
        )
        commands = Commands(channel, server)
        # The supervisor has had the signals held back until now.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        with server.opened():
            server.run(sockets, commands.connect)
    except (ApplicationError, ConfigError, ServerError, OSError) as error:
        if isinstance(error, ApplicationError) and error.__cause__ is not None:
            logger.error("the application raised", exc_info=error.__cause__)
        status = error.exit_status if isinstance(error, ServerError) else 1
        channel.send(failed=str(error), status=status)
        return status
    return 0


class Commands:
    """What the supervisor says, as commands to the server. They are heard in a thread: no loop
    need know the channel, and one that is stuck cannot keep the process for ever."""

    def __init__(self, channel: Channel, server: Server) -> None:
        self._channel = channel
        self._server = server
        self._worker: Worker | None = None
        self._terminated = False
        self._commands = {
            "stop": server.stop,
            "skip_waiting": server.skip_waiting,
            "reopen_logs": server.reopen_logs,
            "reload_certificates": server.reload_certificates,
        }
        # Not through the loop, which would leave the signal to the system at its end.
        signal.signal(signal.SIGTERM, self._terminate)

    def connect(self, worker: Worker) -> None:
        self._worker = worker
        if self._terminated:
            worker.call_threadsafe(self._server.stop)
        threading.Thread(
            target=self._listen, args=(worker,), name="fastserve-commands", daemon=True
        ).start()

    def _terminate(self, number: int, frame: object) -> None:
        """Of this process alone, or of the group: then the supervisor says it as well."""
        self._terminated = True
        if self._worker is not None:
            self._worker.call_threadsafe(self._server.stop)

    def _listen(self, worker: Worker) -> None:
        while (message := self._channel.wait()) is not None:
            if message["do"] == "explain":
                _explain(worker)
                os._exit(1)
            command = self._commands[message.pop("do")]
            worker.call_threadsafe(functools.partial(command, **message))
        worker.call_threadsafe(self._abandoned)
        # One that is stuck must not stay for ever.
        time.sleep(self._server.config.stop_timeout)
        logger.error("this worker did not end in time")
        _explain(worker)
        os._exit(1)

    def _abandoned(self) -> None:
        logger.error("the supervisor is gone: finishing what is under way")
        self._server.stop()


def _explain(worker: Worker) -> None:
    """What the loop may not be able to do, since it hangs."""
    logger.error("the threads stand at\n%s", stacks.of_threads().rstrip())
    logger.error("the tasks stand at\n%s", stacks.of_tasks(worker.tasks()).rstrip())


def _explain_crashes() -> None:
    """On stderr, where every thread stands, when a signal such as SIGSEGV ends this process; also
    SIGABRT, which the supervisor sends to one that is not able to explain itself."""
    # Where the application's import has not had it its own way, and there is a stderr.
    with contextlib.suppress(RuntimeError, ValueError, OSError):
        if not faulthandler.is_enabled():
            faulthandler.enable()


def _take_signals() -> None:
    for number in IGNORED:
        signal.signal(number, lambda number, frame: None)
    signal.signal(signal.SIGQUIT, lambda number, frame: os._exit(1))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _socket(fd: int) -> socket.socket:
    """What was handed down, and is not for this process's own children."""
    os.set_inheritable(fd, False)
    return socket.socket(fileno=fd)


if __name__ == "__main__":
    main()
