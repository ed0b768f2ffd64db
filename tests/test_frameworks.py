"""Real applications, real clients: what people run, driven by what they run against it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from conftest import PATIENCE, WORKERS, request, skip_without
from process import Process, others_environment

LOOPS = ["asyncio", "uvloop"]
# More than a socket's buffers take at once, and every byte value is in it.
CONTENT = bytes(range(256)) * 4096
MIB = 1024 * 1024
COUNTED = {"size": len(CONTENT), "sum": sum(CONTENT)}
NUMBERS = "".join(f"{number}\n" for number in range(100))


class Site(Process):
    """An application in a process, with a client of httpx."""

    def __init__(self, framework: str, worker: str, app: str = "app") -> None:
        self.files = tempfile.TemporaryDirectory()
        super().__init__(
            "-k", worker, "-b", "127.0.0.1:0", f"with_{framework}:{app}",
            env={"FILES": self.files.name},
        )  # fmt: skip
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False)

    def end(self) -> None:
        self.http.close()
        super().end()
        self.files.cleanup()


def sites(framework: str, worker: str, app: str = "app") -> Iterator[Site]:
    for library in (framework, worker):
        skip_without(library)
    site = Site(framework, worker, app)
    try:
        yield site
        site.send_signal(signal.SIGTERM)
        assert site.wait() == 0
        assert not any("Exception ignored" in line for line in site.err.all())
    finally:
        site.end()


def most_memory(site: Site) -> int:
    """The most that has been resident, in bytes."""
    status = Path(f"/proc/{site.popen.pid}/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def check_files(site: Site) -> None:
    """FileResponse has the server send the file by its path; but for ranges."""
    Path(site.files.name, "content.bin").write_bytes(CONTENT)
    Path(site.files.name, "page.html").write_text("<p>")
    for folder in ("file", "static"):
        for _ in range(2):
            response = site.http.get(f"/{folder}/content.bin")
            assert response.content == CONTENT
            assert response.headers["content-length"] == str(len(CONTENT))
        page = site.http.get(f"/{folder}/page.html")
        assert page.text == "<p>"
        assert page.headers["content-type"].startswith("text/html")
        head = site.http.head(f"/{folder}/content.bin")
        assert (head.content, head.headers["content-length"]) == (b"", str(len(CONTENT)))
        part = site.http.get(f"/{folder}/content.bin", headers={"Range": "bytes=1000-900000"})
        assert (part.status_code, part.content) == (206, CONTENT[1000:900001])
    known = {"If-None-Match": response.headers["etag"]}
    assert site.http.get("/static/content.bin", headers=known).status_code == 304
    assert site.http.get("/static/nowhere").status_code == 404


@pytest.fixture(scope="module", params=WORKERS)
def starlette(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from sites("starlette", request.param)


@pytest.fixture(scope="module", params=WORKERS)
def plain_starlette(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from sites("starlette", request.param, "plain")


@pytest.fixture(scope="module", params=WORKERS)
def fastapi(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from sites("fastapi", request.param)


@pytest.fixture(scope="module", params=LOOPS)
def django(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from sites("django", request.param)


@pytest.fixture(scope="module", params=LOOPS)
def quart(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from sites("quart", request.param)


@pytest.fixture(scope="module", params=LOOPS)
def litestar(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from sites("litestar", request.param)


def curl(*arguments: str, text: str = "") -> str:
    """What curl prints, with `text` on its stdin; it fails on an answer that is no success."""
    command = ["curl", "-sS", "--fail", "--noproxy", "*", "--max-time", str(PATIENCE)]
    done = subprocess.run(
        [*command, *arguments],
        env=others_environment(),
        input=text,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_aiohttp(site: Site, method: str, path: str, **options: Any) -> tuple[int, bytes]:
    """Status and body of a request through aiohttp."""

    async def main() -> tuple[int, bytes]:
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, site.url + path, **options) as response,
        ):
            return response.status, await response.read()

    return asyncio.run(main())


def check_upload(site: Site, tmp_path: Path, **fields: str) -> None:
    """One file, as multipart/form-data, from each client."""
    expected = {"name": "data.bin", **COUNTED, **fields}
    response = site.http.post("/upload", files={"file": ("data.bin", CONTENT)}, data=fields)
    assert (response.status_code, response.json()) == (200, expected)

    form = aiohttp.FormData(fields)
    form.add_field("file", CONTENT, filename="data.bin")
    status, body = in_aiohttp(site, "POST", "/upload", data=form)
    assert (status, json.loads(body)) == (200, expected)

    file = tmp_path / "data.bin"
    file.write_bytes(CONTENT)
    parts = [f"{name}={value}" for name, value in fields.items()]
    options = [word for part in (f"file=@{file}", *parts) for word in ("--form", part)]
    assert json.loads(curl(*options, f"{site.url}/upload")) == expected


def check_stream(site: Site) -> None:
    response = site.http.get("/stream")
    assert response.text == NUMBERS
    assert response.headers["transfer-encoding"] == "chunked"
    assert in_aiohttp(site, "GET", "/stream") == (200, NUMBERS.encode())
    assert curl(f"{site.url}/stream") == NUMBERS
    # HTTP/1.0 has no chunks: the end of the connection is the end of the body.
    assert curl("--http1.0", f"{site.url}/stream") == NUMBERS


def check_echo(site: Site) -> None:
    response = site.http.post("/echo", content="héllo".encode())
    assert response.json() == {"method": "POST", "body": "héllo"}

    def pieces() -> Iterator[bytes]:
        yield b"one "
        yield b"two"

    assert site.http.post("/echo", content=pieces()).json()["body"] == "one two"
    # It waits to be asked for so much.
    text = "x" * 2_000_000
    options = ["--header", "Expect: 100-continue", "--data-binary", "@-"]
    assert json.loads(curl(*options, f"{site.url}/echo", text=text))["body"] == text


class TestStarlette:
    def test_pages(self, starlette: Site) -> None:
        for _ in range(3):  # on one connection
            response = starlette.http.get("/")
            assert response.text == "hello from starlette"
            assert response.headers["x-stamp"] == "seen"
        assert starlette.http.get("/missing").status_code == 404
        head = starlette.http.head("/")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == "20"

    def test_echo(self, starlette: Site) -> None:
        check_echo(starlette)

    def test_stream(self, starlette: Site) -> None:
        check_stream(starlette)

    def test_upload(self, starlette: Site, tmp_path: Path) -> None:
        check_upload(starlette, tmp_path, note="with a word")

    def test_events(self, starlette: Site) -> None:
        with starlette.http.stream("GET", "/events") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in response.iter_lines() if line]
        assert lines == ["data: 0", "data: 1", "data: 2"]

    def test_background(self, starlette: Site) -> None:
        assert starlette.http.get("/background").text == "soon"
        starlette.says("in the background")

    def test_an_error(self, starlette: Site) -> None:
        response = starlette.http.get("/fail")
        assert (response.status_code, response.text) == (500, "Internal Server Error")
        starlette.logs("ArithmeticError: miscounted")
        assert starlette.http.get("/").status_code == 200

    def test_a_stream_that_the_client_leaves(self, starlette: Site) -> None:
        leave_a_stream(starlette)

    def test_files(self, starlette: Site) -> None:
        check_files(starlette)


class TestPlainStarlette:
    """Without the middleware that stands between Starlette's response and the server."""

    def test_a_stream_that_the_client_leaves(self, plain_starlette: Site) -> None:
        leave_a_stream(plain_starlette)

    def test_pages(self, plain_starlette: Site) -> None:
        check_echo(plain_starlette)
        check_stream(plain_starlette)

    def test_files(self, plain_starlette: Site) -> None:
        check_files(plain_starlette)

    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
    def test_a_file_takes_no_memory(self, plain_starlette: Site) -> None:
        """To a client that stalls, and to curl, which does not."""
        site = plain_starlette
        huge = Path(site.files.name, "huge")
        with huge.open("wb") as file:
            file.truncate(100 * MIB)
        site.http.get("/")
        before = most_memory(site)
        with site.connect() as client:
            client.sendall(request("GET", "/file/huge"))
            client.read_until(b"\r\n\r\n")
            curl = subprocess.run(
                ["curl", "-sS", "--fail", f"{site.url}/file/huge", "-o", "/dev/null", "-w", "%{size_download}"],
                capture_output=True, text=True, timeout=3 * PATIENCE, env=others_environment(), check=True,
            )  # fmt: skip
            assert int(curl.stdout) == 100 * MIB
            left = 100 * MIB - len(client.received)
            while left:
                left -= len(client.recv(MIB))
        assert most_memory(site) - before < 16 * MIB


