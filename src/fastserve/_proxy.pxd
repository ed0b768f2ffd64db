# Declarations of fastserve._proxy. No ABI is promised between releases.
from libc.stdint cimport int64_t

from fastserve._forwarded cimport Trust
from fastserve._transport cimport Protocol, ProtocolFactory

cdef enum:
    LINE_MOST = 107                 # of the first version's header, CRLF included
    HELD_MOST = 112                 # of either version that is kept

cdef enum ProxyEvent:
    PROXY_NEED_DATA
    PROXY_DONE                      # `told`, `local`, `source`, `destination`
    PROXY_INVALID                   # every later call says the same


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

    cdef int _close(self, bint linger) except -1
    cdef int _hand_over(self, const char* data, Py_ssize_t length) except -1
