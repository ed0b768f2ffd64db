# Declarations of fastserve._file. No ABI is promised between releases.
from libc.stdint cimport int64_t


cdef class File:
    cdef:
        readonly int fd                 # ours alone
        readonly int64_t size           # when it was opened
        bint sendfile_fails             # the kernel cannot: it is read instead

    @staticmethod
    cdef File open(str path)

    @staticmethod
    cdef File duplicate(int fd)

    cdef int _become(self, int fd, object path) except -1
    cdef object position(self, object given)
    cdef int set_position(self, object given, int64_t place) except -1
    cdef bytes read(self, int64_t offset, Py_ssize_t length)