def leave_a_stream(site: Site) -> None:
    with site.connect() as client:
        client.sendall(request("GET", "/endless"))
        client.read_exactly(5000)
    site.says("the stream has ended")
    assert site.http.get("/").status_code == 200


class TestFastAPI:
    def test_validation(self, fastapi: Site) -> None:
        response = fastapi.http.get("/items/7", params={"word": "käse & wine"})
        assert response.json() == {"number": 7, "word": "käse & wine"}
        response = fastapi.http.get("/items/seven")
        assert response.status_code == 422
        assert response.json()["detail"][0]["loc"] == ["path", "number"]

    def test_json(self, fastapi: Site) -> None:
        item = {"name": "lamp", "price": 2.5}
        response = fastapi.http.post("/items", json=item)
        assert (response.status_code, response.json()) == (201, item)
        status, body = in_aiohttp(fastapi, "POST", "/items", json=item)
        assert (status, json.loads(body)) == (201, item)
        assert fastapi.http.post("/items", json={"name": "lamp"}).status_code == 422

    def test_a_function_in_a_thread(self, fastapi: Site) -> None:
        assert fastapi.http.get("/threaded/3").json() == {"number": 3}

    def test_a_dependency_with_yield(self, fastapi: Site) -> None:
        assert fastapi.http.get("/resource").json() == {"resource": "open"}
        fastapi.says("resource closed")

    def test_upload(self, fastapi: Site, tmp_path: Path) -> None:
        check_upload(fastapi, tmp_path)

    def test_stream(self, fastapi: Site) -> None:
        check_stream(fastapi)

    def test_its_own_pages(self, fastapi: Site) -> None:
        schema = json.loads(curl(f"{fastapi.url}/openapi.json"))
        assert "/items/{number}" in schema["paths"]


