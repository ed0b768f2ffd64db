# Declarations of fastserve._forwarded. No ABI is promised between releases.
from fastserve._address cimport Address

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
