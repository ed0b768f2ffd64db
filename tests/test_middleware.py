"""The shipped middlewares, on every worker over real sockets; what they make of a scope, by it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Client, Running, Serve, hello, read_body, request, respond

from fastserve.middleware import Dispatcher, HTTPSRedirect, ProxyFix
from fastserve.wsgi import WSGI

UPGRADE = (
    "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)  # fmt: skip


class Called(BaseException):
    """The application was called, with this scope."""


def scope_of(middleware: Any, **changes: Any) -> dict[str, Any]:
    """What the application behind a middleware is called with."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise Called(scope)

    scope = {
        "type": "http", "scheme": "http", "path": "/", "root_path": "", "query_string": b"",
        "client": ("10.0.0.1", 5000), "server": ("10.0.0.2", 8000),
        "headers": [(b"host", b"inner:8000")], **changes,
    }  # fmt: skip
    before = repr(scope)
    with pytest.raises(Called) as called:
        middleware(app)(scope, None, None).send(None)
    assert repr(scope) == before, "the scope of others was changed"
    seen: dict[str, Any] = called.value.args[0]
    return seen


async def show(scope: Any, receive: Any, send: Any) -> None:
    """Where an application finds itself."""
    if scope["type"] != "http":
        raise RuntimeError("only HTTP")
    keys = ("root_path", "path", "scheme", "client", "server")
    shown = {key: scope[key] for key in keys} | {"state": scope.get("state")}
    await respond(send, json.dumps(shown).encode())


class TestHTTPSRedirect:
    @pytest.mark.parametrize(
        "target, host, location",
        [
            ("/", "a.example", b"https://a.example/"),
            ("/p%C3%A4th/%2F?q=%20&r", "a.example", b"https://a.example/p%C3%A4th/%2F?q=%20&r"),
            ("/", "a.example:80", b"https://a.example/"),
            ("/", "a.example:8080", b"https://a.example:8080/"),
            ("/", "[::1]:80", b"https://[::1]/"),
            ("//evil.example/", "a.example", b"https://a.example//evil.example/"),
            ("http://b.example/c?d", "b.example", b"https://b.example/c?d"),
        ],
    )
    def test_http(self, serve: Serve, target: str, host: str, location: bytes) -> None:
        with serve(HTTPSRedirect(hello)).connect() as client:
            client.sendall(f"POST {target} HTTP/1.1\r\nHost: {host}\r\n".encode())
            client.sendall(b"Content-Length: 3\r\n\r\nabc")
            response = client.read_response()
        assert (response.status, response.field(b"location")) == (307, location)
        assert response.body == b""

    def test_another_host_for_ever(self, serve: Serve) -> None:
        app = HTTPSRedirect(hello, host="b.example:8443", permanent=True)
        with serve(app, root_path="/app").connect() as client:
            response = client.get("/x?y")
            assert response.status == 308
            assert response.field(b"location") == b"https://b.example:8443/app/x?y"
            # Below the prefix already, and all there is.
            assert client.get("/app/x").field(b"location") == b"https://b.example:8443/app/x"
            client.sendall(request("OPTIONS", "*"))
            assert client.read_response().field(b"location") == b"https://b.example:8443"

    def test_no_host(self, serve: Serve) -> None:
        with serve(HTTPSRedirect(hello)).connect() as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.read_response().status == 400

    def test_a_websocket(self, serve: Serve) -> None:
        with serve(HTTPSRedirect(hello)).connect() as client:
            response = client.get("/chat?room=1", *UPGRADE)
        assert response.status == 307
        assert response.field(b"location") == b"wss://test/chat?room=1"

    def test_a_websocket_that_can_only_be_closed(self) -> None:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "websocket", "scheme": "ws", "path": "/", "headers": [(b"host", b"a")]}
        with pytest.raises(StopIteration):
            HTTPSRedirect(hello)(scope, receive, send).send(None)  # type: ignore[attr-defined]
        assert sent == [{"type": "websocket.close"}]

    @pytest.mark.parametrize(
        "kind, scheme", [("http", "https"), ("websocket", "wss"), ("lifespan", None)]
    )
    def test_what_passes(self, kind: str, scheme: str | None) -> None:
        seen = scope_of(HTTPSRedirect, type=kind, scheme=scheme)
        assert (seen["type"], seen["scheme"]) == (kind, scheme)

    def test_behind_a_proxy(self, serve: Serve) -> None:
        with serve(ProxyFix(HTTPSRedirect(hello))).connect() as client:
            assert client.get("/", "X-Forwarded-Proto: https").body == b"Hello, world!"
            assert client.get("/", "X-Forwarded-Proto: http").status == 307