class TestDjango:
    def test_views(self, django: Site) -> None:
        assert django.http.get("/plain", params={"word": "ß"}).text == "sync ß"
        assert django.http.get("/native").text == "async"
        assert in_aiohttp(django, "GET", "/native") == (200, b"async")
        assert django.http.get("/missing").status_code == 404

    def test_echo(self, django: Site) -> None:
        assert django.http.post("/echo", content=b"abc").json() == {"method": "POST", "body": "abc"}

    def test_stream(self, django: Site) -> None:
        check_stream(django)

    def test_upload(self, django: Site, tmp_path: Path) -> None:
        check_upload(django, tmp_path)


class TestQuart:
    def test_pages(self, quart: Site) -> None:
        assert quart.http.get("/").text == "hello from quart"
        assert in_aiohttp(quart, "GET", "/") == (200, b"hello from quart")
        assert quart.http.get("/missing").status_code == 404

    def test_echo(self, quart: Site) -> None:
        check_echo(quart)

    def test_stream(self, quart: Site) -> None:
        check_stream(quart)

    def test_a_body_read_in_pieces(self, quart: Site) -> None:
        assert quart.http.post("/count", content=CONTENT).text == str(len(CONTENT))

    def test_upload(self, quart: Site, tmp_path: Path) -> None:
        check_upload(quart, tmp_path)


class TestLitestar:
    def test_pages(self, litestar: Site) -> None:
        assert litestar.http.get("/").text == "hello from litestar"
        response = litestar.http.get("/items/7", params={"word": "ü"})
        assert response.json() == {"number": 7, "word": "ü"}
        assert litestar.http.get("/items/7").status_code == 400
        assert litestar.http.get("/missing").status_code == 404

    def test_echo(self, litestar: Site) -> None:
        check_echo(litestar)

    def test_stream(self, litestar: Site) -> None:
        check_stream(litestar)

    def test_upload(self, litestar: Site, tmp_path: Path) -> None:
        check_upload(litestar, tmp_path)
