"""Who asks, where proxies stand in between, as their fields say.

`Trust` says which peers are believed. `Origin` is what a believed one says of a request:
its X-Forwarded fields, or Forwarded (RFC 7239).

Two rules keep strangers from writing what only a proxy may:
* Lists are read from the right, where the nearest proxy has written, and never further to
  the left than the first address that is not trusted. What a client has put there before
  is not even parsed, so it cannot spoil what was appended to it either.
* Where a field is malformed as far as it has to be read, all of it is as if it were not there.

Nothing that a peer sends raises. Neither a socket nor ASGI is known here.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy

from fastserve._address cimport (
    Address, is_digit, is_ipv4, read_ipv4, read_ipv6, read_port, text_of
)
from fastserve._parser cimport is_authority


cdef extern from "Python.h":
    PyObject* list_item "PyList_GET_ITEM"(PyObject* items, Py_ssize_t index) noexcept
    Py_ssize_t list_size "PyList_GET_SIZE"(PyObject* items) noexcept
    PyObject* tuple_item "PyTuple_GET_ITEM"(PyObject* items, Py_ssize_t index) noexcept
    const unsigned char* bytes_text "(const unsigned char*)PyBytes_AS_STRING"(PyObject*) noexcept
    Py_ssize_t bytes_size "PyBytes_GET_SIZE"(PyObject* text) noexcept
    str PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    void* PyUnicode_DATA(object text)
    str PyUnicode_DecodeASCII(const char* text, Py_ssize_t length, const char* errors)
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* length) except NULL


cdef enum:                                  # Element.who
    NODE_ADDRESS
    NODE_UNKNOWN                            # "unknown", or a name that hides the address
    NODE_UNIX
    NODE_ABSENT
    NODE_WRONG

cdef enum:                                  # the places of the names in an array of lines
    AT_FOR, AT_PROTO, AT_HOST, AT_PORT, AT_PREFIX, AT_FORWARDED, AT_COUNT

cdef tuple NAMES = ("for", "proto", "host", "port", "prefix", "forwarded")


# --------------------------------------------------------- one proxy's word, in either field

cdef inline bint is_letter(unsigned char c) noexcept:
    return c"a" <= c | 0x20 <= c"z"


cdef inline bint is_blank(unsigned char c) noexcept:
    return c == c" " or c == c"\t"


cdef const unsigned char* skip_hidden(
    const unsigned char* p, const unsigned char* end
) noexcept:
    """RFC 7239 section 6.3: a name in place of an address or port. What follows, or NULL."""
    cdef const unsigned char* start
    if p == end or p[0] != c"_":
        return NULL
    p += 1
    start = p
    while p < end and (
        is_digit(p[0]) or is_letter(p[0]) or p[0] == c"." or p[0] == c"_" or p[0] == c"-"
    ):
        p += 1
    if p == start:
        return NULL
    return p


cdef bint is_word(
    const unsigned char* p, const unsigned char* end, const char* word, Py_ssize_t length
) noexcept:
    """Whether it is `word`, letters in lower case, in any case."""
    cdef Py_ssize_t index
    if end - p != length:
        return False
    for index in range(length):
        if p[index] | 0x20 != <unsigned char>word[index]:
            return False
    return True


cdef int read_node(
    const unsigned char* p, const unsigned char* end, bint is_forwarded, Node* node
) noexcept:
    """An address, perhaps with its port: what it is. `is_forwarded`: as RFC 7239 section 6 has
    it. In X-Forwarded-For IPv6 often stands without brackets, and then without a port."""
    cdef const unsigned char* after
    cdef int who = NODE_ADDRESS
    node.port = 0
    node.text = NULL
    if p == end or end - p > NODE_MOST:
        return NODE_WRONG
    if p[0] == c"[":
        after = read_ipv6(p + 1, end, &node.address)
        if after == NULL or after == end or after[0] != c"]":
            return NODE_WRONG
        after += 1
    elif p[0] == c"_":
        who = NODE_UNKNOWN
        after = skip_hidden(p, end)
    else:
        after = read_ipv4(p, end, &node.address)
        if after != NULL:
            node.text = p
            node.text_length = after - p
        elif end - p >= 7 and is_word(p, p + 7, b"unknown", 7):
            who = NODE_UNKNOWN
            after = p + 7
        elif not is_forwarded:
            # What nginx calls a client that came by a unix socket.
            if end - p == 5 and memcmp(p, b"unix:", 5) == 0:
                return NODE_UNIX
            after = read_ipv6(p, end, &node.address)
            if after != end:
                return NODE_WRONG
    if after == NULL:
        return NODE_WRONG
    if after < end:
        if after[0] != c":":
            return NODE_WRONG
        node.port = read_port(after + 1, end)
        if node.port < 0:
            if not is_forwarded or skip_hidden(after + 1, end) != end:
                return NODE_WRONG
            node.port = 0
    return who


# ------------------------------------------------------------------- list-based fields

cdef inline int place_of(const unsigned char* name, Py_ssize_t length) noexcept:
    """Which of the fields this is, or AT_COUNT."""
    if length < 9 or length > 18:
        return AT_COUNT
    if length == 9:
        return AT_FORWARDED if memcmp(name, b"forwarded", 9) == 0 else AT_COUNT
    if length < 15 or memcmp(name, b"x-forwarded-", 12) != 0:
        return AT_COUNT
    if length == 15:
        return AT_FOR if memcmp(name + 12, b"for", 3) == 0 else AT_COUNT
    if length == 16:
        if memcmp(name + 12, b"host", 4) == 0:
            return AT_HOST
        return AT_PORT if memcmp(name + 12, b"port", 4) == 0 else AT_COUNT
    if length == 17:
        return AT_PROTO if memcmp(name + 12, b"proto", 5) == 0 else AT_COUNT
    return AT_PREFIX if memcmp(name + 12, b"prefix", 6) == 0 else AT_COUNT


cdef inline int place_of_line(PyObject* headers, Py_ssize_t line) noexcept:
    cdef PyObject* name = tuple_item(list_item(headers, line), 0)
    return place_of(bytes_text(name), bytes_size(name))


cdef void begin_line(Members* members, PyObject* headers) noexcept:
    cdef PyObject* value = tuple_item(list_item(headers, members.line), 1)
    members.start = bytes_text(value)
    members.end = members.start + bytes_size(value)


cdef bint previous_member(
    list headers, Members* members, const unsigned char** start, const unsigned char** end
) noexcept:
    """The next member of the list to the left, blanks removed, empty ones left out (RFC 9110
    section 5.6.1); False: there is none.

    A comma inside a quoted string divides nothing. That can be seen from the right too:
    a closing quote is never escaped, the opening one does not follow a backslash."""
    cdef const unsigned char* p
    cdef const unsigned char* back
    cdef bint is_forwarded = members.name == AT_FORWARDED
    cdef bint quoted
    while True:
        if members.end == NULL:
            while True:
                members.line -= 1
                if members.line < 0:
                    return False
                if place_of_line(<PyObject*>headers, members.line) == members.name:
                    break
            begin_line(members, <PyObject*>headers)
        end[0] = members.end
        p = members.end
        quoted = False
        if not is_forwarded:
            while p > members.start and (p - 1)[0] != c",":
                p -= 1
        while is_forwarded and p > members.start:
            if (p - 1)[0] == c"," and not quoted:
                break
            p -= 1
            if p[0] == c'"':
                if quoted:
                    back = p
                    while back > members.start and (back - 1)[0] == c"\\":
                        back -= 1
                    quoted = (p - back) & 1
                    p = back
                else:
                    quoted = True
        members.end = p - 1 if p > members.start else NULL
        while p < end[0] and is_blank(p[0]):
            p += 1
        while end[0] > p and is_blank((end[0] - 1)[0]):
            end[0] -= 1
        if p < end[0]:
            start[0] = p
            return True


cdef inline bint is_token(unsigned char c) noexcept:
    """tchar of RFC 9110 section 5.6.2."""
    if is_digit(c) or is_letter(c):
        return True
    return c == c"-" or c == c"." or c == c"_" or c == c"!" or c == c"#" or c == c"$" or (
        c"%" <= c <= c"'" or c == c"*" or c == c"+" or c == c"^" or c == c"`" or c == c"|"
        or c == c"~"
    )


cdef int read_element(
    const unsigned char* p, const unsigned char* end, Element* element
) noexcept:
    """RFC 7239 section 4: pairs, and no name twice. Says who, like read_node.

    No address, scheme or host needs a backslash, so that there none is undone."""
    cdef const unsigned char* name
    cdef const unsigned char* name_end
    cdef const unsigned char* value
    cdef const unsigned char* value_end
    cdef bint escaped
    element.who = NODE_ABSENT
    element.proto = element.host = NULL
    while True:
        while p < end and (is_blank(p[0]) or p[0] == c";"):
            p += 1
        if p == end:
            return element.who
        name = p
        while p < end and is_token(p[0]):
            p += 1
        name_end = p
        if p == name or p == end or p[0] != c"=":
            return NODE_WRONG
        p += 1
        escaped = False
        value = p
        if p < end and p[0] == c'"':
            p += 1
            value = p
            while p < end and p[0] != c'"':
                if p[0] == c"\\":
                    escaped = True
                    p += 1
                    if p == end:
                        return NODE_WRONG
                if p[0] < 0x20 and p[0] != c"\t" or p[0] == 0x7F:
                    return NODE_WRONG
                p += 1
            if p == end:
                return NODE_WRONG
            value_end = p
            p += 1
        else:
            while p < end and is_token(p[0]):
                p += 1
            value_end = p
            if p == value:
                return NODE_WRONG
        while p < end and is_blank(p[0]):
            p += 1
        if p < end and p[0] != c";":
            return NODE_WRONG
        if is_word(name, name_end, b"for", 3):
            if escaped or element.who != NODE_ABSENT:
                return NODE_WRONG
            element.who = read_node(value, value_end, True, &element.node)
            if element.who == NODE_WRONG:
                return NODE_WRONG
        elif is_word(name, name_end, b"proto", 5):
            if escaped or element.proto != NULL:
                return NODE_WRONG
            element.proto = value
            element.proto_end = value_end
        elif is_word(name, name_end, b"host", 4):
            if escaped or element.host != NULL:
                return NODE_WRONG
            element.host = value
            element.host_end = value_end


cdef str scheme_of(const unsigned char* p, const unsigned char* end):
    """"http" or "https", which a proxy may also call ws and wss; else None."""
    if is_word(p, end, b"https", 5) or is_word(p, end, b"wss", 3):
        return "https"
    if is_word(p, end, b"http", 4) or is_word(p, end, b"ws", 2):
        return "http"
    return None


cdef bint is_host(const unsigned char* p, const unsigned char* end) noexcept:
    return end - p <= HOST_MOST and is_authority(p, end)


cdef const unsigned char* end_of_prefix(
    const unsigned char* p, const unsigned char* end
) noexcept:
    """Where a path ends that may stand before another one, without its last slash; NULL: it is
    none. What begins with two slashes would be a host to whoever is redirected there, and
    what is escaped could hide anything."""
    cdef const unsigned char* start = p
    cdef unsigned char c
    if end - p > PREFIX_MOST or p == end or p[0] != c"/":
        return NULL
    while p < end:
        c = p[0]
        if c == c"/":
            if p > start and (p - 1)[0] == c"/":
                return NULL
        elif not (
            is_digit(c) or is_letter(c) or c == c"-" or c == c"." or c == c"_" or c == c"~"
            or c == c"!" or c == c"$" or c"&" <= c <= c"+" or c == c":" or c == c"@" or c == c"="
        ):
            return NULL
        p += 1
    return p - 1 if (p - 1)[0] == c"/" else p


cdef Py_ssize_t line_of_host(list headers) noexcept:
    """The parser lets no second one through; -1: there is none, as HTTP/1.0 allows."""
    cdef PyObject* name
    cdef Py_ssize_t line
    for line in range(list_size(<PyObject*>headers)):
        name = tuple_item(list_item(<PyObject*>headers, line), 0)
        if bytes_size(name) == 4 and memcmp(bytes_text(name), b"host", 4) == 0:
            return line
    return -1


# ---------------------------------------------------------------------------- trust

@cython.final
cdef class Trust:
    """Which peers are believed, and what of what they say."""

    def __cinit__(self, networks=(), *, bint unix=False, bint anyone=False, names=(), int hops=0):
        """`networks`: (address as 4 or 16 bytes, length of the prefix), of proxies. `unix`: so
        are peers on unix sockets; `anyone`: so is every peer, whatever its address, but
        no address that it names. `names`: any of for, proto, host, port, prefix (the
        X-Forwarded fields), or forwarded, which stands for the first four. `hops`: how many
        proxies there are, the peer included; 0: their addresses say so."""
        cdef Address address
        cdef bytes packed
        networks = [_checked(packed, prefix) for packed, prefix in networks]
        if len(networks) > NETWORKS_MOST:
            raise ValueError("too many networks")
        if not 0 <= hops <= HOPS_MOST:
            raise ValueError("too many hops")
        self.unix_peers = unix
        self.anyone = anyone
        self.hops = hops
        for name in names:
            self.names |= 1 << NAMES.index(name)
        if self.names & NAME_FORWARDED and self.names & ~(NAME_FORWARDED | NAME_PREFIX):
            raise ValueError("either Forwarded or X-Forwarded")
        self.networks = <Network*>PyMem_Malloc(max(1, len(networks)) * sizeof(Network))
        if self.networks == NULL:
            raise MemoryError()
        for is_first in (True, False):
            for packed, prefix in networks:
                address.high = int.from_bytes(packed[:8])
                address.low = int.from_bytes(packed[8:])
                if (is_ipv4(address) and prefix >= 96) == is_first:
                    self._add(address, prefix)
            if is_first:
                self.ipv4_count = self.count

    def __dealloc__(self):
        PyMem_Free(self.networks)

    def believe(self, client):
        """The Origin of a connection with this peer; None: it is not trusted. For tests."""
        return self.origin(client)

    cdef int _add(self, Address address, int prefix) noexcept:
        cdef Network* network = &self.networks[self.count]
        cdef uint64_t ones = <uint64_t>-1
        network.mask.high = 0 if prefix == 0 else ones << (64 - prefix) if prefix < 64 else ones
        network.mask.low = 0 if prefix <= 64 else ones << (128 - prefix)
        network.address.high = address.high & network.mask.high
        network.address.low = address.low & network.mask.low
        self.count += 1
        return 0

    cdef bint covers(self, Address address) noexcept:
        """Whether it is a trusted one's. What is written as ::ffff:a.b.c.d is IPv4, and never
        belongs to a network of IPv6, not even to ::/0."""
        cdef bint ipv4 = is_ipv4(address)
        cdef Py_ssize_t index
        cdef Network* network
        for index in range(0 if ipv4 else self.ipv4_count, self.ipv4_count if ipv4 else self.count):
            network = &self.networks[index]
            if (address.low & network.mask.low == network.address.low
                    and address.high & network.mask.high == network.address.high):
                return True
        return False

    cdef bint trusts(self, object client) except -1:
        """Whether a peer is believed. `client`: (host, port), or None on a unix socket."""
        cdef const unsigned char* text
        cdef Py_ssize_t length = 0
        cdef Node node
        if self.anyone:
            return True
        if client is None:
            return self.unix_peers
        text = <const unsigned char*>PyUnicode_AsUTF8AndSize(client[0], &length)
        return read_node(text, text + length, False, &node) == NODE_ADDRESS and self.covers(node.address)

    cdef Origin origin(self, object client):
        """For the requests of this peer; None: it is not believed."""
        cdef Origin origin
        if not self.trusts(client):
            return None
        origin = Origin.__new__(Origin)
        origin.trust = self
        return origin


cdef tuple _checked(bytes packed, int prefix):
    """A network in 16 bytes."""
    if len(packed) == 4:
        packed = b"\x00" * 10 + b"\xFF\xFF" + packed
        prefix = -1 if prefix < 0 else prefix + 96
    if len(packed) != 16 or not 0 <= prefix <= 128:
        raise ValueError("not a network")
    return packed, prefix


@cython.final
cdef class Origin:
    """Where the requests of one connection come from, as its trusted peer says.

    `client` is the address that was walked to: the first from the right that is not trusted,
    the leftmost if all are, or that of the n-th hop. The other fields are counted from the
    right as that one was, since each proxy appends to all of them or replaces them: the
    member in the same place is taken, or the only one there is."""

    def tell(self, list headers not None, str scheme="http"):
        """What is said of a request with these fields, as a dict (for tests)."""
        cdef dict facts = {}
        for name, value in headers:
            if type(name) is not bytes or type(value) is not bytes:
                raise TypeError("fields are pairs of bytes")
        if not self.resolve([(name, value) for name, value in headers], scheme == "https"):
            return facts
        if self.has_client:
            facts["client"] = self.client
        if self.scheme is not None:
            facts["scheme"] = self.scheme
        if self.host is not None:
            facts["host"] = self.host
        if self.root_path is not None:
            facts["root_path"] = self.root_path
        return facts

    cdef bint resolve(self, list headers, bint secure) except -1:
        """Whether anything is said. `headers`: (name in lower case, value), bytes in tuples.
        `secure`: the connection's own scheme is https."""
        cdef Py_ssize_t[AT_COUNT] lines
        cdef Members members
        cdef Element element
        cdef const unsigned char* start = NULL
        cdef const unsigned char* end = NULL
        cdef const unsigned char* host = NULL
        cdef const unsigned char* host_end = NULL
        cdef Py_ssize_t line
        cdef int names = self.trust.names
        cdef int found = 0
        cdef int position = 0, place, port = 0
        for line in range(list_size(<PyObject*>headers)):
            place = place_of_line(<PyObject*>headers, line)
            if place != AT_COUNT and names >> place & 1:
                found |= 1 << place
                lines[place] = line         # the last one that there is
        if not found:
            return False
        self.has_client = False
        self.scheme = self.host = self.root_path = None
        if found & NAME_FOR and self._repeats(headers, lines[AT_FOR]):
            self.has_client = True
            position = self.position
        elif found & (NAME_FOR | NAME_FORWARDED):
            members.name = AT_FOR if found & NAME_FOR else AT_FORWARDED
            line = members.line = lines[members.name]
            begin_line(&members, <PyObject*>headers)
            position = self._walk(headers, &members, &element)
            self.line = None
            if position:
                self._set_client(&element)
                # What was read of this line alone holds wherever it comes again.
                if members.line == line and members.name == AT_FOR:
                    self._remember(headers, line, position)
                if element.proto != NULL:
                    self.scheme = scheme_of(element.proto, element.proto_end)
                if element.host != NULL and is_host(element.host, element.host_end):
                    self.host = PyBytes_FromStringAndSize(
                        <const char*>element.host, element.host_end - element.host
                    )
        if position == 0:
            position = self.trust.hops if self.trust.hops else 1
        for place in range(AT_PROTO, AT_PREFIX + 1):
            if not found >> place & 1:
                continue
            members.name = place
            members.line = lines[place]
            begin_line(&members, <PyObject*>headers)
            if not self._pick(headers, &members, position, &start, &end):
                continue
            if place == AT_PROTO:
                self.scheme = scheme_of(start, end)
            elif place == AT_HOST:
                if is_host(start, end):
                    host = start
                    host_end = end
            elif place == AT_PORT:
                port = max(0, read_port(start, end))
            else:
                end = end_of_prefix(start, end)
                if end != NULL:
                    self.root_path = PyUnicode_DecodeASCII(<const char*>start, end - start, NULL)
        if host != NULL or port:
            if self.scheme is not None:
                secure = self.scheme == "https"
            self._set_host(headers, host, host_end, port, secure)
        return True

    cdef bint _repeats(self, list headers, Py_ssize_t line) noexcept:
        """Whether it is the line whose result is remembered: a client asks more than once."""
        cdef PyObject* value = tuple_item(list_item(<PyObject*>headers, line), 1)
        cdef PyObject* known = <PyObject*>self.line
        if self.line is None or bytes_size(value) != bytes_size(known):
            return False
        return memcmp(bytes_text(value), bytes_text(known), bytes_size(known)) == 0

    cdef int _remember(self, list headers, Py_ssize_t line, int position) except -1:
        cdef bytes value = <bytes>tuple_item(list_item(<PyObject*>headers, line), 1)
        if PyBytes_GET_SIZE(value) <= LINE_KEPT:
            self.line = value
            self.position = position
        return 0

    cdef int _walk(self, list headers, Members* members, Element* element) noexcept:
        """Who is believed to ask, and in which place from the right it stands; 0: nothing that
        the field says is of use."""
        cdef Trust trust = self.trust
        cdef const unsigned char* start = NULL
        cdef const unsigned char* end = NULL
        cdef int position = 0
        element.proto = element.host = NULL
        while previous_member(headers, members, &start, &end):
            if position == HOPS_MOST:
                return 0
            position += 1
            if position < trust.hops:
                continue
            if members.name == AT_FORWARDED:
                element.who = read_element(start, end, element)
            else:
                element.who = read_node(start, end, False, &element.node)
            if element.who == NODE_WRONG:
                return 0
            if trust.hops:
                return position
            if element.who == NODE_ADDRESS:
                if not trust.covers(element.node.address):
                    return position
            elif not (element.who == NODE_UNIX and trust.unix_peers):
                return position
        # Fewer than it has to pass: somebody went around a proxy, or one says nothing.
        return 0 if trust.hops else position

    cdef bint _pick(
        self, list headers, Members* members, int position,
        const unsigned char** start, const unsigned char** end,
    ) noexcept:
        """The member in this place from the right, or the only one there is."""
        cdef const unsigned char* first = NULL
        cdef const unsigned char* first_end = NULL
        cdef int count = 0
        while previous_member(headers, members, start, end):
            count += 1
            if count == position:
                return True
            if count == 1:
                first = start[0]
                first_end = end[0]
        start[0] = first
        end[0] = first_end
        return count == 1

    cdef int _set_client(self, Element* element) except -1:
        cdef Node* node = &element.node
        cdef str host
        if element.who == NODE_ABSENT:
            return 0
        self.has_client = True
        self.client = None
        if element.who == NODE_ADDRESS:
            if node.text != NULL:
                host = PyUnicode_New(node.text_length, 0x7F)
                memcpy(PyUnicode_DATA(host), node.text, node.text_length)
            else:
                host = text_of(node.address, False)
            self.client = (host, node.port)
        return 0

    cdef int _set_host(
        self, list headers, const unsigned char* host, const unsigned char* end, int port, bint secure
    ) except -1:
        """The value of Host: with `port` instead of its own, and without the scheme's."""
        cdef const unsigned char* colon
        cdef PyObject* value
        cdef Py_ssize_t line = line_of_host(headers) if host == NULL else -1
        if line >= 0:
            value = tuple_item(list_item(<PyObject*>headers, line), 1)
            host = bytes_text(value)
            end = host + bytes_size(value)
        if host == NULL or not is_host(host, end):
            return 0
        if port:
            colon = end
            while colon > host and is_digit((colon - 1)[0]):
                colon -= 1
            if colon > host and (colon - 1)[0] == c":":
                end = colon - 1
        self.host = PyBytes_FromStringAndSize(<const char*>host, end - host)
        if port and port != (443 if secure else 80):
            self.host += b":%d" % port
        return 0