def named(name: str) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("none")
        shown = f"{name} {scope['root_path']} {scope['path']}"
        await respond(send, shown.encode())

    return app


class TestDispatcher:
    @pytest.mark.parametrize(
        "root_path, target, seen",
        [
            ("", "/a", b"a /a /a"),
            ("", "/a/", b"a /a /a/"),
            ("", "/a/x?y", b"a /a /a/x"),
            ("", "/a/b", b"b /a/b /a/b"),
            ("", "/a/b/c", b"b /a/b /a/b/c"),
            ("", "/a/bc", b"a /a /a/bc"),
            ("", "/ab", b"rest  /ab"),
            ("", "/", b"rest  /"),
            ("/r", "/a/x", b"a /r/a /r/a/x"),
            ("/r", "/r/a/x", b"a /r/a /r/a/x"),
            ("/r", "/x", b"rest /r /r/x"),
        ],
    )
    def test_paths(self, serve: Serve, root_path: str, target: str, seen: bytes) -> None:
        app = Dispatcher({"/a": named("a"), "/a/b/": named("b")}, default=named("rest"))
        with serve(app, root_path=root_path).connect() as client:
            assert client.get(target).body == seen

    def test_nobody(self, serve: Serve) -> None:
        with serve(Dispatcher({"/a": named("a")})).connect() as client:
            response = client.get("/b")
            assert (response.status, response.body) == (404, b"Not Found\n")
            assert client.get("/b", *UPGRADE).status == 404

    def test_inside_another(self, serve: Serve) -> None:
        app = Dispatcher({"/a": Dispatcher({"/b": named("b")}, named("a")), "/": named("rest")})
        with serve(app).connect() as client:
            assert client.get("/a/b/c").body == b"b /a/b /a/b/c"
            assert client.get("/a/c").body == b"a /a /a/c"
            assert client.get("/b").body == b"rest  /b"

    def test_wsgi_beside_asgi(self, serve: Serve) -> None:
        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", [])
            body = environ["wsgi.input"].read().decode()
            return [f"{environ['SCRIPT_NAME']} {environ['PATH_INFO']} {body}".encode()]

        with serve(Dispatcher({"/old": WSGI(app)}, default=named("new"))).connect() as client:
            client.sendall(request("POST", "/old/x%FFy", body=b"abc"))
            assert client.read_response().body == "/old /x\u00ffy abc".encode()
            assert client.get("/x").body == b"new  /x"

    @pytest.mark.parametrize("mounts", [{"a": hello}, {"/a": hello, "/a/": named("a")}])
    def test_prefixes_that_make_no_sense(self, mounts: Any) -> None:
        with pytest.raises(ValueError):
            Dispatcher(mounts)


