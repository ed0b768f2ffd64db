"""The ASGI conversation: one scope, the application that was called with it, and what its
`receive` and `send` return.

What HTTP and WebSocket have in common; the messages are theirs. Neither a socket nor an
event loop is known here: who has to wait, waits on a waiter of the worker.

Three rules keep applications apart (see docs/design.md):
* An application is started only when the reactor has its protocol proceed, never from
  within another application's `send` or `receive`.
* A waiter carries no message. What is to be received stays in the conversation until a
  task really takes it, so that a cancelled `receive()` loses nothing.
* No code relies on whether an application has run when `spawn` returns.
"""

cimport cython
from cpython.object cimport PyObject, PyObject_Call


cdef extern from "Python.h":
    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT
    PySendResult PyIter_Send(
        PyObject* iterator, PyObject* value, PyObject** result
    ) except PYGEN_ERROR
    bint PyCoro_CheckExact(object)
    object PyContext_Copy(object)
    int PyContext_Enter(object) except -1
    int PyContext_Exit(object) except -1
    void PyErr_SetObject(PyObject* kind, PyObject* value) noexcept
    PyObject* PyExc_StopIteration
    void Py_INCREF_pointer "Py_INCREF"(PyObject*) noexcept
    void Py_DECREF_pointer "Py_DECREF"(PyObject*) noexcept
    ctypedef PyObject* (*iternextfunc)(PyObject*)
    ctypedef struct SlotsOfType "PyTypeObject":
        iternextfunc tp_iternext


class ClientDisconnected(OSError):
    """The client is gone, so `send()` has nobody to send to (ASGI HTTP spec 2.4, WebSocket
    spec 2.4).

    An application may let it pass: the server takes it for the end of the conversation,
    not for an error. HTTP raises it only where the `raise_on_disconnect` option asks for it.
    """


@cython.final
cdef class Host:
    """The application, the worker that runs it, and how many of its calls are under way."""

    def __init__(self, application, worker, *, report, report_late=None):
        """`application`: an ASGI 3 callable. `worker`: see fastserve.worker.Worker.
        `report(exception)`: called with what an application raised; raises nothing.
        `report_late(what, call)`: with an ApplicationCall that took too long and will be
        cancelled, or None if many do at once; what it was for is the protocol's to say."""
        self.application = application
        self.spawn = worker.spawn
        self.raised = worker.raised
        self.new_waiter = worker.waiter
        self.wake = worker.wake
        self.checkpoint = worker.checkpoint
        self.soon = worker.soon
        self.cancel = worker.cancel
        self.report = report
        self.report_late = report_late
        self.late = []

    def drain(self, on_idle):
        """`on_idle()` is called, from now on, each time that no application is running
        any more; now too if none is."""
        self.on_idle = on_idle
        if self.in_flight == 0:
            on_idle()

    cdef int start(self, Conversation conversation) except -1:
        cdef ApplicationCall call = ApplicationCall.__new__(ApplicationCall)
        call.conversation = conversation
        conversation.call = call
        self.in_flight += 1
        self.calls += 1
        try:
            self.spawn(call)
        except BaseException as error:
            conversation.finished(error)
        return 0

    cdef int ended(self, Conversation conversation) except -1:
        conversation.call = None
        self.in_flight -= 1
        if self.in_flight == 0 and self.on_idle is not None:
            self.on_idle()
        return 0

    cdef int give_up(self, Conversation conversation, object what) except -1:
        """Report its call, which took too long, and have it cancelled, then `expired` called. All
        that are given up in one turn are so together, since the worker has to look for them."""
        cdef ApplicationCall call = conversation.call
        if call is None:
            return 0
        if not self.late:
            self.soon(self.end_late)
        self.late.append(call)
        self.report_late(what, call if len(self.late) <= EXPLAINED else None)
        return 0

    def end_late(self):
        cdef ApplicationCall call
        late, self.late = self.late, []
        self.cancel(frozenset(late))
        for call in late:
            try:
                # After that, else its `receive()` would return before it is cancelled.
                call.conversation.expired()
            except BaseException as error:
                self.report(error)


@cython.final
cdef class TaskStarter:
    """How a worker runs a call where a task's first step is made at once. In Python each call
    would have a frame, and a dict of keywords made for it alone."""

    def __init__(self, new_task, set tasks not None, context, **keywords):
        """`new_task(call, context=..., **keywords)`: gets a copy of `context`. `tasks`: those
        that have not ended at once are there until they do."""
        self.new_task = new_task
        self.tasks = tasks
        self.context = context
        self.keywords = {**keywords, "context": None}

    def start(self, ApplicationCall call not None):
        cdef object task
        self.keywords["context"] = PyContext_Copy(self.context)
        try:
            task = PyObject_Call(self.new_task, (call,), self.keywords)
        finally:
            self.keywords["context"] = None     # what an application has set is not to stay
        if call.conversation.call is not None:      # else it has ended
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)


