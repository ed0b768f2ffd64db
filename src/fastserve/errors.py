"""Why a server does not run."""

from __future__ import annotations

__all__ = ["ServerError"]


class ServerError(Exception):
    """The server cannot start, or cannot go on; one line for whoever started it."""

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status
