"""Regular files on their way out: a descriptor of our own, and bytes read at an offset.

A `File` is not read when it is made, and then at an offset, never at the position that it
shares with an application's descriptor. All calls block, for as long as the disk takes.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_SetFromErrno, PyErr_SetFromErrnoWithFilenameObject
from libc.errno cimport EINTR, EINVAL, EIO, EISDIR, errno

# Not C's fstat, a symbol that glibc has since 2.33 only: what is built with it asks for that.
from os import fstat, strerror
from stat import S_ISDIR, S_ISREG


cdef extern from "Python.h":
    bytes PyUnicode_EncodeFSDefault(object text)


cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <unistd.h>

    /* Waits for nobody: to open a FIFO or a terminal would. No child inherits it. */
    static int fs_open(const char* path) {
        int fd;
        do
            fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
        while (fd < 0 && errno == EINTR);
        return fd;
    }

    static int fs_duplicate(int fd) {
        return fcntl(fd, F_DUPFD_CLOEXEC, 0);
    }

    /* Moves every duplicate of the descriptor. */
    static int64_t fs_seek(int fd, int64_t place, int whence) {
        return (int64_t)lseek(fd, (off_t)place, whence);
    }

    static Py_ssize_t fs_read_at(int fd, char* to, size_t length, int64_t offset) {
        return pread(fd, to, length, (off_t)offset);
    }
    """
    int fs_open(const char* path) noexcept
    int fs_duplicate(int fd) noexcept
    enum: SEEK_SET, SEEK_CUR
    int64_t fs_seek(int fd, int64_t place, int whence) noexcept
    Py_ssize_t fs_read_at(int fd, char* to, size_t length, int64_t offset) noexcept
    int c_close "close"(int fd) noexcept


@cython.final
cdef class File:
    """An open regular file.

    Resource handling: owns its descriptor, and closes it with its last reference.
    Error handling: OSError for what is no regular file, cannot be opened or not be read.
    """

    def __cinit__(self):
        self.fd = -1

    def __dealloc__(self):
        if self.fd >= 0:
            c_close(self.fd)

    @staticmethod
    cdef File open(str path):
        """The file of this name. ValueError if it has a NUL, or cannot be encoded."""
        cdef File file = File.__new__(File)
        cdef bytes name = PyUnicode_EncodeFSDefault(path)
        if b"\0" in name:
            raise ValueError("embedded null byte")
        file._become(fs_open(PyBytes_AS_STRING(name)), path)
        return file

    @staticmethod
    cdef File duplicate(int fd):
        """The same file by a descriptor of our own: the other one may be closed."""
        cdef File file = File.__new__(File)
        file._become(fs_duplicate(fd), None)
        return file

    cdef object position(self, object given):
        """Where `given`, the file object or descriptor that this is the duplicate of, is to
        be read next. A file object may have read ahead."""
        if not isinstance(given, int):
            return given.tell()
        cdef int64_t place = fs_seek(self.fd, 0, SEEK_CUR)
        if place < 0:
            PyErr_SetFromErrno(OSError)     # raises
        return place

    cdef int set_position(self, object given, int64_t place) except -1:
        """The same, from now on: `place`."""
        if not isinstance(given, int):
            given.seek(place)
        elif fs_seek(self.fd, place, SEEK_SET) < 0:
            PyErr_SetFromErrno(OSError)     # raises
        return 0

    cdef bytes read(self, int64_t offset, Py_ssize_t length):
        """So many bytes from `offset` on; OSError if there are not so many any more."""
        cdef bytes data = PyBytes_FromStringAndSize(NULL, length)
        cdef Py_ssize_t count, filled = 0
        while filled < length:
            count = fs_read_at(
                self.fd, PyBytes_AS_STRING(data) + filled, length - filled, offset + filled
            )
            if count > 0:
                filled += count
            elif count == 0:
                raise OSError(EIO, "the file has become shorter while it was sent")
            elif errno != EINTR:
                PyErr_SetFromErrno(OSError)     # raises
        return data

    cdef int _become(self, int fd, object path) except -1:
        self.fd = fd
        if fd < 0:
            if path is None:
                PyErr_SetFromErrno(OSError)     # raises
            PyErr_SetFromErrnoWithFilenameObject(OSError, path)
        found = fstat(fd)
        if not S_ISREG(found.st_mode):
            error = EISDIR if S_ISDIR(found.st_mode) else EINVAL
            raise OSError(error, strerror(error), path)
        self.size = found.st_size
        return 0
