"""Trust, forwarded fields and PROXY headers without a socket: facts in, facts out."""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug.middleware.proxy_fix import ProxyFix

from fastserve._forwarded import Origin, Trust
from fastserve._proxy import ProxyHeader

PEER = ("127.0.0.1", 50000)
EVERY = ("for", "proto", "host", "port", "prefix")


def trust(*peers: str, names: tuple[str, ...] = EVERY, hops: int = 0) -> Trust:
    networks = [ipaddress.ip_network(peer) for peer in peers if peer not in ("unix", "*")]
    return Trust(
        [(network.network_address.packed, network.prefixlen) for network in networks],
        unix="unix" in peers,
        anyone="*" in peers,
        names=names,
        hops=hops,
    )


LOCAL = trust("127.0.0.1", "::1", "10.0.0.0/8", "2001:db8::/32", "unix")
FORWARDED = trust("127.0.0.1", "::1", "10.0.0.0/8", "2001:db8::/32", "unix", names=("forwarded",))

Fields = list[tuple[bytes, bytes]]


def fields(*lines: str) -> Fields:
    """For is the field X-Forwarded-For, and so on; Forwarded is itself, Own is Host."""
    found = []
    for line in lines:
        name, _, value = line.partition(": ")
        plain = {"Own": "host", "Forwarded": "forwarded"}
        name = plain.get(name, f"x-forwarded-{name.lower()}")
        found.append((name.encode(), value.encode("latin-1")))
    return found


def resolve(by: Trust, client: Any, headers: Fields, scheme: str = "http") -> Any:
    """What the peer says of one request on a new connection; None: it is not trusted."""
    origin = by.believe(client)
    return None if origin is None else origin.tell(headers, scheme)


def told(*lines: str, by: Trust = LOCAL, scheme: str = "http") -> Any:
    return resolve(by, PEER, fields(*lines), scheme)


# ----------------------------------------------------------------------------- peers

PEERS = [
    # the option, who is trusted, who is not
    (["127.0.0.1"], ["127.0.0.1", "::ffff:127.0.0.1"], ["127.0.0.2", "::1", "::7f00:1", None]),
    (["::1"], ["::1"], ["127.0.0.1", "::2", "::ffff:0.0.0.1", None]),
    (["10.0.0.0/8"], ["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"], ["9.255.255.255", "11.0.0.0"]),
    (["192.168.4.128/25"], ["192.168.4.128", "192.168.4.255"], ["192.168.4.127", "192.168.5.128"]),
    (["2001:db8::/32"], ["2001:db8::1", "2001:db8:ffff::"], ["2001:db9::", "2001:db7:ffff::"]),
    (["2001:db8:0:1::/64"], ["2001:db8:0:1::", "2001:db8:0:1:f::"], ["2001:db8:0:2::"]),
    (["2001:db8::8/125"], ["2001:db8::8", "2001:db8::f"], ["2001:db8::7", "2001:db8::10"]),
    (["0.0.0.0/0"], ["1.2.3.4", "::ffff:1.2.3.4"], ["::1", "2001:db8::1"]),
    (["::/0"], ["::1", "2001:db8::1"], ["1.2.3.4", "::ffff:1.2.3.4"]),
    (["::ffff:10.0.0.0/104"], ["10.1.2.3", "::ffff:10.1.2.3"], ["11.0.0.0"]),
    (["unix"], [None], ["127.0.0.1"]),
    (["*"], [None, "127.0.0.1", "2001:db8::1"], []),
    (["10.0.0.1", "unix", "fe80::/10"], [None, "10.0.0.1", "fe80::1"], ["10.0.0.2", "::1"]),
    ([], [], ["127.0.0.1", "::1", None]),
]  # fmt: skip


@pytest.mark.parametrize(("peers", "trusted", "others"), PEERS)
def test_which_peers_are_trusted(peers: list[str], trusted: list[Any], others: list[Any]) -> None:
    who = trust(*peers)
    for host in trusted:
        client = None if host is None else (host, 1)
        assert resolve(who, client, fields("Proto: https")) == {"scheme": "https"}, host
    for host in others:
        client = None if host is None else (host, 1)
        assert resolve(who, client, fields("For: 1.2.3.4", "Proto: https")) is None, host


addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@given(addresses, addresses, st.integers(0, 128))
@example(ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("10.255.0.1"), 8)
@example(ipaddress.ip_address("2001:db8::"), ipaddress.ip_address("2001:db8::1"), 64)
@example(ipaddress.ip_address("::"), ipaddress.ip_address("::1"), 127)
def test_networks_are_those_of_ipaddress(address: Any, other: Any, prefix: int) -> None:
    for base in (address, other):
        length = min(prefix, base.max_prefixlen)
        network = ipaddress.ip_network((base, length), strict=False)
        expected = address in network
        if address.version == 6 and address.ipv4_mapped is not None:
            continue  # it is IPv4 to us
        if network.version == 6 and network.network_address.ipv4_mapped is not None:
            continue
        assert (resolve(trust(str(network)), (str(address), 1), []) is not None) == expected


