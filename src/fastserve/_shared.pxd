# Declarations of fastserve._shared. No ABI is promised between releases.
from libc.stdint cimport int64_t

cdef enum:
    ROW_SIZE = 8 * 1024             # bytes: pages of its own, none of which another worker writes

# What a worker shows. Each member is an aligned word with one writer, so nobody reads half of one.
cdef struct Figures:
    int64_t pid                     # of the worker that writes here; 0: nobody's row
    int64_t beat                    # milliseconds of the monotonic clock: the loop's last turn, or 0
    int64_t connections             # open now


cdef class Table:
    cdef:
        object mapping
        Py_buffer view
        bint mapped
        readonly int fd
        readonly Py_ssize_t rows


cdef class Row:
    cdef:
        Table table                 # which keeps the memory
        Figures* figures
        readonly Py_ssize_t index
