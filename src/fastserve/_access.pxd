# Declarations of fastserve._access. No ABI is promised between releases.
from libc.stdint cimport int64_t, uint64_t
from libc.time cimport tm

cdef enum:
    BLOCK_SIZE = 4 * 1024           # to begin with; it grows to what a busy second needs
    LINES_MOST = 1024 * 1024        # bytes of lines that nobody has taken: more are dropped
    HURRY_AT = 64 * 1024            # bytes from which on they are to be taken at once
    ID_MOST = 128                   # bytes of a request's id that a proxy has given
    DIGITS_MOST = 19                # of a number

cdef enum Style:                    # how a text is escaped, and what stands for none
    STYLE_WORD                      # a space would end it; none is "-"
    STYLE_QUOTED                    # a quotation mark would; none is "-"
    STYLE_JSON                      # has its quotation marks; none is null

# One part of a line: a constant text, and what is said of the exchange behind it.
cdef struct Part:
    int what
    int style
    int width                       # at least so many bytes; negative: filled up on the right
    const char* text
    Py_ssize_t text_length
    const char* argument            # a field's name, or a text that has a width
    Py_ssize_t argument_length


cdef int64_t monotonic() noexcept   # microseconds of the monotonic clock


cdef class Entry:
    cdef:
        object client               # as in the ASGI scope
        str method
        bytes raw_path
        bytes query_string
        str scheme
        dict tls                    # the ASGI extension, or None
        bytes id                    # this and the fields: None, unless a line has them
        tuple asked                 # fields of the request
        tuple answered              # and of the response
        bint keeps_answered
        bint is_http10
        int status                  # 0: nothing was answered
        int64_t sent                # bytes of the response's body
        int64_t received            # and of the request's
        # Microseconds of the monotonic clock; 0: did not happen, or no line has it.
        int64_t begun               # the head of the request had been received
        int64_t called              # the application was called
        int64_t started             # the first byte of the response was written
        int64_t ended
        int64_t moment              # when it ended, in microseconds since 1970

    cdef object keep_answered(self, object fields)


cdef class LineBuffer:
    cdef:
        char* block
        Py_ssize_t size
        Py_ssize_t used             # whole lines
        Py_ssize_t at               # where the line that is being written goes on
        int64_t second              # of the stamps
        char[28] stamp              # [22/Nov/2026:08:00:00 +0000]
        char[20] iso_stamp          # 2026-11-22T08:00:00

    cdef int grow(self, Py_ssize_t length) except -1
    cdef int add_bytes(self, bytes text, int style) except -1
    cdef int add_str(self, str text, int style) except -1
    cdef int add_escaped(self, const char* data, Py_ssize_t length, int style) except -1
    cdef int add_none(self, int style) except -1
    cdef int add_number(self, int64_t number, int digits) except -1
    cdef int add_time(self, int64_t moment, int style) except -1
    cdef int _make_stamps(self, int64_t second) except -1
    cdef int _add_clock(self, const char* before, tm* parts) except -1
    cdef int pad(self, Py_ssize_t start, int width) except -1


cdef class AccessLines:
    cdef:
        LineBuffer buffer
        list kept                   # what the parts point to
        Part* parts
        int count
        dict names                  # of numbers: by the part's name, then by the number
        # what the parts need
        bint wants_asked, wants_answered, wants_id, wants_called, wants_started, wants_moment
        bint excludes
        frozenset excluded
        tuple excluded_below
        int64_t offset              # from the monotonic clock to the time since 1970
        int64_t compare_at          # when they are to be looked at again
        uint64_t share              # of 2**32 requests so many have a line
        uint64_t random
        object wake                 # called with None when there is something to take
        object full                 # called when the first line is dropped
        Py_ssize_t dropped          # lines, since the others were taken

    cdef Entry begin(
        self, str method, bytes raw_path, bytes query_string, int minor_version, list headers,
        object client, str scheme, object tls, bint trusted,
    )
    cdef int call(self, Entry entry) noexcept
    cdef int start(self, Entry entry, int status) noexcept
    cdef int end(self, Entry entry) except -1
    cdef int64_t _since_1970(self, int64_t now) noexcept
    cdef int _add_part(
        self, int what, int style, int width, bytes text, bytes argument
    ) except -1
    cdef int _ask_for(self, int what) except -1
    cdef bint _excludes(self, bytes raw_path) except -1
    cdef bytes _identify(self, list headers, bint trusted)
    cdef uint64_t _next_random(self) noexcept
    cdef int _append(self, Entry entry) except -1
    cdef int _put(self, Part* part, Entry entry) except -1
    cdef int _put_number(self, Part* part, Entry entry) except -1
    cdef int _put_target(self, Entry entry) except -1
    cdef int _put_host(self, object client, int style) except -1
    cdef int _put_field(self, tuple fields, Part* part) except -1
    cdef int _put_user(self, tuple fields, int style) except -1
    cdef int _put_name(self, str kind, object number, int style) except -1