@pytest.mark.parametrize(
    "bad", ["", "localhost", "1.2.3", "1.2.3.4.5", "[::1]x", "::1%lo", "x" * 99]
)
def test_a_peer_without_an_address_is_not_trusted(bad: str) -> None:
    assert resolve(trust("0.0.0.0/0", "::/0"), (bad, 1), []) is None


def test_wrong_settings() -> None:
    for networks in ([(b"1234", 33)], [(b"1234", -1)], [(b"12345", 8)], [(bytes(16), 129)]):
        with pytest.raises(ValueError, match="network"):
            Trust(networks)
    with pytest.raises(ValueError, match="many networks"):
        Trust([(b"1234", 32)] * 1025)
    for hops in (-1, 33):
        with pytest.raises(ValueError, match="hops"):
            Trust(hops=hops)
    with pytest.raises(ValueError, match="either"):
        Trust(names=("forwarded", "for"))
    with pytest.raises(ValueError):
        Trust(names=("fro",))
    with pytest.raises(TypeError):
        resolve(LOCAL, PEER, [("x-forwarded-for", b"1.2.3.4")])  # type: ignore[list-item]


# ------------------------------------------------------------------ X-Forwarded-For

CHAINS = [
    # the value, the client; ... stands for: the connection's own
    ("1.2.3.4", ("1.2.3.4", 0)),
    ("  1.2.3.4\t", ("1.2.3.4", 0)),
    ("1.2.3.4:5678", ("1.2.3.4", 5678)),
    ("1.2.3.4:0", ("1.2.3.4", 0)),
    ("::2", ("::2", 0)),
    ("2001:DB9:0:0::A", ("2001:db9::a", 0)),
    ("[2001:db9::a]", ("2001:db9::a", 0)),
    ("[2001:db9::a]:443", ("2001:db9::a", 443)),
    ("::ffff:1.2.3.4", ("::ffff:1.2.3.4", 0)),
    # the rightmost that is not trusted
    ("5.5.5.5, 1.2.3.4", ("1.2.3.4", 0)),
    ("5.5.5.5,1.2.3.4,10.0.0.1", ("1.2.3.4", 0)),
    ("5.5.5.5, 1.2.3.4:9, 10.0.0.1:80, [::1]:81, 2001:db8::7, ::ffff:10.1.1.1", ("1.2.3.4", 9)),
    ("1.2.3.4, 2001:db9::1, 10.0.0.1", ("2001:db9::1", 0)),
    # all are: the one that the furthest proxy has seen
    ("10.0.0.9, 10.0.0.1", ("10.0.0.9", 0)),
    ("127.0.0.1", ("127.0.0.1", 0)),
    # what stands to the left of the client is not even looked at
    ("<script>, 1.2.3.4", ("1.2.3.4", 0)),
    ("unknown, 1.2.3.4", ("1.2.3.4", 0)),
    ('", 1.2.3.4', ("1.2.3.4", 0)),
    (",,, ,1.2.3.4,", ("1.2.3.4", 0)),
    ("\xff\x80, 1.2.3.4, 10.0.0.1", ("1.2.3.4", 0)),
    # a proxy that does not say
    ("unknown", None),
    ("Unknown", None),
    ("unknown:80", None),
    ("_hidden", None),
    ("1.2.3.4, _a.b-c_D9, 10.0.0.1", None),
    ("unix:", None),
    ("1.2.3.4, unix:", ("1.2.3.4", 0)),
    # malformed where it has to be read: as if it were not there
    ("", ...),
    (" , ,", ...),
    ("localhost", ...),
    ("1.2.3", ...),
    ("1.2.3.4.5", ...),
    ("1.2.3.", ...),
    ("1.2.3.256", ...),
    ("1.2.3.0004", ...),
    ("01.2.3.4", ...),
    ("1.2.3.04", ...),
    ("0x1.2.3.4", ...),
    ("1.2.3.4:", ...),
    ("1.2.3.4:65536", ...),
    ("1.2.3.4:000080", ...),
    ("1.2.3.4:+80", ...),
    ("1.2.3.4:80:80", ...),
    ("1.2.3.4 5.6.7.8", ...),
    ("1.2.3.4;5.6.7.8", ...),
    ('"1.2.3.4"', ...),
    ("[1.2.3.4]", ...),
    ("[::1", ...),
    ("::1]", ...),
    ("[::1]80", ...),
    ("[::1]:", ...),
    ("[]", ...),
    ("[", ...),
    (":", ...),
    ("::1::", ...),
    (":::", ...),
    ("1:2:3:4:5:6:7", ...),
    ("1:2:3:4:5:6:7:8:9", ...),
    ("1:2:3:4:5:6:7:8::", ...),
    ("1:2:3:4:5:6:7:", ...),
    ("12345::", ...),
    ("g::", ...),
    ("fe80::1%eth0", ...),
    ("::1.2.3", ...),
    ("1:2:3:4:5:6:7:1.2.3.4", ...),
    ("_", ...),
    ("_a!", ...),
    ("_a:_b", ...),
    ("unknownx", ...),
    ("unix:/run/x", ...),
    ("1.2.3.4, garbage, 10.0.0.1", ...),
    ("1.2.3.4\x00", ...),
    ("::1" + "0" * 70, ...),
    ("9" * 100_000, ...),
]  # fmt: skip


