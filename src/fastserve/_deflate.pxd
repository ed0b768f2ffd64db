# Declarations of fastserve._deflate. No ABI is promised between releases.

cdef extern from "zlib.h":
    ctypedef struct z_stream:
        unsigned char* next_in
        unsigned int avail_in
        unsigned char* next_out
        unsigned int avail_out

cdef enum:
    DEFLATE_MOST = 16 * 1024 * 1024     # bytes compressed at once: longer messages are not
    SPARE_INFLATERS = 64                # kept for the next messages


cdef class Deflater:
    cdef:
        z_stream stream
        bint live
        bint takes_over

    cdef bytes deflate(self, const char* data, Py_ssize_t length)


cdef class Inflater:
    cdef:
        z_stream stream
        bint live
        bint broken                     # what was given is not deflate's

    cdef void reset(self) noexcept
    cdef void give(self, const char* data, Py_ssize_t length) noexcept
    cdef void give_tail(self) noexcept
    cdef Py_ssize_t take(self, char* to, Py_ssize_t room) noexcept


cdef class DeflatePool:
    cdef:
        list deflaters                  # by window bits
        list inflaters

    cdef Deflater deflater(self, int window_bits)
    cdef Inflater borrow(self)
    cdef int give_back(self, Inflater inflater) except -1
