"""The reactor: one set of descriptors, one wake-up for a batch of events.

It owns the sockets from accept to close and knows no HTTP. The event loop is asked
for little: to call `poll()` when `fileno()` is readable, and once more after
`worker.soon`. Where there is no epoll (or where it is not wanted) the loop watches each
descriptor itself, calls `ready()`, and `tick()` now and then: the second poller.
"""

import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport (
    EAGAIN, ECONNABORTED, EHOSTUNREACH, EINTR, ENETDOWN, ENETUNREACH, ENOBUFS, EOPNOTSUPP,
    EPERM, EPROTO, errno,
)
from libc.string cimport memset

from fastserve._buffer cimport BufferPool, SendBuffer, iovec
from fastserve._file cimport File
from fastserve._shared cimport Row, observe
from fastserve._transport cimport FILE_BURST


cdef extern from *:
    """
    #include <arpa/inet.h>
    #include <errno.h>
    #include <fcntl.h>
    #include <netinet/in.h>
    #include <signal.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>

    #ifdef __linux__
    #include <sys/epoll.h>
    #include <sys/sendfile.h>
    #include <sys/timerfd.h>
    #define FS_HAS_EPOLL 1

    /* A descriptor that becomes readable each so many milliseconds. */
    static int fs_timer(int64_t ms) {
        struct itimerspec each = {
            { ms / 1000, ms % 1000 * 1000000 }, { ms / 1000, ms % 1000 * 1000000 }
        };
        int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        if (fd >= 0)
            timerfd_settime(fd, 0, &each, NULL);
        return fd;
    }
    #else
    /* Never called: EpollPoller cannot be made. */
    #define FS_HAS_EPOLL 0
    #define EPOLLIN 1
    #define EPOLLOUT 4
    #define EPOLLERR 8
    #define EPOLLHUP 16
    #define EPOLL_CTL_ADD 1
    #define EPOLL_CTL_MOD 2
    #define EPOLL_CTL_DEL 3
    #define EPOLL_CLOEXEC 0
    typedef union { void* ptr; uint64_t u64; } epoll_data_t;
    struct epoll_event { uint32_t events; epoll_data_t data; };
    static int fs_timer(int64_t ms) { errno = ENOSYS; return -1; }
    static int epoll_create1(int f) { errno = ENOSYS; return -1; }
    static int epoll_ctl(int e, int o, int f, struct epoll_event* v) { errno = ENOSYS; return -1; }
    static int epoll_wait(int e, struct epoll_event* v, int n, int t) { errno = ENOSYS; return -1; }
    #endif

    #ifndef MSG_MORE
    #define MSG_MORE 0          /* what follows at once may leave in the same segment */
    #endif
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0      /* SO_NOSIGPIPE is set instead */
    #endif

    /* A non-blocking socket that no child process inherits (CLOEXEC): a child would
       hold the connection open, and the peer would wait for an end that never comes. */
    static int fs_accept(int fd, struct sockaddr* address, socklen_t* length) {
    #ifdef __linux__
        return accept4(fd, address, length, SOCK_NONBLOCK | SOCK_CLOEXEC);
    #else
        int accepted = accept(fd, address, length);
        if (accepted >= 0) {
            fcntl(accepted, F_SETFD, FD_CLOEXEC);
            fcntl(accepted, F_SETFL, fcntl(accepted, F_GETFL) | O_NONBLOCK);
    #ifdef SO_NOSIGPIPE
            int on = 1;
            setsockopt(accepted, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
    #endif
        }
        return accepted;
    #endif
    }

    /* Port and numeric host of an IP address; -1 for another family. */
    static int fs_host_and_port(const struct sockaddr_storage* a, char* host, size_t size) {
        if (a->ss_family == AF_INET) {
            const struct sockaddr_in* v4 = (const struct sockaddr_in*)a;
            inet_ntop(AF_INET, &v4->sin_addr, host, (socklen_t)size);
            return ntohs(v4->sin_port);
        }
        if (a->ss_family == AF_INET6) {
            const struct sockaddr_in6* v6 = (const struct sockaddr_in6*)a;
            inet_ntop(AF_INET6, &v6->sin6_addr, host, (socklen_t)size);
            return ntohs(v6->sin6_port);
        }
        return -1;
    }

    /* Deadlines need no more than some milliseconds, which is the cheaper clock. */
    static int64_t fs_monotonic_ms(void) {
        struct timespec t;
    #ifdef CLOCK_MONOTONIC_COARSE
        clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    #else
        clock_gettime(CLOCK_MONOTONIC, &t);
    #endif
        return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
    }

    static int64_t fs_monotonic_us(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
    }

    /* -1 and errno; anything but EAGAIN and EINTR may just mean that it cannot be done. */
    static Py_ssize_t fs_send_file(int fd, int file, int64_t start, size_t length) {
    #ifdef __linux__
        /* There is no MSG_NOSIGNAL here, and an application may have let SIGPIPE kill.
           sigprocmask is this thread's alone on Linux, and pthread_sigmask new in glibc 2.32:
           with it, what is built here would ask for a newer system than it needs. */
        struct timespec at_once = { 0, 0 };
        off_t from = (off_t)start;
        sigset_t broken, before;
        ssize_t sent;
        int error;
        sigemptyset(&broken);
        sigaddset(&broken, SIGPIPE);
        sigprocmask(SIG_BLOCK, &broken, &before);
        sent = sendfile(fd, file, &from, length);
        error = errno;
        if (sent < 0 && error == EPIPE)
            sigtimedwait(&broken, NULL, &at_once);
        sigprocmask(SIG_SETMASK, &before, NULL);
        errno = error;
        return sent;
    #else
        errno = ENOSYS;         /* other systems' has another signature and other rules */
        return -1;
    #endif
    }

    static ssize_t fs_send_vector(int fd, struct iovec* vector, int count, int flags) {
        struct msghdr message;
        memset(&message, 0, sizeof message);
        message.msg_iov = vector;
        message.msg_iovlen = count;
        return sendmsg(fd, &message, flags);
    }

    /* The next close sends a reset. */
    static void fs_reset_on_close(int fd) {
        struct linger at_once = { 1, 0 };
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    }
    """
    enum: FS_HAS_EPOLL
    enum: EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP
    enum: EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLL_CLOEXEC
    enum: MSG_MORE, MSG_NOSIGNAL, SHUT_WR
    ctypedef union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    ctypedef unsigned int socklen_t
    cdef struct sockaddr:
        pass
    cdef struct sockaddr_storage:
        pass
    int epoll_create1(int) noexcept
    int epoll_ctl(int, int, int, epoll_event*) noexcept
    int epoll_wait(int, epoll_event*, int, int) noexcept
    int fs_timer(int64_t) noexcept
    int fs_accept(int, sockaddr*, socklen_t*) noexcept
    int fs_host_and_port(const sockaddr_storage*, char*, size_t) noexcept
    int64_t fs_monotonic_ms() noexcept
    int64_t fs_monotonic_us() noexcept
    Py_ssize_t fs_send_file(int, int, int64_t, size_t) noexcept
    Py_ssize_t fs_send_vector(int, iovec*, int, int) noexcept
    void fs_reset_on_close(int) noexcept
    int getsockname(int, sockaddr*, socklen_t*) noexcept
    Py_ssize_t recv(int, void*, size_t, int) noexcept
    Py_ssize_t send(int, const void*, size_t, int) noexcept
    Py_ssize_t c_read "read"(int, void*, size_t) noexcept
    int shutdown(int, int) noexcept
    int c_close "close"(int) noexcept