@pytest.mark.parametrize(("value", "client"), CHAINS, ids=[str(n) for n in range(len(CHAINS))])
def test_x_forwarded_for(value: str, client: Any) -> None:
    assert told(f"For: {value}") == ({} if client is ... else {"client": client}), value


def test_lines_are_one_list() -> None:
    """RFC 9110 section 5.3: as if they were joined with commas."""
    assert told("For: 5.5.5.5", "Own: x", "For: 1.2.3.4") == {"client": ("1.2.3.4", 0)}
    assert told("For: 1.2.3.4", "For: 10.0.0.1, 10.0.0.2") == {"client": ("1.2.3.4", 0)}
    assert told("For: 1.2.3.4", "For: ", "For: 10.0.0.1") == {"client": ("1.2.3.4", 0)}
    assert told("For: garbage", "For: 1.2.3.4") == {"client": ("1.2.3.4", 0)}
    assert told("For: 1.2.3.4", "For: garbage") == {}


def test_only_names_that_are_asked_for_count() -> None:
    everything = ("Own: own", "For: 1.2.3.4", "Proto: https", "Host: a.b", "Port: 81", "Prefix: /p",
                  "Forwarded: for=5.5.5.5;proto=https;host=c.d")  # fmt: skip
    expected = {
        "for": {"client": ("1.2.3.4", 0)},
        "proto": {"scheme": "https"},
        "host": {"host": b"a.b"},
        "port": {"host": b"own:81"},
        "prefix": {"root_path": "/p"},
        "forwarded": {"client": ("5.5.5.5", 0), "scheme": "https", "host": b"c.d"},
    }
    for name, facts in expected.items():
        assert told(*everything, by=trust("127.0.0.1", names=(name,))) == facts
    assert told("X: https", "Fort: 1.2.3.4", "Form: 1", by=LOCAL) == {}
    assert (
        resolve(LOCAL, PEER, [(b"x_forwarded_for", b"1.2.3.4"), (b"forwarded", b"for=1.2.3.4")])
        == {}
    )


def test_trusting_everybody_believes_only_the_peer() -> None:
    """`*` is about who may connect. What it names is a client, not another proxy."""
    anyone = trust("*")
    assert told("For: 5.5.5.5, 1.2.3.4", by=anyone) == {"client": ("1.2.3.4", 0)}
    assert told("For: 5.5.5.5, 1.2.3.4", by=trust("*", hops=2)) == {"client": ("5.5.5.5", 0)}
    both = trust("*", "1.2.3.4")
    assert told("For: 5.5.5.5, 1.2.3.4", by=both) == {"client": ("5.5.5.5", 0)}
    everywhere = trust("0.0.0.0/0", "::/0")
    assert told("For: 5.5.5.5, ::5, 1.2.3.4", by=everywhere) == {"client": ("5.5.5.5", 0)}


def test_hops() -> None:
    value = "For: 4.4.4.4, 3.3.3.3:33, garbage, 10.0.0.1"
    assert told(value, by=trust("127.0.0.1", hops=1)) == {"client": ("10.0.0.1", 0)}
    assert told(value, by=trust("127.0.0.1", hops=2)) == {}
    assert told(value, by=trust("127.0.0.1", hops=3)) == {"client": ("3.3.3.3", 33)}
    assert told(value, by=trust("127.0.0.1", hops=4)) == {"client": ("4.4.4.4", 0)}
    # Somebody went around the first proxy.
    assert told(value, by=trust("127.0.0.1", hops=5)) == {}
    assert resolve(trust("127.0.0.1", hops=1), ("8.8.8.8", 1), fields(value)) is None


def test_the_number_of_proxies_is_bounded() -> None:
    most = ", 10.0.0.1" * 31
    assert told("For: 1.2.3.4" + most) == {"client": ("1.2.3.4", 0)}
    assert told("For: 1.2.3.4, 10.0.0.1" + most) == {}
    assert told("For: " + "10.0.0.1," * 60_000) == {}
    assert told("For: 1.2.3.4" + most, by=trust("127.0.0.1", hops=32)) == {"client": ("1.2.3.4", 0)}


# ---------------------------------------------------------------------- other fields


@pytest.mark.parametrize(
    ("value", "scheme"),
    [
        ("https", "https"), ("HTTPS", "https"), ("wss", "https"), ("http", "http"), ("ws", "http"),
        ("Http", "http"), (" https ", "https"), ("http, https", "https"), ("https, http", "http"),
        ("https,", "https"), ("javascript, https", "https"),
        ("", None), ("httpss", None), ("httpx", None), ("ftp", None), ("https:", None),
        ("https;", None), ('"https"', None), ("https http", None), ("https, javascript", None),
    ],
)  # fmt: skip
def test_scheme(value: str, scheme: str | None) -> None:
    assert told(f"Proto: {value}") == ({} if scheme is None else {"scheme": scheme})


