# Declarations of fastserve._conversation. No ABI is promised between releases.
from cpython.object cimport PyObject

cdef extern from "Python.h":
    PyObject* PyDict_GetItemWithError(PyObject* mapping, PyObject* key) except? NULL

cdef enum:
    FREE_CALLS = 64                 # receive and send calls that end at once,
    FREE_BYTES = 256 * 1024         # and bytes they carry, before the loop gets its turn
    EXPLAINED = 20                  # calls given up in one turn whose whereabouts are looked for

cdef enum Wait:                     # what an awaitable waits for
    WAIT_EVENT                      # a message for receive()
    WAIT_WRITABLE                   # the peer to read
    WAIT_TURN                       # the loop to have had its turn


cdef inline object get(dict message, str key, object default):
    cdef PyObject* found = PyDict_GetItemWithError(<PyObject*>message, <PyObject*>key)
    return default if found == NULL else <object>found


cdef bint is_disconnect(object error)


cdef class ApplicationCall


cdef class Host:
    cdef:
        object application
        object spawn, raised, new_waiter, wake, checkpoint, soon, cancel    # the worker's
        object report, report_late
        list late                       # calls that are to be cancelled
        object on_idle
        readonly Py_ssize_t in_flight   # calls of the application that have not ended
        readonly Py_ssize_t calls       # all that were begun

    cdef int start(self, Conversation conversation) except -1
    cdef int ended(self, Conversation conversation) except -1
    cdef int give_up(self, Conversation conversation, object what) except -1


cdef class TaskStarter:
    cdef:
        object new_task, context
        set tasks
        dict keywords


cdef class Conversation:
    cdef:
        Host host
        dict scope                      # until the application is called
        ApplicationCall call            # until it has ended
        list waiters                    # of the tasks in receive() or send(); None: nobody
        int free_calls
        Py_ssize_t free_bytes
        bint in_step                    # the application runs, in its own task
        bint collected                  # and `step_ended` is to be called when it no longer does

    cpdef int finished(self, error) except -1
    cpdef int cancelled(self) except -1
    cdef int expired(self) except -1
    cdef dict take_event(self)
    cdef bint may_send(self) noexcept
    cdef object done(self, Py_ssize_t length)
    cdef object wait(self, Wait wait)
    cdef bint spends(self, Py_ssize_t length) noexcept
    cdef int step_ended(self) except -1
    cdef int wake_all(self) except -1


cdef class Awaitable:
    cdef:
        Conversation conversation
        Wait wait
        object waiter
        object inner                    # the waiter's iterator, while waiting

    cdef int advance(self, object value, PyObject** result) except -1
    cdef int _detach(self) except -1


cdef class ApplicationCall:
    cdef:
        Conversation conversation
        object inner                    # the application's coroutine, once it was called
        object context                  # of the first step; None: the task's
        object on_suspend
        readonly bint suspended

    cdef int advance(self, object value, PyObject** result) except -1
