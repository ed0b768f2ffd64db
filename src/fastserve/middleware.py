"""ASGI 3 middlewares: redirect to HTTPS, several applications under one server, and trust in
what a proxy says. Plain Python: they run on any event loop and under any ASGI server.
"""

from __future__ import annotations

import ipaddress
import re
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal
from urllib.parse import quote

from fastserve.asgi import ASGI3, Message, Receive, Scope, Send
from fastserve.log import logger

__all__ = ["Dispatcher", "HTTPSRedirect", "ProxyFix"]


def _is_below(path: str, prefix: str) -> bool:
    """Whether `prefix` is a whole number of the path's segments."""
    return path == prefix or path.startswith(f"{prefix}/")


def _field(scope: Scope, name: bytes) -> str | None:
    """All lines of a header field, as one (RFC 9110 section 5.3)."""
    values = [value for key, value in scope["headers"] if key == name]
    return b",".join(values).decode("latin-1") if values else None


async def _answer(
    scope: Scope,
    receive: Receive,
    send: Send,
    status: int,
    text: str,
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> None:
    """An answer in place of the application's; a WebSocket is denied with it where the server
    can (ASGI extension "websocket.http.response"), and else closed."""
    kind = "http.response"
    if scope["type"] == "websocket":
        await receive()
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close"})
            return
        kind = "websocket.http.response"
    body = text.encode()
    fields = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        *headers,
    ]
    await send({"type": f"{kind}.start", "status": status, "headers": fields})
    await send({"type": f"{kind}.body", "body": body})


class HTTPSRedirect:
    """Redirects http to https and ws to wss; whatever is secure already passes.

    `host`: where to, as "name" or "name:port"; without it, to the request's own Host, and the
    port 80 is left away. `permanent`: 308 instead of 307. Both have the client repeat method
    and body (RFC 9110 sections 15.4.8 and 15.4.9).
    """

    def __init__(self, app: ASGI3, host: str | None = None, *, permanent: bool = False) -> None:
        self.app = app
        self.host = host
        self.status = 308 if permanent else 307

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope.get("scheme", "http") == "http":
            scheme = "https"
        elif scope["type"] == "websocket" and scope.get("scheme", "ws") == "ws":
            scheme = "wss"
        else:
            await self.app(scope, receive, send)
            return
        host = self.host or (_field(scope, b"host") or "").removesuffix(":80")
        if not host:  # HTTP/1.0 may have none
            await _answer(scope, receive, send, 400, "There is no Host to redirect to.\n")
            return
        location = f"{scheme}://{host}{_target(scope)}".encode("latin-1")
        await _answer(scope, receive, send, self.status, "", ((b"location", location),))


def _target(scope: Scope) -> str:
    """Path and query as the client sees them, encoded as they came."""
    raw = scope.get("raw_path")
    path = quote(scope["path"]) if raw is None else raw.decode("latin-1")
    root = quote(scope.get("root_path", ""))
    if path == "*":
        path = ""  # how a URL says it: RFC 9112 section 3.2.4
    elif root and not _is_below(path, root):
        path = root + path
    query = scope.get("query_string", b"").decode("latin-1")
    return f"{path}?{query}" if query else path


