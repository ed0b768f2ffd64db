"""permessage-deflate without the frames (RFC 7692 section 7.2): messages in, messages out.

The compression itself is zlib's. A live zlib state costs 40 KiB for one direction and 260 KiB
for the other, so that states are shared where the two sides have agreed to begin each
message anew (no context takeover): a message is compressed in one call, and an `Inflater` is
lent for the time in which a message arrives.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.limits cimport UINT_MAX
from libc.stdint cimport uint64_t
from libc.string cimport memset


cdef extern from "zlib.h" nogil:
    enum: Z_OK, Z_STREAM_END, Z_BUF_ERROR
    enum: Z_SYNC_FLUSH, Z_DEFLATED, Z_DEFAULT_STRATEGY
    int deflateInit2(z_stream*, int level, int method, int bits, int memory, int strategy)
    int deflate(z_stream*, int flush)
    int deflateReset(z_stream*)
    int deflateEnd(z_stream*)
    unsigned long deflateBound(z_stream*, unsigned long)
    int inflateInit2(z_stream*, int bits)
    int inflate(z_stream*, int flush)
    int inflateReset(z_stream*)
    int inflateEnd(z_stream*)


cdef enum:
    LEVEL = 1           # the quickest: a message is compressed while every other one waits
    MEMORY = 8          # zlib's default
    WINDOW_MOST = 15
    # What an empty stored block ends with: taken away after compression and put back
    # before the opposite (RFC 7692 section 7.2.1).
    TAIL_LENGTH = 4

cdef const char* _tail = b"\x00\x00\xff\xff"


@cython.final
cdef class Deflater:
    """Compresses whole messages.

    Resource handling: owns a zlib state. With `takes_over` each message may refer to the
    ones before, so that it belongs to one connection.
    """

    def __cinit__(self, int window_bits=WINDOW_MOST, bint takes_over=False):
        memset(&self.stream, 0, sizeof(self.stream))
        self.takes_over = takes_over
        # A negative number of bits: no header and no checksum around the data.
        if deflateInit2(
            &self.stream, LEVEL, Z_DEFLATED, -window_bits, MEMORY, Z_DEFAULT_STRATEGY
        ) != Z_OK:
            raise MemoryError()
        self.live = True

    def __dealloc__(self):
        if self.live:
            deflateEnd(&self.stream)

    def compress(self, bytes data not None):
        """The message `data`, compressed. Raises ValueError above DEFLATE_MOST bytes."""
        return self.deflate(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    cdef bytes deflate(self, const char* data, Py_ssize_t length):
        cdef z_stream* stream = &self.stream
        cdef unsigned long bound
        cdef bytes out
        cdef int status
        if length > DEFLATE_MOST:
            raise ValueError(f"{length} bytes are too many to compress at once")
        if length == 0:
            return b"\0"            # RFC 7692 section 7.2.3.6; zlib flushes once only
        # Room for the flush's own block as well, so that one call does it all.
        bound = deflateBound(stream, <unsigned long>length) + 16
        out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>bound)
        stream.next_in = <unsigned char*>data       # only read
        stream.avail_in = <unsigned int>length
        stream.next_out = <unsigned char*>PyBytes_AS_STRING(out)
        stream.avail_out = <unsigned int>bound
        status = deflate(stream, Z_SYNC_FLUSH)
        length = <Py_ssize_t>(bound - stream.avail_out)
        # No room left: there may be more to come, and what is there would be half a message.
        if status != Z_OK or stream.avail_in or not stream.avail_out or length < TAIL_LENGTH:
            raise RuntimeError(f"zlib could not compress: {status}")
        if not self.takes_over:
            deflateReset(stream)
        return out[:length - TAIL_LENGTH]


@cython.final
cdef class Inflater:
    """Decompresses one message after the other, piece by piece.

    Resource handling: owns a zlib state.
    """

    def __cinit__(self):
        memset(&self.stream, 0, sizeof(self.stream))
        # The largest window, whatever was agreed: it reads what a smaller one wrote.
        if inflateInit2(&self.stream, -WINDOW_MOST) != Z_OK:
            raise MemoryError()
        self.live = True

    def __dealloc__(self):
        if self.live:
            inflateEnd(&self.stream)

    cdef void reset(self) noexcept:
        """The next message does not refer to those before."""
        inflateReset(&self.stream)

    cdef void give(self, const char* data, Py_ssize_t length) noexcept:
        """What `take` is to decompress next; good until it has. `length` is below 4 GiB."""
        self.stream.next_in = <unsigned char*>data
        self.stream.avail_in = <unsigned int>length

    cdef void give_tail(self) noexcept:
        """The message is complete."""
        self.give(_tail, TAIL_LENGTH)

    cdef Py_ssize_t take(self, char* to, Py_ssize_t room) noexcept:
        """Decompress at most `room` bytes; how many. Less than `room`: everything given was
        used, or is `broken`."""
        cdef z_stream* stream = &self.stream
        cdef unsigned int left = <unsigned int>min(<uint64_t>room, <uint64_t>UINT_MAX)
        cdef unsigned int wanted = left
        cdef int status
        while True:
            stream.next_out = <unsigned char*>to + (wanted - left)
            stream.avail_out = left
            status = inflate(stream, Z_SYNC_FLUSH)
            left = stream.avail_out
            if status == Z_STREAM_END:
                # A final block may stand within a message (RFC 7692 section 7.2.3.4).
                inflateReset(stream)
                if stream.avail_in and left:
                    continue
            elif status != Z_OK and status != Z_BUF_ERROR:
                self.broken = True
            return wanted - left


@cython.final
cdef class DeflatePool:
    """The states that the connections of one server share."""

    def __cinit__(self):
        self.deflaters = [None] * (WINDOW_MOST + 1)
        self.inflaters = []

    cdef Deflater deflater(self, int window_bits):
        """One for messages that stand alone; not to be kept."""
        cdef Deflater deflater = <Deflater>self.deflaters[window_bits]
        if deflater is None:
            self.deflaters[window_bits] = deflater = Deflater(window_bits)
        return deflater

    cdef Inflater borrow(self):
        """One for the message that begins; to be given back."""
        return <Inflater>self.inflaters.pop() if self.inflaters else Inflater()

    cdef int give_back(self, Inflater inflater) except -1:
        if len(self.inflaters) < SPARE_INFLATERS:
            inflater.reset()
            self.inflaters.append(inflater)
        return 0
