"""The PROXY protocol: what a balancer writes in front of a connection.

`ProxyHeader` reads it, in both versions; `ProxyProtocol` takes it off a connection, which then
belongs to the next protocol. Nothing that a peer sends raises.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp

from fastserve._address cimport Address, from_ipv4, read_ipv4, read_ipv6, read_port, text_of
from fastserve._transport cimport END_IDLE, Stage, Transport

cdef bytes SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
cdef bytes PROXY = b"PROXY "


cdef int read_line_port(const unsigned char* p, const unsigned char* end) noexcept:
    """As the first version has it: without a zero in front, which some take for octal."""
    return -1 if end - p > 1 and p[0] == c"0" else read_port(p, end)


@cython.final
cdef class ProxyHeader:
    """The header of a connection, in either version, however it is cut.

    What it says besides the two addresses is passed over, up to the 64 KiB that it can be.
    """

    def feed(self, bytes data not None):
        """("more",), ("invalid",), or what is told, and how many bytes were used (for tests)."""
        cdef Py_ssize_t used = 0
        cdef int event = self.take(
            <const unsigned char*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), &used
        )
        if event == PROXY_NEED_DATA:
            return ("more",)
        if event == PROXY_INVALID:
            return ("invalid",)
        if self.told:
            return ("proxied", self.source, self.destination, used)
        return ("local" if self.local else "unknown", used)

    cdef int take(
        self, const unsigned char* data, Py_ssize_t length, Py_ssize_t* used
    ) except -1:
        """An event, and how many bytes it took; with PROXY_NEED_DATA that is all."""
        cdef Py_ssize_t at = 0, step
        while not (self.failed or self.complete) and at < length:
            if self.skip and self.length == 16 + self.wanted:
                step = min(<Py_ssize_t>self.skip, length - at)
                self.skip -= <int>step
                at += step
                self.complete = self.skip == 0
            else:
                at += 1
                if self._take_byte(data[at - 1]) < 0:
                    self.failed = True
        used[0] = at
        if self.failed:
            return PROXY_INVALID
        return PROXY_DONE if self.complete else PROXY_NEED_DATA

    cdef int _take_byte(self, unsigned char byte) except -2:
        """-1: nothing that can become a header."""
        cdef int at = self.length
        self.held[at] = byte
        self.length += 1
        if self.held[0] == c"P":
            if at < 6:
                return 0 if byte == <unsigned char>PROXY[at] else -1
            if self.held[at - 1] == c"\r":
                return self._read_line() if byte == c"\n" else -1
            # The line ends with a CRLF, and no LF stands elsewhere.
            return -1 if byte == c"\n" or at + 1 == LINE_MOST else 0
        if at < 12:
            return 0 if byte == <unsigned char>SIGNATURE[at] else -1
        if at == 15 and self._read_head() < 0:
            return -1
        if at >= 15 and self.length == 16 + self.wanted:
            self.complete = self.skip == 0
            if self.wanted:
                self._read_addresses()
        return 0

    cdef int _read_line(self) except -2:
        """PROXY TCP4|TCP6 source destination port port; UNKNOWN, and anything behind it."""
        cdef const unsigned char* p = self.held + 6
        cdef const unsigned char* end = self.held + self.length - 2
        cdef const unsigned char* words[5]
        cdef const unsigned char* ends[5]
        cdef Address source, destination
        cdef int count = 0, source_port, destination_port
        cdef bint ipv4
        self.complete = True
        if end - p >= 7 and memcmp(p, b"UNKNOWN", 7) == 0:
            return 0 if end - p == 7 or p[7] == c" " else -1
        while True:
            if count == 5:
                return -1
            words[count] = p
            while p < end and p[0] != c" ":
                p += 1
            ends[count] = p
            count += 1
            if p == end:
                break
            p += 1
        if count != 5 or ends[0] - words[0] != 4 or memcmp(words[0], b"TCP", 3) != 0:
            return -1
        if words[0][3] == c"4":
            ipv4 = True
            if read_ipv4(words[1], ends[1], &source) != ends[1]:
                return -1
            if read_ipv4(words[2], ends[2], &destination) != ends[2]:
                return -1
        elif words[0][3] == c"6":
            ipv4 = False
            if read_ipv6(words[1], ends[1], &source) != ends[1]:
                return -1
            if read_ipv6(words[2], ends[2], &destination) != ends[2]:
                return -1
        else:
            return -1
        source_port = read_line_port(words[3], ends[3])
        destination_port = read_line_port(words[4], ends[4])
        if source_port < 0 or destination_port < 0:
            return -1
        self.told = True
        self.source = (text_of(source, ipv4), source_port)
        self.destination = (text_of(destination, ipv4), destination_port)
        return 0

    cdef int _read_head(self) noexcept:
        """The sixteen bytes of the second version; -1: not one of its values."""
        cdef int command = self.held[12]
        cdef int family = self.held[13] >> 4
        cdef int transport = self.held[13] & 0x0F
        cdef int length = self.held[14] << 8 | self.held[15]
        if command == 0x20:
            self.local = True               # what is said besides does not count
        elif command != 0x21 or family > 3 or transport > 2:
            return -1
        elif family == 1 and length < 12 or family == 2 and length < 36 or family == 3 and length < 216:
            return -1
        elif transport == 1 and family == 1:
            self.wanted = 12
        elif transport == 1 and family == 2:
            self.wanted = 36
        self.skip = length - self.wanted
        return 0

    cdef int _read_addresses(self) except -1:
        cdef Address source, destination
        cdef const unsigned char* p = self.held + 16
        cdef bint ipv4 = self.wanted == 12
        if ipv4:
            source = from_ipv4(<uint32_t>big_endian(p, 4))
            destination = from_ipv4(<uint32_t>big_endian(p + 4, 4))
        else:
            source.high = big_endian(p, 8)
            source.low = big_endian(p + 8, 8)
            destination.high = big_endian(p + 16, 8)
            destination.low = big_endian(p + 24, 8)
        p += self.wanted - 4
        self.told = True
        self.source = (text_of(source, ipv4), <int>big_endian(p, 2))
        self.destination = (text_of(destination, ipv4), <int>big_endian(p + 2, 2))
        return 0


cdef uint64_t big_endian(const unsigned char* p, int length) noexcept:
    cdef uint64_t number = 0
    cdef int index
    for index in range(length):
        number = number << 8 | p[index]
    return number


@cython.final
cdef class ProxyFactory(ProtocolFactory):
    """Has each connection begin with a PROXY header, and go on with what `inner` makes."""

    def __init__(self, ProtocolFactory inner not None, Trust trust not None, *, double timeout):
        """`timeout`: seconds for the header."""
        self.inner = inner
        self.trust = trust
        self.timeout = <int64_t>(1000 * timeout)

    cdef Protocol build(self):
        cdef ProxyProtocol protocol = ProxyProtocol.__new__(ProxyProtocol)
        protocol.factory = self
        return protocol


@cython.final
cdef class ProxyProtocol(Protocol):
    """Takes the header off a connection, which then belongs to the next protocol.

    A peer that is not trusted, or that sends anything else, is refused by closing."""

    cdef int connection_made(self, Transport transport) except -1:
        self.transport = transport
        if not self.factory.trust.trusts(transport.client):
            return transport.close(False)
        self.header = ProxyHeader.__new__(ProxyHeader)
        self.deadline = transport.clock() + self.factory.timeout
        return 0

    cdef int data_received(self, const char* data, Py_ssize_t length) except -1:
        cdef Py_ssize_t used = 0
        cdef int event = self.header.take(<const unsigned char*>data, length, &used)
        if event == PROXY_NEED_DATA:
            return 0
        if event == PROXY_INVALID:
            return self._close(False)
        return self._hand_over(data + used, length - used)

    cdef int eof_received(self) except -1:
        return self._close(False)

    cdef int deadline_expired(self) except -1:
        return self._close(False)

    cdef int drain(self, Stage stage) except -1:
        return self._close(True) if stage >= END_IDLE else 0

    cdef int _close(self, bint linger) except -1:
        # A reference of our own: connection_lost drops the other.
        cdef Transport transport = self.transport
        self.deadline = 0
        return transport.close(linger)

    cdef int _hand_over(self, const char* data, Py_ssize_t length) except -1:
        cdef Transport transport = self.transport
        cdef ProxyHeader header = self.header
        cdef Protocol successor = self.factory.inner.build()
        self.transport = None
        self.deadline = 0
        if header.told:
            transport.client = header.source
            transport.server = header.destination
        else:
            # Behind a balancer that does not say for whom it speaks is somebody
            # nobody knows, who must not be taken for the balancer.
            transport.anonymous = not header.local
        transport.set_protocol(successor)
        successor.connection_made(transport)
        if length:
            successor.data_received(data, length)
        return 0
