"""Memory, bitmaps, atomics, arithmetic on bits, allocation."""

from __future__ import annotations

from iretrace.linux.answers import Site
from iretrace.linux.models.run import KvmRun, load_bits, load_word, put, read_modify_write, store_bits

PAGE_SHIFT = 12
U64 = (1 << 64) - 1


def load(run: KvmRun, site: Site, address: int, *_: int) -> int:
    """*address of the width that the call says; an access of a shared cell if it is one."""
    return load_bits(run, address, site.pointee[0])


def store(run: KvmRun, site: Site, address: int, value: int) -> None:
    """*address = value."""
    store_bits(run, address, site.pointee[0], value)


# Bits and atomics. -------------------------------------------------------------------------------------------------


def _place(number: int, address: int) -> tuple[int, int]:
    """The word of a bitmap's bit, and the bit in it."""
    place = address + (number >> 3)
    return place & ~7, 1 << ((place & 7) * 8 + (number & 7))


def test_bit(run: KvmRun, number: int, address: int) -> int:
    """A bit of a bitmap."""
    word, mask = _place(number, address)
    if word in run.cells:
        run.shared(word, mask, False)
    return int(load_word(run, word) & mask != 0)


def set_bit(run: KvmRun, number: int, address: int) -> None:
    """Sets a bit of a bitmap."""
    word, mask = _place(number, address)
    if word in run.cells:
        run.blind(word, mask)
    put(run, word, mask, mask)


def clear_bit(run: KvmRun, number: int, address: int) -> None:
    """Clears a bit of a bitmap."""
    word, mask = _place(number, address)
    if word in run.cells:
        run.blind(word, mask)
    put(run, word, mask, 0)


def _test_and_change(run: KvmRun, number: int, address: int, bits: int) -> int:
    word, mask = _place(number, address)
    if word in run.cells:
        run.shared(word, mask, True)
    old = load_word(run, word)
    put(run, word, mask, bits)
    return int(old & mask != 0)


def test_and_set_bit(run: KvmRun, number: int, address: int) -> int:
    """Sets a bit of a bitmap; the old one."""
    return _test_and_change(run, number, address, -1)


def test_and_clear_bit(run: KvmRun, number: int, address: int) -> int:
    """Clears a bit of a bitmap; the old one."""
    return _test_and_change(run, number, address, 0)


def atomic_read(run: KvmRun, counter: int) -> int:
    """The value of an atomic_t."""
    return load_bits(run, counter, 32)


def atomic_set(run: KvmRun, counter: int, value: int) -> None:
    """Sets an atomic_t."""
    store_bits(run, counter, 32, value)


def atomic_inc(run: KvmRun, counter: int) -> None:
    """Adds one to an atomic_t."""
    read_modify_write(run, counter, 32, lambda old: old + 1, blind=True)


def atomic_dec(run: KvmRun, counter: int) -> None:
    """Takes one from an atomic_t."""
    read_modify_write(run, counter, 32, lambda old: old - 1, blind=True)


def atomic_add(run: KvmRun, value: int, counter: int) -> None:
    """Adds to an atomic_t."""
    read_modify_write(run, counter, 32, lambda old: old + value & 0xFFFF_FFFF, blind=True)


def atomic_add_return(run: KvmRun, value: int, counter: int) -> int:
    """Adds to an atomic_t; the new value."""
    return read_modify_write(run, counter, 32, lambda old: old + value & 0xFFFF_FFFF) + value


def atomic_xchg(run: KvmRun, counter: int, value: int) -> int:
    """Sets an atomic_t; the old value."""
    return read_modify_write(run, counter, 32, lambda old: value)


def atomic_cmpxchg(run: KvmRun, counter: int, expected: int, value: int) -> int:
    """Sets an atomic_t if it has the expected value; the old value."""
    return read_modify_write(run, counter, 32, lambda old: value if old == expected & 0xFFFF_FFFF else old)


def cmpxchg(run: KvmRun, site: Site, address: int, expected: int, value: int) -> int:
    """*address = value if it holds the expected value; the old value."""
    bits = site.pointee[0]
    mask = (1 << bits) - 1
    return read_modify_write(run, address, bits, lambda old: value if old == expected & mask else old)


def xchg(run: KvmRun, site: Site, address: int, value: int) -> int:
    """*address = value; the old value."""
    return read_modify_write(run, address, site.pointee[0], lambda old: value)


def fls(run: KvmRun, value: int) -> int:
    """Position of the highest bit, from 1; 0 if there is none."""
    return (value & U64).bit_length()


def fls32(run: KvmRun, value: int) -> int:
    """Position of the highest bit of an int, from 1; 0 if there is none."""
    return (value & 0xFFFF_FFFF).bit_length()


def highest_bit(run: KvmRun, value: int) -> int:
    """Position of the highest bit, from 0."""
    return (value & U64).bit_length() - 1


def ffs(run: KvmRun, value: int) -> int:
    """Position of the lowest bit, from 1; 0 if there is none."""
    return (value & -value).bit_length()


def lowest_bit(run: KvmRun, value: int) -> int:
    """Position of the lowest bit, from 0."""
    return (value & -value).bit_length() - 1


def find_next_bit(run: KvmRun, address: int, size: int, start: int) -> int:
    """The number of the next bit that is set in an array, from `start` on; `size` if there is none."""
    for number in range(start, size):
        if load_word(run, address + number // 64 * 8) >> number % 64 & 1:
            return number
    return size


def hweight(run: KvmRun, value: int) -> int:
    """Number of set bits."""
    return (value & U64).bit_count()


def array_index_nospec(run: KvmRun, index: int, size: int) -> int:
    """The index; 0 if it is out of bounds."""
    return index if index < size else 0


def identity(run: KvmRun, value: int) -> int:
    """The value."""
    return value


def page_to_pfn(run: KvmRun, page: int) -> int:
    """The page's number."""
    return page >> PAGE_SHIFT


def allocate(run: KvmRun, size: int, *_: int) -> int:
    """Zeroed memory."""
    return run.allocate(size)


def allocate_array(run: KvmRun, count: int, size: int, *_: int) -> int:
    """Zeroed memory for an array."""
    return run.allocate(count * size)


def clear_page(run: KvmRun, page: int) -> None:
    """clear_page(): words that were never written are zero already."""
    for word in range(page, page + (1 << PAGE_SHIFT), 8):
        if word in run.m:
            run.m[word] = 0


def allocate_page(run: KvmRun, *_: int) -> int:
    """A zeroed page."""
    return run.allocate(1 << PAGE_SHIFT)


def allocate_pages(run: KvmRun, flags: int, order: int) -> int:
    """2^order zeroed pages."""
    return run.allocate(1 << PAGE_SHIFT + order)