cdef extern from "Python.h":
    PyObject* new_bytes "PyBytes_FromStringAndSize"(const char*, Py_ssize_t) except NULL
    int _PyBytes_Resize(PyObject**, Py_ssize_t) except -1


# What an event of the timer carries: no slot has this token.
cdef uint64_t TIMER_TOKEN = <uint64_t>-1

HAS_EPOLL = bool(FS_HAS_EPOLL)

# What accept(2) says of a connection that ended before it was accepted: Linux hands over
# the new connection's pending network errors. Anything else, such as no room for another
# descriptor, leaves it in the queue and the listener readable, so that without a pause
# the loop would spin.
cdef tuple _ended_early = (
    EINTR, ECONNABORTED, EPROTO, EPERM, ENETDOWN, ENETUNREACH, EHOSTUNREACH, EOPNOTSUPP,
)
cdef enum:
    ACCEPT_PAUSE_MS = 500


cdef int64_t _milliseconds(double seconds) noexcept:
    return max(1, <int64_t>(1000 * seconds))


cdef object _address(const sockaddr_storage* address):
    cdef char[64] host
    cdef int port = fs_host_and_port(address, host, sizeof(host))
    return None if port < 0 else ((<bytes>host).decode("ascii"), port)


cdef class Poller:
    """Which descriptors are watched for what. `before` is what they were watched for."""

    cdef int watch(self, int fd, uint64_t token, int before, int interest) except -1:
        raise NotImplementedError

    cdef int forget(self, int fd, uint64_t token, int before) except -1:
        """To be called before each close."""
        raise NotImplementedError

    cdef int wait(self, Reactor reactor) except -1:
        """Dispatch what is ready now, and say how much it was. Never blocks."""
        return 0

    cdef int fileno(self) noexcept:
        return -1

    cdef int close(self) except -1:
        return 0


