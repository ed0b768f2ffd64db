# Declarations of fastserve._shared. No ABI is promised between releases.
from libc.stdint cimport int64_t

cdef enum:
    ROW_SIZE = 8 * 1024             # bytes: pages of its own, none of which another worker writes
    BEAT_MS = 100                   # a loop that has nothing to do shows that it turns so often
    FRESH_MS = 250                  # one that has not for so long is stuck, or is no more
    SLACK = 16                      # this part more connections than another's is no difference

# What the supervisor writes, in front of the rows.
cdef struct Head:
    int64_t used                    # every row from here on is nobody's

# What a worker shows. Each member is an aligned word with one writer, so nobody reads half of one.
cdef struct Figures:
    int64_t pid                     # of the worker that writes here; 0: nobody's row
    int64_t beat                    # milliseconds of the monotonic clock: the loop's last turn
    int64_t connections             # open now
    int64_t listening               # sockets shared with other workers that it accepts from


cdef class Table:
    cdef:
        object mapping
        Py_buffer view
        bint mapped
        Head* head
        readonly int fd
        readonly Py_ssize_t rows

    cdef Figures* figures(self, Py_ssize_t index) noexcept


cdef class Row:
    cdef:
        Table table                 # which keeps the memory
        Figures* figures
        readonly Py_ssize_t index

    cdef bint is_busier(self, int64_t now) noexcept