def test_fields_are_counted_like_the_client() -> None:
    """From the right: what a client has put before the proxies' members does not count."""
    chain = "For: 5.5.5.5, 1.2.3.4, 10.0.0.1"
    assert told(chain, "Proto: ftp, https, http")["scheme"] == "https"
    assert told(chain, "Proto: https, http")["scheme"] == "https"
    assert told(chain, "Proto: http", "Proto: https", "Proto: http")["scheme"] == "https"
    # Proxies that replace it leave one, which then is for all of them.
    assert told(chain, "Proto: https")["scheme"] == "https"
    assert told(chain, "Host: x", "Prefix: /a, /b")["root_path"] == "/a"
    three = "For: 1.2.3.4, 10.0.0.2, 10.0.0.1"
    # Two of three proxies: nobody can tell which.
    assert told(three, "Proto: https, http") == {"client": ("1.2.3.4", 0)}
    # Without a client, the peer's own.
    assert told("Proto: http, https") == {"scheme": "https"}
    assert told("For: garbage", "Proto: http, https") == {"scheme": "https"}
    hops = trust("127.0.0.1", hops=2)
    assert told("Proto: https, http", by=hops) == {"scheme": "https"}
    assert told("Proto: https", by=hops) == {"scheme": "https"}


@pytest.mark.parametrize(
    ("lines", "host"),
    [
        (["Host: example.com"], b"example.com"),
        (["Host: example.com:8443"], b"example.com:8443"),
        (["Host: [::1]:80"], b"[::1]:80"),
        (["Host: a, example.com"], b"example.com"),
        (["Host: example.com", "Port: 8080"], b"example.com:8080"),
        (["Host: example.com:1", "Port: 8080"], b"example.com:8080"),
        (["Host: [::1]", "Port: 8080"], b"[::1]:8080"),
        (["Host: [::1]:1", "Port: 8080"], b"[::1]:8080"),
        (["Host: example.com", "Port: 80"], b"example.com"),
        (["Host: example.com:8080", "Port: 80"], b"example.com"),
        (["Host: example.com", "Port: 443", "Proto: https"], b"example.com"),
        (["Host: example.com", "Port: 80", "Proto: https"], b"example.com:80"),
        (["Host: example.com", "Port: 443"], b"example.com:443"),
        (["Host: example.com", "Port: 0"], b"example.com"),
        (["Host: example.com", "Port: 65536"], b"example.com"),
        (["Host: example.com", "Port: x"], b"example.com"),
        (["Port: 8080"], b"own:8080"),
        (["Host: example.com/x"], None),
        (["Host: a@example.com"], None),
        (["Host: example com"], None),
        (["Host: <script>"], None),
        (["Host: example.com:x"], None),
        (["Host: example.com:65536"], None),
        (["Host: [::1"], None),
        (["Host: "], None),
        (["Host: " + "a" * 262], None),
        (["Host: " + "a" * 261], b"a" * 261),
        (["Host: example.com/x", "Port: 8080"], b"own:8080"),
    ],
)  # fmt: skip
def test_host_and_port(lines: list[str], host: bytes | None) -> None:
    facts = told("Own: own:1", *lines)
    assert facts.get("host") == host


def test_a_port_needs_a_host() -> None:
    assert told("Port: 8080") == {}
    assert told("Own: ", "Port: 8080") == {}
    assert told("Own: a", "Port: 443", scheme="https") == {"host": b"a"}


@pytest.mark.parametrize(
    ("value", "root_path"),
    [
        ("/api", "/api"), ("/api/", "/api"), ("/a/b-c_d.e~f", "/a/b-c_d.e~f"), ("/", ""),
        ("/x, /api", "/api"), ("/" + "a" * 1023, "/" + "a" * 1023),
        ("", None), ("api", None), ("//evil.example", None), ("/a//b", None), ("/a?b", None),
        ("/a#b", None), ("/a\\b", None), ("/a%2Fb", None), ("/a b", None), ("/é", None),
        ("/<script>", None), ("/" + "a" * 1024, None), ("http://x", None), ("/a;b", None),
    ],
)  # fmt: skip
def test_prefix(value: str, root_path: str | None) -> None:
    assert told(f"Prefix: {value}") == ({} if root_path is None else {"root_path": root_path})


# ------------------------------------------------------------------------- Forwarded

