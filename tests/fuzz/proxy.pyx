# modules: _proxy, _forwarded, _address, _parser, _transport, _buffer, _file
# cython: language_level=3, boundscheck=True, wraparound=True
"""Forwarded fields and PROXY headers: whatever comes, what a plain model makes of it too.

The first byte of an input says which. Of fields, the next two say who is trusted and which
names are asked for; then come lines, a byte for the name and the value to the next LF. A
PROXY header is parsed whole and byte by byte, in a block of memory of exactly its size, so
that AddressSanitizer sees one byte too far.
"""

import ipaddress
import re
import struct

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastserve._proxy cimport PROXY_DONE, PROXY_INVALID, PROXY_NEED_DATA, ProxyHeader

from fastserve._forwarded import Trust

cdef tuple FIELDS = (
    b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port",
    b"x-forwarded-prefix", b"forwarded", b"host", b"x-forwarded-fort",
)
cdef tuple NAMES = ("for", "proto", "host", "port", "prefix")
cdef tuple PEER = ("127.0.0.1", 1)
cdef tuple TRUSTED = tuple(map(ipaddress.ip_network, ("127.0.0.1", "10.0.0.0/8", "2001:db8::/32")))
cdef object PREFIX = re.compile(rb"(?!.*//)/[0-9A-Za-z._~!$&'()*+:@=/-]{0,1023}", re.DOTALL).fullmatch
cdef object PORT = re.compile(rb"[0-9]{1,5}").fullmatch
cdef object HIDDEN = re.compile(rb"_[0-9A-Za-z._-]+").fullmatch
cdef object WITH_PORT = re.compile(rb"(\[[^\]]*\]|[^:]*)(?::([0-9]{1,5}))?", re.DOTALL).fullmatch
cdef object AUTHORITY = re.compile(
    rb"(?:\[(?:[vV][0-9a-fA-F]+\.[0-9A-Za-z._~!$&'()*+;=:-]+|[0-9a-fA-F:.]*)\]"
    rb"|(?:[0-9A-Za-z._~!$&'()*+;=-]|%[0-9a-fA-F]{2})+)(?::([0-9]*))?"
).fullmatch
cdef object PAIR = re.compile(
    rb"[ \t;]*(?:(?P<name>[0-9A-Za-z!#$%&'*+.^_`|~-]+)="
    rb"(?:(?P<token>[0-9A-Za-z!#$%&'*+.^_`|~-]+)"
    rb'|"(?P<quoted>(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[^\x00-\x08\x0a-\x1f\x7f])*)")'
    rb"[ \t]*(?=;|\Z))?"
).match

MALFORMED = object()
UNKNOWN = object()
UNIX = object()


def address_of(text, is_forwarded):
    """(address, port), or one of the three."""
    if not text or len(text) > 64:
        return MALFORMED
    if text == b"unix:" and not is_forwarded:
        return UNIX
    if not is_forwarded:
        try:
            return ipaddress.ip_address(text.decode("ascii").replace("%", "x")), 0
        except ValueError:
            pass
    host, colon, port = text, b"", b""
    if text[:1] == b"[":
        host, bracket, rest = text[1:].partition(b"]")
        if not bracket:
            return MALFORMED
        if rest:
            colon, port = rest[:1], rest[1:]
    else:
        host, colon, port = text.partition(b":")
    if colon and colon != b":":
        return MALFORMED
    if colon:
        if PORT(port) and int(port) <= 65535:
            port = int(port)
        elif is_forwarded and HIDDEN(port):
            port = 0
        else:
            return MALFORMED
    if text[:1] != b"[" and (host.lower() == b"unknown" or HIDDEN(host)):
        return UNKNOWN
    kind = ipaddress.IPv6Address if text[:1] == b"[" else ipaddress.IPv4Address
    try:
        return kind(host.decode("ascii").replace("%", "x")), port or 0
    except ValueError:
        return MALFORMED


def element_of(text):
    """The pairs that count of a forwarded-element, or MALFORMED."""
    found = {}
    at = 0
    while at < len(text):
        pair = PAIR(text, at)
        if pair.end() == at:
            return MALFORMED
        at = pair.end()
        if pair["name"] is None:
            continue
        name = pair["name"].lower()
        if name in (b"for", b"proto", b"host"):
            value = pair["token"] if pair["quoted"] is None else pair["quoted"]
            if name in found or b"\\" in value:
                return MALFORMED
            found[name] = value
    if b"for" in found:
        found[b"for"] = address_of(found[b"for"], True)
        if found[b"for"] is MALFORMED:
            return MALFORMED
    return found