@cython.final
cdef class EpollPoller(Poller):
    """All descriptors in one epoll set, whose own descriptor the loop watches.

    A timer in the set has the deadlines checked: a timer of the loop's would be looked
    at in each of its turns, which asyncio does in Python."""

    cdef int epoll
    cdef int timer
    cdef epoll_event[BATCH] events

    def __cinit__(self, int64_t tick_interval):
        self.timer = -1
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, "epoll_create1")
        self.timer = fs_timer(tick_interval)
        if self.timer < 0:
            raise OSError(errno, "timerfd_create")
        self.watch(self.timer, TIMER_TOKEN, -1, READABLE)

    def __dealloc__(self):
        self.close()

    cdef int watch(self, int fd, uint64_t token, int before, int interest) except -1:
        cdef epoll_event event
        event.data.u64 = token
        event.events = (EPOLLIN if interest & READABLE else 0) | (
            EPOLLOUT if interest & WRITABLE else 0
        )
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD if before < 0 else EPOLL_CTL_MOD, fd, &event) < 0:
            raise OSError(errno, "epoll_ctl")
        return 0

    cdef int forget(self, int fd, uint64_t token, int before) except -1:
        # close() alone would not do if a forked child still held the descriptor.
        cdef epoll_event unused
        if before >= 0:
            epoll_ctl(self.epoll, EPOLL_CTL_DEL, fd, &unused)
        return 0

    cdef int wait(self, Reactor reactor) except -1:
        cdef int index, happened, count
        cdef uint64_t expirations = 0
        cdef bint due = False
        count = epoll_wait(self.epoll, self.events, BATCH, 0)
        if count < 0:       # closed already: a poll that was asked for comes late
            return 0
        for index in range(count):
            if self.events[index].data.u64 == TIMER_TOKEN:
                due = c_read(self.timer, &expirations, sizeof(expirations)) > 0
                continue
            happened = 0
            if self.events[index].events & EPOLLIN:
                happened |= READABLE
            if self.events[index].events & EPOLLOUT:
                happened |= WRITABLE
            if self.events[index].events & (EPOLLHUP | EPOLLERR):
                happened |= BROKEN
            reactor.dispatch(self.events[index].data.u64, happened)
        if due:
            reactor.note_lag(<int64_t>expirations)
            reactor.ticked()
        return count

    cdef int fileno(self) noexcept:
        return self.epoll

    cdef int close(self) except -1:
        if self.epoll >= 0:
            c_close(self.epoll)
            self.epoll = -1
        if self.timer >= 0:
            c_close(self.timer)
            self.timer = -1
        return 0


@cython.final
cdef class LoopPoller(Poller):
    """The event loop watches each descriptor; it calls `Reactor.ready`."""

    cdef object worker

    def __cinit__(self, worker):
        self.worker = worker

    cdef int watch(self, int fd, uint64_t token, int before, int interest) except -1:
        self.worker.watch(fd, token, max(before, 0), interest)
        return 0

    cdef int forget(self, int fd, uint64_t token, int before) except -1:
        if before >= 0:
            self.worker.forget(fd, before)
        return 0


