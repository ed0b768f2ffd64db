"""The files of docs/deployment, in use: nginx and HAProxy in front of servers of ours.

Proxies and servers run with these very files; `adapted` puts in other addresses and paths.
The clients have an address of their own, which no list of trusted peers has in it.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    MIB,
    PATIENCE,
    Client,
    TlsClient,
    frame,
    handshake,
    pem,
    request,
    trusting,
)
from process import (
    DRAINING,
    Process,
    Program,
    activated,
    eventually,
    needs,
    others_environment,
    refuses,
    workers_of,
)

from fastserve import Config
from fastserve.server import HURRY

EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "deployment"
OPTIONS = str(EXAMPLES / "web.toml")
HOST = "127.0.0.1"
CLIENT = "127.0.0.2"
# Of its own, so that no connection of anybody else takes a port between two looks at it.
FRONT = "127.0.0.3"
LARGE = bytes(range(256)) * (2 * MIB // 256)  # more than the buffers on its way
SPOOFS = (
    "X-Forwarded-For: 203.0.113.9",
    "X-Forwarded-Proto: http",
    "X-Forwarded-Host: evil.example",
    "Forwarded: for=203.0.113.9;proto=http;host=evil.example",
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs 127.0.0.2, and systemd")


def adapted(name: str, folder: Path, changes: Mapping[str, str]) -> Path:
    """An example as a file in `folder`, with other addresses and paths: old ones to new ones."""
    text = (EXAMPLES / name).read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {name}"
        text = text.replace(old, new)
    file = folder / name
    file.write_text(text)
    return file


def run(*command: str) -> str:
    """What it says, on both its outputs. It has to succeed."""
    done = subprocess.run(
        command,
        env=others_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


# ------------------------------------------------------------------------------ proxies


class Front:
    """A proxy. `address` is where it is reached with TLS, `plain` without."""

    def __init__(self, folder: Path, server: str) -> None:
        """`server`: address:port or the path of a socket."""
        self.folder = folder
        self.server = server
        self.address = free_address()
        self.plain = free_address()
        self.program = self.start()
        try:
            eventually(lambda: not refuses(self.address) or self.program.popen.poll() is not None)
            assert self.program.popen.poll() is None, self.program.err.all()
        except BaseException:
            self.program.end()
            raise

    def start(self) -> Program:
        raise NotImplementedError

    def connect(self, *, context: ssl.SSLContext | None = None) -> TlsClient:
        connected = socket.create_connection(self.address, PATIENCE, source_address=(CLIENT, 0))
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wrapped = (context or trusting()).wrap_socket(connected, server_hostname="localhost")
        assert isinstance(wrapped, TlsClient)
        return wrapped


class Nginx(Front):
    def changes(self) -> dict[str, str]:
        upstream = f"unix:{self.server}" if self.server.startswith("/") else self.server
        return {
            "unix:/run/web.sock;": f"{upstream};",
            "listen 80;": f"listen {written(self.plain)};",
            "listen 443 ": f"listen {written(self.address)} ",
            "/etc/ssl/web.pem": pem("server.pem"),
            "/etc/ssl/web.key": pem("server.key"),
        }

    def start(self) -> Program:
        site = adapted("nginx.conf", self.folder, self.changes())
        return self.nginx("", f"include {site};")

    def nginx(self, main: str, http: str) -> Program:
        """With lines that belong there."""
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        lines = [
            main,
            "daemon off;",
            "worker_processes 1;",
            f"pid {self.folder}/pid;",
            "error_log stderr;",
            # Who starts it may read the sockets and files of the test; others may not.
            "user root;" if os.geteuid() == 0 else "",
            "events { }",
            "http {",
            "access_log off;",
            *(f"{kind}_temp_path {self.folder}/{kind};" for kind in kinds),
            http,
            "}",
        ]
        file = self.folder / "main.conf"
        file.write_text("\n".join(lines))
        command = (needs("nginx"), "-p", str(self.folder), "-c", str(file))
        assert "[warn]" not in run(*command, "-t")
        return Program(*command)


class NginxBelowAPath(Nginx):
    """With the location of docs/proxies.md in place of its own."""

    def changes(self) -> dict[str, str]:
        text = (EXAMPLES.parent / "proxies.md").read_text()
        location, *directives = text[text.index("    location /api/") :].splitlines()[:3]
        return {
            **super().changes(),
            "    location / {": location,
            "proxy_pass http://web;": "\n".join(directives),
        }


class NginxStream(Nginx):
    """It speaks no HTTP, and hands over the client's address in a PROXY header."""

    def start(self) -> Program:
        stream = adapted(
            "nginx-stream.conf",
            self.folder,
            {
                "listen 443;": f"listen {written(self.address)};",
                "127.0.0.1:8443": self.server,
            },
        )
        return self.nginx(f"{self.module()}\ninclude {stream};", "")

    def module(self) -> str:
        """What loads `stream`, unless it is compiled in."""
        built = run(needs("nginx"), "-V")
        if re.search(r"--with-stream( |$)", built):
            return ""
        folder = re.search(r"--modules-path=(\S+)", built)
        module = Path(folder[1] if folder else "/usr/lib/nginx/modules") / "ngx_stream_module.so"
        if not module.exists():
            pytest.skip("nginx's module for streams is not installed")
        return f"load_module {module};"