class Dispatcher:
    """Several applications, each under a path prefix.

    The longest prefix that is a whole number of segments wins; `default` has the rest, and
    without it that is a 404, or a WebSocket that is refused. An application finds its prefix
    at the end of `root_path`, and `path` as it was (ASGI HTTP spec, "root_path").

    Each application has a lifespan of its own, in the order given, and a state of its own in
    `scope["state"]`; it shuts down before those that started before it. The server's start-up
    fails if one of them fails. One that raises instead of answering takes no part, as with a
    server; if all do, so does the dispatcher.

    Raises ValueError for a prefix that does not begin with "/".
    """

    def __init__(self, mounts: Mapping[str, ASGI3], default: ASGI3 | None = None) -> None:
        for prefix in mounts:
            if prefix and not prefix.startswith("/"):
                raise ValueError(f"a prefix begins with '/', unlike {prefix!r}")
        self.mounts = {prefix.rstrip("/"): app for prefix, app in mounts.items()}
        if len(self.mounts) < len(mounts):
            raise ValueError("two prefixes are the same")
        if default is not None:
            self.mounts.setdefault("", default)
        self._longest_first = sorted(self.mounts, key=len, reverse=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _Lifespans(self.mounts, scope, receive, send).run()
            return
        root = scope.get("root_path", "")
        path = scope["path"]
        if root and _is_below(path, root):
            path = path[len(root) :]
        for prefix in self._longest_first:
            if not prefix or _is_below(path, prefix):
                break
        else:
            await _answer(scope, receive, send, 404, "Not Found\n")
            return
        mounted = {**scope, "root_path": root + prefix, "path": root + path}
        _unpack_state(mounted, prefix)
        await self.mounts[prefix](mounted, receive, send)


# Where the applications' states travel: in the server's, which it brings to each request.
# Nothing is kept in the dispatcher itself, which may well be served twice.
STATES = "fastserve:dispatcher"


def _unpack_state(scope: Scope, prefix: str) -> None:
    state = scope.get("state")
    if state is not None and STATES in state:
        outer = {key: value for key, value in state.items() if key != STATES}
        scope["state"] = {**outer, **state[STATES].get(prefix, {})}


class _Lifespans:
    """The lifespans of several applications, one inside the other.

    An application that has started asks for the next event, and is answered when it is to shut
    down; before that, those after it have their whole lives. So no task is needed, and no
    loop has to be known.
    """

    def __init__(
        self, mounts: Mapping[str, ASGI3], scope: Scope, receive: Receive, send: Send
    ) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.startup_failure: str | None = None
        self.shutdown_failure: str | None = None
        self.taking_part = 0
        self.refusal: Exception | None = None
        self._left: deque[tuple[str, ASGI3]] = deque()
        self._states: dict[str, dict[str, Any]] = {}
        known: dict[int, str] = {}
        for prefix, app in mounts.items():
            first = known.setdefault(id(app), prefix)
            if first == prefix:
                self._left.append((prefix, app))
                self._states[prefix] = {}
            self._states[prefix] = self._states[first]

    async def run(self) -> None:
        if "state" in self.scope:
            self.scope["state"][STATES] = self._states
        await self.receive()
        await self.rest()
        if self.startup_failure is not None:
            message = {"type": "lifespan.startup.failed", "message": self.startup_failure}
        elif self.refusal is not None and not self.taking_part:
            raise self.refusal
        elif self.shutdown_failure is not None:
            message = {"type": "lifespan.shutdown.failed", "message": self.shutdown_failure}
        else:
            message = {"type": "lifespan.shutdown.complete"}
        await self.send(message)

    async def rest(self) -> None:
        """The lives of the applications that have not started, until they have ended."""
        if self.startup_failure is not None:
            return
        while self._left:
            prefix, app = self._left.popleft()
            life = _Life(self, prefix)
            scope = dict(self.scope)
            if "state" in scope:
                scope["state"] = self._states[prefix]
            await life.run(app, scope)
            if life.asked_twice or self.startup_failure is not None:
                return  # the rest has lived meanwhile, or never will
        if self.taking_part or self.refusal is None:
            await self.send({"type": "lifespan.startup.complete"})
            await self.receive()


class _Life:
    """One application's lifespan: what its `receive` and `send` do."""

    def __init__(self, lifespans: _Lifespans, prefix: str) -> None:
        self.lifespans = lifespans
        self.prefix = prefix or "/"
        self.asked = False
        self.asked_twice = False
        self.started = False
        self.failed = False
        self.ended = False

    async def run(self, app: ASGI3, scope: Scope) -> None:
        try:
            await app(scope, self.receive, self.send)
        except Exception as error:
            if self.started and not self.ended:
                logger.error("%s: the lifespan raised", self.prefix, exc_info=error)
            elif not self.started and not self.failed:
                logger.info("%s has no lifespan: %r", self.prefix, error)
                self.lifespans.refusal = error

    async def receive(self) -> Message:
        if not self.asked:
            self.asked = True
            return {"type": "lifespan.startup"}
        if self.asked_twice:
            return await self.lifespans.receive()  # nothing follows
        if not self.started:
            raise RuntimeError("receive() before the start-up was answered")
        self.asked_twice = True
        await self.lifespans.rest()
        return {"type": "lifespan.shutdown"}

    async def send(self, message: Message) -> None:
        kind = message["type"]
        reason = f"{self.prefix}: {message.get('message') or 'no reason was given'}"
        if kind == "lifespan.startup.complete":
            self.started = True
            self.lifespans.taking_part += 1
        elif kind == "lifespan.startup.failed":
            self.failed = True
            self.lifespans.startup_failure = reason
        elif kind == "lifespan.shutdown.complete":
            self.ended = True
        elif kind == "lifespan.shutdown.failed":
            self.ended = True
            self.lifespans.shutdown_failure = self.lifespans.shutdown_failure or reason
        else:
            raise RuntimeError(f"send(): {kind!r} is not what a lifespan consists of")


# RFC 7239 section 4: forwarded-pair, and what may stand between two of them.
_PAIR = re.compile(
    r"[ \t]*(?:(?P<name>[!#$%&'*+\-.^_`|~0-9A-Za-z]+)="
    r"(?:(?P<token>[!#$%&'*+\-.^_`|~0-9A-Za-z]+)|\"(?P<quoted>(?:[^\"\\]|\\.)*)\"))?"
    r"[ \t]*(?P<end>[;,]|$)"
)
_NODE = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<v4>[0-9.]+))(?::(?P<port>[0-9]{1,5}))?")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]+)(?::([0-9]{1,5}))?")
# Not "//": that would be a host, once it is part of a link.
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)+/?|/")

_FIELDS = ("for", "proto", "host", "port", "prefix")