ELEMENTS = [
    ("for=192.0.2.43", {"client": ("192.0.2.43", 0)}),
    ("FOR=192.0.2.43", {"client": ("192.0.2.43", 0)}),
    ('for="192.0.2.43:47011"', {"client": ("192.0.2.43", 47011)}),
    ('For="[2001:db9:cafe::17]:4711"', {"client": ("2001:db9:cafe::17", 4711)}),
    ('for="[2001:DB9::17]"', {"client": ("2001:db9::17", 0)}),
    ("for=192.0.2.60;proto=http;by=203.0.113.43", {"client": ("192.0.2.60", 0), "scheme": "http"}),
    ("for=192.0.2.43, for=198.51.100.17", {"client": ("198.51.100.17", 0)}),
    ("for=192.0.2.43,for=10.0.0.1", {"client": ("192.0.2.43", 0)}),
    ("for=192.0.2.43;proto=https, for=10.0.0.1;proto=http",
     {"client": ("192.0.2.43", 0), "scheme": "https"}),
    ('for=1.2.3.4;host="example.com:8443";proto=HTTPS',
     {"client": ("1.2.3.4", 0), "scheme": "https", "host": b"example.com:8443"}),
    ("for=1.2.3.4;host=example.com", {"client": ("1.2.3.4", 0), "host": b"example.com"}),
    (" ;for=1.2.3.4 ; proto=https;; ", {"client": ("1.2.3.4", 0), "scheme": "https"}),
    ('for=1.2.3.4;secret="a, \\"b\\\\;c=d"', {"client": ("1.2.3.4", 0)}),
    ('for=1.2.3.4;by="\\\\", for=10.0.0.1;x="\\",\\""', {"client": ("1.2.3.4", 0)}),
    ("for=unknown;proto=https", {"client": None, "scheme": "https"}),
    ("for=_gazonk", {"client": None}),
    ('for="_gazonk:_port"', {"client": None}),
    ('for="unknown:8"', {"client": None}),
    ('for="1.2.3.4:_port"', {"client": ("1.2.3.4", 0)}),
    ("proto=https", {"scheme": "https"}),
    ("by=_me", {}),
    ("for=1.2.3.4, proto=https", {"scheme": "https"}),
    # what comes from further left cannot spoil what was appended
    ('for=", for=1.2.3.4', {"client": ("1.2.3.4", 0)}),
    ('for="1.2.3.4, for=5.5.5.5', {"client": ("5.5.5.5", 0)}),
    ('\\", for="[2001:db9::1]";proto=https', {"client": ("2001:db9::1", 0), "scheme": "https"}),
    ('garbage,for=1.2.3.4, for="10.0.0.1:99"', {"client": ("1.2.3.4", 0)}),
    # a wrong scheme or host is left out alone
    ("for=1.2.3.4;proto=gopher", {"client": ("1.2.3.4", 0)}),
    ('for=1.2.3.4;host="a b"', {"client": ("1.2.3.4", 0)}),
    # malformed: nothing is believed
    ("for", {}),
    ("for=", {}),
    ('for=""', {}),
    ("=1.2.3.4", {}),
    ("for =1.2.3.4", {}),
    ("for= 1.2.3.4", {}),
    ("for=1.2.3.4:80", {}),
    ("for=[::1]", {}),
    ("for=2001:db9::1", {}),
    ('for="2001:db9::1"', {}),
    ('for="1.2.3.4', {}),
    ('for=1.2.3.4"', {}),
    ('for="1.2.3.4"x', {}),
    ('for="1.2.3.4\\"', {}),
    ('for="1.2.3\\.4"', {}),
    ('for=1.2.3.4;proto="http\\s"', {}),
    ('for=1.2.3.4;host="a\\b"', {}),
    ("for=1.2.3.4;for=5.5.5.5", {}),
    ("for=1.2.3.4;proto=http;proto=https", {}),
    ("for=1.2.3.4;host=a;host=b", {}),
    ("for=1.2.3.4 proto=https", {}),
    ('for=1.2.3.4;x="\x01"', {}),
    ("for=_", {}),
    ("for=unix:", {}),
    ("for=1.2.3.4, garbage, for=10.0.0.1", {}),
    ('for="' + "\\\\" * 30_000 + '"', {}),
    ('"' * 65_001, {}),
    ("for=1.2.3.4;" * 20_000, {}),
]  # fmt: skip


@pytest.mark.parametrize(("value", "facts"), ELEMENTS, ids=[str(n) for n in range(len(ELEMENTS))])
def test_forwarded(value: str, facts: dict[str, Any]) -> None:
    assert told(f"Forwarded: {value}", by=FORWARDED) == facts, value[:200]


def test_forwarded_in_hops() -> None:
    value = 'Forwarded: for="3.3.3.3";proto=https, garbage, for=1.1.1.1;proto=http'
    for hops, facts in [
        (1, {"client": ("1.1.1.1", 0), "scheme": "http"}),
        (2, {}),
        (3, {"client": ("3.3.3.3", 0), "scheme": "https"}),
        (4, {}),
    ]:
        assert told(value, by=trust("127.0.0.1", names=("forwarded",), hops=hops)) == facts


def test_forwarded_with_a_prefix() -> None:
    both = trust("127.0.0.1", names=("forwarded", "prefix"))
    facts = told("Forwarded: for=1.2.3.4", "Prefix: /p", "For: 5.5.5.5", "Proto: https", by=both)
    assert facts == {"client": ("1.2.3.4", 0), "root_path": "/p"}


# ------------------------------------------------------------------------ properties

junk = st.one_of(
    st.binary(max_size=40),
    st.text('0123456789abcdf:.,;="\\[]_ unkowfrpths/', max_size=60).map(str.encode),
)
any_fields = st.lists(
    st.tuples(
        st.sampled_from(
            [
                b"host",
                b"forwarded",
                *(b"x-forwarded-" + name.encode() for name in EVERY),
                b"accept",
                b"",
            ]
        ),
        junk,
    ),
    max_size=8,
)


def check(facts: dict[str, Any]) -> None:
    """Whatever was said, what comes out is of the documented kind."""
    assert facts.keys() <= {"client", "scheme", "host", "root_path"}
    if facts.get("client") is not None:
        host, port = facts["client"]
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        assert socket.inet_ntop(family, socket.inet_pton(family, host)) == host or "." in host
        assert 0 <= port <= 65535
    assert facts.get("scheme", "http") in ("http", "https")
    assert facts.get("host", b"x") and b" " not in facts.get("host", b"")
    prefix = facts.get("root_path", "")
    assert prefix == "" or (prefix[0] == "/" and prefix[-1] != "/" and "//" not in prefix)


