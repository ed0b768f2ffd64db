# Declarations of fastserve._buffer. No ABI is promised between releases.
from fastserve._file cimport File

cdef extern from "sys/uio.h" nogil:
    cdef struct iovec:
        void* iov_base
        size_t iov_len

cdef enum:
    GATHER_MIN = 16 * 1024      # a bytes object at least this long is referenced, not copied
    INLINE_SIZE = 4 * 1024      # room in the object itself: a head and a small body never allocate
    BLOCK_KEEP = 64 * 1024      # a block that grew beyond this is freed once it is empty

# One run of bytes waiting to be sent, from `start` on: in the block (`owner` is NULL), or
# in a bytes object or a File (`owner`, a reference of ours).
cdef struct Piece:
    void* owner
    bint in_file
    Py_ssize_t start
    Py_ssize_t length


cdef class SendBuffer:
    cdef:
        readonly Py_ssize_t pending     # bytes appended and not yet consumed
        char* block                     # == small, until it had to grow
        Py_ssize_t block_size
        Py_ssize_t block_used           # where the next byte goes
        Piece* pieces                   # == few, until there were more
        int pieces_size
        int first                       # index of the first piece with unsent bytes
        int count                       # index behind the last piece
        Piece[8] few
        char[INLINE_SIZE] small

    cdef char* reserve(self, Py_ssize_t length) except NULL
    cdef int commit(self, Py_ssize_t length) except -1
    cdef int append(self, const char* data, Py_ssize_t length) except -1
    cdef int append_bytes(self, bytes data) except -1
    cdef int append_file(self, File file, Py_ssize_t start, Py_ssize_t length) except -1
    cdef int gather(self, iovec* vector, int most) noexcept
    cdef File leading_file(self, Py_ssize_t* start, Py_ssize_t* length)
    cdef Py_ssize_t load(self, Py_ssize_t most) except -1
    cdef void consume(self, Py_ssize_t length) noexcept
    cdef void clear(self) noexcept
    cdef int _make_room(self, Py_ssize_t length) except -1
    cdef Piece* _add_piece(self) except NULL


cdef class BufferPool:
    cdef:
        list spare                      # a place for each, so that it never has to grow
        Py_ssize_t most
        Py_ssize_t count                # how many there are

    cdef SendBuffer take(self)
    cdef int give(self, SendBuffer buffer) except -1
