"""C memory: words, bits, checks."""

from __future__ import annotations

import pytest

from iretrace.linux import memory
from iretrace.linux.memory import Space, name_of
from iretrace.linux.unmodelled import Unmodelled


class Run:
    """As much of a run as memory needs."""

    def __init__(self) -> None:
        self.space = Space()
        self.m: dict[int, int] = {}
        self.read = self.space.read
        self.write = self.space.write
        self.read.m = self.m
        self.a = self.space.allocate("a", 64).address


@pytest.mark.parametrize(("bit", "width"), [(0, 8), (8, 8), (60, 8), (3, 64), (1, 1), (40, 24), (5, 128), (64, 64)])
def test_what_is_stored_is_loaded_and_nothing_else_changes(bit: int, width: int) -> None:
    run = Run()
    memory.store_bytes(run, run.a, (1 << 512) - 1, 64)
    value = 0x123456789ABCDEF0FEDCBA9876543210 & ((1 << width) - 1)
    memory.store(run, run.a, bit, width, value)
    assert memory.load(run, run.a, bit, width) == value
    whole = memory.load_bytes(run, run.a, 64)
    mask = ((1 << width) - 1) << bit
    assert whole & ~mask == (1 << 512) - 1 & ~mask


def test_bytes_are_little_endian() -> None:
    run = Run()
    memory.store(run, run.a, 0, 64, 0x1122334455667788)
    assert [memory.load(run, run.a + n, 0, 8) for n in range(8)] == [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]


def test_absent_words_are_zero_and_reading_leaves_them_absent() -> None:
    run = Run()
    assert memory.load(run, run.a, 0, 64) == 0
    assert run.m == {}


@pytest.mark.parametrize("address", [0, 8, 0xFFF, (1 << 64) - 8])
def test_the_null_page_and_error_pointers_cannot_be_accessed(address: int) -> None:
    run = Run()
    with pytest.raises(Unmodelled, match="NULL dereference: read"):
        memory.load(run, address, 0, 8)
    with pytest.raises(Unmodelled, match="NULL dereference: write"):
        memory.store(run, address & ~7, 0, 64, 1)


def test_an_access_outside_every_object_is_refused() -> None:
    run = Run()
    with pytest.raises(Unmodelled, match="outside every object"):
        memory.load(run, run.a + 64, 0, 8)


def test_addresses_are_described_by_their_object() -> None:
    run = Run()
    assert run.space.describe(run.a + 16) == "a+0x10"
    assert run.space.describe(8) == "0x8"


def test_constant_objects_hold_values_that_are_computed_when_read() -> None:
    run = Run()
    table = run.space.allocate("table", 16, writable=False)
    table.words[table.address + 8] = lambda: 7
    assert memory.load(run, table.address + 8, 0, 8) == 7
    with pytest.raises(Unmodelled, match="constant"):
        memory.store(run, table.address, 0, 64, 1)


def test_a_word_whose_initial_value_is_outside_the_state_cannot_be_written() -> None:
    """A stored 0 would be taken for the initial value."""
    run = Run()
    made = run.space.allocate("x", 16)
    made.words[made.address] = 5
    memory.store(run, made.address + 8, 0, 64, 1)
    with pytest.raises(Unmodelled, match="initial value"):
        memory.store(run, made.address, 0, 64, 0)


def test_a_misaligned_word_is_read_across_two_words() -> None:
    run = Run()
    memory.store_bytes(run, run.a, 0x0F0E0D0C0B0A09080706050403020100, 16)
    assert run.read[run.a + 4] == 0x0B0A090807060504


def test_the_last_bytes_of_an_object_can_be_read_misaligned() -> None:
    run = Run()
    last = run.space.allocate("last", 12).address
    memory.store(run, last + 8, 0, 32, 0xDDCCBBAA)
    assert run.read[last + 4] & 0xFFFFFFFFFFFFFFFF == 0xDDCCBBAA << 32


def test_objects_lie_apart_and_are_aligned() -> None:
    space = Space()
    first, second = space.allocate("first", 100), space.allocate("second", 4096)
    assert second.address % 4096 == 0
    assert abs(second.address - first.address) >= 164
    assert space.find(first.address + 99) is first
    assert space.find(first.address + 100) is None


def test_memcpy_memset_memcmp_and_strlen() -> None:
    run = Run()
    memory.memset(run, run.a + 1, 0x41, 6)
    assert memory.strlen(run, run.a + 1) == 6
    assert memory.copy(run, run.a + 24, run.a, 8) == run.a + 24
    assert memory.memcmp(run, run.a, run.a + 24, 8) == 0
    memory.store(run, run.a + 26, 0, 8, 0x40)
    assert memory.memcmp(run, run.a, run.a + 24, 8) == 1


def test_copying_onto_itself_one_byte_further_reads_first() -> None:
    run = Run()
    memory.store_bytes(run, run.a, 0x0807060504030201, 8)
    memory.copy(run, run.a + 1, run.a, 8)
    assert memory.load_bytes(run, run.a, 9) == 0x080706050403020101


def test_a_frame_that_is_left_is_as_if_never_written() -> None:
    run = Run()
    frame = memory.stack_area(0)
    memory.store(run, frame + 4, 0, 32, 9)
    memory.leave(run, frame, 16)
    assert run.m == {}


def test_addresses_come_of_names_and_not_of_the_order() -> None:
    one, other = Space(), Space()
    names = ["svm", "vcpu", "x", "x"]
    here = [one.allocate(name, 64).address for name in names]
    there = [other.allocate(name, 64).address for name in reversed(names)]
    assert here[:2] == there[:1:-1]
    assert sorted(here) == sorted(there)
    assert len({*here, one.allocate("x", 64, "a.c").address}) == 5
    assert one.address_of_function("f a.c") == other.address_of_function("f a.c")
    assert not one.displaced


def test_of_two_names_with_one_number_the_second_has_another_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "number_of", lambda name: int(name.endswith("1")))
    space = Space()
    first, second = space.allocate("first", 64), space.allocate("second", 64)
    assert first.address != second.address
    assert space.displaced
    functions = Space()
    assert functions.address_of_function("f") != functions.address_of_function("g")
    assert functions.displaced


def test_an_object_of_another_process_is_made_when_it_is_looked_for() -> None:
    there, here = Space(), Space()
    wanted = [there.allocate("a", 64), there.allocate('"text\t1"', 8), there.allocate("gone", 8, "a.c")]
    made: list[str] = []

    def make(own: str) -> None:
        made.append(own)
        if "gone" not in own:
            here.allocate(name_of(own), 64)

    here.make = make
    for told in there.all():
        here.foresee(*told)
    assert made == []
    names = [found.name if (found := here.find(one.address)) is not None else None for one in wanted]
    assert names == ["a", '"text\t1"', None]
    assert made == ["\ta\t1", '\t"text\t1"\t1', "a.c\tgone\t1"]
    assert here.find(wanted[0].address) is here.find(wanted[0].address + 63)


def test_an_object_where_another_one_is_cannot_be_foreseen() -> None:
    space = Space()
    taken = space.allocate("a", 4096)
    space.foresee(taken.own, taken.address, 4096)
    with pytest.raises(ValueError, match="another object"):
        space.foresee("\tb\t1", taken.address + 64, 8)
