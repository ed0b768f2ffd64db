# Declarations of fastserve._transport. No ABI is promised between releases.
from libc.stdint cimport int64_t

from fastserve._buffer cimport SendBuffer

cdef enum:
    FILE_BURST = 1024 * 1024    # sent from files before other connections get their turn

cpdef enum Stage:                   # of the server's end; each includes those before it
    SERVING
    LAST_ANSWERS                    # an answer is the last one on its connection
    END_IDLE                        # what has nothing under way is closed
    END_ENDLESS                     # and what has no end of its own, such as a WebSocket
    END_ALL                         # applications are told that it is over


cdef class Transport:
    cdef:
        readonly object server          # ASGI `server`: (host, port) or (path, None)
        readonly object client          # ASGI `client`: (host, port) or None
        readonly object tls             # ASGI `tls` extension of the connection, or None
        bint anonymous                  # `client` is a proxy that does not say for whom it speaks
        bint choked                     # too much is unsent; resume_writing will follow

    cdef SendBuffer output(self)
    cdef int flush(self) except -1
    cdef int set_protocol(self, Protocol protocol) except -1
    cdef int pause_reading(self) except -1
    cdef int resume_reading(self) except -1
    cdef int close(self, bint linger) except -1
    cdef int abort(self) except -1
    cdef int fail(self, object error) except -1
    cdef int call_soon(self) except -1
    cdef int64_t clock(self) noexcept
    cdef int64_t turn(self) noexcept


cdef class Protocol:
    cdef:
        Transport transport             # None once the connection is lost
        int64_t deadline                # milliseconds of the transport's clock; 0: none

    cdef int connection_made(self, Transport transport) except -1
    cdef int data_received(self, const char* data, Py_ssize_t length) except -1
    cdef Py_ssize_t content_ahead(self) noexcept
    cdef int content_received(self, bytes content) except -1
    cdef int eof_received(self) except -1
    cdef int connection_lost(self) except -1
    cdef int resume_writing(self) except -1
    cdef int proceed(self) except -1
    cdef bint is_due(self, int64_t now) noexcept
    cdef int check_deadline(self, int64_t now) except -1
    cdef int deadline_expired(self) except -1
    cdef int drain(self, Stage stage) except -1


cdef class ProtocolFactory:
    cdef Protocol build(self)
