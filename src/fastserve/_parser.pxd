# Declarations of fastserve._parser. No ABI is promised between releases.
cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t


cdef enum ParserEvent:
    NEED_DATA = 0       # everything given was consumed, more is needed
    HEAD = 1            # the request's facts are in the attributes
    DATA = 2            # `piece`, `piece_length`: decoded body bytes inside the memory given
    END = 3             # the message is complete; the next call begins a new one
    INVALID = 4         # `error_status`, `error_reason`; every later call says the same


cdef enum:
    FIELD_SLOTS = 256               # a power of two
    CACHED_MOST = 160               # bytes of a value that is kept


cdef bint is_authority(const unsigned char* p, const unsigned char* end) noexcept


@cython.final
cdef class FieldCache:
    cdef PyObject* slots[FIELD_SLOTS]       # tuples of a name and a value, or NULL

    cdef tuple pair(self, PyObject* name, const unsigned char* value, Py_ssize_t length)


@cython.final
cdef class RequestParser:
    cdef:
        FieldCache cache                # None: each field has objects of its own

        # limits, in bytes and in number
        Py_ssize_t limit_line
        Py_ssize_t limit_fields
        Py_ssize_t limit_field_bytes

        # facts of the request: whole from HEAD on, until release()
        readonly str method
        readonly str path               # percent-decoded, then UTF-8 with replacement
        readonly bytes raw_path         # as received, without the query
        readonly bytes query_string     # b"" when there is none
        readonly list headers           # [(lower-case name, value)], in order
        readonly int minor_version      # HTTP/1.minor_version: 0 or 1
        readonly bint keep_alive        # the client's wish, RFC 9112 section 9.3
        readonly bint expect_continue
        readonly bint chunked
        readonly int64_t content_length  # -1: no Content-Length field
        readonly bint accepts_trailers  # TE: trailers
        readonly bytes upgrade          # value of Upgrade when Connection names it, else None

        # the current piece of the body
        const char* piece
        Py_ssize_t piece_length

        readonly int error_status
        readonly str error_reason

        # where the parser is; private to _parser.pyx
        int _state
        int _seen                       # bits: what the fields of this head have said so far
        int _empty_lines                # skipped before this request line
        int _extension_bytes            # of all chunk-size lines of this body
        Py_ssize_t _fields              # field lines of this head, or of these trailers
        Py_ssize_t _field_bytes         # the same in bytes, line ends included
        uint64_t _remaining             # of this body or this chunk
        bytes _authority                # of an absolute-form target, until HEAD
        unsigned char* _held            # the line that began in an earlier call; NULL: none
        Py_ssize_t _held_length
        Py_ssize_t _held_size

    cdef int next(self, const char* data, Py_ssize_t length, Py_ssize_t* consumed) except -1
    cdef bint in_message(self) noexcept
    cdef uint64_t content_ahead(self) noexcept
    cdef void pass_content(self, Py_ssize_t length) noexcept
    cdef void release(self) noexcept

    cdef int _fail(self, int status, str reason) noexcept
    cdef void _become_idle(self) noexcept
    cdef void _body_piece(self, const unsigned char* data, Py_ssize_t length) noexcept
    cdef void _drop_held(self) noexcept
    cdef int _hold(self, const unsigned char* data, Py_ssize_t length) except -1
    cdef Py_ssize_t _whole_lines(self, const unsigned char* data, const unsigned char* end) except -1
    cdef Py_ssize_t _one_line(self, const unsigned char* data, const unsigned char* end) except -1
    cdef Py_ssize_t _request_line(self, const unsigned char* line, const unsigned char* end) except -1
    cdef int _target(self, const unsigned char* target, const unsigned char* query,
                     const unsigned char* end, bint escaped) except -1
    cdef Py_ssize_t _field_lines(self, const unsigned char* data, const unsigned char* end) except -1
    cdef int _field_meaning(self, int meaning, const unsigned char* value,
                            const unsigned char* end, bytes whole) except -1
    cdef bint _read_codings(self, const unsigned char* value, const unsigned char* end) noexcept
    cdef void _read_options(self, int meaning, const unsigned char* value,
                            const unsigned char* end) noexcept
    cdef int _finish_head(self) except -1
    cdef Py_ssize_t _chunk_line(self, const unsigned char* line, const unsigned char* end) noexcept
    cdef dict _facts(self)