cdef class Conversation:
    """One call of the application, seen from the server.

    `receive` and `send` are the ASGI callables. Both return an awaitable that is done
    already unless there is something to wait for. `finished` and `cancelled` are for the
    worker to say how the application has ended.
    """

    def receive(self):
        """The next message for the application (ASGI HTTP and WebSocket spec)."""
        cdef Awaitable awaitable = Awaitable.__new__(Awaitable)
        awaitable.conversation = self
        awaitable.wait = WAIT_EVENT
        return awaitable

    def send(self, message):
        """Take a message of the application's.

        Raises TypeError, ValueError or RuntimeError, naming the message and its key, for
        a message that is wrong or comes at the wrong time; ClientDisconnected."""
        raise NotImplementedError

    cpdef int finished(self, error) except -1:
        """The application has ended: with the exception `error`, or None."""
        raise NotImplementedError

    cpdef int cancelled(self) except -1:
        """The server has cancelled the application."""
        raise NotImplementedError

    cdef int expired(self) except -1:
        """The application was given up, and is being cancelled, or has just ended."""
        raise NotImplementedError

    cdef dict take_event(self):
        """The message that is due, or None: wait."""
        raise NotImplementedError

    cdef bint may_send(self) noexcept:
        """False: a task in `send()` is to wait until `wake_all`."""
        return True

    cdef object done(self, Py_ssize_t length):
        """What `send()` returns that has taken `length` bytes and need not wait."""
        return self.wait(WAIT_TURN) if self.spends(length) else DONE

    cdef object wait(self, Wait wait):
        cdef Awaitable awaitable = Awaitable.__new__(Awaitable)
        awaitable.conversation = self
        awaitable.wait = wait
        return awaitable

    cdef bint spends(self, Py_ssize_t length) noexcept:
        """Count what ended at once; True when the loop must have its turn, since an
        application that never suspends would keep every other one waiting."""
        self.free_calls += 1
        self.free_bytes += length
        return self.free_calls > FREE_CALLS or self.free_bytes >= FREE_BYTES

    cdef int step_ended(self) except -1:
        """The application has suspended, returned or raised, and something was collected while it
        ran that is to leave before anything else happens."""
        raise NotImplementedError

    cdef int wake_all(self) except -1:
        cdef list waiters = self.waiters
        if waiters is not None:
            self.waiters = None
            for waiter in waiters:
                self.host.wake(waiter)
        return 0


