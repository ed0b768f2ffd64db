# Declarations of fastserve._tls. No ABI is promised between releases.
from libc.stdint cimport int64_t

from fastserve._buffer cimport BufferPool, SendBuffer
from fastserve._transport cimport Protocol, ProtocolFactory, Transport

cdef enum:
    PLAIN_SIZE = 64 * 1024          # bytes decrypted, or encrypted, at once
    COPY_MOST = 2048                # bytes that are rather copied than shown
    HANDSHAKES = 8                  # steps of handshakes in one turn of the loop
    HANDSHAKE_MOST = 64 * 1024      # bytes that wait for a handshake's turn; then reading pauses
    COLLECT = 64 * 1024             # encrypted bytes that are sent at once
    ANSWERS_MOST = 64 * 1024        # of TLS itself, not taken by a peer that asks for more
    SPARE_BUFFERS = 64              # SendBuffers kept for the next response


cdef class TlsFactory(ProtocolFactory):
    cdef:
        ProtocolFactory inner
        object wrap
        object describe
        int64_t handshake_timeout
        bytearray plain             # where decrypted bytes are put, for one call
        tuple into_plain            # the arguments for that
        BufferPool buffers
        int64_t turn
        int shaken

    cdef bint may_shake(self, int64_t turn) noexcept


cdef class TlsProtocol(Protocol):
    cdef TlsTransport tls


cdef class TlsTransport(Transport):
    cdef:
        TlsFactory factory
        Transport below             # None once the connection is lost
        Protocol protocol           # above; None until the handshake is done
        SendBuffer out              # plaintext; None when nothing is unsent
        object session              # an ssl.SSLObject
        object incoming, outgoing   # its ssl.MemoryBIOs
        object read, write          # its methods
        object put_in, take_out     # and theirs
        bint unread, unsent         # there may be something in them
        bint begun                  # something has been received
        bint paused
        bint closing
        bint linger
        bint deferred               # the protocol above is to proceed
        bint fin                    # nothing more comes: a close_notify, or a FIN below,
        bint eof                    # and the protocol above knows
        int64_t file_turn           # in which turn of the loop
        Py_ssize_t from_files       # so many bytes of files were read,
        bint held                   # and the rest waits for the next one

    cdef int attach(self, Transport below) except -1
    cdef int received(self, const char* data, Py_ssize_t length) except -1
    cdef int go_on(self, TlsProtocol protocol) except -1
    cdef int ended(self) except -1
    cdef int lost(self) except -1
    cdef int may_send_again(self) except -1
    cdef int encrypt(self) except -1
    cdef bint _shake_hands(self, TlsProtocol protocol) except -1
    cdef int _decrypt(self) except -1
    cdef int _give_up(self, Transport below) except -1
    cdef bint _load(self, Transport below, SendBuffer out) except -1
    cdef int _pass_on(self, Transport below) except -1
    cdef int _finish_close(self) except -1