@given(any_fields, st.integers(0, 3), st.sampled_from([EVERY, ("forwarded", "prefix")]))
def test_nothing_raises(headers: Fields, hops: int, names: tuple[str, ...]) -> None:
    facts = resolve(trust("127.0.0.1", "10.0.0.0/8", names=names, hops=hops), PEER, headers)
    assert facts is not None
    check(facts)


@given(
    st.lists(any_fields, min_size=2, max_size=5),
    st.integers(0, 3),
    st.sampled_from([EVERY, ("forwarded", "prefix"), ("for",)]),
    st.data(),
)
def test_what_was_said_before_does_not_count(
    requests: list[Fields], hops: int, names: tuple[str, ...], data: st.DataObject
) -> None:
    by = trust("127.0.0.1", "10.0.0.0/8", names=names, hops=hops)
    origin = by.believe(PEER)
    assert isinstance(origin, Origin)
    for headers in data.draw(st.lists(st.sampled_from(requests), min_size=4, max_size=12)):
        assert origin.tell(headers) == resolve(by, PEER, headers)


def test_a_repeated_line_is_the_same_only_where_it_was_read_alone() -> None:
    alone, more = "For: 1.2.3.4, 10.0.0.1", "For: 10.0.0.1"
    origin = LOCAL.believe(PEER)
    assert origin is not None
    for lines, client in [
        ([alone, "Proto: http, https, http"], "1.2.3.4"),
        ([alone], "1.2.3.4"),
        (["For: 5.5.5.5", alone], "1.2.3.4"),
        ([more], "10.0.0.1"),
        (["For: 5.5.5.5", more], "5.5.5.5"),
        ([more], "10.0.0.1"),
        (["For: nonsense", more], None),
        ([more], "10.0.0.1"),
        ([alone, more], "1.2.3.4"),
        (["For: " + ("x" * 300) + alone[4:].replace(" 1", ", 1", 1)], "1.2.3.4"),
        ([alone], "1.2.3.4"),
    ]:
        for _ in range(2):
            facts = origin.tell(fields(*lines))
            assert facts.get("client") == (None if client is None else (client, 0)), lines
            if "Proto" in lines[-1]:
                assert facts["scheme"] == "https"


@given(st.binary(max_size=60), st.booleans(), st.booleans())
@example(b'"', True, False)
@example(b'for="\\', True, False)
def test_a_client_cannot_spoil_what_a_proxy_appends(
    spoof: bytes, is_forwarded: bool, own_line: bool
) -> None:
    if is_forwarded:
        name, appended, by = b"forwarded", b"for=203.0.113.9;proto=https", FORWARDED
        expected = {"client": ("203.0.113.9", 0), "scheme": "https"}
    else:
        name, appended, by = b"x-forwarded-for", b"203.0.113.9", LOCAL
        expected = {"client": ("203.0.113.9", 0)}
    lines = [(name, spoof), (name, appended)] if own_line else [(name, spoof + b", " + appended)]
    assert resolve(by, PEER, lines) == expected


