"""TLS: a transport on top of a transport, by the standard library's `ssl`.

To the transport below, a `TlsProtocol` is its protocol; to the protocol above, a `TlsTransport` is
its transport. Between the two an `SSLObject` works on two memory BIOs, so that neither the
socket, nor the poller, nor the event loop, nor HTTP is different under TLS.
"""

from ssl import MemoryBIO, SSLError, SSLWantReadError

cimport cython
from cpython.buffer cimport PyBUF_READ
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory

from fastserve._buffer cimport iovec
from fastserve._transport cimport END_IDLE, FILE_BURST, Stage


# Somebody speaks HTTP to a port that expects TLS: the one case in which the peer can be told.
cdef bytes PLAIN_TEXT = b"This port speaks TLS: use https:// here.\n"
cdef bytes PLAIN_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(PLAIN_TEXT), PLAIN_TEXT)
)


cdef object _readable(const char* data, Py_ssize_t length):
    """To be read during one call: a short copy is cheaper than a view."""
    if length <= COPY_MOST:
        return PyBytes_FromStringAndSize(data, length)
    return PyMemoryView_FromMemory(<char*>data, length, PyBUF_READ)


@cython.final
cdef class TlsFactory(ProtocolFactory):
    """Makes the TLS side of each accepted connection, and then the protocol above it."""

    def __init__(
        self, ProtocolFactory inner not None, wrap, *, describe, double handshake_timeout=60
    ):
        """`inner`: of the protocols above. `wrap(incoming, outgoing)`: an `ssl.SSLObject` of the
        server's side for two `ssl.MemoryBIO`. `describe(ssl_object)`: the ASGI `tls` extension
        of the connection, a dict. `handshake_timeout`: seconds."""
        self.inner = inner
        self.wrap = wrap
        self.describe = describe
        self.handshake_timeout = <int64_t>(1000 * handshake_timeout)
        self.plain = bytearray(PLAIN_SIZE)
        self.into_plain = (PLAIN_SIZE, self.plain)
        self.buffers = BufferPool(SPARE_BUFFERS)

    cdef Protocol build(self):
        cdef TlsProtocol protocol = TlsProtocol.__new__(TlsProtocol)
        cdef TlsTransport tls = TlsTransport.__new__(TlsTransport)
        tls.factory = self
        protocol.tls = tls
        return protocol

    cdef bint may_shake(self, int64_t turn) noexcept:
        """A handshake costs a signature, milliseconds with RSA: some in each turn of the loop,
        so that the connections that have theirs behind them are not kept waiting."""
        if turn != self.turn:
            self.turn = turn
            self.shaken = 0
        self.shaken += 1
        return self.shaken <= HANDSHAKES


@cython.final
cdef class TlsProtocol(Protocol):
    """What the transport below calls: ciphertext comes in."""

    cdef int connection_made(self, Transport transport) except -1:
        self.transport = transport
        self.deadline = transport.clock() + self.tls.factory.handshake_timeout
        return self.tls.attach(transport)

    cdef int data_received(self, const char* data, Py_ssize_t length) except -1:
        return self.tls.received(data, length)

    cdef int eof_received(self) except -1:
        return self.tls.ended()

    cdef int connection_lost(self) except -1:
        cdef TlsTransport tls = self.tls
        self.transport = None
        self.deadline = 0
        return tls.lost()

    cdef int resume_writing(self) except -1:
        return self.tls.may_send_again()

    cdef int proceed(self) except -1:
        return self.tls.go_on(self)

    cdef bint is_due(self, int64_t now) noexcept:
        cdef Protocol above = self.tls.protocol
        return Protocol.is_due(self, now) if above is None else above.is_due(now)

    cdef int check_deadline(self, int64_t now) except -1:
        cdef Protocol above = self.tls.protocol
        if above is None:
            return Protocol.check_deadline(self, now)
        above.check_deadline(now)
        return self.tls.encrypt()

    cdef int deadline_expired(self) except -1:
        # A reference of our own: connection_lost drops the other.
        cdef Transport transport = self.transport
        return transport.abort()        # in the midst of a handshake: nothing can be said

    cdef int drain(self, Stage stage) except -1:
        cdef Protocol above = self.tls.protocol
        cdef Transport transport = self.transport
        if above is None:
            return transport.close(True) if stage >= END_IDLE else 0
        above.drain(stage)
        return self.tls.encrypt()


