"""The access log: its lines, every atom of the format, its file, and what it is in the way of."""

import base64
import contextlib
import json
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from conftest import Serve, handshake, hello, request, respond
from hypothesis import strategies as st
from process import Process, eventually

from fastserve._access import AccessLines
from fastserve.access import AccessLog, parts_of
from fastserve.config import Config, ConfigError

FORMAT = Config().access_logformat
MOMENT = 1_795_334_400_123_456  # 2026-11-22 08:00:00 UTC, in microseconds
FACTS: dict[str, Any] = {
    "client": ("::1", 5),
    "method": "GET",
    "raw_path": b"/a b",
    "query_string": b"c=1",
    "headers": (
        (b"referer", b"http://a/?b"),
        (b"user-agent", b'A "b"\r\n\x1b[1m c'),
        (b"authorization", b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
        (b"x-two", b"1"),
        (b"x-two", b"2"),
        (b"x-request-id", b"id-1"),
    ),
    "answered": ((b"Content-Type", b"text/plain"), [b"X-List", b"3"], "no field", (1, 2)),
    "tls": {"tls_version": 0x0304, "cipher_suite": 0x1301},
    "trusted": True,
    "sent": 13,
    "received": 7,
    "duration": 1_234_567,
    "queued": 10,
    "first_byte": 200,
    "moment": MOMENT,
}


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


OpenLog = Callable[..., AccessLog]


@pytest.fixture
def open_log(log_file: Path) -> Iterator[OpenLog]:
    """Opens a log, and closes it in the end if the test has not."""
    with contextlib.ExitStack() as stack:

        def open_log(format: str = FORMAT, path: object = log_file, **options: Any) -> AccessLog:
            log = AccessLog(str(path), format, **options)
            stack.callback(log.close)
            return log

        yield open_log


def written(format: str, *lines: dict[str, Any], **options: Any) -> str:
    """What the lines of exchanges come to."""
    log = AccessLines(parts_of(format), wake=lambda _: None, full=pytest.fail, names={}, **options)
    for facts in lines:
        log.write(**facts)
    text, dropped = log.take()
    assert dropped == 0
    return text.decode("ascii")


# A line.


def test_a_line() -> None:
    facts = {**FACTS, "client": ("127.0.0.1", 5000), "raw_path": b"/path", "duration": 345}
    assert written(FORMAT, facts) == (
        '127.0.0.1 - - [22/Nov/2026:08:00:00 +0000] "GET /path?c=1 HTTP/1.1" 200 13 345us\n'
    )


def test_a_line_of_which_nothing_is_known() -> None:
    assert written(FORMAT, {"minor_version": 0, "status": 0}) == (
        '- - - [01/Jan/1970:00:00:00 +0000] "GET / HTTP/1.0" - 0 0us\n'
    )


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b'/"', r"/\x22"),
        (b"/\\", r"/\x5C"),
        (b"/\r\n", r"/\x0D\x0A"),
        (b"/\x00\x1b\x7f", r"/\x00\x1B\x7F"),
        (b"/\xc3\xa9\xff", r"/\xC3\xA9\xFF"),
        (b"/a b", r"/a\x20b"),
        (b"/%22~!#[]", "/%22~!#[]"),
    ],
)
def test_what_a_client_could_inject_is_escaped(raw: bytes, shown: str) -> None:
    text = written(FORMAT, {"raw_path": raw, "query_string": raw})
    assert f'"GET {shown}?{shown} HTTP/1.1" 200 0 0us\n' in text


def test_no_byte_ends_the_field_or_the_line() -> None:
    text = written(FORMAT, {"raw_path": bytes(range(256))})
    assert text.count("\n") == 1 and text.endswith("\n")
    assert text.count('"') == 2
    assert text[:-1].isprintable()


def test_the_date_follows_the_clock() -> None:
    moments = [MOMENT, MOMENT + 800_000, MOMENT + (86_400 + 3_661) * 1_000_000, MOMENT]
    text = written("%(t)s", *({"moment": moment} for moment in moments))
    assert re.findall(r"\[(.*?)\]", text) == [
        "22/Nov/2026:08:00:00 +0000",
        "22/Nov/2026:08:00:00 +0000",
        "23/Nov/2026:09:01:01 +0000",
        "22/Nov/2026:08:00:00 +0000",
    ]


