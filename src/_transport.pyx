"""What a byte pipe and its consumer promise each other.

The words are asyncio's: a `Transport` moves bytes and calls its `Protocol`; the
protocol says what to send and when to stop. Both are abstract and compiled, so a
call between them is a C call, and a new protocol (WebSocket) or a new transport
(TLS, stacked on another one) fits without a change to the others.
"""


cdef class Transport:
    """Moves bytes for one protocol. The methods are for compiled code alone.

    * `output()` is where the protocol appends; `flush()` hands over what was appended.
      It may hold pieces of files: a transport that cannot send from them has them read,
      a little at a time (`SendBuffer.load`); where that fails, so does the transport. No
      more than `FILE_BURST` bytes of files are sent before other connections have a turn.
      Around `data_received`, `proceed` and `resume_writing` the transport flushes by
      itself. While `choked`, more has been flushed than the peer takes; when it has
      taken most of it, `resume_writing` is called.
    * `close(linger)`: what was appended is still sent, then the connection is ended
      without a reset. With `linger`, input that is still on its way is read and thrown
      away for a while, since a reset could destroy the answer before the peer has read
      it (RFC 9112 section 9.6). `abort()`: at once, by a reset. `fail(error)`: the same, and
      the error is reported.
      Of all calls to the protocol only `connection_lost` follows, exactly once.
    * `set_protocol`: another protocol is called from now on. Its `connection_made` is the
      business of the one before.
    * `pause_reading`, `resume_reading`: whether `data_received` may be called. Neither
      of them calls it.
    * `call_soon()`: have the protocol's `proceed` called when the stack has unwound.
    * `clock()`: milliseconds of a monotonic clock. `turn()`: another number as soon as what
      was deferred with `call_soon` has had its turn.

    Error handling: nothing is raised for what a peer or the operating system does.
    """

    cdef SendBuffer output(self):
        raise NotImplementedError

    cdef int flush(self) except -1:
        raise NotImplementedError

    cdef int set_protocol(self, Protocol protocol) except -1:
        raise NotImplementedError

    cdef int pause_reading(self) except -1:
        raise NotImplementedError

    cdef int resume_reading(self) except -1:
        raise NotImplementedError

    cdef int close(self, bint linger) except -1:
        raise NotImplementedError

    cdef int abort(self) except -1:
        raise NotImplementedError

    cdef int fail(self, object error) except -1:
        raise NotImplementedError

    cdef int call_soon(self) except -1:
        raise NotImplementedError

    cdef int64_t clock(self) noexcept:
        return 0

    cdef int64_t turn(self) noexcept:
        return 0


cdef class Protocol:
    """Consumes the bytes of one transport. The methods are for compiled code alone.

    * `data_received`: the memory is only good during the call, and may be written to.
    * `content_ahead`: how many of the next bytes it only hands on as they are, at most so many as it
      wants at once. If it is not 0, a transport may receive them into an object of their own, which
      nobody copies again, and call `content_received` in place of `data_received`.
    * `eof_received`: the peer sends no more (a half-close: it may still read).
    * `connection_lost`: the last call; the transport is gone.
    * `resume_writing`: the peer reads again.
    * `proceed`: the answer to `call_soon`.
    * `is_due`, and if so `check_deadline`: called now and then, the first also in vain.
      `deadline_expired`: the time in `deadline` has come.
    * `drain`: the server's end has come to this stage. What ends for it ends without a reset.

    Error handling: an exception out of any of them is reported and ends this
    connection, and no other.
    """

    cdef int connection_made(self, Transport transport) except -1:
        self.transport = transport
        return 0

    cdef int data_received(self, const char* data, Py_ssize_t length) except -1:
        raise NotImplementedError

    cdef Py_ssize_t content_ahead(self) noexcept:
        return 0

    cdef int content_received(self, bytes content) except -1:
        raise NotImplementedError

    cdef int eof_received(self) except -1:
        raise NotImplementedError

    cdef int connection_lost(self) except -1:
        self.transport = None
        return 0

    cdef int resume_writing(self) except -1:
        return 0

    cdef int proceed(self) except -1:
        return 0

    cdef bint is_due(self, int64_t now) noexcept:
        return self.deadline != 0 and now >= self.deadline

    cdef int check_deadline(self, int64_t now) except -1:
        if self.is_due(now):
            self.deadline = 0
            self.deadline_expired()
        return 0

    cdef int deadline_expired(self) except -1:
        return 0

    cdef int drain(self, Stage stage) except -1:
        return 0


cdef class ProtocolFactory:
    """Makes the protocol of each accepted connection."""

    cdef Protocol build(self):
        raise NotImplementedError