class HAProxy(Front):
    example = "haproxy.cfg"

    def changes(self) -> dict[str, str]:
        return {
            "bind :80": f"bind {written(self.plain)}",
            "bind :443 ": f"bind {written(self.address)} ",
            "/etc/ssl/web.pem": pem("both.pem"),
            "127.0.0.1:8000": self.server,
        }

    def start(self) -> Program:
        file = adapted(self.example, self.folder, self.changes())
        general = self.folder / "global.cfg"
        general.write_text("global\nlog stdout format raw local0\n")
        command = (needs("haproxy"), "-db", "-f", str(general), "-f", str(file))
        run(*command, "-c", "-dW")
        return Program(*command)


class HAProxyTcp(HAProxy):
    """Mode tcp, and a PROXY header of version 2."""

    example = "haproxy-tcp.cfg"

    def changes(self) -> dict[str, str]:
        return {"bind :443": f"bind {written(self.address)}", "127.0.0.1:8443": self.server}


class HAProxyTcpVersion1(HAProxyTcp):
    def changes(self) -> dict[str, str]:
        return {**super().changes(), "send-proxy-v2": "send-proxy"}


def free_address() -> tuple[str, int]:
    with socket.socket() as probe:
        probe.bind((FRONT, 0))
        return FRONT, probe.getsockname()[1]


def written(address: tuple[str, int]) -> str:
    host, port = address
    return f"{host}:{port}"


# ------------------------------------------------------------------------------ servers


TLS = ("--certfile", pem("server.pem"), "--keyfile", pem("server.key"))
ROUTES: dict[str, tuple[type[Front], str]] = {
    "nginx-TCP": (Nginx, "TCP"),
    "nginx-unix": (Nginx, "unix"),
    "nginx-PROXY": (NginxStream, "PROXY"),
    "HAProxy-TCP": (HAProxy, "TCP"),
    "HAProxy-unix": (HAProxy, "unix"),
    "HAProxy-PROXY-1": (HAProxyTcpVersion1, "PROXY"),
    "HAProxy-PROXY-2": (HAProxyTcp, "PROXY"),
}


def served(worker: str, *options: str) -> Process:
    """A server with the example's options and these."""
    return Process(
        *("--config", OPTIONS, "-k", worker, "-b", f"{HOST}:0"), *options, "deployed:app"
    )


