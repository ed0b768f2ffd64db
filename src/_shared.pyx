"""The workers' table: what each process shows the others, in memory that they share.

A row has one writer, the worker that it was given to, and as many readers as like. Its numbers
are read one by one, never as a whole: they need not be of the same moment.
"""

import mmap
import os
import tempfile

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.string cimport memset

# Seconds: where the buckets of each histogram end, but for the last one.
BUCKETS_END_AT = tuple([BUCKET_ENDS[bucket] / 1e6 for bucket in range(BUCKETS - 1)])

assert sizeof(Figures) <= ROW_SIZE


cdef int _nameless_file() except -1:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fastserve-workers")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


@cython.final
cdef class Table:
    """Rows of figures. Resource handling: owns its descriptor, and the mapping as long as there
    is the table or one of its rows."""

    def __cinit__(self, int fd):
        """Map the table that `fd` is. Raises OSError, ValueError."""
        self.fd = -1
        self.rows = os.fstat(fd).st_size // ROW_SIZE - 1
        self.mapping = mmap.mmap(fd, (1 + self.rows) * ROW_SIZE)
        PyObject_GetBuffer(self.mapping, &self.view, PyBUF_WRITABLE)
        self.mapped = True
        self.head = <Head*>self.view.buf
        self.fd = fd

    def __dealloc__(self):
        if self.mapped:
            PyBuffer_Release(&self.view)

    @staticmethod
    def create(Py_ssize_t rows):
        """A new table, all of whose rows are nobody's. Raises OSError."""
        cdef int fd = _nameless_file()
        try:
            os.ftruncate(fd, (1 + rows) * ROW_SIZE)
            return Table(fd)
        except BaseException:
            os.close(fd)
            raise

    @property
    def used(self):
        """Every row from this index on is nobody's: nobody need look there."""
        return self.head.used

    @used.setter
    def used(self, Py_ssize_t used):
        self.head.used = used

    def row(self, Py_ssize_t index):
        """Raises IndexError."""
        cdef Row row
        if not 0 <= index < self.rows:
            raise IndexError(index)
        row = Row.__new__(Row)
        row.table = self
        row.index = index
        row.figures = self.figures(index)
        return row

    cdef Figures* figures(self, Py_ssize_t index) noexcept:
        return <Figures*>(<char*>self.view.buf + (1 + index) * ROW_SIZE)

    def close(self):
        """Close the descriptor; the rows stay."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


@cython.final
cdef class Row:
    """One worker's figures. Resource handling: of one that is alone the memory is its own."""

    def __dealloc__(self):
        if self.is_alone:
            PyMem_Free(self.figures)

    @property
    def pid(self):
        """Of the worker that it was given to, or 0."""
        return self.figures.pid

    @property
    def beat(self):
        """When the worker's loop had its last turn, in milliseconds of the monotonic clock; 0
        before it begins to turn, and when it need turn no more."""
        return self.figures.beat

    @property
    def connections(self):
        return self.figures.connections

    @property
    def listening(self):
        """How many sockets that other workers have too it accepts connections from."""
        return self.figures.listening

    @property
    def in_flight(self):
        """Requests that have begun and not ended."""
        return self.figures.in_flight

    @property
    def websockets(self):
        return self.figures.websockets

    # What has been counted. Seconds, bytes.

    @property
    def accepted(self):
        """Connections."""
        return self.figures.counts.accepted

    @property
    def received(self):
        return self.figures.counts.received

    @property
    def sent(self):
        return self.figures.counts.sent

    @property
    def refused(self):
        """Requests, for which there was no room."""
        return self.figures.counts.refused

    @property
    def responses(self):
        """How many there were of each status, by its code as text; "none": the client has left
        without an answer, "other": a code from 600 on."""
        return {
            {NO_STATUS: "none", OTHER_STATUS: "other"}.get(status, str(status)):
                self.figures.counts.responses[status]
            for status in range(STATUSES)
            if self.figures.counts.responses[status]
        }

    @property
    def duration(self):
        """Of the requests, from the head to the end of the response: how many in each bucket
        (BUCKETS_END_AT), and all of it together. So are the next two."""
        return _read(&self.figures.counts.duration)

    @property
    def queue(self):
        """How long those requests that had to wait have waited for their turn."""
        return _read(&self.figures.counts.queue)

    @property
    def lag(self):
        """How late the loop came to each of its ticks."""
        return _read(&self.figures.counts.lag)

    def take(self):
        """Make it this process's, with nothing in it."""
        self.clear()
        self.figures.pid = os.getpid()

    def clear(self):
        """Make it nobody's: the process that wrote here has ended."""
        memset(self.figures, 0, sizeof(Figures))

    cdef bint is_busier(self, int64_t now) noexcept:
        """Whether some worker that would take a connection has fewer of them than this one."""
        cdef int64_t mine = self.figures.connections
        cdef Figures* other
        cdef int64_t index
        if self.table is None:
            return False
        for index in range(self.table.head.used):
            other = self.table.figures(index)
            if (
                other.connections + other.connections // SLACK < mine
                and other.listening
                and now - other.beat <= FRESH_MS
            ):
                return True
        return False

    def add(self, Row other not None):
        """Count what `other` has counted, too."""
        cdef int64_t* ours = <int64_t*>&self.figures.counts
        cdef const int64_t* theirs = <const int64_t*>&other.figures.counts
        cdef size_t word
        for word in range(sizeof(Counts) // sizeof(int64_t)):
            ours[word] += theirs[word]

    @staticmethod
    def alone():
        """One that no other process sees, with nothing in it."""
        cdef Row row = Row.__new__(Row)
        row.figures = <Figures*>PyMem_Calloc(1, sizeof(Figures))
        if row.figures == NULL:
            raise MemoryError()
        row.is_alone = True
        return row


cdef tuple _read(const Histogram* histogram):
    return (
        [histogram.counts[bucket] for bucket in range(BUCKETS)],
        histogram.sum / 1e6,
    )