@cython.final
cdef class Reactor:
    """All connections of one worker.

    Resource handling: owns the sockets that it accepts, and its own descriptors; not
    the listening sockets, which are only no longer watched after `stop_accepting()`.
    Error handling: `poll`, `ready` and `tick` let no exception out; what goes wrong on
    a connection goes to `report(exception)`, which raises nothing, and ends that connection.
    """

    def __cinit__(
        self,
        worker,
        *,
        str poller,
        double tick_interval,
        double write_timeout,
        int64_t write_min_rate=0,
        report,
        Py_ssize_t max_connections=0,
        Py_ssize_t max_per_address=0,
        Row row=None,
    ):
        """`worker`: see fastserve.worker.Worker. `poller`: "epoll" or "loop".
        `tick_interval`: how often deadlines are checked, in seconds. `write_timeout`:
        seconds in which a peer that is written to has to take something, and no less than
        `write_min_rate` bytes a second. `max_connections`: above it new ones wait to be
        accepted; `max_per_address`: more of one IP address are closed at once; 0: any number.
        `row`: this process's, in the table of the workers."""
        self.worker = worker
        self.report = report
        self.write_timeout = <int64_t>(1000 * write_timeout)
        self.write_least = max(1, <int64_t>(write_min_rate * write_timeout))
        self.max_connections = max_connections
        self.max_per_address = max_per_address
        self.row = row
        self.addresses = {}
        # Where others look, a loop that has nothing to do has to be told from one that is stuck.
        self.ticks_per_check = 1
        if row is not None and row.table is not None:
            self.ticks_per_check = 1 + <int>(1000 * tick_interval / BEAT_MS)
        self.tick_interval = tick_interval / self.ticks_per_check
        if poller == "epoll":
            self.poller = EpollPoller(_milliseconds(self.tick_interval))
        else:
            self.poller = LoopPoller(worker)
        self.first_free = -1
        self.listeners = []
        self.deferred = []
        self.buffers = BufferPool(SPARE_BUFFERS)
        self.block = <char*>PyMem_Malloc(RECEIVE_SIZE)
        if self.block == NULL:
            raise MemoryError()
        self.next_tick = fs_monotonic_us() + 1000 * _milliseconds(self.tick_interval)
        self.show()

    def __dealloc__(self):
        PyMem_Free(self.block)
        PyMem_Free(self.slots)

    def fileno(self):
        """The descriptor to watch for readability, or -1 with the loop's poller."""
        return self.poller.fileno()

    def listen(
        self,
        int fd,
        ProtocolFactory factory not None,
        server=None,
        *,
        bint shared=False,
        bint own=False,
    ):
        """Accept connections from the listening socket `fd` (non-blocking).

        `server`: the ASGI `server` of all its connections; None: each one's own. `shared`:
        another process listens on it as well, or goes on with it. `own`: of several workers
        this one alone does; otherwise they share its connections."""
        cdef Listener listener = Listener.__new__(Listener)
        listener.reactor = self
        listener.factory = factory
        listener.server = server
        listener.fd = fd
        listener.shared = shared
        listener.own = own
        listener.fair = self.row is not None and self.row.table is not None and not own
        listener.slot = self.add_slot(listener, True)
        self.listeners.append(listener)
        listener.resume()

    def poll(self):
        """Handle what is ready, without blocking; how many events that were."""
        cdef int count
        # Here and not in `run_deferred`: with the loop's poller every descriptor's turn
        # would have another poll asked for.
        self.deferred_armed = False
        if self.polling:    # an application runs this loop again from inside a call
            return 0
        self.polling = True
        self.turns += 1
        self.show()
        try:
            count = self.poller.wait(self)
            self.run_deferred()
        finally:
            self.polling = False
        self.arm_deferred()
        return count

    def ready(self, uint64_t token, int events):
        """The loop's poller: this descriptor is ready. True: something was read, and there may
        be more."""
        cdef int count
        if self.polling:
            return False
        self.polling = True
        try:
            self.show()
            count = self.dispatch(token, events)
            self.run_deferred()
        finally:
            self.polling = False
        self.arm_deferred()
        return count > 0

    def tick(self):
        """Check all deadlines: to be called by the loop's poller each `tick_interval`."""
        if self.polling:
            return
        self.polling = True
        self.show()
        self.note_lag(0)
        try:
            self.ticked()
        finally:
            self.polling = False
        self.arm_deferred()

    def stop_accepting(self, on_empty, *, bint others_accept=False):
        """No longer watch the listening sockets; `on_empty()` once no connection is left.

        What waits at a socket of ours alone is accepted first: closing it would reset them.
        `others_accept`: none of them is, since processes like this one go on with them all."""
        cdef Listener listener
        for listener in self.listeners:
            if listener.own or not (listener.shared or others_accept):
                listener.accept_rest()
            listener.close()
        self.listeners = []
        self.show_listeners()
        self.on_empty = on_empty
        if self.connections == 0:
            on_empty()

    def drain(self, Stage stage):
        """Tell every protocol to which stage the server's end has come."""
        cdef SocketTransport transport
        cdef Protocol protocol
        for transport in self._transports():
            try:
                # A request may have come that no poll has seen yet: it is still answered.
                transport.ready(READABLE)
                protocol = transport.protocol
                if protocol is not None:
                    protocol.drain(stage)
                    transport.flush()
            except BaseException as error:
                self.fail(transport, error)

    def close(self):
        """Cut what is left, and give up the descriptors."""
        cdef SocketTransport transport
        try:
            for transport in self._transports():
                try:
                    if transport.lingering:
                        # It has its last answer and our FIN, which a reset could still destroy.
                        transport._close_socket()
                    else:
                        transport.abort()
                except BaseException as error:
                    self.report(error)
        finally:
            self.poller.close()
            if self.row is not None:
                self.row.figures.beat = 0
                self.row = None

    def _transports(self):
        cdef int slot
        cdef list found = []
        for slot in range(self.slots_size):
            if self.slots[slot].source != NULL and not self.slots[slot].is_listener:
                found.append(<object>self.slots[slot].source)
        return found

    cdef int dispatch(self, uint64_t token, int events) except -1:
        cdef uint32_t slot = <uint32_t>token      # its lower half: see `token`
        cdef SocketTransport transport
        cdef Listener listener
        if (
            slot >= <uint32_t>self.slots_size
            or self.slots[slot].source == NULL
            or self.slots[slot].generation != <uint32_t>(token >> 32)
        ):
            return 0        # closed earlier in this batch
        if self.slots[slot].is_listener:
            listener = <Listener>self.slots[slot].source
            try:
                listener.ready()
            except Exception as error:
                self.report(error)
            return 0
        transport = <SocketTransport>self.slots[slot].source
        try:
            return transport.ready(events)
        except BaseException as error:
            self.fail(transport, error)
        return 0

    cdef int ticked(self) except -1:
        self.ticks += 1
        if self.ticks >= self.ticks_per_check:
            self.ticks = 0
            self.check_deadlines()
        return 0

    cdef int check_deadlines(self) except -1:
        cdef int slot
        cdef int64_t now = fs_monotonic_ms()
        cdef SocketTransport transport
        cdef Listener listener
        for slot in range(self.slots_size):
            if self.slots[slot].source == NULL:
                continue
            if self.slots[slot].is_listener:
                listener = <Listener>self.slots[slot].source
                if listener.paused_until and now >= listener.paused_until:
                    listener.resume()
                continue
            transport = <SocketTransport>self.slots[slot].source
            try:
                transport.tick(now)
            except BaseException as error:
                self.fail(transport, error)
        return 0

    cdef int run_deferred(self) except -1:
        cdef list deferred = self.deferred
        cdef SocketTransport transport
        cdef Protocol protocol
        if not deferred:
            return 0
        self.deferred = []
        for transport in deferred:
            transport.deferred = False
            protocol = transport.protocol
            if protocol is None:
                continue
            try:
                protocol.proceed()
            except BaseException as error:
                self.fail(transport, error)
        # One kind of work after the other: what was answered leaves now.
        for transport in deferred:
            try:
                transport.flush()
            except BaseException as error:
                self.fail(transport, error)
        return <int>len(deferred)

    cdef int arm_deferred(self) except -1:
        if self.deferred and not self.deferred_armed:
            self.deferred_armed = True
            self.worker.soon(self.poll)
        return 0

    cdef int fail(self, SocketTransport transport, object error) except -1:
        """One connection's error: reported, and the end of that connection."""
        self.report(error)
        try:
            transport.abort()
        except BaseException as another:
            self.report(another)
        return 0

    cdef int adopt(self, int fd, Listener listener, object client) except -1:
        cdef SocketTransport transport = SocketTransport.__new__(SocketTransport)
        cdef Protocol protocol
        cdef sockaddr_storage address
        cdef socklen_t length = sizeof(address)
        transport.reactor = self
        transport.fd = fd
        transport.slot = -1
        transport.interest = -1
        transport.client = client
        if listener.server is not None:
            transport.server = listener.server
        elif getsockname(fd, <sockaddr*>&address, &length) == 0:
            transport.server = _address(&address)
        try:
            transport.slot = self.add_slot(transport, False)
            if not self._count(transport):
                return transport.abort()
            protocol = listener.factory.build()
            transport.protocol = protocol
            protocol.connection_made(transport)
            transport._update_interest()
        except BaseException as error:
            self.fail(transport, error)
        return 0

    cdef bint _count(self, SocketTransport transport) except -1:
        """One connection more; False if its address has too many."""
        cdef object host
        cdef int count
        self.connections += 1
        if self.row is not None:
            self.row.figures.counts.accepted += 1
        self.show_connections()
        if not self.max_per_address or transport.client is None:
            return True
        host = transport.client[0]
        count = self.addresses.get(host, 0) + 1
        self.addresses[host] = count
        transport.counted = host
        return count <= self.max_per_address

    cdef int lose(self, SocketTransport transport) except -1:
        """One connection less."""
        cdef Listener listener
        cdef object host = transport.counted
        self.connections -= 1
        self.show_connections()
        if host is not None:
            self.addresses[host] -= 1
            if not self.addresses[host]:
                del self.addresses[host]
        if self.holding and self.connections < self.max_connections:
            self.holding = False
            for listener in self.listeners:
                if listener.held:
                    listener.resume()
        for listener in self.listeners:
            if listener.left and not self.is_busier():
                listener.resume()
        if self.connections == 0 and self.on_empty is not None:
            self.on_empty()
        return 0

    cdef void show(self) noexcept:
        """That the loop turns."""
        if self.row is not None:
            self.row.figures.beat = fs_monotonic_ms()

    cdef void show_connections(self) noexcept:
        if self.row is not None:
            self.row.figures.connections = self.connections

    cdef void note_lag(self, int64_t ticks) noexcept:
        """How late the loop comes to the tick that was due. `ticks`: how many have come due by
        now, of a timer that goes on by itself; 0: the next is a whole interval from now."""
        cdef int64_t interval = 1000 * _milliseconds(self.tick_interval)
        cdef int64_t now
        if self.row is None:
            return
        now = fs_monotonic_us()
        if now < self.next_tick:
            self.next_tick = now    # no timer comes early: what it goes by is known better now
        observe(&self.row.figures.counts.lag, now - self.next_tick)
        self.next_tick = self.next_tick + ticks * interval if ticks else now + interval

    cdef void count_received(self, Py_ssize_t length) noexcept:
        if self.row is not None:
            self.row.figures.counts.received += length
    cdef void show_listeners(self) noexcept:
        """What other workers may leave connections to this one at."""
        cdef Listener listener
        cdef int count = 0
        if self.row is not None:
            for listener in self.listeners:
                count += listener.fair and (listener.watched or listener.left)
            self.row.figures.listening = count

    cdef bint is_busier(self) noexcept:
        """Than some other worker that would take a connection."""
        return self.row is not None and self.row.is_busier(fs_monotonic_ms())

    cdef uint64_t token(self, int slot) noexcept:
        return <uint64_t>self.slots[slot].generation << 32 | <uint64_t>slot

    cdef int add_slot(self, object source, bint is_listener) except -1:
        cdef Slot* grown
        cdef int slot, size
        if self.first_free < 0:
            size = self.slots_size * 2 or 64
            grown = <Slot*>PyMem_Realloc(self.slots, size * sizeof(Slot))
            if grown == NULL:
                raise MemoryError()
            self.slots = grown
            memset(grown + self.slots_size, 0, (size - self.slots_size) * sizeof(Slot))
            for slot in range(size - 1, self.slots_size - 1, -1):
                grown[slot].next_free = self.first_free
                self.first_free = slot
            self.slots_size = size
        slot = self.first_free
        self.first_free = self.slots[slot].next_free
        Py_INCREF(source)
        self.slots[slot].source = <void*>source
        self.slots[slot].is_listener = is_listener
        return slot

    cdef void free_slot(self, int slot) noexcept:
        cdef void* source = self.slots[slot].source
        self.slots[slot].source = NULL
        self.slots[slot].generation += 1
        self.slots[slot].next_free = self.first_free
        self.first_free = slot
        Py_DECREF(<object>source)


