"""The ASGI events that checks have the application send, and what is asked of them."""

from __future__ import annotations

from typing import Any

Event = dict[str, Any]
Step = tuple[Any, ...]


# Headers and bodies may be anything: some checks send what is invalid.
def start(status: int = 200, *headers: Any, **more: Any) -> Step:
    event = {"type": "http.response.start", "status": status, "headers": list(headers), **more}
    return ("send", event)


def body(data: Any = b"", **more: Any) -> Step:
    return ("send", {"type": "http.response.body", "body": data, **more})


def part(data: bytes) -> Step:
    return body(data, more_body=True)


def length(size: int) -> tuple[bytes, bytes]:
    return (b"content-length", str(size).encode())


OK = [start(200, length(2)), body(b"ok")]


def accept(**more: Any) -> Step:
    return ("send", {"type": "websocket.accept", **more})


def text(data: str) -> Step:
    return ("send", {"type": "websocket.send", "text": data})


def close(**more: Any) -> Step:
    return ("send", {"type": "websocket.close", **more})


RECEIVE = ("receive",)
GATE = ("gate",)
FAIL = ("fail",)


def version_of(scope: dict[str, Any]) -> tuple[int, ...]:
    """The version of the specification that the scope claims; 2.0 unless it says."""
    text = scope.get("asgi", {}).get("spec_version", "2.0")
    return tuple(int(part) for part in text.split("."))


def extension(scope: dict[str, Any], name: str) -> bool:
    return name in (scope.get("extensions") or {})