def members_of(headers, name):
    """From the right; of Forwarded, what a reader that comes from there takes for members."""
    members = []
    for key, value in reversed(headers):
        if key != name:
            continue
        if name != b"forwarded":
            members += [part.strip(b" \t") for part in reversed(value.split(b","))]
            continue
        end = at = len(value)
        while at >= 0:
            if at == 0 or value[at - 1] == 0x2C:
                members.append(value[at:end].strip(b" \t"))
                at -= 1
                end = at
                continue
            at -= 1
            if value[at] == 0x22:
                while at > 0:       # to the opening quote
                    at -= 1
                    if value[at] == 0x22:
                        slashes = len(value[:at]) - len(value[:at].rstrip(b"\\"))
                        if slashes % 2 == 0:
                            break
                        at -= slashes
    return [member for member in members if member]


def covered(address):
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in TRUSTED)


def model(headers, names, hops, unix):
    facts = {}
    position = 0
    name = b"forwarded" if "forwarded" in names else b"x-forwarded-for"
    element = None
    if name == b"forwarded" or "for" in names:
        members = members_of(headers, name)
        for member in members:
            position += 1
            if position > 32:
                position = 0
                break
            if position < hops:
                continue
            element = element_of(member) if name == b"forwarded" else {b"for": address_of(member, False)}
            if element is MALFORMED or element.get(b"for") is MALFORMED:
                position = 0
                break
            who = element.get(b"for")
            if hops or not (who is UNIX and unix or isinstance(who, tuple) and covered(who[0])):
                break
        if position < hops:
            position = 0
    if position and element is not None:
        who = element.get(b"for")
        if isinstance(who, tuple):
            facts["client"] = who
        elif who is not None:
            facts["client"] = None
        add_scheme(facts, element.get(b"proto"))
        host = element.get(b"host")
        if host is not None and is_host(host):
            facts["host"] = host
    position = position or hops or 1
    picked = {}
    for name in names:
        if name not in ("for", "forwarded"):
            members = members_of(headers, b"x-forwarded-" + name.encode())
            if len(members) >= position:
                picked[name] = members[position - 1]
            elif len(members) == 1:
                picked[name] = members[0]
    add_scheme(facts, picked.get("proto"))
    if PREFIX(picked.get("prefix", b"")):
        facts["root_path"] = picked["prefix"].decode().removesuffix("/")
    port = picked.get("port", b"")
    port = int(port) if PORT(port) and int(port) <= 65535 else 0
    host = picked.get("host", b"")
    if not is_host(host):
        host = next((value for key, value in headers if key == b"host"), b"") if port else b""
    if is_host(host):
        if port:
            host = re.sub(rb":[0-9]*\Z", b"", host)
            if port != (443 if facts.get("scheme") == "https" else 80):
                host += b":%d" % port
        facts["host"] = host
    return facts


def add_scheme(facts, value):
    known = {b"http": "http", b"ws": "http", b"https": "https", b"wss": "https"}
    if value is not None and value.lower() in known:
        facts["scheme"] = known[value.lower()]


def is_host(text):
    match = AUTHORITY(text) if len(text) <= 261 else None
    if match is None:
        return False
    if text[:1] == b"[" and text[1:2] not in b"vV" and text.count(b":", 0, text.index(b"]")) < 2:
        return False
    return not match[1] or int(match[1]) <= 65535


