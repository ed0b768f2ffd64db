# Declarations of fastserve._proxy. No ABI is promised between releases.
from libc.stdint cimport int64_t, uint64_t

from fastserve._transport cimport Protocol, ProtocolFactory

cdef enum:                          # what a trusted peer is asked for: bits of Trust.names
    NAME_FOR = 1
    NAME_PROTO = 2
    NAME_HOST = 4
    NAME_PORT = 8
    NAME_PREFIX = 16
    NAME_FORWARDED = 32             # RFC 7239, in place of the first four

cdef enum:
    HOPS_MOST = 32                  # proxies in a row
    NETWORKS_MOST = 1024
    NODE_MOST = 64                  # bytes of an address with its port
    HOST_MOST = 261                 # of a host: 255 and a port
    PREFIX_MOST = 1024
    LINE_KEPT = 256                 # of a line whose result is remembered
    LINE_MOST = 107                 # of the first version's header, CRLF included
    HELD_MOST = 112                 # of either version that is kept

cdef enum ProxyEvent:
    PROXY_NEED_DATA
    PROXY_DONE                      # `told`, `local`, `source`, `destination`
    PROXY_INVALID                   # every later call says the same


cdef struct Address:                # IPv6, or IPv4 as ::ffff:a.b.c.d
    uint64_t high
    uint64_t low


cdef struct Network:
    Address address
    Address mask


cdef struct Node:                   # who stands before a proxy, as it says
    Address address
    const unsigned char* text       # of an IPv4 address; NULL: of IPv6
    Py_ssize_t text_length
    int port                        # 0: not told


cdef struct Element:                # what one proxy says
    Node node
    int who                         # a NODE_...
    const unsigned char* proto      # NULL: not told
    const unsigned char* proto_end
    const unsigned char* host       # the same
    const unsigned char* host_end


cdef struct Members:                # of all lines of a list-based field, from the right
    int name
    Py_ssize_t line                 # in the list of fields
    const unsigned char* start
    const unsigned char* end        # of what is left of the line; NULL: nothing


cdef Py_ssize_t line_of_host(list headers) noexcept


cdef class Trust:
    cdef:
        Network* networks           # those of IPv4 first
        Py_ssize_t ipv4_count
        Py_ssize_t count
        bint unix_peers             # on unix sockets
        bint anyone
        int names
        int hops                    # 0: by address

    cdef int _add(self, Address address, int prefix) noexcept
    cdef bint covers(self, Address address) noexcept
    cdef bint trusts(self, object client) except -1
    cdef Origin origin(self, object client)


cdef class Origin:
    cdef:
        Trust trust
        # Of the last request that said anything; None where the connection's own holds.
        bint has_client
        object client               # (host, port), or None: not known; if `has_client`
        str scheme                  # "http" or "https"
        bytes host
        str root_path
        # The X-Forwarded-For that `client` was read from, and its place; None: not known.
        bytes line
        int position

    cdef bint resolve(self, list headers, bint secure) except -1
    cdef bint _repeats(self, list headers, Py_ssize_t line) noexcept
    cdef int _remember(self, list headers, Py_ssize_t line, int position) except -1
    cdef int _walk(self, list headers, Members* members, Element* element) noexcept
    cdef bint _pick(
        self, list headers, Members* members, int position,
        const unsigned char** start, const unsigned char** end,
    ) noexcept
    cdef int _set_client(self, Element* element) except -1
    cdef int _set_host(
        self, list headers, const unsigned char* host, const unsigned char* end, int port, bint secure
    ) except -1


cdef class ProxyHeader:
    cdef:
        readonly bint local             # the proxy speaks for itself
        readonly bint told              # the two addresses are there
        readonly object source          # (host, port)
        readonly object destination
        bint failed
        bint complete
        int wanted                      # bytes to hold, once the second version's head is there
        int skip                        # bytes behind them that are of no interest
        int length
        unsigned char[HELD_MOST] held

    cdef int take(
        self, const unsigned char* data, Py_ssize_t length, Py_ssize_t* used
    ) except -1
    cdef int _take_byte(self, unsigned char byte) except -2
    cdef int _read_line(self) except -2
    cdef int _read_head(self) noexcept
    cdef int _read_addresses(self) except -1


cdef class ProxyFactory(ProtocolFactory):
    cdef:
        ProtocolFactory inner
        Trust trust
        int64_t timeout                 # milliseconds


cdef class ProxyProtocol(Protocol):
    cdef:
        ProxyFactory factory
        ProxyHeader header

    cdef int _close(self) except -1
    cdef int _hand_over(self, const char* data, Py_ssize_t length) except -1
