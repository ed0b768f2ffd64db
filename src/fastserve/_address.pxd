# Declarations of fastserve._address. No ABI is promised between releases.
from libc.stdint cimport uint32_t, uint64_t


cdef struct Address:                # IPv6, or IPv4 as ::ffff:a.b.c.d
    uint64_t high
    uint64_t low


cdef inline bint is_digit(unsigned char c) noexcept:
    return c"0" <= c <= c"9"


cdef inline bint is_ipv4(Address address) noexcept:
    return address.high == 0 and address.low >> 32 == 0xFFFF


cdef inline Address from_ipv4(uint32_t number) noexcept:
    cdef Address address
    address.high = 0
    address.low = <uint64_t>0xFFFF00000000 | number
    return address


# What follows, or NULL.
cdef const unsigned char* read_ipv4(
    const unsigned char* p, const unsigned char* end, Address* address
) noexcept
cdef const unsigned char* read_ipv6(
    const unsigned char* p, const unsigned char* end, Address* address
) noexcept
cdef int read_port(const unsigned char* p, const unsigned char* end) noexcept
cdef str text_of(Address address, bint as_ipv4)
