# Declarations of fastserve._reactor. No ABI is promised between releases.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastserve._buffer cimport BufferPool, SendBuffer
from fastserve._shared cimport BEAT_MS, Row
from fastserve._transport cimport Protocol, ProtocolFactory, Stage, Transport

cdef enum:
    RECEIVE_SIZE = 64 * 1024    # bytes taken by one recv
    BATCH = 256                 # events handled before the loop gets its turn
    ACCEPT_BATCH = 64           # connections accepted for one event
    QUEUE_MOST = 64 * 1024      # that may wait to be accepted
    FEW = 2                     # taken before another look at how many the other workers have
    LEAVE_MS = 2                # how long they are left to those
    CHOKE_ABOVE = 64 * 1024     # unsent bytes from which on a sender has to wait,
    RESUME_BELOW = 16 * 1024    # and until when
    LINGER_MS = 2000            # how long, and for how many bytes, input is thrown away
    LINGER_BYTES = 16 * 1024 * 1024
    SPARE_BUFFERS = 256         # SendBuffers kept for the next response
    GATHER_MAX = 64             # pieces in one sendmsg
    LOAD_SIZE = 64 * 1024       # read at once of a file that cannot be sent from

cdef enum:                      # interest, and what happened
    READABLE = 1
    WRITABLE = 2
    BROKEN = 4                  # error, or both directions are shut

# A connection's or listener's place in the reactor's table. A descriptor's number is
# used again at once after a close; a slot's generation never is, so an event that was
# meant for a closed connection cannot hit the next one.
cdef struct Slot:
    void* source
    uint32_t generation
    bint is_listener
    int next_free


cdef class Poller:
    cdef int watch(self, int fd, uint64_t token, int before, int interest) except -1
    cdef int forget(self, int fd, uint64_t token, int before) except -1
    cdef int wait(self, Reactor reactor) except -1
    cdef int fileno(self) noexcept
    cdef int close(self) except -1


cdef class Reactor:
    cdef:
        object worker
        object report                   # called with an exception that nobody else handles
        Poller poller
        Slot* slots
        int slots_size
        int first_free
        list listeners
        list deferred                   # transports whose protocol is to proceed
        bint deferred_armed             # the worker was asked to poll for them
        bint polling
        int64_t turns                   # calls of poll()
        int64_t write_timeout           # milliseconds
        int64_t write_least             # bytes that a peer has to take in each of them
        Py_ssize_t max_connections      # 0: any number
        Py_ssize_t max_per_address
        dict addresses                  # connections of each IP address, where they are counted
        bint holding                    # some listener is held
        Row row                         # what the other processes are shown, or None
        int64_t next_tick               # when it is due, in microseconds of the monotonic clock
        BufferPool buffers
        int ticks_per_check             # of the deadlines; the other ticks are heartbeats alone
        int ticks
        readonly double tick_interval   # seconds
        readonly Py_ssize_t connections
        readonly object on_empty        # called when a draining reactor has lost its last one
        char* block                     # where recv puts bytes

    cdef int add_slot(self, object source, bint is_listener) except -1
    cdef void free_slot(self, int slot) noexcept
    cdef uint64_t token(self, int slot) noexcept
    cdef int dispatch(self, uint64_t token, int events) except -1
    cdef int ticked(self) except -1
    cdef int check_deadlines(self) except -1
    cdef int run_deferred(self) except -1
    cdef int arm_deferred(self) except -1
    cdef int fail(self, SocketTransport transport, object error) except -1
    cdef int adopt(self, int fd, Listener listener, object client) except -1
    cdef bint _count(self, SocketTransport transport) except -1
    cdef int lose(self, SocketTransport transport) except -1
    cdef void show(self) noexcept
    cdef void note_lag(self, int64_t ticks) noexcept
    cdef void count_received(self, Py_ssize_t length) noexcept
    cdef void show_connections(self) noexcept
    cdef void show_listeners(self) noexcept
    cdef bint is_busier(self) noexcept


cdef class Listener:
    cdef:
        Reactor reactor
        ProtocolFactory factory
        object server                   # ASGI `server`, or None: ask each connection
        int fd
        int slot
        int64_t paused_until            # 0: accepting
        bint held                       # as many connections as may be are there
        bint left                       # to workers that have fewer connections
        bint watched                    # none of the three
        bint looking                    # `look_again` will be called
        bint shared                     # with another process
        bint own                        # no other worker has it
        bint fair                       # accept no more than the other workers
        bint complained                 # of the present trouble

    cdef int ready(self) except -1
    cdef int accept_rest(self) except -1
    cdef bint accept_few(self) except -1
    cdef int leave(self) except -1
    cdef int insist(self) except -1
    cdef int pause(self, int error) except -1
    cdef int hold(self) except -1
    cdef int unwatch(self) except -1
    cdef int resume(self) except -1
    cdef int close(self) except -1


cdef class SocketTransport(Transport):
    cdef:
        Reactor reactor
        object counted                  # the address it is counted for, whoever it stands for
        Protocol protocol               # None once it was told that the connection is lost
        SendBuffer out                  # None when nothing is unsent
        int fd                          # -1: closed
        int slot
        int interest                    # what the poller was told
        bint paused
        bint eof                        # the peer sends no more
        bint filled                     # what was received last filled the block
        bint blocked                    # the peer's window is full
        bint closing
        bint linger
        bint lingering
        bint deferred
        int64_t deadline                # of a stalled write, or of lingering; 0: none
        int64_t taken                   # bytes by the peer, towards that deadline
        Py_ssize_t lingered

    cdef int ready(self, int events) except -1
    cdef int tick(self, int64_t now) except -1
    cdef int _receive(self) except -1
    cdef bytes _receive_content(self, Py_ssize_t* count, int* error)
    cdef int _throw_away(self) except -1
    cdef int _send(self) except -1
    cdef Py_ssize_t _send_file(self, SendBuffer out, Py_ssize_t most) except -2
    cdef int _update_interest(self) except -1
    cdef int _finish_close(self) except -1
    cdef int _close_socket(self) except -1
    cdef int _lose_protocol(self) except -1