class ProxyFix:
    """Believes what the nearest proxies say of the client, in `client`, `scheme`, the Host field,
    `server` and `root_path`.

    `trusted_hops`: how many proxies there are in front. Each adds a value at the right; the one
    that the outermost of them added is used, and what stands left of it is the client's own
    invention. A request with fewer values did not come through all of them, and nothing
    is believed.

    `mode`: "legacy" for X-Forwarded-For, -Proto, -Host, -Port and -Prefix; "modern" for
    Forwarded (RFC 7239), and then for it alone.

    `fields`: those that the proxies do set. What they do not set, they pass on as the client
    made it up.

    Raises ValueError for an argument that makes no sense.
    """

    def __init__(
        self,
        app: ASGI3,
        trusted_hops: int = 1,
        mode: Literal["legacy", "modern"] = "legacy",
        *,
        fields: Collection[str] = ("for", "proto", "host"),
    ) -> None:
        if trusted_hops < 1:
            raise ValueError("trusted_hops: at least one proxy is in front")
        if mode not in ("legacy", "modern"):
            raise ValueError(f"mode: 'legacy' or 'modern' expected, not {mode!r}")
        if unknown := set(fields).difference(_FIELDS):
            raise ValueError(f"fields: there is no {sorted(unknown)[0]!r}")
        self.app = app
        self.trusted_hops = trusted_hops
        self.mode = mode
        self.fields = frozenset(fields)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            said = self._forwarded(scope) if self.mode == "modern" else self._x_forwarded(scope)
            said = {name: value for name, value in said.items() if name in self.fields and value}
            if said:
                scope = dict(scope)
                _believe(scope, said)
        await self.app(scope, receive, send)

    def _x_forwarded(self, scope: Scope) -> dict[str, str]:
        said = {}
        for name in self.fields:
            value = _field(scope, f"x-forwarded-{name}".encode())
            values = value.split(",") if value is not None else []
            if len(values) >= self.trusted_hops:
                said[name] = values[-self.trusted_hops].strip(" \t")
        return said

    def _forwarded(self, scope: Scope) -> dict[str, str]:
        elements = _parse_forwarded(_field(scope, b"forwarded") or "")
        return elements[-self.trusted_hops] if len(elements) >= self.trusted_hops else {}


def _parse_forwarded(text: str) -> list[dict[str, str]]:
    """The elements of a Forwarded field; none if it is malformed, for nobody knows then which
    part of it is whose."""
    elements: list[dict[str, str]] = [{}]
    at = 0
    while True:
        match = _PAIR.match(text, at)
        if match is None:
            return []
        if match["name"] is not None:
            name = match["name"].lower()
            if name in elements[-1]:
                return []
            quoted = match["quoted"]
            elements[-1][name] = (
                match["token"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            )
        if not match["end"]:
            break
        if match["end"] == ",":
            elements.append({})
        at = match.end()
    return [element for element in elements if element]


def _believe(scope: Scope, said: Mapping[str, str]) -> None:
    if "for" in said:
        scope["client"] = _client(said["for"])
    if "proto" in said:
        scope["scheme"] = _scheme(said["proto"].lower(), scope)
    _believe_host(scope, said.get("host"), said.get("port"))
    prefix = said.get("prefix", "")
    if _PREFIX.fullmatch(prefix):
        prefix = prefix.rstrip("/")
        scope["root_path"] = prefix + scope.get("root_path", "")
        if not _is_below(scope["path"], scope["root_path"]):
            scope["path"] = prefix + scope["path"]


def _client(node: str) -> tuple[str, int] | None:
    """Address and port; None where the proxy does not say (RFC 7239 section 6: "unknown", or
    a name of its own)."""
    match = _NODE.fullmatch(node)
    # X-Forwarded-For has IPv6 addresses without brackets.
    host = node if match is None else match["v6"] or match["v4"]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    port = (match and match["port"]) or "0"
    return (str(address), int(port)) if _is_port(port) else None


def _is_port(text: str) -> bool:
    return re.fullmatch("[0-9]{1,5}", text) is not None and int(text) < 65536


def _scheme(said: str, scope: Scope) -> str:
    kept: str = scope.get("scheme", "http")
    if said in ("https", "wss"):
        return "wss" if scope["type"] == "websocket" else "https"
    if said in ("http", "ws"):
        return "ws" if scope["type"] == "websocket" else "http"
    return kept


def _believe_host(scope: Scope, said: str | None, port: str | None) -> None:
    if port is not None and not _is_port(port):
        port = None
    if said is None and port is None:
        return
    match = _HOST.fullmatch(said or _field(scope, b"host") or "")
    if match is None or not _is_port(match[2] or "0"):
        return
    name = match[1]
    port = port or match[2]
    default = "443" if scope.get("scheme") in ("https", "wss") else "80"
    host = name if port in (None, default) else f"{name}:{port}"
    scope["headers"] = [*_without_host(scope["headers"]), (b"host", host.encode("ascii"))]
    scope["server"] = (name.strip("[]"), int(port or default))


def _without_host(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name != b"host"]