class Shared:
    """The servers and proxies that tests share: each is started when it is first asked for."""

    def __init__(self, new_folder: Callable[[str], Path]) -> None:
        self.new_folder = new_folder
        self.folder = new_folder("servers")
        self.servers: dict[tuple[str, ...], Process] = {}
        self.fronts: dict[tuple[str, str], Front] = {}

    def server(self, *arguments: str) -> Process:
        if arguments not in self.servers:
            self.servers[arguments] = served(*arguments)
        return self.servers[arguments]

    def upstream(self, worker: str, kind: str) -> str:
        if kind == "PROXY":
            return written(self.server(worker, "--proxy-protocol", *TLS).address)
        path = str(self.folder / worker)
        server = self.server(worker, "-b", f"unix:{path}")
        server.logs("Running on unix:")
        return path if kind == "unix" else written(server.address)

    def front(self, worker: str, route: str) -> Front:
        key = worker, route
        if key not in self.fronts:
            proxy, kind = ROUTES[route]
            self.fronts[key] = proxy(self.new_folder("front"), self.upstream(worker, kind))
        return self.fronts[key]

    def end(self) -> None:
        for front in self.fronts.values():
            front.program.end()
        for server in self.servers.values():
            server.end()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    shared = Shared(tmp_path_factory.mktemp)
    yield shared
    shared.end()


@pytest.fixture(params=ROUTES)
def front(request: pytest.FixtureRequest, shared: Shared, worker: str) -> Front:
    """Each way to each worker."""
    return shared.front(worker, request.param)


# ------------------------------------------------------------------------------ requests


def seen(client: TlsClient, *fields: str) -> dict[str, Any]:
    """What the application learns of a request; `client` only by its address."""
    response = client.get("/x", *fields)
    assert response.status == 200
    facts: dict[str, Any] = json.loads(response.body)
    return {**facts, "client": facts["client"][0]}


FACTS = {
    "client": CLIENT,
    "scheme": "https",
    "host": ["test"],
    "root_path": "",
    "path": "/x",
    "http_version": "1.1",
}


def test_the_client_is_the_client(front: Front) -> None:
    with front.connect() as client:
        assert seen(client) == FACTS
        assert seen(client, *SPOOFS) == FACTS
        assert seen(client) == FACTS


def test_a_websocket(front: Front) -> None:
    with front.connect() as client:
        client.sendall(handshake("/x", *SPOOFS))
        assert client.read_response().status == 101
        facts = json.loads(client.read_frame().payload)
        assert (facts["client"][0], facts["scheme"]) == (CLIENT, "wss")
        for first, payload in [(0x81, b"text"), (0x82, LARGE[:MIB])]:
            client.sendall(frame(first, payload))
            assert client.read_frame() == (first, payload)
        client.close_with()


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_large_bodies(front: Front, chunked: bool) -> None:
    if chunked:
        framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(LARGE), LARGE)
        asked = request("POST", "/echo", "Transfer-Encoding: chunked") + framed
    else:
        asked = request("POST", "/echo", body=LARGE)
    with front.connect() as client:
        client.sendall(asked)
        response = client.read_response()
        assert (response.status, response.body) == (200, LARGE)
        assert seen(client) == FACTS


def test_a_body_that_is_too_large(front: Front) -> None:
    with front.connect() as client:
        client.sendall(request("POST", "/echo", f"Content-Length: {16 * MIB + 1}"))
        assert client.read_response().status == 413


def test_http2_in_front(front: Front) -> None:
    """Where the proxy speaks it."""
    if isinstance(front, (NginxStream, HAProxyTcp)):
        context = trusting(set_alpn_protocols=["h2", "http/1.1"])
        with front.connect(context=context) as client:
            assert client.selected_alpn_protocol() == "http/1.1"
            assert seen(client) == FACTS
        return
    host, port = front.address
    said = run(
        *(needs("curl"), "-sS", "--http2", "--noproxy", "*", "--interface", CLIENT),
        *("--resolve", f"localhost:{port}:{host}", "--cacert", pem("ca.pem")),
        *("--write-out", "\n%{http_version}", f"https://localhost:{port}/x"),
    )
    facts, version = said.split("\n")
    assert version == "2"
    facts = json.loads(facts)
    assert (facts["client"][0], facts["scheme"], facts["http_version"]) == (CLIENT, "https", "1.1")