cdef bint is_disconnect(error):
    """Whether `error` is nothing but ClientDisconnected, also in groups of a task group."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(ClientDisconnected)[1] is None
    return isinstance(error, ClientDisconnected)


@cython.final
@cython.freelist(64)
cdef class Awaitable:
    """What `receive` and `send` return when there may be something to wait for.

    It does what a coroutine does, so that `asyncio.create_task(receive())` and a
    nursery take it for one (collections.abc.Coroutine).
    """

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return self.send(None)

    def send(self, value):
        cdef PyObject* result = NULL
        cdef object outcome
        if self.advance(value, &result) == PYGEN_NEXT:
            outcome = <object>result
            Py_DECREF_pointer(result)
            return outcome
        outcome = <object>result
        Py_DECREF_pointer(result)
        raise StopIteration(outcome)

    def throw(self, *error):
        if self.inner is None:
            _raise(*error)
        try:
            return self.inner.throw(*error)
        except StopIteration:
            self._detach()
            return self.send(None)
        except BaseException:
            self._detach()
            raise

    def close(self):
        if self.inner is not None:
            inner = self.inner
            self._detach()
            if hasattr(inner, "close"):
                inner.close()

    cdef int advance(self, object value, PyObject** result) except -1:
        """One step: PYGEN_NEXT and what the loop is to have, or PYGEN_RETURN and the
        outcome, in `result`, a new reference."""
        cdef Conversation conversation = self.conversation
        cdef object outcome = None
        cdef object waiter
        cdef int step
        cdef bint yields
        while True:
            if self.inner is not None:
                try:
                    step = PyIter_Send(<PyObject*>self.inner, <PyObject*>value, result)
                except BaseException:
                    self._detach()
                    raise
                if step == PYGEN_NEXT:
                    return PYGEN_NEXT
                self._detach()
                Py_DECREF_pointer(result[0])
                value = None
                conversation.free_calls = 0
                conversation.free_bytes = 0
                if self.wait == WAIT_TURN:
                    break
            yields = self.wait == WAIT_TURN
            if self.wait == WAIT_EVENT:
                yields = conversation.spends(0)
                if not yields:
                    outcome = conversation.take_event()
                    if outcome is not None:
                        break
            elif self.wait == WAIT_WRITABLE:
                if conversation.may_send():
                    break
            if yields:
                self.inner = conversation.host.checkpoint()
                continue
            waiter = conversation.host.new_waiter()
            if conversation.waiters is None:
                conversation.waiters = [waiter]
            else:
                conversation.waiters.append(waiter)
            self.waiter = waiter
            self.inner = waiter.__await__()
        Py_INCREF_pointer(<PyObject*>outcome)
        result[0] = <PyObject*>outcome
        return PYGEN_RETURN

    cdef int _detach(self) except -1:
        cdef list waiters = self.conversation.waiters
        if self.waiter is not None and waiters is not None and self.waiter in waiters:
            waiters.remove(self.waiter)
        self.waiter = None
        self.inner = None
        return 0


@cython.final
@cython.freelist(64)
cdef class ApplicationCall:
    """The coroutine of a worker's task: the application's own, and the word to the
    conversation when it ends. `asyncio.current_task().get_coro()` is one of these."""

    def enter(self, context, on_suspend):
        """For a task that runs several calls in one step of its own: the first step of
        this one is made in `context`, and `on_suspend()` is called, and `suspended` set,
        if it does not end there. The task's later steps are to be made in `context` too."""
        self.context = context
        self.on_suspend = on_suspend

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return self.send(None)

    def send(self, value):
        cdef PyObject* result = NULL
        cdef object outcome
        if self.advance(value, &result) == PYGEN_RETURN:
            raise StopIteration
        outcome = <object>result
        Py_DECREF_pointer(result)
        return outcome

    def throw(self, *error):
        try:
            if self.inner is None:
                _raise(*error)
            return self.inner.throw(*error)
        except StopIteration:
            self.conversation.finished(None)
            raise
        except BaseException as raised:
            if self.conversation.host.raised(self.conversation, raised):
                raise
        raise StopIteration

    def close(self):
        if self.inner is not None:
            self.inner.close()

    @property
    def cr_await(self):
        """As of a coroutine: what it awaits, for whoever asks where it stands."""
        return self.inner

    cdef int advance(self, object value, PyObject** result) except -1:
        """One step: PYGEN_NEXT and what the loop is to have, in `result`, a new
        reference; or PYGEN_RETURN."""
        cdef Conversation conversation = self.conversation
        cdef dict scope
        cdef object context = None
        cdef int outcome
        try:
            if self.inner is None:
                scope = conversation.scope
                conversation.scope = None
                context = self.context
                if context is not None:
                    PyContext_Enter(context)
                self.inner = conversation.host.application(scope, conversation.receive, conversation.send)
                scope = None            # else it would outlast the application's first step
                if not PyCoro_CheckExact(self.inner):
                    self.inner = _iterator(self.inner)
            conversation.in_step = True
            try:
                outcome = PyIter_Send(<PyObject*>self.inner, <PyObject*>value, result)
            finally:
                conversation.in_step = False
                if conversation.collected:
                    conversation.collected = False
                    conversation.step_ended()
            if outcome == PYGEN_NEXT:
                if context is not None:
                    self.suspended = True
                    self.on_suspend()
                return PYGEN_NEXT
        except BaseException as error:
            # Whether it is the application's or the loop's own, only the worker knows.
            if conversation.host.raised(conversation, error):
                raise
            return PYGEN_RETURN
        finally:
            if context is not None:
                PyContext_Exit(context)
        Py_DECREF_pointer(result[0])
        result[0] = NULL
        conversation.finished(None)
        return PYGEN_RETURN


@cython.final
@cython.internal
cdef class Done:
    """An awaitable that is done: what `send` returns when there is nothing to wait for."""

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration

    def send(self, value):
        raise StopIteration

    def throw(self, *error):
        _raise(*error)

    def close(self):
        """Nothing is open."""


cdef Done DONE = Done.__new__(Done)


cdef object _iterator(awaitable):
    if not hasattr(awaitable, "__await__"):
        raise TypeError(
            f"the application returned {type(awaitable).__name__}, which cannot be awaited"
        )
    return awaitable.__await__()


def _raise(kind, value=None, traceback=None):
    """What generator.throw() does with its arguments."""
    if isinstance(kind, BaseException):
        raise kind
    raise kind if value is None else value if isinstance(value, BaseException) else kind(value)


# `await` asks tp_iternext. A __next__ compiled by Cython would leave it with a traceback
# entry, made anew for each StopIteration; these say the same without one.

cdef PyObject* _next_of_awaitable(PyObject* awaitable) except? NULL:
    cdef PyObject* result = NULL
    if (<Awaitable>awaitable).advance(None, &result) == PYGEN_NEXT:
        return result
    if result != <PyObject*>None:
        PyErr_SetObject(PyExc_StopIteration, result)
    Py_DECREF_pointer(result)
    return NULL


cdef PyObject* _next_of_call(PyObject* call) except? NULL:
    cdef PyObject* result = NULL
    (<ApplicationCall>call).advance(None, &result)
    return result


cdef PyObject* _next_of_done(PyObject* done) except? NULL:
    return NULL


(<SlotsOfType*>ApplicationCall).tp_iternext = <iternextfunc>_next_of_call
(<SlotsOfType*>Awaitable).tp_iternext = <iternextfunc>_next_of_awaitable
(<SlotsOfType*>Done).tp_iternext = <iternextfunc>_next_of_done
