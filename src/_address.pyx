"""IP addresses and ports as text: read without an object, written as inet_ntop does.

Reading is strict, since what two readers could take for two addresses is nobody's: no zeros in
front, no zone, nothing behind.
"""

from libc.stdint cimport uint32_t
from libc.string cimport memset


cdef extern from "Python.h":
    str PyUnicode_DecodeASCII(const char* text, Py_ssize_t length, const char* errors)


cdef inline int hex_value(unsigned char c) noexcept:
    if is_digit(c):
        return c - c"0"
    if c"a" <= c | 0x20 <= c"f":
        return (c | 0x20) - c"a" + 10
    return -1


cdef const unsigned char* read_ipv4(
    const unsigned char* p, const unsigned char* end, Address* address
) noexcept:
    """Four decimal numbers, none with a zero in front, which some take for octal; what
    follows, or NULL."""
    cdef uint32_t whole = 0
    cdef unsigned int number
    cdef int part, digits
    for part in range(4):
        if part:
            if p == end or p[0] != c".":
                return NULL
            p += 1
        if p == end or not is_digit(p[0]):
            return NULL
        number = p[0] - c"0"
        p += 1
        digits = 1
        while p < end and is_digit(p[0]):
            number = number * 10 + (p[0] - c"0")
            p += 1
            digits += 1
            if digits > 3:
                return NULL
        if number > 255 or digits > 1 and number < (10 if digits == 2 else 100):
            return NULL
        whole = whole << 8 | number
    address[0] = from_ipv4(whole)
    return p


cdef const unsigned char* read_ipv6(
    const unsigned char* p, const unsigned char* end, Address* address
) noexcept:
    """RFC 4291 section 2.2, without a zone; what follows, or NULL."""
    cdef uint32_t[8] groups
    cdef Address last
    cdef const unsigned char* start
    cdef uint32_t value
    cdef int count = 0, gap = -1, digits, index
    cdef bint more = False                  # a single colon wants another group
    memset(groups, 0, sizeof(groups))
    if end - p >= 2 and p[0] == c":" and p[1] == c":":
        gap = 0
        p += 2
    while count < 8:
        start = p
        value = 0
        digits = 0
        while digits < 4 and p < end and hex_value(p[0]) >= 0:
            value = value << 4 | <uint32_t>hex_value(p[0])
            p += 1
            digits += 1
        if digits == 0:
            break
        more = False
        if p < end and p[0] == c".":
            if count > 6:
                return NULL
            p = read_ipv4(start, end, &last)
            if p == NULL:
                return NULL
            groups[count] = <uint32_t>(last.low >> 16 & 0xFFFF)
            groups[count + 1] = <uint32_t>(last.low & 0xFFFF)
            count += 2
            break
        groups[count] = value
        count += 1
        if p == end or p[0] != c":":
            break
        p += 1
        if p < end and p[0] == c":":
            if gap >= 0:
                return NULL
            gap = count
            p += 1
        else:
            more = True
    if more or (count != 8 if gap < 0 else count > 7):
        return NULL
    if gap >= 0:
        for index in range(count - 1, gap - 1, -1):
            groups[index + 8 - count] = groups[index]
        for index in range(gap, gap + 8 - count):
            groups[index] = 0
    address.high = address.low = 0
    for index in range(4):
        address.high = address.high << 16 | groups[index]
        address.low = address.low << 16 | groups[index + 4]
    return p


cdef Py_ssize_t put_number(char* out, uint32_t number, uint32_t base) noexcept:
    """Write it without zeros in front; how many characters those were."""
    cdef char[12] reversed_digits
    cdef Py_ssize_t length = 0, index
    cdef uint32_t digit
    while True:
        digit = number % base
        reversed_digits[length] = <char>(digit + (c"0" if digit < 10 else c"a" - 10))
        length += 1
        number //= base
        if number == 0:
            break
    for index in range(length):
        out[index] = reversed_digits[length - 1 - index]
    return length


cdef Py_ssize_t put_ipv4(char* out, uint32_t address) noexcept:
    cdef Py_ssize_t length = 0
    cdef int shift
    for shift in range(24, -1, -8):
        if shift != 24:
            out[length] = c"."
            length += 1
        length += put_number(out + length, address >> shift & 0xFF, 10)
    return length


cdef str text_of(Address address, bint as_ipv4):
    """As inet_ntop writes it (RFC 5952), so that an address has one spelling however it came."""
    cdef char[64] out
    cdef uint32_t[8] groups
    cdef Py_ssize_t length = 0
    cdef int index, run = 0, best = -1, best_length = 1
    if as_ipv4:
        return PyUnicode_DecodeASCII(out, put_ipv4(out, <uint32_t>address.low), NULL)
    for index in range(4):
        groups[index] = <uint32_t>(address.high >> 16 * (3 - index) & 0xFFFF)
        groups[index + 4] = <uint32_t>(address.low >> 16 * (3 - index) & 0xFFFF)
    for index in range(8):
        run = run + 1 if groups[index] == 0 else 0
        if run > best_length:
            best_length = run
            best = index - run + 1
    index = 0
    while index < 8:
        if index == best:
            out[length] = out[length + 1] = c":"
            length += 2
            index += best_length
            continue
        if index and index != best + best_length:
            out[length] = c":"
            length += 1
        if index == 6 and is_ipv4(address):
            length += put_ipv4(out + length, <uint32_t>address.low)
            break
        length += put_number(out + length, groups[index], 16)
        index += 1
    return PyUnicode_DecodeASCII(out, length, NULL)


cdef int read_port(const unsigned char* p, const unsigned char* end) noexcept:
    """A port in decimal, nothing else; -1: it is none."""
    cdef int port = 0
    if p == end or end - p > 5:
        return -1
    while p < end:
        if not is_digit(p[0]):
            return -1
        port = port * 10 + (p[0] - c"0")
        p += 1
    return port if port <= 65535 else -1