@given(addresses)
def test_addresses_are_written_as_the_system_does(address: Any) -> None:
    """Of whatever spelling, so that a client has one name however it came."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    expected = socket.inet_ntop(family, address.packed)
    if address.version == 6 and "." in expected and address.ipv4_mapped is None:
        expected = str(address)  # ::1.2.3.4 has been withdrawn: RFC 4291 section 2.5.5.1
    spellings = {str(address), expected}
    if address.version == 6:
        spellings |= {address.exploded, address.exploded.upper(), expected.upper()}
        groups = address.exploded.split(":")
        spellings.add(
            ":".join(groups[:6]) + ":" + str(ipaddress.ip_address(int(address) & 0xFFFFFFFF))
        )
    anybody = trust("*")
    for text in spellings:
        assert told(f"For: {text}", by=anybody) == {"client": (expected, 0)}, text


@given(st.text("0123456789abcdefABCDEF:.", max_size=45))
@example("1:2:3:4:5:6:7::")
@example("::1:2:3:4:5:6:7")
@example("1::2:3:4:5:6:7:8")
def test_what_is_an_address_is_what_ipaddress_says(text: str) -> None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    facts = told(f"For: {text}", by=trust("*"))
    if address is None:
        assert facts == {} or text.count(":") == 1  # an IPv4 address with a port
    else:
        assert ipaddress.ip_address(facts["client"][0]) == address


# ------------------------------------------------------------------- other servers


def werkzeug_says(hops: int, **values: str) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.update(environ)
        return []

    environ: dict[str, Any] = {"REMOTE_ADDR": PEER[0], "wsgi.url_scheme": "http",
                               "HTTP_HOST": "own", "SCRIPT_NAME": ""}  # fmt: skip
    for name, value in values.items():
        environ[f"HTTP_X_FORWARDED_{name.upper()}"] = value
    ProxyFix(app, hops, hops, hops, 0, hops)(environ, lambda *a: None)  # type: ignore[arg-type]
    return seen


hosts = st.sampled_from(["a.example", "b.example:81", "[::1]", "[2001:db8::1]:8443"])


@given(
    st.integers(1, 3),
    st.lists(addresses.map(str), min_size=1, max_size=4),
    st.lists(st.sampled_from(["http", "https"]), min_size=2, max_size=4),
    st.lists(hosts, min_size=2, max_size=4),
    st.lists(st.sampled_from(["/a", "/b/c", "/d"]), min_size=2, max_size=4),
)
def test_hops_are_counted_as_werkzeug_does(
    hops: int, chain: list[str], schemes: list[str], names: list[str], prefixes: list[str]
) -> None:
    """But for a single member where there are more hops, which counts here."""
    expected = werkzeug_says(
        hops,
        **{"for": ", ".join(chain)},
        proto=", ".join(schemes),
        host=", ".join(names),
        prefix=", ".join(prefixes),
    )
    facts = resolve(
        trust("127.0.0.1", hops=hops),
        PEER,
        [
            (b"host", b"own"),
            (b"x-forwarded-for", ", ".join(chain).encode()),
            (b"x-forwarded-proto", ", ".join(schemes).encode()),
            (b"x-forwarded-host", ", ".join(names).encode()),
            (b"x-forwarded-prefix", ", ".join(prefixes).encode()),
        ],
    )
    assert facts is not None
    client = facts.get("client", PEER)[0]
    assert ipaddress.ip_address(client) == ipaddress.ip_address(expected["REMOTE_ADDR"])
    assert facts.get("scheme", "http") == expected["wsgi.url_scheme"]
    assert facts.get("host", b"own").decode() == expected["HTTP_HOST"]
    assert facts.get("root_path", "") == expected["SCRIPT_NAME"]


@given(
    st.lists(
        st.one_of(addresses.map(str), st.sampled_from(["10.0.0.1", "127.0.0.1", "10.9.9.9:80"])),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["http", "https", "ws", "wss", "gopher"]),
)
def test_addresses_are_walked_as_uvicorn_does(chain: list[str], scheme: str) -> None:
    middleware = pytest.importorskip("uvicorn.middleware.proxy_headers")
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope)

    headers = [
        (b"x-forwarded-for", ", ".join(chain).encode()),
        (b"x-forwarded-proto", scheme.encode()),
    ]
    scope = {"type": "http", "client": PEER, "scheme": "http", "headers": headers}
    call = middleware.ProxyHeadersMiddleware(app, ["127.0.0.1", "10.0.0.0/8"])
    with pytest.raises(StopIteration):
        call(scope, None, None).send(None)
    facts = resolve(trust("127.0.0.1", "10.0.0.0/8"), PEER, headers)
    assert facts is not None
    host, port = facts["client"]
    assert ipaddress.ip_address(host) == ipaddress.ip_address(seen["client"][0])
    assert port == seen["client"][1]
    # uvicorn leaves ws and wss to an HTTP scope as they are.
    assert facts.get("scheme", "http") == seen["scheme"].replace("ws", "http")


# ------------------------------------------------------------------ the PROXY protocol

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V4 = socket.inet_aton("192.0.2.1") + socket.inet_aton("198.51.100.7") + struct.pack(">HH", 5, 443)
V6 = (
    socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + socket.inet_pton(socket.AF_INET6, "::ffff:192.0.2.9")
    + struct.pack(">HH", 65535, 0)
)
TO_V4 = (("192.0.2.1", 5), ("198.51.100.7", 443))
TO_V6 = (("2001:db8::1", 65535), ("::ffff:192.0.2.9", 0))
TLV = b"\x03\x00\x04abcd" + b"\x04\x00\x01\x00"


def v2(command: int, family: int, addresses: bytes) -> bytes:
    return SIGNATURE + bytes([command, family]) + struct.pack(">H", len(addresses)) + addresses


HEADERS = [
    (b"PROXY TCP4 192.0.2.1 198.51.100.7 5 443\r\n", ("proxied", *TO_V4)),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
     ("proxied", ("255.255.255.255", 65535), ("255.255.255.255", 65535))),
    (b"PROXY TCP6 2001:db8::1 ::FFFF:192.0.2.9 65535 0\r\n", ("proxied", *TO_V6)),
    (b"PROXY UNKNOWN\r\n", ("unknown",)),
    (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", ("unknown",)),
    (b"PROXY UNKNOWN" + b" " * 92 + b"\r\n", ("unknown",)),
    (v2(0x21, 0x11, V4), ("proxied", *TO_V4)),
    (v2(0x21, 0x11, V4 + TLV), ("proxied", *TO_V4)),
    (v2(0x21, 0x11, V4 + bytes(65535 - 12)), ("proxied", *TO_V4)),
    (v2(0x21, 0x21, V6), ("proxied", *TO_V6)),
    (v2(0x21, 0x21, V6 + TLV), ("proxied", *TO_V6)),
    (v2(0x20, 0x00, b""), ("local",)),
    (v2(0x20, 0x11, V4), ("local",)),
    (v2(0x20, 0xFF, b"anything"), ("local",)),
    (v2(0x21, 0x00, b""), ("unknown",)),
    (v2(0x21, 0x00, TLV), ("unknown",)),
    (v2(0x21, 0x12, V4), ("unknown",)),
    (v2(0x21, 0x22, V6), ("unknown",)),
    (v2(0x21, 0x10, V4), ("unknown",)),
    (v2(0x21, 0x31, bytes(216)), ("unknown",)),
    (v2(0x21, 0x31, bytes(216) + TLV), ("unknown",)),
]  # fmt: skip

WRONG = [
    b"GET / HTTP/1.1\r\n",
    b"proxy TCP4 192.0.2.1 198.51.100.7 5 443\r\n",
    b"PROXY  TCP4 192.0.2.1 198.51.100.7 5 443\r\n",
    b"PROXY TCP4 192.0.2.1  198.51.100.7 5 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.7 5 443 \r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.7 5\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.7 5 443 6\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.7 5 443\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.7 5 443\rx",
    b"PROXY TCP4 192.0.2.1 198.51.100.7 5 65536\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.7 -5 443\r\n",
    b"PROXY TCP4 192.0.2.01 198.51.100.7 5 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.7 05 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.7 5 0443\r\n",
    b"PROXY TCP4 192.0.2.1x 198.51.100.7 5 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100 5 443\r\n",
    b"PROXY TCP4 ::1 ::1 5 443\r\n",
    b"PROXY TCP6 192.0.2.1 198.51.100.7 5 443\r\n",
    b"PROXY TCP6 ::1 [::1] 5 443\r\n",
    b"PROXY TCP6 ::1 ::1x 5 443\r\n",
    b"PROXY TCP6 ::1 ::1 5 a\r\n",
    b"PROXY TCP5 192.0.2.1 198.51.100.7 5 443\r\n",
    b"PROXY TCP 192.0.2.1 198.51.100.7 5 443\r\n",
    b"PROXY UDP4 192.0.2.1 198.51.100.7 5 443\r\n",
    b"PROXY UNKNOWNX\r\n",
    b"PROXY unknown\r\n",
    b"PROXY \r\n",
    b"PROXY\r\n",
    b"PROXY UNKNOWN\n",
    b"PROXY UNKNOWN" + b" " * 93 + b"\r\n",
    b"PROXY " + b"x" * 200,
    b"\r\n\r\n\0\r\nQUIT\r",
    b"\r\nGET / HTTP/1.1\r\n",
    v2(0x11, 0x11, V4),
    v2(0x31, 0x11, V4),
    v2(0x22, 0x11, V4),
    v2(0x2F, 0x11, V4),
    v2(0x21, 0x41, V4),
    v2(0x21, 0xF1, V4),
    v2(0x21, 0x13, V4),
    v2(0x21, 0x1F, V4),
    v2(0x21, 0x11, V4[:-1]),
    v2(0x21, 0x11, b""),
    v2(0x21, 0x12, V4[:-1]),
    v2(0x21, 0x21, V6[:-1]),
    v2(0x21, 0x31, bytes(215)),
    b"\x16\x03\x01\x02\x00\x01\x00",
    b"\0",
]  # fmt: skip


@pytest.mark.parametrize(("data", "facts"), HEADERS, ids=[str(n) for n in range(len(HEADERS))])
def test_proxy_header(data: bytes, facts: tuple[Any, ...]) -> None:
    assert ProxyHeader().feed(data) == (*facts, len(data))
    assert ProxyHeader().feed(data + b"GET / HTTP/1.1\r\n") == (*facts, len(data))
    cuts = range(1, len(data)) if len(data) < 1000 else (1, 12, 16, 28, 29, 1000, len(data) - 1)
    for cut in cuts:
        header = ProxyHeader()
        assert header.feed(data[:cut]) == ("more",), cut
        assert header.feed(data[cut:] + b"rest") == (*facts, len(data) - cut), cut
    header = ProxyHeader()
    if len(data) < 1000:
        events = [header.feed(data[at : at + 1]) for at in range(len(data))]
        assert events == [("more",)] * (len(data) - 1) + [(*facts, 1)]
    assert header.feed(b"") == ((*facts, 0) if len(data) < 1000 else ("more",))


@pytest.mark.parametrize("data", WRONG, ids=[str(n) for n in range(len(WRONG))])
def test_wrong_proxy_header(data: bytes) -> None:
    assert ProxyHeader().feed(data) == ("invalid",)
    header = ProxyHeader()
    events = [header.feed(data[at : at + 1]) for at in range(len(data))]
    first = events.index(("invalid",))
    assert set(events[:first]) <= {("more",)}
    assert set(events[first:]) == {("invalid",)}
    assert header.feed(HEADERS[0][0]) == ("invalid",)


@given(st.one_of(st.binary(max_size=300), st.sampled_from(HEADERS).map(lambda h: h[0][:400])),
       st.integers(0, 300), st.binary(max_size=3))  # fmt: skip
def test_proxy_headers_do_not_depend_on_how_they_are_cut(
    data: bytes, at: int, change: bytes
) -> None:
    data = data[:at] + change + data[at + len(change) :]
    whole = ProxyHeader().feed(data)
    header = ProxyHeader()
    used = 0
    event: tuple[Any, ...] = ("more",)
    while event == ("more",) and used < len(data):
        event = header.feed(data[used : used + 1])
        used += 1
    if whole[0] in ("more", "invalid"):
        assert event == whole or not data
    else:
        assert event[:-1] == whole[:-1]
        assert used == whole[-1]