def check_fields(bytes data):
    flags = data[1] if len(data) > 1 else 0
    hops = flags >> 3 & 3
    unix = bool(flags & 32)
    chosen = data[2] if len(data) > 2 else 0
    if chosen & 32:
        names = ("forwarded", "prefix") if chosen & 1 else ("forwarded",)
    else:
        names = tuple(name for bit, name in enumerate(NAMES) if chosen >> bit & 1)
    headers = []
    for line in data[3:].split(b"\n"):
        if line:
            name = FIELDS[line[0] % len(FIELDS)]
            if name != b"host" or b"host" not in dict(headers):
                # As the parser gives them.
                headers.append((name, re.sub(rb"[\x00-\x08\x0b-\x1f\x7f]", b"", line[1:])))
    trust = Trust(
        [(network.network_address.packed, network.prefixlen) for network in TRUSTED],
        unix=unix, names=names, hops=hops,
    )
    assert trust.believe(("192.0.2.1", 1)) is None
    origin = trust.believe(PEER)
    facts = origin.tell(headers)
    assert origin.tell(headers) == facts
    expected = model(headers, names, hops, unix)
    if facts.get("client") is not None:
        host, port = facts["client"]
        assert host.isascii() and host == host.lower()
        facts["client"] = ipaddress.ip_address(host), port
    assert facts == expected, (facts, expected, headers, names, hops, unix)
    # What a proxy appends is believed, whatever stands before it.
    if hops == 0 and ("for" in names or "forwarded" in names):
        name = b"forwarded" if "forwarded" in names else b"x-forwarded-for"
        added = b"for=203.0.113.9" if "forwarded" in names else b"203.0.113.9"
        one = [*headers, (name, added)]
        assert origin.tell(one)["client"] == ("203.0.113.9", 0)
        same = [(key, value + b" ," + added if key == name else value) for key, value in headers]
        if name in dict(headers):
            assert origin.tell(same)["client"] == ("203.0.113.9", 0)
        assert origin.tell(headers) == trust.believe(PEER).tell(headers)


cdef object taken(ProxyHeader header, bytes data):
    """What `take` says of exactly these bytes, and how many it used."""
    cdef Py_ssize_t used = -1
    cdef int event
    cdef unsigned char* block = <unsigned char*>malloc(max(1, len(data)))
    if block == NULL:
        raise MemoryError
    try:
        memcpy(block, <const char*>data, len(data))
        event = header.take(block, len(data), &used)
    finally:
        free(block)
    assert 0 <= used <= len(data)
    return event, used


def header_model(data):
    """(how many bytes, source, destination) of a good header, else None."""
    line = re.match(
        rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?|TCP([46]) ([^ \r\n]+) ([^ \r\n]+)"
        rb" (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4}))\r\n",
        data,
    )
    if line is not None and line.end() <= 107:
        if line[1] is None:
            return line.end(), None, None
        kind = ipaddress.IPv4Address if line[1] == b"4" else ipaddress.IPv6Address
        try:
            hosts = [kind(part.decode("ascii").replace("%", "x")) for part in line.group(2, 3)]
        except ValueError:
            return None
        ports = [int(part) for part in line.group(4, 5)]
        if max(ports) > 65535:
            return None
        return line.end(), (hosts[0], ports[0]), (hosts[1], ports[1])
    if len(data) < 16 or data[:12] != b"\r\n\r\n\0\r\nQUIT\n":
        return None
    command, family, length = struct.unpack(">BBH", data[12:16])
    body = data[16:16 + length]
    if command not in (0x20, 0x21) or len(body) < length:
        return None
    if command == 0x20:
        return 16 + length, None, None
    if family >> 4 > 3 or family & 15 > 2 or length < (0, 12, 36, 216)[family >> 4]:
        return None
    size = {0x11: 4, 0x21: 16}.get(family)
    if size is None:
        return 16 + length, None, None
    ports = struct.unpack(">HH", body[2 * size:2 * size + 4])
    hosts = [ipaddress.ip_address(body[:size]), ipaddress.ip_address(body[size:2 * size])]
    return 16 + length, (hosts[0], ports[0]), (hosts[1], ports[1])


def check_header(bytes data):
    cdef ProxyHeader whole = ProxyHeader(), pieces = ProxyHeader()
    expected = header_model(data)
    event, used = taken(whole, data)
    if expected is None:
        assert event != PROXY_DONE, data
    else:
        assert event == PROXY_DONE and used == expected[0], (data, expected, event, used)
        found = [
            None if address is None else (ipaddress.ip_address(address[0]), address[1])
            for address in (whole.source, whole.destination)
        ]
        assert tuple(found) == expected[1:], (found, expected)
        assert whole.told == (expected[1] is not None)
    step = 1
    count = 0
    for at in range(len(data)):
        step, one = taken(pieces, data[at:at + 1])
        count += one
        if step != PROXY_NEED_DATA:
            break
    if data:
        assert step == event
        if event == PROXY_DONE:
            assert count == used and pieces.source == whole.source
            assert pieces.local == whole.local and pieces.told == whole.told
            assert taken(pieces, b"more") == (PROXY_DONE, 0)
        elif event == PROXY_INVALID:
            assert count <= 107 or data[:1] != b"P"
            assert taken(pieces, b"more") == (PROXY_INVALID, 0)


def check(bytes data):
    if data[:1] == b"H":
        check_header(data[1:])
    else:
        check_fields(data)
