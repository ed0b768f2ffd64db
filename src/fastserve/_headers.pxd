# Declarations of fastserve._headers. No ABI is promised between releases.
from libc.stdint cimport int64_t

from fastserve._buffer cimport SendBuffer

cdef enum:
    HEAD_INLINE = 1024          # bytes of a head that are kept in the object itself
    DATE_LINE_LENGTH = 37       # "date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"


cdef class DateLine:
    cdef:
        int64_t second
        char[DATE_LINE_LENGTH] line

    cdef int append_to(self, SendBuffer out) except -1


cdef class ResponseHead:
    cdef:
        readonly int status
        readonly int64_t content_length     # -1: the application stated none
        readonly bint close                 # the application asked for Connection: close
        readonly bint has_date
        readonly bint has_server
        str _message                        # the ASGI message that it is made of, for errors
        set _nominated                      # names in Connection: they go no further
        char* _block                        # == _small, until it had to grow
        Py_ssize_t _size
        Py_ssize_t _used
        char[HEAD_INLINE] _small

    cdef int start(self, str message, object status, object headers) except -1
    cdef int switch_protocols(self, object headers) except -1
    cdef int early_hint(self, object links) except -1
    cdef int trailers(self, object headers) except -1
    cdef int append_to(self, SendBuffer out) except -1
    cdef object _listed(self, object headers)
    cdef int _begin(self, bytes line, object headers) except -1
    cdef int _append_fields(self, object headers) except -1
    cdef int _append_field(self, object name, object value) except -1
    cdef int _special(self, int field, bytes value) except -1
    cdef int _make_room(self, Py_ssize_t length) except -1


cdef int append_chunk_size(SendBuffer out, Py_ssize_t length) except -1
cdef int append_content_length(SendBuffer out, Py_ssize_t length) except -1