def test_many_lines_are_kept_together() -> None:
    facts = [{"raw_path": b"/" + b"x" * 3000, "status": status} for status in range(200, 300)]
    lines = written("%(U)s %(s)s", *facts).splitlines()
    assert lines == [f"/{'x' * 3000} {status}" for status in range(200, 300)]


def test_fields_of_a_type_of_their_own() -> None:
    """No method of what an application has sent runs in the middle of a line."""

    class Value(bytes):
        __add__ = lower = strip = pytest.fail

    answered = [(Value(b"X"), Value(b"1")), (b"x", Value(b"2"))]
    assert written("%({x}o)s", {"answered": answered}) == "1, 2\n"


# The atoms.

ATOM_CASES = {
    "h": "::1",
    "l": "-",
    "u": "Aladdin",
    "t": "[22/Nov/2026:08:00:00 +0000]",
    "r": r"GET /a\x20b?c=1 HTTP/1.1",
    "R": r"GET /a\x20b?c=1 HTTP/1.1",
    "s": "200",
    "st": "OK",
    "S": "http",
    "m": "GET",
    "U": r"/a\x20b",
    "Uq": r"/a\x20b?c=1",
    "q": "c=1",
    "H": "HTTP/1.1",
    "b": "13",
    "B": "13",
    "received": "7",
    "f": "http://a/?b",
    "a": r"A \x22b\x22\x0D\x0A\x1B[1m c",
    "T": "1",
    "D": "1234567",
    "L": "1.234567",
    "M": "1234",
    "ttfb": "200",
    "queue": "10",
    "id": "id-1",
    "tls": "TLSv1.3",
    "cipher": "TLS_AES_128_GCM_SHA256",
    "p": f"<{os.getpid()}>",
    "{X-Two}i": "1, 2",
    "{User-Agent}i": r"A \x22b\x22\x0D\x0A\x1B[1m c",
    "{Missing}i": "-",
    "{content-type}o": "text/plain",
    "{x-list}o": "3",
    "{x-two}o": "-",
    "{FASTSERVE_TEST_ATOM}e": r"a\x0Ab",
    "{FASTSERVE_NO_ATOM}e": "-",
    "x": "-",
    "unknown": "-",
    "": "-",
    "{a}x": "-",
}


