# Declarations of fastserve._shared. No ABI is promised between releases.
from libc.stdint cimport int64_t

cdef enum:
    ROW_SIZE = 8 * 1024             # bytes: pages of its own, none of which another worker writes
    BEAT_MS = 100                   # a loop that has nothing to do shows that it turns so often
    FRESH_MS = 250                  # one that has not for so long is stuck, or is no more
    SLACK = 16                      # this part more connections than another's is no difference
    BUCKETS = 17                    # of a histogram; the last one has no upper end
    STATUSES = 600                  # by the status code, and besides
    NO_STATUS = 0                   # nothing was answered
    OTHER_STATUS = 1                # one that RFC 9110 section 15 does not provide for

cdef extern from *:
    """
    /* Microseconds: where the buckets of each histogram end, but for the last one. */
    static const int64_t fs_bucket_ends[] = {
        500, 1000, 2500, 5000, 10000, 25000, 50000, 100000, 250000, 500000, 1000000, 2500000,
        5000000, 10000000, 30000000, 60000000
    };
    """
    const int64_t* BUCKET_ENDS "fs_bucket_ends"

cdef struct Histogram:
    int64_t[BUCKETS] counts
    int64_t sum                     # microseconds

# What a worker has counted since it began; all of it grows, and can be added to another's.
cdef struct Counts:
    int64_t accepted                # connections
    int64_t received                # bytes, of the sockets
    int64_t sent
    int64_t refused                 # requests, for which there was no room
    int64_t[STATUSES] responses
    Histogram duration              # of a request, from its head to the end of the response
    Histogram queue                 # how long a request that had to wait has waited for its turn
    Histogram lag                   # how late the loop came to its tick

# What the supervisor writes, in front of the rows.
cdef struct Head:
    int64_t used                    # every row from here on is nobody's

# What a worker shows. Each member is an aligned word with one writer, so nobody reads half of one.
cdef struct Figures:
    int64_t pid                     # of the worker that writes here; 0: nobody's row
    int64_t beat                    # milliseconds of the monotonic clock: the loop's last turn, or 0
    int64_t connections             # open now
    int64_t listening               # sockets shared with other workers that it accepts from
    int64_t in_flight               # requests that have begun and not ended
    int64_t websockets              # open now
    Counts counts


cdef inline void observe(Histogram* histogram, int64_t microseconds) noexcept:
    cdef int bucket = 0
    while bucket < BUCKETS - 1 and microseconds > BUCKET_ENDS[bucket]:
        bucket += 1
    histogram.counts[bucket] += 1
    histogram.sum += microseconds


cdef inline void count_response(Figures* figures, int status) noexcept:
    figures.counts.responses[status if status < STATUSES else OTHER_STATUS] += 1


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
        bint is_alone               # there is no table: the memory is its own
        Figures* figures
        readonly Py_ssize_t index

    cdef bint is_busier(self, int64_t now) noexcept
