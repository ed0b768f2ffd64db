class File:
    fd: int
    size: int