def test_plain_http_is_redirected(front: Front) -> None:
    if isinstance(front, (NginxStream, HAProxyTcp)):
        assert refuses(front.plain)
        return
    with Client(front.plain) as client:
        response = client.get("/x?y")
    assert (response.status, response.field(b"location")) == (301, b"https://test/x?y")


# A proxy of its own for each.


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Callable[..., Front]]:
    started: list[Front] = []

    def behind(proxy: type[Front], server: str) -> Front:
        started.append(proxy(tmp_path, server))
        return started[-1]

    yield behind
    for front in started:
        front.program.end()


@pytest.mark.parametrize("proxy", [Nginx, HAProxy])
def test_connections_are_kept(
    shared: Shared, worker: str, behind: Callable[..., Front], proxy: type[Front]
) -> None:
    """A server that believes nobody takes the proxy for the client."""
    server = shared.server(worker, "--proxy-headers", "off")
    front = behind(proxy, written(server.address))

    def peer(client: TlsClient) -> list[Any]:
        peer: list[Any] = json.loads(client.get("/").body)["client"]
        return peer

    with front.connect() as client:
        first = peer(client)
        assert first[0] == HOST
        assert [peer(client) for _ in range(9)] == 9 * [first]
    if proxy is Nginx:  # it gives one client's connection to the next
        with front.connect() as client:
            assert peer(client) == first


def test_below_a_path(shared: Shared, worker: str, behind: Callable[..., Front]) -> None:
    server = shared.server(worker, "--proxy-headers", "for,proto,prefix")
    front = behind(NginxBelowAPath, written(server.address))
    with front.connect() as client:
        response = client.get("/api/x", "X-Forwarded-Prefix: /evil")
    facts = json.loads(response.body)
    assert (facts["root_path"], facts["path"]) == ("/api", "/api/x")
    assert (facts["client"][0], facts["scheme"]) == (CLIENT, "https")


@pytest.mark.parametrize("proxy", [HAProxy, HAProxyTcp])
def test_probes_of_a_busy_server(
    worker: str, behind: Callable[..., Front], proxy: type[Front]
) -> None:
    """They are answered while nothing else is, so the server stays in use."""
    more = ("--proxy-protocol", *TLS) if proxy is HAProxyTcp else ()
    server = served(worker, "--limit-concurrency", "1", "--queue-size", "0", *more)
    try:
        front = behind(proxy, written(server.address))
        with front.connect() as busy:
            busy.sendall(request("GET", "/forever"))
            server.says("begun")
            for path, status in [("/x", 503), ("/healthz", 200)]:
                with front.connect() as client:
                    assert client.get(path).status == status
            # The proxy's own: it speaks for nobody but itself.
            server.out.wait_for(rf'^{HOST} .*"GET /healthz HTTP/1.1" 200 ', PATIENCE)
            with front.connect() as client:
                assert client.get("/healthz").status == 200
    finally:
        server.end()


# ------------------------------------------------------------------------------ reloads


def unit(name: str) -> configparser.RawConfigParser:
    """A unit of systemd's. Of several assignments to a key it has the last."""
    parser = configparser.RawConfigParser(strict=False)
    parser.read(EXAMPLES / name)
    return parser


SERVICE = unit("web@.service")["Service"]
SOCKET = unit("web.socket")["Socket"]


