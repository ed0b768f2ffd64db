"""Bytes on their way out: no HTTP, no socket.

A `SendBuffer` collects what is to be sent, in order. Small writes are copied into
one contiguous block, so that a response head and its body leave in one `send`;
big `bytes` objects are referenced where they are and leave by an I/O vector; of files
there is a descriptor, and what is in them stays there until the transport takes it. A
`BufferPool` has empty ones, so that an idle connection need have none.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.string cimport memcpy, memmove

from fastserve._file cimport File


cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX


@cython.final
cdef class SendBuffer:
    """An ordered queue of bytes to send.

    Resource handling: holds a reference to each big `bytes` object and each `File` until
    its last byte is consumed, and one block that grows geometrically and is given back
    when it is empty and large.
    """

    def __cinit__(self):
        self.block = self.small
        self.block_size = INLINE_SIZE
        self.pieces = self.few
        self.pieces_size = sizeof(self.few) // sizeof(Piece)

    def __dealloc__(self):
        self.clear()
        if self.block != self.small:
            PyMem_Free(self.block)
        if self.pieces != self.few:
            PyMem_Free(self.pieces)

    def __len__(self):
        return self.pending

    def write(self, bytes data not None):
        """Append `data`."""
        self.append_bytes(data)

    def write_file(self, str path not None, Py_ssize_t start, Py_ssize_t length):
        """Append `length` bytes of the file of this name, from `start` on."""
        self.append_file(File.open(path), start, length)

    def load_file(self, Py_ssize_t most):
        """See `load`."""
        return self.load(most)

    def peek(self):
        """All unsent bytes, as one `bytes` object (for tests)."""
        cdef int index
        cdef Piece* piece
        cdef list parts = []
        for index in range(self.first, self.count):
            piece = &self.pieces[index]
            if piece.in_file:
                parts.append((<File>piece.owner).read(piece.start, piece.length))
            elif piece.owner == NULL:
                parts.append((self.block + piece.start)[:piece.length])
            else:
                parts.append(
                    (PyBytes_AS_STRING(<bytes>piece.owner) + piece.start)[:piece.length]
                )
        return b"".join(parts)

    def drop(self, Py_ssize_t length):
        """Consume `length` bytes, as after a send that took so many.

        Raises ValueError if there are not so many."""
        if length < 0 or length > self.pending:
            raise ValueError(f"{length} of {self.pending} bytes cannot be consumed")
        self.consume(length)

    cdef char* reserve(self, Py_ssize_t length) except NULL:
        """Room for `length` bytes at the end of the block; `commit` says how many were
        used. The pointer holds until the next call of any method."""
        if self.block_size - self.block_used < length:
            self._make_room(length)
        return self.block + self.block_used

    cdef int commit(self, Py_ssize_t length) except -1:
        """Count `length` bytes, written where `reserve` pointed, as appended."""
        cdef Piece* last
        if length == 0:
            return 0
        last = &self.pieces[self.count - 1]
        if (
            self.count == self.first
            or last.owner != NULL
            or last.start + last.length != self.block_used
        ):
            last = self._add_piece()
            last.owner = NULL
            last.in_file = False
            last.start = self.block_used
            last.length = 0
        last.length += length
        self.block_used += length
        self.pending += length
        return 0

    cdef int append(self, const char* data, Py_ssize_t length) except -1:
        memcpy(self.reserve(length), data, length)
        return self.commit(length)

    cdef int append_bytes(self, bytes data) except -1:
        """Append `data`: copied when it is short, referenced when it is long."""
        cdef Py_ssize_t length = PyBytes_GET_SIZE(data)
        cdef Piece* piece
        if length < GATHER_MIN:
            return self.append(PyBytes_AS_STRING(data), length)
        piece = self._add_piece()
        Py_INCREF(data)
        piece.owner = <void*>data
        piece.in_file = False
        piece.start = 0
        piece.length = length
        self.pending += length
        return 0

    cdef int append_file(self, File file, Py_ssize_t start, Py_ssize_t length) except -1:
        """Append `length` bytes of `file`, from `start` on, which it has or once had.

        Raises ValueError where so much cannot be counted."""
        cdef Piece* piece
        if start < 0 or length < 0 or start > PY_SSIZE_T_MAX - length:
            raise ValueError(f"no file has {length} bytes from {start} on")
        # What is in memory never comes to the other half.
        if length > PY_SSIZE_T_MAX // 2 - self.pending:
            raise ValueError("more is unsent than can be counted")
        if length == 0:
            return 0
        piece = self._add_piece()
        Py_INCREF(file)
        piece.owner = <void*>file
        piece.in_file = True
        piece.start = start
        piece.length = length
        self.pending += length
        return 0

    cdef File leading_file(self, Py_ssize_t* start, Py_ssize_t* length):
        """The file whose bytes are the next to be sent, and which those are; None if the
        next ones are in memory, or there are none."""
        cdef Piece* piece = &self.pieces[self.first]
        if self.first == self.count or not piece.in_file:
            return None
        start[0] = piece.start
        length[0] = piece.length
        return <File>piece.owner

    cdef Py_ssize_t load(self, Py_ssize_t most) except -1:
        """Read the next bytes to be sent, `most` of them or fewer, into memory, if they are
        in a file: for a transport that cannot send from files. How many; 0 if they were in
        memory before, or there are none.

        Raises OSError; also if the file has become shorter than what was appended."""
        cdef Py_ssize_t start = 0, length = 0
        cdef File file = self.leading_file(&start, &length)
        cdef Piece* piece
        cdef bytes data
        if file is None or most <= 0:
            return 0
        data = file.read(start, min(length, most))
        if length <= most:
            piece = &self.pieces[self.first]
            Py_DECREF(file)
        else:
            self._add_piece()
            piece = &self.pieces[self.first]
            memmove(piece + 1, piece, (self.count - self.first - 1) * sizeof(Piece))
            (piece + 1).start += most
            (piece + 1).length -= most
        Py_INCREF(data)
        piece.owner = <void*>data
        piece.in_file = False
        piece.start = 0
        piece.length = PyBytes_GET_SIZE(data)
        return piece.length

    cdef int gather(self, iovec* vector, int most) noexcept:
        """Fill at most `most` entries of `vector` with unsent bytes, in order, up to the
        first that are in a file; how many. The pointers hold until the next call of any
        other method."""
        cdef int index, filled = 0
        cdef Piece* piece
        cdef char* base
        for index in range(self.first, self.count):
            if filled == most:
                break
            piece = &self.pieces[index]
            if piece.in_file:
                break
            base = self.block if piece.owner == NULL else PyBytes_AS_STRING(<bytes>piece.owner)
            vector[filled].iov_base = base + piece.start
            vector[filled].iov_len = <size_t>piece.length
            filled += 1
        return filled

    cdef void consume(self, Py_ssize_t length) noexcept:
        """Forget the first `length` bytes; the caller knows that there are so many."""
        cdef Piece* piece
        if length >= self.pending:
            self.clear()
            return
        self.pending -= length
        while length > 0:
            piece = &self.pieces[self.first]
            if length < piece.length:
                piece.start += length
                piece.length -= length
                return
            length -= piece.length
            self.first += 1
            if piece.owner != NULL:
                Py_DECREF(<object>piece.owner)

    cdef void clear(self) noexcept:
        """Forget everything, and give a large block back."""
        cdef int index
        for index in range(self.first, self.count):
            if self.pieces[index].owner != NULL:
                Py_DECREF(<object>self.pieces[index].owner)
        self.first = self.count = 0
        self.pending = 0
        self.block_used = 0
        if self.block_size > BLOCK_KEEP:
            PyMem_Free(self.block)
            self.block = self.small
            self.block_size = INLINE_SIZE

    cdef int _make_room(self, Py_ssize_t length) except -1:
        cdef Py_ssize_t start = self.block_used, size = self.block_size
        cdef int index
        cdef char* grown
        # Bytes of the block that were sent lie before the first unsent piece in it.
        for index in range(self.first, self.count):
            if self.pieces[index].owner == NULL:
                start = self.pieces[index].start
                break
        if start > 0 and start >= self.block_used // 2:
            memmove(self.block, self.block + start, self.block_used - start)
            self.block_used -= start
            for index in range(self.first, self.count):
                if self.pieces[index].owner == NULL:
                    self.pieces[index].start -= start
        if length <= self.block_size - self.block_used:
            return 0
        while size - self.block_used < length:
            size *= 2
        if self.block == self.small:
            grown = <char*>PyMem_Malloc(size)
            if grown != NULL:
                memcpy(grown, self.small, self.block_used)
        else:
            grown = <char*>PyMem_Realloc(self.block, size)
        if grown == NULL:
            raise MemoryError()
        self.block = grown
        self.block_size = size
        return 0

    cdef Piece* _add_piece(self) except NULL:
        cdef Piece* grown
        cdef int unsent = self.count - self.first
        if self.count == self.pieces_size:
            if self.first >= self.pieces_size // 2:
                memmove(self.pieces, self.pieces + self.first, unsent * sizeof(Piece))
            else:
                if self.pieces == self.few:
                    grown = <Piece*>PyMem_Malloc(2 * self.pieces_size * sizeof(Piece))
                    if grown != NULL:
                        memcpy(grown, self.few, sizeof(self.few))
                else:
                    grown = <Piece*>PyMem_Realloc(
                        self.pieces, 2 * self.pieces_size * sizeof(Piece)
                    )
                if grown == NULL:
                    raise MemoryError()
                self.pieces = grown
                self.pieces_size *= 2
                memmove(self.pieces, self.pieces + self.first, unsent * sizeof(Piece))
            self.first = 0
            self.count = unsent
        self.count += 1
        return &self.pieces[self.count - 1]


@cython.final
cdef class BufferPool:
    """Empty SendBuffers, to use again."""

    def __cinit__(self, Py_ssize_t most):
        """`most`: how many are kept."""
        self.spare = [None] * most
        self.most = most

    cdef SendBuffer take(self):
        cdef SendBuffer buffer
        if not self.count:
            return SendBuffer.__new__(SendBuffer)
        self.count -= 1
        buffer = <SendBuffer>self.spare[self.count]
        self.spare[self.count] = None
        return buffer

    cdef int give(self, SendBuffer buffer) except -1:
        if self.count < self.most:
            self.spare[self.count] = buffer
            self.count += 1
        return 0
