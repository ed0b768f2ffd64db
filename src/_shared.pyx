"""The workers' table: what each process shows the others, in memory that they share.

A row has one writer, the worker that it was given to, and as many readers as like. Its numbers
are read one by one, never as a whole: they need not be of the same moment.
"""

import mmap
import os
import tempfile

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.string cimport memset


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
    """One worker's figures."""

    @property
    def pid(self):
        """Of the worker that it was given to, or 0."""
        return self.figures.pid

    @property
    def beat(self):
        """When the worker's loop had its last turn, in milliseconds of the monotonic clock."""
        return self.figures.beat

    @property
    def connections(self):
        return self.figures.connections

    @property
    def listening(self):
        """How many sockets that other workers have too it accepts connections from."""
        return self.figures.listening

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
        for index in range(self.table.head.used):
            other = self.table.figures(index)
            if (
                other.connections + other.connections // SLACK < mine
                and other.listening
                and now - other.beat <= FRESH_MS
            ):
                return True
        return False