class Service:
    """What systemd does for the units: it has the socket, and knows when a process is ready."""

    def __init__(self, worker: str, folder: Path) -> None:
        self.worker = worker
        self.path = str(folder / "web.sock")
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(self.path)
        self.listening.listen(int(SOCKET["Backlog"]))
        self.state = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.state.bind(str(folder / "notify"))
        self.state.settimeout(3 * PATIENCE)
        self.log = folder / "access.log"
        self.processes: list[Process] = []

    def start(self, *options: str) -> Process:
        """One more process, which is served when this returns."""
        command = shlex.split(SERVICE["ExecStart"].replace("/etc/web/web.toml", OPTIONS))
        assert command[0].endswith("/bin/fastserve")
        process = activated(
            *command[1:],
            *("-k", self.worker, "--access-logfile", str(self.log), *options, "deployed:app"),
            sockets=[self.listening],
            NOTIFY_SOCKET=str(self.state.getsockname()),
        )
        self.processes.append(process)
        assert self.state.recv(100) == b"READY=1"
        return process

    def reload(self, process: Process) -> None:
        run(*shlex.split(SERVICE["ExecReload"].replace("$MAINPID", str(process.popen.pid))))

    def stop(self, process: Process) -> None:
        process.send_signal(signal.SIGTERM)
        assert self.state.recv(100) == b"STOPPING=1"
        assert process.wait() == 0

    def end(self) -> None:
        for process in self.processes:
            process.end()
        self.listening.close()
        self.state.close()


@pytest.fixture
def service(worker: str, tmp_path: Path) -> Iterator[Service]:
    service = Service(worker, tmp_path)
    yield service
    service.end()