@cython.final
cdef class TlsTransport(Transport):
    """What the protocol above calls: plaintext goes out.

    Resource handling: `below` and `protocol` refer back to this; both are let go when the
    connection is lost.
    """

    cdef int attach(self, Transport below) except -1:
        cdef object session, inner
        self.below = below
        self.server = below.server
        self.client = below.client
        self.anonymous = below.anonymous
        self.incoming = MemoryBIO()
        self.outgoing = MemoryBIO()
        self.session = session = self.factory.wrap(self.incoming, self.outgoing)
        # An SSLObject's methods only call those of what is inside, in Python.
        inner = getattr(session, "_sslobj", session)
        self.read = inner.read
        self.write = inner.write
        self.put_in = self.incoming.write
        self.take_out = self.outgoing.read
        return 0

    cdef SendBuffer output(self):
        if self.out is None:
            self.out = self.factory.buffers.take()
        return self.out

    cdef int flush(self) except -1:
        cdef Transport below = self.below
        if below is None:
            return 0
        self.encrypt()
        below.flush()
        if self.below is not None:
            self.choked = self.choked or below.choked
        return 0

    cdef int set_protocol(self, Protocol protocol) except -1:
        self.protocol = protocol
        return 0

    cdef int pause_reading(self) except -1:
        self.paused = True
        return 0 if self.below is None else self.below.pause_reading()

    cdef int resume_reading(self) except -1:
        cdef Transport below = self.below
        self.paused = False
        if below is None:
            return 0
        below.resume_reading()
        # What was received already will never make the socket readable.
        return below.call_soon()

    cdef int close(self, bint linger) except -1:
        cdef Transport below = self.below
        if self.closing or below is None:
            return 0
        self.closing = True
        self.linger = linger
        below.pause_reading()
        self.encrypt()
        if self.below is not None and self.out is None:
            self._finish_close()
        return 0

    cdef int abort(self) except -1:
        cdef Transport below = self.below
        return 0 if below is None else below.abort()

    cdef int fail(self, object error) except -1:
        cdef Transport below = self.below
        return 0 if below is None else below.fail(error)

    cdef int call_soon(self) except -1:
        self.deferred = True
        return 0 if self.below is None else self.below.call_soon()

    cdef int64_t clock(self) noexcept:
        return 0 if self.below is None else self.below.clock()

    cdef int64_t turn(self) noexcept:
        return 0 if self.below is None else self.below.turn()

    # From below.

    cdef int received(self, const char* data, Py_ssize_t length) except -1:
        cdef Transport below = self.below
        # What follows a close_notify is nothing (RFC 8446 section 6.1), and is not kept.
        if self.closing or self.fin:
            return 0
        if self.protocol is None and not self.begun:
            self.begun = True
            if c"A" <= data[0] <= c"Z":     # no record of TLS begins like this
                self.closing = True
                below.output().append_bytes(PLAIN_HTTP)
                return below.close(True)
        self.put_in(_readable(data, length))
        self.unread = True
        if self.protocol is not None:
            return self._decrypt()
        if self.incoming.pending > HANDSHAKE_MOST and not self.paused:
            self.paused = True
            below.pause_reading()
        # In the order of arrival, and when the others' requests have been received.
        return below.call_soon()

    cdef int go_on(self, TlsProtocol protocol) except -1:
        """The answer to `call_soon`, ours or the protocol's above."""
        cdef Protocol above = self.protocol
        if above is None:
            if self.closing or not self._shake_hands(protocol):
                return 0
        elif self.deferred:
            self.deferred = False
            if not self.closing:
                above.proceed()
        if self.held:
            self.held = False
            self.may_send_again()
        return self._decrypt()

    cdef int ended(self) except -1:
        """The peer sends no more: after its close_notify that is no news. Without one a message
        may be cut; how long a request is, its own framing says."""
        cdef Transport below = self.below
        self.fin = True
        if self.protocol is not None:
            return self._decrypt()
        if self.incoming.pending and not self.closing:
            return 0        # it still has its turn
        return below.close(False)

    cdef int lost(self) except -1:
        cdef Protocol above = self.protocol
        self.below = None
        self.protocol = None
        self.choked = False
        self.out = None
        self.session = self.incoming = self.outgoing = None
        self.read = self.write = self.put_in = self.take_out = None
        return 0 if above is None else above.connection_lost()

    cdef int may_send_again(self) except -1:
        cdef Protocol above = self.protocol
        self.encrypt()
        if self.out is not None or self.below is None:
            return 0
        if self.closing:
            return self._finish_close()
        if self.choked and not self.below.choked:
            self.choked = False
            if above is not None:
                above.resume_writing()
                self.encrypt()
        return 0

    # Between the two.

    cdef bint _shake_hands(self, TlsProtocol protocol) except -1:
        """Go on with the handshake; True when it is done, and the protocol above made."""
        cdef Transport below = self.below
        cdef TlsFactory factory = self.factory
        cdef Protocol above
        if not self.incoming.pending:
            return False
        if not factory.may_shake(below.turn()):
            below.call_soon()
            return False
        try:
            self.session.do_handshake()
        except SSLWantReadError:
            self._pass_on(below)
            if self.fin:
                below.close(False)
            elif self.paused:
                self.paused = False
                below.resume_reading()
            return False
        except SSLError:
            # The peer's doing: it gets its alert, and nobody is told of every scanner.
            self.closing = True
            self._pass_on(below)
            below.close(True)
            return False
        self._pass_on(below)
        protocol.deadline = 0
        self.tls = factory.describe(self.session)
        above = factory.inner.build()
        self.protocol = above
        above.connection_made(self)
        if self.paused:
            self.resume_reading()
        return True

    cdef int _decrypt(self) except -1:
        """Hand up what has come, until there is no more or reading pauses. OpenSSL takes a
        record at a time and gives all of it, so that the BIO alone knows of more; it is
        asked, since to be refused costs an exception, but no more often than it must: that
        costs as much as ten calls between compiled modules."""
        cdef Transport below = self.below
        cdef TlsFactory factory = self.factory
        cdef Protocol above
        cdef Py_ssize_t length
        while not (self.paused or self.closing or self.eof):
            above = self.protocol
            if above is None:
                return 0        # lost
            if not (self.unread and self.incoming.pending):
                self.unread = False
                # A protocol that is to proceed has not settled yet whether it takes more: an end
                # would overtake what it keeps for itself.
                if self.fin and not self.deferred:
                    self.eof = True
                    above.eof_received()
                break
            self.unsent = True      # perhaps: some records are to be answered
            try:
                length = self.read(*factory.into_plain)
            except SSLWantReadError:
                continue        # part of a record, or none with data
            except SSLError:
                return self._give_up(below)
            if length == 0:
                self.fin = True
                self.incoming.read()
                continue
            above.data_received(PyByteArray_AS_STRING(factory.plain), length)
        self.encrypt()
        if self.unsent and self.below is not None and self.outgoing.pending > ANSWERS_MOST:
            below.abort()
        return 0

    cdef int _give_up(self, Transport below) except -1:
        """The peer has broken TLS: its alert, and the end. Nothing can be encrypted any more,
        so if the alert cannot leave at once it never will."""
        self.closing = True
        self._pass_on(below)
        below.close(True)
        if self.below is not None:
            below.abort()
        return 0

    cdef int encrypt(self) except -1:
        """What the protocol above has appended goes below, as much as is taken there."""
        cdef Transport below = self.below
        cdef SendBuffer out = self.out
        cdef iovec vector
        cdef Py_ssize_t length
        if below is None:
            return 0
        if out is not None:
            while out.pending and not below.choked and self._load(below, out):
                out.gather(&vector, 1)
                length = min(<Py_ssize_t>vector.iov_len, <Py_ssize_t>PLAIN_SIZE)
                # It takes a record at a time, and says how much that was.
                length = self.write(_readable(<char*>vector.iov_base, length))
                out.consume(length)
                self._pass_on(below)
                if out.pending and below.output().pending > COLLECT:
                    below.flush()
                    if self.below is None:
                        return 0
            if self.below is None:
                return 0        # what was to be sent of a file is not there
            if out.pending == 0 and self.out is out:
                self.out = None
                self.factory.buffers.give(out)
        if self.unsent and not below.choked:
            self._pass_on(below)
        self.choked = self.choked or below.choked
        return 0

    cdef bint _load(self, Transport below, SendBuffer out) except -1:
        """Have what is to be encrypted next in memory; False: it waits for the next turn, or
        the connection has ended."""
        cdef Py_ssize_t start = 0, length = 0
        if out.leading_file(&start, &length) is None:
            return True
        if self.file_turn != below.turn():
            self.file_turn = below.turn()
            self.from_files = 0
        if self.from_files >= FILE_BURST:
            self.held = self.choked = True
            below.call_soon()
            return False
        try:
            self.from_files += out.load(PLAIN_SIZE)
        except OSError as error:
            below.fail(error)
            return False
        return True

    cdef int _pass_on(self, Transport below) except -1:
        cdef bytes ciphertext = self.take_out()
        self.unsent = False
        if PyBytes_GET_SIZE(ciphertext):
            below.output().append_bytes(ciphertext)
        return 0

    cdef int _finish_close(self) except -1:
        """Everything is encrypted: the close_notify (RFC 8446 section 6.1), and the end below.
        The peer's own close_notify is not waited for."""
        cdef Transport below = self.below
        try:
            self.session.unwrap()
        except SSLError:
            pass        # which is how it says that the peer has not answered yet
        self._pass_on(below)
        return below.close(self.linger)