@cython.final
cdef class Listener:
    """A listening socket in the reactor.

    One that several workers have is readable to all of them. A worker that has more connections
    than another leaves them to it: it stops watching for a moment. What is still there then, it
    takes, whatever the table says: nobody waits for a worker that only seems to be well.
    """

    cdef int ready(self) except -1:
        if self.fair and self.reactor.is_busier():
            return self.leave()
        for _ in range(ACCEPT_BATCH // FEW):
            if not self.accept_few() or self.fair and self.reactor.is_busier():
                break
        return 0

    cdef int accept_rest(self) except -1:
        """What is in the queue, but not for ever what comes in the meantime."""
        for _ in range(QUEUE_MOST // FEW):
            if self.paused_until or self.held or not self.accept_few():
                break
        return 0

    cdef bint accept_few(self) except -1:
        """Whether there may be more."""
        cdef sockaddr_storage address
        cdef socklen_t length
        cdef int fd, error
        for _ in range(FEW):
            if 0 < self.reactor.max_connections <= self.reactor.connections:
                self.hold()
                return False
            length = sizeof(address)
            fd = fs_accept(self.fd, <sockaddr*>&address, &length)
            error = errno       # before anything else that may set it
            if fd >= 0:
                self.reactor.adopt(fd, self, _address(&address))
            elif error == EAGAIN:
                self.complained = False
                return False
            elif error not in _ended_early:
                self.pause(error)
                return False
        return True

    cdef int leave(self) except -1:
        self.unwatch()
        self.left = True
        if not self.looking:
            self.looking = True
            self.reactor.worker.later(LEAVE_MS / 1000.0, self.look_again)
        return 0

    def look_again(self):
        self.looking = False
        if self.left:
            try:
                self.insist()
            except Exception as error:
                self.reactor.report(error)

    cdef int insist(self) except -1:
        """Take what nobody has taken; not all of it, so that a burst is still shared."""
        if self.accept_few() and self.reactor.is_busier():
            self.leave()
        elif self.left:
            self.resume()
        return 0

    cdef int pause(self, int error) except -1:
        self.unwatch()
        self.paused_until = fs_monotonic_ms() + ACCEPT_PAUSE_MS
        self.reactor.show_listeners()
        if not self.complained:
            self.complained = True
            self.reactor.report(OSError(error, f"accepting pauses: {os.strerror(error).lower()}"))
        return 0

    cdef int hold(self) except -1:
        """Leave new connections waiting until one of those there has ended."""
        self.unwatch()
        self.held = self.reactor.holding = True
        self.reactor.show_listeners()
        return 0

    cdef int resume(self) except -1:
        self.paused_until = 0
        self.held = False
        self.left = False
        self.watched = True
        self.reactor.poller.watch(self.fd, self.reactor.token(self.slot), -1, READABLE)
        self.reactor.show_listeners()
        return 0

    cdef int unwatch(self) except -1:
        self.left = False
        if self.watched:
            self.watched = False
            self.reactor.poller.forget(self.fd, self.reactor.token(self.slot), READABLE)
        return 0

    cdef int close(self) except -1:
        self.unwatch()
        self.reactor.free_slot(self.slot)
        return 0


@cython.final
cdef class SocketTransport(Transport):
    """A connected socket: recv, send, back-pressure, and the ends of a connection."""

    cdef SendBuffer output(self):
        if self.out is None:
            self.out = self.reactor.buffers.take()
        return self.out

    cdef int flush(self) except -1:
        if self.out is None or self.fd < 0:
            return 0
        if self.blocked:
            # Nothing can be sent now, but whoever appends must learn that it is enough.
            if not self.choked:
                self.choked = self.out.pending > CHOKE_ABOVE
            return 0
        return self._send()

    cdef int set_protocol(self, Protocol protocol) except -1:
        self.protocol = protocol
        return 0

    cdef int pause_reading(self) except -1:
        self.paused = True
        return self._update_interest()

    cdef int resume_reading(self) except -1:
        self.paused = False
        return self._update_interest()

    cdef int close(self, bint linger) except -1:
        if self.closing or self.fd < 0:
            return 0
        self.closing = True
        self.linger = (linger or self.blocked) and not self.eof
        self.flush()
        if self.fd >= 0:
            if self.out is None:
                self._finish_close()
            else:
                self._update_interest()     # no longer for reading
        return 0

    cdef int abort(self) except -1:
        if self.fd >= 0:
            fs_reset_on_close(self.fd)
            self._close_socket()
        return 0

    cdef int fail(self, object error) except -1:
        return self.reactor.fail(self, error)

    cdef int call_soon(self) except -1:
        if not self.deferred:
            self.deferred = True
            self.reactor.deferred.append(self)
            if not self.reactor.polling:
                self.reactor.arm_deferred()
        return 0

    cdef int64_t clock(self) noexcept:
        return fs_monotonic_ms()

    cdef int64_t turn(self) noexcept:
        return self.reactor.turns

    cdef int ready(self, int events) except -1:
        cdef int more = 0
        if events & (READABLE | BROKEN):
            if self.lingering:
                self._throw_away()
            elif self.interest & READABLE:
                more = self._receive()
            elif events & BROKEN:
                # Not reading, so nothing else would ever tell, and the level-triggered
                # event would come again and again.
                self._close_socket()
        if events & WRITABLE and self.blocked and self.fd >= 0:
            self._send()
        return more

    cdef int tick(self, int64_t now) except -1:
        cdef Protocol protocol = self.protocol
        if self.deadline and now >= self.deadline:
            if self.lingering:
                self._close_socket()
            else:
                self.abort()
        elif protocol is not None and protocol.is_due(now):
            # What has come is in time, however long the loop was kept from looking.
            self.ready(READABLE)
            protocol = self.protocol
            if protocol is not None:
                protocol.check_deadline(now)
                self.flush()
        return 0

    cdef int _receive(self) except -1:
        """1 if there may be more."""
        # A reference of our own: the call may end the connection, and with it the protocol.
        cdef Protocol protocol = self.protocol
        # Room is only made for a peer that has more to send than a block.
        cdef Py_ssize_t count = protocol.content_ahead() if self.filled else 0
        cdef bytes content = None
        cdef int error = 0
        if count:
            content = self._receive_content(&count, &error)
        else:
            count = recv(self.fd, self.reactor.block, RECEIVE_SIZE, 0)
            error = errno
        self.filled = count >= RECEIVE_SIZE
        if count > 0:
            self.reactor.count_received(count)
            if content is not None:
                protocol.content_received(content)
            else:
                protocol.data_received(self.reactor.block, count)
        elif count == 0:
            self.eof = True
            self._update_interest()
            protocol.eof_received()
        elif error == EAGAIN or error == EINTR:
            return 0
        else:
            return self._close_socket()
        self.flush()
        return count > 0

    cdef bytes _receive_content(self, Py_ssize_t* count, int* error):
        """At most `count` bytes, in an object of their own. `count` becomes what recv(2) returned."""
        cdef PyObject* received = new_bytes(NULL, count[0])
        cdef bytes content = None
        cdef Py_ssize_t most = count[0]
        count[0] = recv(self.fd, PyBytes_AS_STRING(<object>received), most, 0)
        error[0] = errno
        if 0 < count[0] < most:
            _PyBytes_Resize(&received, count[0])    # where it is: nothing is copied
        if count[0] > 0:
            content = <bytes>received
        Py_DECREF(<object>received)
        return content

    cdef int _throw_away(self) except -1:
        cdef Py_ssize_t count = recv(self.fd, self.reactor.block, RECEIVE_SIZE, 0)
        if count < 0 and (errno == EAGAIN or errno == EINTR):
            return 0
        self.lingered += count
        self.reactor.count_received(max(0, count))
        if count <= 0 or self.lingered > LINGER_BYTES:
            self._close_socket()
        return 0

    cdef int _send(self) except -1:
        cdef iovec[GATHER_MAX] vector
        cdef SendBuffer out = self.out
        cdef Protocol protocol
        cdef Py_ssize_t sent, from_files = 0
        cdef int pieces, flags
        while out.pending:
            pieces = out.gather(vector, GATHER_MAX)
            # Up to a file, whose beginning may then leave in the same segment.
            flags = MSG_NOSIGNAL | (MSG_MORE if out.first + pieces < out.count else 0)
            if pieces == 1:
                sent = send(self.fd, vector[0].iov_base, vector[0].iov_len, flags)
            elif pieces:
                sent = fs_send_vector(self.fd, vector, pieces, flags)
            elif from_files >= FILE_BURST:
                break           # and go on when the others have had their turn
            else:
                sent = self._send_file(out, FILE_BURST - from_files)
                if self.fd < 0:
                    return 0
                if sent == 0:
                    from_files += LOAD_SIZE
                    continue
                from_files += max(0, sent)
            if sent < 0:
                if errno == EINTR:
                    continue
                if errno == EAGAIN or errno == ENOBUFS:
                    break
                return self._close_socket()
            self.taken += sent
            if self.reactor.row is not None:
                self.reactor.row.figures.counts.sent += sent
            out.consume(sent)
        if out.pending == 0:
            self.out = None
            self.reactor.buffers.give(out)
            if self.blocked:
                self.blocked = False
                self.deadline = 0
                self._update_interest()
            if self.closing:
                return self._finish_close()
        else:
            # Each byte in turn would let a peer keep its answer here for years.
            if not self.blocked or self.taken >= self.reactor.write_least:
                self.taken = 0
                self.deadline = fs_monotonic_ms() + self.reactor.write_timeout
            self.blocked = True
            self._update_interest()
        if not self.choked:
            self.choked = out.pending > CHOKE_ABOVE
        elif out.pending < RESUME_BELOW:
            self.choked = False
            protocol = self.protocol
            if protocol is not None:
                protocol.resume_writing()
                return self.flush()
        return 0

    cdef Py_ssize_t _send_file(self, SendBuffer out, Py_ssize_t most) except -2:
        """From the file that is the next in `out`: how many bytes were sent; 0 if they are in
        memory now; -1 and errno. What is wrong with a file ends the connection, by a reset,
        so that nobody can take what was sent for all of it."""
        cdef Py_ssize_t start = 0, length = 0, sent
        cdef File file = out.leading_file(&start, &length)
        if not file.sendfile_fails:
            sent = fs_send_file(self.fd, file.fd, start, min(length, most))
            if sent > 0 or sent < 0 and (errno == EAGAIN or errno == EINTR):
                return sent
            # Whatever it was, of the file or of the socket: it comes again below, and clear.
            file.sendfile_fails = True
        try:
            out.load(LOAD_SIZE)
        except OSError as error:
            self.fail(error)
        return 0

    cdef int _update_interest(self) except -1:
        cdef int interest = 0
        if self.fd < 0:
            return 0
        if self.lingering or not (self.paused or self.eof or self.closing):
            interest = READABLE
        if self.blocked:
            interest |= WRITABLE
        if interest != self.interest:
            self.reactor.poller.watch(
                self.fd, self.reactor.token(self.slot), self.interest, interest
            )
            self.interest = interest
        return 0

    cdef int _finish_close(self) except -1:
        if self.lingering:
            return 0
        if not self.linger:
            return self._close_socket()
        shutdown(self.fd, SHUT_WR)
        self.lingering = True
        self.deadline = fs_monotonic_ms() + LINGER_MS
        self._update_interest()
        return self._lose_protocol()

    cdef int _close_socket(self) except -1:
        cdef Reactor reactor = self.reactor
        cdef int fd = self.fd
        if fd < 0:
            return 0
        self.fd = -1
        self.out = None
        self.choked = False
        self.deadline = 0
        try:
            if self.slot >= 0:
                reactor.poller.forget(fd, reactor.token(self.slot), self.interest)
                reactor.free_slot(self.slot)
        finally:
            c_close(fd)
        self._lose_protocol()
        if self.slot >= 0:
            reactor.lose(self)
        return 0

    cdef int _lose_protocol(self) except -1:
        cdef Protocol protocol = self.protocol
        if protocol is not None:
            self.protocol = None
            protocol.connection_lost()
        return 0