class Load:
    """Clients that ask without a pause, and what they were answered."""

    CLIENTS = 4

    def __init__(self, front: Front, method: str) -> None:
        self.front = front
        self.asked = request(method, "/x")
        self.outcomes: Counter[str] = Counter()
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.ask) for _ in range(self.CLIENTS)]
        for thread in self.threads:
            thread.start()

    def ask(self) -> None:
        while not self.over.is_set():
            try:
                with self.front.connect() as client:
                    self.ask_on(client)
            except (OSError, AssertionError) as error:
                self.outcomes[repr(error)] += 1

    def ask_on(self, client: TlsClient) -> None:
        while not self.over.is_set():
            client.sendall(self.asked)
            response = client.read_response()
            self.outcomes[str(response.status)] += 1
            if response.field(b"connection") == b"close":
                return

    def goes_on(self, after: str = "") -> None:
        """Waits for a number of further answers, and has all of them be good ones."""
        enough = self.outcomes.total() + 25 * self.CLIENTS
        eventually(lambda: self.outcomes.total() >= enough)
        assert set(self.outcomes) == {"200"}, (after, self.outcomes)

    def end(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(2 * PATIENCE)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("proxy", [Nginx, HAProxy])
def test_nobody_notices_a_reload(
    service: Service, behind: Callable[..., Front], proxy: type[Front], method: str
) -> None:
    first = service.start()
    load = Load(behind(proxy, service.path), method)
    try:
        load.goes_on()

        moved = service.log.rename(service.log.with_suffix(".1"))
        service.reload(first)
        eventually(service.log.exists)
        assert moved.stat().st_size > 0
        load.goes_on("a reload")

        # As `systemctl restart web@1` while there is a web@2.
        second = service.start()
        service.stop(first)
        load.goes_on("a replacement")

        # And where there is none: who asks meanwhile waits.
        service.stop(second)
        service.start()
        load.goes_on("a restart")
    finally:
        load.end()


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("proxy", [Nginx, HAProxy])
def test_nobody_notices_new_workers(
    service: Service, behind: Callable[..., Front], proxy: type[Front], method: str
) -> None:
    """Each reload of a service with several replaces them."""
    process = service.start("-w", "2")
    load = Load(behind(proxy, service.path), method)
    try:
        load.goes_on()
        for _ in range(2):
            service.reload(process)
            assert service.state.recv(100).startswith(b"RELOADING=1\n")
            load.goes_on("the beginning of a reload")
            assert service.state.recv(100) == b"READY=1"
            load.goes_on("a reload")
    finally:
        load.end()
    assert len(workers_of(process)) == 6


# ------------------------------------------------------- what nobody here can start


CONFIG = Config.from_toml(OPTIONS)
# What the end of a process may take.
END = CONFIG.graceful_timeout + CONFIG.shutdown_timeout + HURRY


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def directive(name: str) -> str:
    """What the site of nginx says of it."""
    found = re.findall(rf"^ *{name} (.*);", (EXAMPLES / "nginx.conf").read_text(), re.MULTILINE)
    assert len(found) == 1
    return str(found[0])


def test_nginx_and_the_server_agree() -> None:
    assert seconds(directive("keepalive_timeout")) < CONFIG.keep_alive_timeout
    assert directive("client_max_body_size") == "16m"
    assert CONFIG.limit_request_body == 16 * MIB
    assert directive("server") == f"unix:{SOCKET['ListenStream']}"


def test_systemd_gives_the_server_its_time() -> None:
    assert seconds(SERVICE["TimeoutStartSec"]) > CONFIG.startup_timeout
    assert seconds(SERVICE["TimeoutStopSec"]) > END
    assert SOCKET["Service"] == "web@1.service"


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    program = needs("systemd-analyze")
    changes = {"/opt/web/bin/fastserve": sys.executable}
    service = adapted("web@.service", tmp_path, changes).rename(tmp_path / "web@1.service")
    units = [str(service), str(adapted("web.socket", tmp_path, {}))]
    assert run(program, "verify", "--man=no", *units) == ""
    run(program, "security", "--offline=yes", "--threshold=20", str(service))


@pytest.fixture
def manifest() -> tuple[dict[str, Any], dict[str, Any]]:
    """The pods' specification, and the service's."""
    yaml = pytest.importorskip("yaml")
    deployment, service = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    template = deployment["spec"]["template"]
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    labels = template["metadata"]["labels"]
    assert labels == deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    return template["spec"], service["spec"]


def entrypoint() -> list[str]:
    """The container's command, which only without a shell gets the signals."""
    text = (EXAMPLES / "Containerfile").read_text()
    last_stage = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER [1-9]\d*:", last_stage, re.MULTILINE)
    command: list[str] = json.loads(last_stage.partition("ENTRYPOINT ")[2])
    return command


def test_kubernetes_asks_and_waits_as_the_server_expects(
    manifest: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    pod, service = manifest
    (container,) = pod["containers"]
    port, admin = container["ports"]
    assert entrypoint()[-1] == f"0.0.0.0:{port['containerPort']}"
    assert service["ports"][0]["targetPort"] == port["name"]
    arguments = container["args"]
    assert arguments[arguments.index("--admin-bind") + 1] == f"0.0.0.0:{admin['containerPort']}"
    paths = {"startup": "/ready", "readiness": "/ready", "liveness": "/live"}
    for kind, path in paths.items():
        assert container[f"{kind}Probe"]["httpGet"] == {"path": path, "port": admin["name"]}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= CONFIG.startup_timeout
    command, pause = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert pod["terminationGracePeriodSeconds"] > float(pause) + END


def test_the_containers_command(
    worker: str, manifest: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    """With what Kubernetes adds to it; and it ends when it is told to."""
    free = f"{HOST}:0"
    put_in = {"/etc/web/web.toml": OPTIONS, "0.0.0.0:8000": free, "0.0.0.0:9000": free}
    command = [*entrypoint(), *manifest[0]["containers"][0]["args"]]
    program, *arguments = (put_in.get(word, word) for word in command)
    assert program == "fastserve"
    server = Process(*arguments, "-k", worker, "deployed:app")
    try:
        with server.connect() as client:
            response = client.get("/healthz", *SPOOFS)
            assert response.status == 200
            assert json.loads(response.body)["client"][0] == HOST  # it is none of the trusted
        server.send_signal(signal.SIGTERM)
        server.logs(DRAINING)
        assert server.wait() == 0
    finally:
        server.end()