@pytest.mark.parametrize("atom", ATOM_CASES)
def test_an_atom(
    atom: str, open_log: OpenLog, log_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTSERVE_TEST_ATOM", "a\nb")
    log = open_log(f"50%% <%({atom})s>")
    log.lines.write(**FACTS)
    log.close()
    assert log_file.read_text() == f"50% <{ATOM_CASES[atom]}>\n"


def test_what_is_not_there_is_a_dash() -> None:
    format = "%(b)s %(B)s %(ttfb)s %(queue)s %(tls)s %(cipher)s %(h)s %(s)s %(st)s [%(q)s]"
    assert written(format, {"status": 0}) == "- 0 - - - - - - - []\n"


def test_gunicorns_format() -> None:
    format = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'
    assert written(format, FACTS) == (
        r'::1 - Aladdin [22/Nov/2026:08:00:00 +0000] "GET /a\x20b?c=1 HTTP/1.1" 200 13'
        r' "http://a/?b" "A \x22b\x22\x0D\x0A\x1B[1m c"' + "\n"
    )


def test_a_width() -> None:
    assert written("%(m)-5s|%(s)5s|%(m)1s|%(x)3s", FACTS) == "GET  |  200|GET|  -\n"


def test_nothing_of_a_format_is_code() -> None:
    format = "{client} %({'+client+'}i)s \\ ' \" %%s"
    assert written(format, FACTS) == "{client} - \\ ' \" %s\n"


@pytest.mark.parametrize(
    ("value", "user"),
    [
        (b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", "Aladdin"),
        (b"basic  YTpi ", "a"),
        (b"Basic YWI6", "ab"),
        (b"Basic YQ==", "a"),
        (b"Basic IiA6", r"\x22\x20"),
        (b"Basic", "-"),
        (b"Basic ", "-"),
        (b"Basic !", "-"),
        (b"Basic YTp", "-"),
        (b"Basic Y===", "-"),
        (b"Basic YT=i", "-"),
        (b"Basic OmI=", "-"),
        (b"Bearer QTpi", "-"),
        (b"", "-"),
    ],
)
def test_the_name_in_credentials(value: bytes, user: str) -> None:
    assert written("%(u)s", {"headers": [(b"authorization", value)]}) == f"{user}\n"


@pytest.mark.parametrize(
    ("client", "shown"),
    [
        ('a "b"\n', r"a\x20\x22b\x22\x0A"),
        ("", "-"),
        ("\udcff", r"\xED\xB3\xBF"),
        ("\ud800", r"\xED\xA0\x80"),
        ("é", r"\xC3\xA9"),
    ],
)
def test_a_client_that_a_proxy_names_is_escaped(client: str, shown: str) -> None:
    assert written("%(h)s", {"client": client}) == f"{shown}\n"


@hypothesis.given(st.lists(st.tuples(st.binary(min_size=1), st.binary())), st.binary(), st.text())
def test_no_request_ends_the_line(fields: Any, path: bytes, client: str) -> None:
    fields = [*fields, (b"authorization", b"Basic " + base64.b64encode(path))]
    fields += [(name, path) for name in (b"referer", b"user-agent", b"x")]
    facts = {"client": client, "raw_path": path, "query_string": path, "headers": fields}
    facts["answered"] = fields
    text = written('%(h)s "%(r)s" "%(f)s" "%(a)s" "%(u)s" "%({x}i)s" "%({x}o)s"', facts)
    assert text.count("\n") == 1 and text.endswith("\n")
    assert text.count('"') == 12
    assert text[:-1].isprintable()

    found = json.loads(written("json", facts))
    assert found["path"].encode("latin-1") == path
    assert found["client"].encode("latin-1") == client.encode("utf-8", "surrogatepass")
    assert [value.encode() for value in (found["method"], found["version"])] == [
        b"GET",
        b"HTTP/1.1",
    ]


@pytest.mark.parametrize(
    "bad", ["%", "%h", "%(h)", "%(h)d", "%(h", "100% %(h)s", "a\nb", "", "%({a)s"]
)
def test_a_wrong_format_is_a_config_error(bad: str) -> None:
    with pytest.raises(ConfigError, match="^--access-logformat: "):
        Config(access_logformat=bad)


# JSON.


def test_json(open_log: OpenLog, log_file: Path) -> None:
    log = open_log("json")
    log.lines.write(**FACTS)
    log.lines.write(status=0, moment=MOMENT)
    log.close()
    first, second = map(json.loads, log_file.read_text().splitlines())
    assert first == {
        "time": "2026-11-22T08:00:00.123456Z",
        "client": "::1",
        "method": "GET",
        "scheme": "http",
        "path": "/a b",
        "query": "c=1",
        "version": "HTTP/1.1",
        "status": 200,
        "bytes": 13,
        "received": 7,
        "duration_us": 1_234_567,
        "ttfb_us": 200,
        "queue_us": 10,
        "request_id": "id-1",
        "referer": "http://a/?b",
        "user_agent": 'A "b"\r\n\x1b[1m c',
        "tls": "TLSv1.3",
        "cipher": "TLS_AES_128_GCM_SHA256",
        "pid": os.getpid(),
    }
    assert first.keys() == second.keys()
    nothing = {name for name, value in second.items() if value is None}
    assert nothing == {
        "client", "status", "ttfb_us", "queue_us", "referer", "user_agent", "tls", "cipher"
    }  # fmt: skip
    assert second["query"] == ""


# A request's id.

GENERATED = re.compile("[0-9a-f]{32}")


def id_of(*values: bytes, trusted: bool) -> str:
    headers = [(b"host", b"a"), *((b"x-request-id", value) for value in values)]
    return written("%(id)s", {"headers": headers, "trusted": trusted})[:-1]


def test_an_id_is_that_of_a_trusted_peer_alone() -> None:
    assert id_of(b"a-1", trusted=True) == "a-1"
    assert id_of(b"a-1", b"b-2", trusted=True) == "a-1"
    assert GENERATED.fullmatch(id_of(b"a-1", trusted=False))
    assert GENERATED.fullmatch(id_of(trusted=True))


@pytest.mark.parametrize("bad", [b"", b"a b", b'"', b"\xe9", b"a" * 129, b"{}"])
def test_an_id_that_nobody_would_make(bad: bytes) -> None:
    assert GENERATED.fullmatch(id_of(bad, trusted=True))


def test_no_two_requests_have_the_same_id() -> None:
    ids = written("%(id)s", *({} for _ in range(1000)), seed=os.urandom(8)).split()
    assert len(set(ids)) == 1000


def test_the_application_sees_the_id(serve: Serve, log_file: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        ids = [value for name, value in scope["headers"] if name == b"x-request-id"]
        await respond(send, b",".join(ids))

    asks = ("X-Request-ID: one", "X-Request-ID: two")
    seen = []
    for trusted in ("127.0.0.1", "10.0.0.1"):
        server = serve(
            app, access_logfile=str(log_file), access_logformat="%(id)s", lifespan="off",
            forwarded_allow_ips=trusted,
        )  # fmt: skip
        with server.connect() as client:
            seen += [client.get("/", *asks).body.decode(), client.get("/").body.decode()]
        server.stop()
    assert seen[0] == "one"
    assert all(GENERATED.fullmatch(each) for each in seen[1:])
    assert log_file.read_text().split() == seen


def test_without_an_id_in_the_format_nothing_is_changed(serve: Serve, log_file: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, repr(scope["headers"]).encode())

    server = serve(app, access_logfile=str(log_file), lifespan="off")
    with server.connect() as client:
        assert client.get("/").body == b"[(b'host', b'test')]"
        assert b"(b'x-request-id', b'mine')" in client.get("/", "X-Request-ID: mine").body


# Which requests have a line.


def test_excluded_paths() -> None:
    paths = (b"/live", b"/live/", b"/live2", b"/static/", b"/static/a", b"/static", b"/")
    text = written(
        "%(U)s", *({"raw_path": path} for path in paths), excluded=[b"/live", b"/static/*"]
    )
    assert text.split() == ["/live/", "/live2", "/static", "/"]


def test_excluded_paths_of_a_server(serve: Serve, log_file: Path) -> None:
    server = serve(
        hello, access_logfile=str(log_file), access_logformat="%(Uq)s",
        access_log_exclude=["/live", "/assets/*"],
    )  # fmt: skip
    with server.connect() as client:
        for path in ("/live", "/live?a=b", "/assets/x", "/other"):
            assert client.get(path).status == 200
    server.stop()
    assert log_file.read_text() == "/other\n"


@pytest.mark.parametrize(
    ("sample", "least", "most"), [(0, 0, 0), (0.25, 150, 350), (1, 1000, 1000)]
)
def test_a_sample_and_every_failure(
    serve: Serve, log_file: Path, sample: float, least: int, most: int
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"", 500 if scope["path"] == "/fails" else 404)

    server = serve(
        app, access_logfile=str(log_file), access_logformat="%(s)s", access_log_sample=sample,
        lifespan="off",
    )  # fmt: skip
    with server.connect() as client:
        for _ in range(1000):
            client.sendall(request("GET", "/"))
            client.read_response()
        assert client.get("/fails").status == 500
    server.stop()
    *lines, last = log_file.read_text().split()
    assert least <= len(lines) <= most
    assert last == "500"


# What a server tells.


def test_the_times(serve: Serve, log_file: Path) -> None:
    """Each of them is a part of the next."""
    server = serve(hello, access_logfile=str(log_file), access_logformat="%(queue)s %(ttfb)s %(D)s")
    with server.connect() as client:
        client.get()
        client.sendall(request("POST", "/", "Content-Length: nonsense"))
        assert client.read_response().status == 400
    server.stop()
    (line,) = log_file.read_text().splitlines()
    queued, first_byte, duration = map(int, line.split())
    assert 0 <= queued <= first_byte <= duration < 10_000_000


def test_what_was_received(serve: Serve, log_file: Path) -> None:
    server = serve(hello, access_logfile=str(log_file), access_logformat="%(m)s %(received)s")
    with server.connect() as client:
        client.sendall(request("POST", "/", body=b"x" * 100_000))
        client.read_response()
        client.get()
    server.stop()
    post, get = log_file.read_text().splitlines()
    assert post.startswith("POST ") and 0 < int(post.split()[1]) <= 100_000
    assert get == "GET 0"


def test_a_client_that_leaves_has_a_line(serve: Serve, log_file: Path) -> None:
    """Else one could ask for anything without a trace."""
    began = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/begun":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        began.set()
        while (await receive())["type"] != "http.disconnect":
            pass

    server = serve(
        app, access_logfile=str(log_file), access_logformat="%(Uq)s %(s)s %(B)s", lifespan="off"
    )
    for path in ("/begun", "/silent"):
        began.clear()
        with server.connect() as client:
            client.sendall(request("GET", path))
            assert began.wait(10)
            # A reset, which is the end of both directions.
            client.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")
    eventually(lambda: log_file.read_text().count("\n") == 2)
    server.stop()
    assert log_file.read_text() == "/begun 200 5\n/silent - 0\n"


def test_a_websocket_has_one_line(serve: Serve, log_file: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept", "headers": [(b"x-out", b"1")]})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    server = serve(
        app, access_logfile=str(log_file), access_logformat="%(S)s %(s)s %(st)s %({x-out}o)s",
        lifespan="off",
    )  # fmt: skip
    with server.connect() as client:
        client.sendall(handshake())
        assert client.read_response().status == 101
    server.stop()
    assert log_file.read_text() == "http 101 Switching Protocols 1\n"


# The file.


def test_lines_are_there_after_a_moment(open_log: OpenLog, log_file: Path) -> None:
    log = open_log("%(s)s")
    log.lines.write(status=201)
    assert eventually(lambda: log_file.read_text() == "201\n")
    log.lines.write(status=202)
    assert eventually(lambda: log_file.read_text() == "201\n202\n")


def test_a_file_is_appended_to(open_log: OpenLog, log_file: Path) -> None:
    log_file.write_text("before\n")
    log = open_log("%(s)s")
    log.lines.write()
    log.close()
    assert log_file.read_text() == "before\n200\n"


def test_two_writers_keep_their_lines_whole(open_log: OpenLog, log_file: Path) -> None:
    logs = [open_log() for _ in range(2)]
    for number in range(100):
        for log in logs:
            log.lines.write(raw_path=b"/" * 5_000, sent=number)
    for log in logs:
        log.close()
    lines = log_file.read_text().splitlines()
    assert len(lines) == 200
    assert all(line.startswith("- - - [") and line.endswith(" 0us") for line in lines)


def test_a_new_file_after_the_old_one_was_moved(open_log: OpenLog, log_file: Path) -> None:
    log = open_log("%(s)s")
    log.lines.write(status=201)
    old = log_file.rename(log_file.with_suffix(".1"))
    log.reopen()
    eventually(log_file.exists)
    log.lines.write(status=202)
    log.close()
    assert old.read_text() == "201\n"
    assert log_file.read_text() == "202\n"


def test_a_new_file_that_cannot_be_opened(
    open_log: OpenLog, log_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log("%(s)s")
    log_file.rename(old := log_file.with_suffix(".1"))
    log_file.mkdir()
    log.reopen()
    eventually(lambda: caplog.messages)
    log.lines.write()
    log.close()
    assert old.read_text() == "200\n"
    assert caplog.messages[0].startswith("the access log stays where it is: --access-logfile: ")


@pytest.mark.parametrize("name", [".", "missing/access.log"])
def test_an_unusable_file_is_a_config_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="^--access-logfile: ") as caught:
        AccessLog(str(tmp_path / name), FORMAT)
    assert "\n" not in str(caught.value)


def test_dash_is_stdout_and_stays_open(
    open_log: OpenLog, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        log = open_log(path="-")
        log.lines.write()
        log.close()
    assert capfd.readouterr().out.count(" 0us\n") == 2


# What nobody takes.


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_told_once_and_raises_nothing(
    open_log: OpenLog, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log(path="/dev/full")
    log.lines.write()
    eventually(lambda: caplog.messages)
    log.lines.write()
    log.close()
    assert caplog.messages == ["access log /dev/full: No space left on device"]


class Pipe:
    """A named pipe. `data` is what was read from it, which begins with `read`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = b""
        os.mkfifo(path)

    def read(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with open(self.path, "rb", buffering=0) as end:
            while data := end.read(65536):
                self.data += data

    def lines(self, count: int) -> list[str]:
        eventually(lambda: self.data.count(b"\n") >= count)
        assert self.data.endswith(b"\n")
        return self.data.decode().splitlines()


@pytest.fixture
def pipe(tmp_path: Path) -> Pipe:
    return Pipe(tmp_path / "pipe")


def test_a_pipe_that_nobody_reads(
    open_log: OpenLog, pipe: Pipe, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond a bound its lines are dropped, which is said at once; the others arrive whole."""
    log = open_log("%(B)s %(U)s", path=pipe.path)
    for number in range(3000):
        log.lines.write(raw_path=b"/" * 999, sent=number)
    assert caplog.messages == [f"access log {pipe.path}: it takes nothing, lines are dropped"]

    pipe.read()
    more = 0
    while len(caplog.messages) == 1:
        log.lines.write(raw_path=b"/more")
        more += 1
        time.sleep(0.01)
    told = re.fullmatch(
        rf"access log {pipe.path}: goes on; (\d+) lines are lost", caplog.messages[1]
    )
    assert told and len(caplog.messages) == 2
    lines = pipe.lines(3000 + more - int(told[1]))
    assert len(lines) == 3000 + more - int(told[1])
    kept = [line for line in lines if line != "0 /more"]
    numbers = [int(line.split()[0]) for line in kept]
    assert kept == [f"{number} {'/' * 999}" for number in numbers]
    assert numbers == sorted(set(numbers)) and 1000 < len(numbers) < 3000


def test_a_pipe_that_nobody_reads_does_not_hold_up_the_end(
    open_log: OpenLog, pipe: Pipe, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log("%(U)s", path=pipe.path)
    for _ in range(200):
        log.lines.write(raw_path=b"/" * 999)
    log.close()
    assert caplog.messages == [f"access log {pipe.path}: it takes nothing, the last lines are lost"]
    pipe.read()
    assert pipe.lines(200) == 200 * ["/" * 999]


def test_two_writers_to_a_pipe_keep_their_lines_whole(open_log: OpenLog, pipe: Pipe) -> None:
    logs = [open_log("%(U)s", path=pipe.path) for _ in range(2)]
    for _ in range(300):
        for log, letter in zip(logs, (b"a", b"b"), strict=True):
            log.lines.write(raw_path=letter * 699)
    pipe.read()
    assert sorted(pipe.lines(600)) == 300 * ["a" * 699] + 300 * ["b" * 699]


def test_a_description_that_another_process_has_made_non_blocking(
    open_log: OpenLog, pipe: Pipe, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log("%(U)s", path=pipe.path)
    os.set_blocking(log._fd, False)
    for _ in range(200):
        log.lines.write(raw_path=b"/" * 999)
    pipe.read()
    assert pipe.lines(200) == 200 * ["/" * 999]
    assert caplog.messages == []


# A server whose log nobody takes.


Start = Callable[..., Process]


@pytest.fixture
def served(worker: str) -> Iterator[Start]:
    """Starts a server in a process of its own."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, **options: Any) -> Process:
            first = ("-k", worker, "-b", "127.0.0.1:0", "--lifespan", "off")
            server = Process(*first, *arguments, "served:app", **options)
            stack.callback(server.end)
            return server

        yield start


def ask(server: Process, times: int, target: str = "/") -> None:
    with server.connect() as client:
        for _ in range(times):
            client.sendall(request("GET", target))
            assert client.read_response().body == b"hello"


def end(server: Process) -> None:
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="no prlimit")
def test_a_disk_that_is_full_for_a_while(served: Start, log_file: Path) -> None:
    """A line that was written in part is completed; lines of that time are lost, and counted."""
    format = "%(s)s " + 40 * "x"
    server = served("--access-logfile", str(log_file), "--access-logformat", format)
    ask(server, 1)
    eventually(lambda: log_file.stat().st_size == 45)
    limit = resource.RLIMIT_FSIZE
    before = resource.prlimit(server.popen.pid, limit)
    resource.prlimit(server.popen.pid, limit, (100, before[1]))
    ask(server, 5)
    server.logs("access log .*: File too large$")
    assert log_file.stat().st_size == 100
    resource.prlimit(server.popen.pid, limit, before)
    ask(server, 1)
    server.logs("access log .*: goes on; 3 lines are lost$")
    end(server)
    assert log_file.read_text() == 4 * f"200 {40 * 'x'}\n"


STUCK = ("--access-logfile", "-", "--access-logformat", 1000 * "x")


def test_a_stdout_that_nobody_reads(served: Start) -> None:
    reader, writer = os.pipe()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, reader)
        server = served(*STUCK, stdout=writer)
        os.close(writer)
        ask(server, 2000)
        server.logs("access log -: it takes nothing, lines are dropped$")
        ask(server, 1)
        end(server)
        server.logs("access log -: it takes nothing, the last lines are lost$")


def test_a_stdout_whose_reader_ends(served: Start) -> None:
    reader, writer = os.pipe()
    server = served(*STUCK, stdout=writer)
    os.close(writer)
    ask(server, 1)
    os.close(reader)
    ask(server, 1)
    server.logs("access log -: Broken pipe$")
    ask(server, 1)
    end(server)
    assert sum("access log" in line for line in server.err.all()) == 1


def test_a_closed_stdout(served: Start) -> None:
    closed = (
        "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    server = served(*STUCK, python=("-c", closed, "-m", "fastserve"))
    ask(server, 3)
    end(server)
    assert sum("access log" in line for line in server.err.all()) == 1