class Living:
    """Keeps a diary of its lifespan; `how` says where it leaves the path."""

    def __init__(self, name: str, diary: list[str], how: str = "") -> None:
        self.name = name
        self.diary = diary
        self.how = how

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            assert set(scope["state"]) <= {"outer", self.name}
            await show(scope, receive, send)
        elif self.how == "has none":
            raise NotImplementedError(self.name)
        else:
            await self.live(scope, receive, send)

    async def live(self, scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        self.diary.append(f"+{self.name}")
        if self.how == "fails":
            await send({"type": "lifespan.startup.failed", "message": "no database"})
            raise RuntimeError("no database")  # as Starlette does
        scope["state"][self.name] = len(self.diary)
        await send({"type": "lifespan.startup.complete"})
        if self.how == "returns":
            return
        if self.how == "raises":
            raise ArithmeticError(self.name)
        assert (await receive())["type"] == "lifespan.shutdown"
        self.diary.append(f"-{self.name}")
        if self.how == "fails to end":
            await send({"type": "lifespan.shutdown.failed", "message": "stuck"})
        elif self.how == "raises at the end":
            raise ArithmeticError(self.name)
        else:
            await send({"type": "lifespan.shutdown.complete"})


def messages(running: Running) -> list[str]:
    return [record.getMessage() for record in running.errors]


class TestLifespans:
    @pytest.fixture
    def diary(self) -> list[str]:
        return []

    def test_each_has_its_own(self, serve: Serve, diary: list[str]) -> None:
        twice = Living("c", diary)
        mounts = {"/a": Living("a", diary), "/b": Living("b", diary), "/c": twice, "/d": twice}
        running = serve(Dispatcher(mounts, Living("rest", diary)), lifespan="on")
        with running.connect() as client:
            states = {path: state(client, path) for path in ("/a", "/b", "/c", "/d", "/x")}
        running.stop()
        assert diary == ["+a", "+b", "+c", "+rest", "-rest", "-c", "-b", "-a"]
        assert states == {
            "/a": {"a": 1}, "/b": {"b": 2}, "/c": {"c": 3}, "/d": {"c": 3}, "/x": {"rest": 4},
        }  # fmt: skip
        assert not running.errors

    def test_one_inside_the_other(self, serve: Serve, diary: list[str]) -> None:
        inner = Dispatcher({"/b": Living("b", diary)}, Living("c", diary))
        running = serve(Dispatcher({"/a": inner, "/d": Living("d", diary)}), lifespan="on")
        with running.connect() as client:
            assert state(client, "/a/b") == {"b": 1}
            assert state(client, "/a") == {"c": 2}
            assert state(client, "/d") == {"d": 3}
        running.stop()
        assert diary == ["+b", "+c", "+d", "-d", "-c", "-b"]

    def test_a_state_from_outside(self, serve: Serve, diary: list[str]) -> None:
        inner = Dispatcher({"/a": Living("a", diary)})

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                scope["state"]["outer"] = "yes"
            await inner(scope, receive, send)

        with serve(app, lifespan="on").connect() as client:
            assert state(client, "/a") == {"outer": "yes", "a": 1}

    def test_it_may_be_served_twice(self, serve: Serve) -> None:
        class Counting:
            count = 0

            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                if scope["type"] != "lifespan":
                    await show(scope, receive, send)
                    return
                await receive()
                self.count += 1
                scope["state"]["number"] = self.count
                await send({"type": "lifespan.startup.complete"})
                await receive()
                await send({"type": "lifespan.shutdown.complete"})

        app = Dispatcher({"/a": Counting()})
        running = [serve(app, lifespan="on") for _ in range(2)]
        for number, server in enumerate(running, 1):
            with server.connect() as client:
                assert state(client, "/a") == {"number": number}

    def test_one_that_fails(self, serve: Serve, diary: list[str]) -> None:
        mounts = {
            "/a": Living("a", diary), "/b": Living("b", diary, "fails"), "/c": Living("c", diary),
        }  # fmt: skip
        with pytest.raises(Exception, match="failed to start up: /b: no database$"):
            serve(Dispatcher(mounts), lifespan="on")
        assert diary == ["+a", "+b", "-a"]

    @pytest.mark.parametrize("how", ["has none", "returns"])
    def test_one_that_takes_no_part(self, serve: Serve, diary: list[str], how: str) -> None:
        mounts = {
            "/a": Living("a", diary, how), "/b": Living("b", diary), "/c": Living("c", diary, how),
        }  # fmt: skip
        running = serve(Dispatcher(mounts), lifespan="on")
        with running.connect() as client:
            assert "b" in state(client, "/b")
            assert client.get("/a").status == 200
        running.stop()
        assert "+b" in diary and diary[-1] == "-b"
        assert not running.errors

    def test_none_takes_part(self, serve: Serve, diary: list[str]) -> None:
        mounts = {"/a": Living("a", diary, "has none"), "/b": Living("b", diary, "has none")}
        running = serve(Dispatcher({"/x": named("x")} | mounts), lifespan="auto")
        with running.connect() as client:
            assert client.get("/x").status == 200
        with pytest.raises(Exception, match="raised on lifespan"):
            serve(Dispatcher(mounts), lifespan="on")

    @pytest.mark.parametrize("how", ["raises", "raises at the end"])
    def test_one_that_raises_later(self, serve: Serve, diary: list[str], how: str) -> None:
        mounts = {"/a": Living("a", diary, how), "/b": Living("b", diary)}
        running = serve(Dispatcher(mounts), lifespan="on")
        with running.connect() as client:
            assert "b" in state(client, "/b")
        running.stop()
        assert "-b" in diary
        assert messages(running) == ["/a: the lifespan raised"]

    def test_one_that_fails_to_end(self, serve: Serve, diary: list[str]) -> None:
        mounts = {"/a": Living("a", diary), "/b": Living("b", diary, "fails to end")}
        running = serve(Dispatcher(mounts), lifespan="on")
        running.stop()
        assert diary == ["+a", "+b", "-b", "-a"]
        assert messages(running) == ["the application failed to shut down: /b: stuck"]


def state(client: Client, target: str) -> Any:
    response = client.get(target)
    assert response.status == 200
    return json.loads(response.body)["state"]


def fixed(*fields: tuple[str, str], **options: Any) -> dict[str, Any]:
    """The scope behind a ProxyFix, for these header fields besides Host."""
    changes = options.pop("scope", {})
    headers = [(b"host", b"inner:8000")]
    headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in fields]
    return scope_of(lambda app: ProxyFix(app, **options), headers=headers, **changes)


def host(scope: dict[str, Any]) -> list[bytes]:
    return [value for name, value in scope["headers"] if name == b"host"]


FOR = "X-Forwarded-For"
PROTO = "X-Forwarded-Proto"
HOST = "X-Forwarded-Host"
PORT = "X-Forwarded-Port"
PREFIX = "X-Forwarded-Prefix"
ALL = ("for", "proto", "host", "port", "prefix")


class TestProxyFix:
    @pytest.mark.parametrize(
        "values, hops, client",
        [
            (["1.2.3.4"], 1, ("1.2.3.4", 0)),
            (["9.9.9.9, 1.2.3.4"], 1, ("1.2.3.4", 0)),
            (["9.9.9.9,8.8.8.8 ,1.2.3.4"], 2, ("8.8.8.8", 0)),
            (["9.9.9.9", "1.2.3.4"], 1, ("1.2.3.4", 0)),
            (["9.9.9.9", "1.2.3.4, 5.6.7.8"], 3, ("9.9.9.9", 0)),
            (["1.2.3.4"], 2, ("10.0.0.1", 5000)),
            (["1.2.3.4:77"], 1, ("1.2.3.4", 77)),
            (["2001:db8::1"], 1, ("2001:db8::1", 0)),
            (["[2001:DB8::1]:77"], 1, ("2001:db8::1", 77)),
            (["1.2.3.4:65536"], 1, None),
            (["unknown"], 1, None),
            (["999.1.1.1"], 1, None),
            ([""], 1, ("10.0.0.1", 5000)),
            (["1.2.3.4, "], 1, ("10.0.0.1", 5000)),
        ],
    )
    def test_the_client(self, values: list[str], hops: int, client: Any) -> None:
        scope = fixed(*((FOR, value) for value in values), trusted_hops=hops)
        assert scope["client"] == client

    @pytest.mark.parametrize(
        "kind, said, scheme",
        [
            ("http", "https", "https"),
            ("http", "HTTPS", "https"),
            ("http", "wss", "https"),
            ("http", "http", "http"),
            ("http", "gopher", "http"),
            ("websocket", "https", "wss"),
            ("websocket", "http", "ws"),
        ],
    )
    def test_the_scheme(self, kind: str, said: str, scheme: str) -> None:
        before = "http" if kind == "http" else "ws"
        scope = fixed((PROTO, said), scope={"type": kind, "scheme": before})
        assert scope["scheme"] == scheme

    @pytest.mark.parametrize(
        "fields, seen, server",
        [
            ([(HOST, "a.example")], b"a.example", ("a.example", 80)),
            ([(HOST, "a.example:81")], b"a.example:81", ("a.example", 81)),
            ([(HOST, "a.example"), (PROTO, "https")], b"a.example", ("a.example", 443)),
            ([(HOST, "a.example"), (PORT, "81")], b"a.example:81", ("a.example", 81)),
            ([(HOST, "[::1]:81")], b"[::1]:81", ("::1", 81)),
            ([(PORT, "443"), (PROTO, "https")], b"inner", ("inner", 443)),
            ([(HOST, "a/b")], b"inner:8000", ("10.0.0.2", 8000)),
            ([(HOST, "a b")], b"inner:8000", ("10.0.0.2", 8000)),
            ([(PORT, "65536")], b"inner:8000", ("10.0.0.2", 8000)),
            ([(HOST, "a.example:65535")], b"a.example:65535", ("a.example", 65535)),
            ([(HOST, "a.example:65536")], b"inner:8000", ("10.0.0.2", 8000)),
            ([(PORT, "x")], b"inner:8000", ("10.0.0.2", 8000)),
        ],
    )
    def test_the_host(self, fields: Any, seen: bytes, server: Any) -> None:
        scope = fixed(*fields, fields=ALL)
        assert host(scope) == [seen]
        assert scope["server"] == server

    @pytest.mark.parametrize(
        "said, path, root_path, seen",
        [
            ("/p", "/x", "", ("/p", "/p/x")),
            ("/p/", "/x", "", ("/p", "/p/x")),
            ("/p", "/p/x", "", ("/p", "/p/x")),
            ("/p", "/r/x", "/r", ("/p/r", "/p/r/x")),
            ("/", "/x", "", ("", "/x")),
            ("p", "/x", "", ("", "/x")),
            ("//evil.example", "/x", "", ("", "/x")),
            ("/p?q", "/x", "", ("", "/x")),
        ],
    )
    def test_the_prefix(self, said: str, path: str, root_path: str, seen: Any) -> None:
        scope = fixed((PREFIX, said), fields=ALL, scope={"path": path, "root_path": root_path})
        assert (scope["root_path"], scope["path"]) == seen

    def test_what_a_proxy_may_not_set_is_not_believed_unasked(self) -> None:
        scope = fixed(
            (PORT, "81"), (PREFIX, "/p"), (HOST, "a.example"), ("Forwarded", "for=1.1.1.1")
        )
        assert scope["root_path"] == ""
        assert host(scope) == [b"a.example"]
        assert scope["client"] == ("10.0.0.1", 5000)
        assert fixed((HOST, "a.example"), fields=("for",))["server"] == ("10.0.0.2", 8000)

    @pytest.mark.parametrize(
        "values, hops, client, seen, scheme",
        [
            (["for=1.2.3.4;proto=https;host=a.example"], 1, "1.2.3.4", b"a.example", "https"),
            (["For=9.9.9.9, FOR=1.2.3.4;Proto=HTTPS"], 1, "1.2.3.4", b"inner:8000", "https"),
            (["for=9.9.9.9", "for=1.2.3.4"], 2, "9.9.9.9", b"inner:8000", "http"),
            (['for="[2001:db8::1]:47";host="a:81"'], 1, "2001:db8::1", b"a:81", "http"),
            (['for=9.9.9.9;ext="a,b;c\\"d", , for=1.2.3.4'], 2, "9.9.9.9", b"inner:8000", "http"),
            ([' for=1.2.3.4 ; by="_x" '], 1, "1.2.3.4", b"inner:8000", "http"),
            (["for=1.2.3.4"], 2, "10.0.0.1", b"inner:8000", "http"),
            (['for="1.2.3.4'], 1, "10.0.0.1", b"inner:8000", "http"),
            (["for=1.2.3.4;for=5.6.7.8"], 1, "10.0.0.1", b"inner:8000", "http"),
            (["for=1.2.3.4 for=5.6.7.8"], 1, "10.0.0.1", b"inner:8000", "http"),
            ([""], 1, "10.0.0.1", b"inner:8000", "http"),
        ],
    )
    def test_forwarded(
        self, values: list[str], hops: int, client: str, seen: bytes, scheme: str
    ) -> None:
        fields = [("Forwarded", value) for value in values]
        scope = fixed(*fields, (FOR, "6.6.6.6"), trusted_hops=hops, mode="modern")
        assert scope["client"][0] == client
        assert host(scope) == [seen]
        assert scope["scheme"] == scheme

    @pytest.mark.parametrize("node", ["unknown", "_hidden"])
    def test_a_client_that_is_kept_secret(self, node: str) -> None:
        assert fixed(("Forwarded", f"for={node}"), mode="modern")["client"] is None

    def test_the_lifespan_passes(self) -> None:
        assert fixed((FOR, "1.2.3.4"), scope={"type": "lifespan"})["client"][0] == "10.0.0.1"

    @pytest.mark.parametrize(
        "options", [{"trusted_hops": 0}, {"mode": "new"}, {"fields": ("for", "by")}]
    )
    def test_arguments_that_make_no_sense(self, options: Any) -> None:
        with pytest.raises(ValueError):
            ProxyFix(hello, **options)

    def test_on_a_server(self, serve: Serve) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            assert await read_body(receive) == b"abc"
            await show(scope, receive, send)

        running = serve(ProxyFix(app, fields=ALL), lifespan="off")
        with running.connect() as client:
            fields = [f"{FOR}: 1.2.3.4", f"{PROTO}: https", f"{HOST}: a.example", f"{PREFIX}: /p"]
            client.sendall(request("POST", "/x", *fields, body=b"abc"))
            assert json.loads(client.read_response().body) == {
                "root_path": "/p", "path": "/p/x", "scheme": "https", "client": ["1.2.3.4", 0],
                "server": ["a.example", 443], "state": None,
            }  # fmt: skip
