"""The memory of a real guest: what lies where. guest.h and bare.S have the same numbers."""

PAGE = 0x1000
PAGE_TABLES, GDT, TSS, IDT, ARMED, WARM_UP, PAGE_TABLE = 0x1000, 0x4000, 0x4100, 0x5000, 0x6000, 0x7000, 0xB000
GDT_LIMIT, IDT_LIMIT = 0x4F, 0xFFF
MEMORY_END = 0x48000
STACKS = {"main": 0x11000, "nmi": 0x13000, "vc": 0x15000, "df": 0x17000, "db": 0x19000, "rsp0": 0x1B000}
"""Tops of the stack pages, in the order of the model's; around each lies a page that is not there."""

HOLES = tuple(range(0xF000, 0x1C000, 2 * PAGE))
UNMAPPED = HOLES[-1]
NOT_CANONICAL = 0x8000_0000_0000

CODE = 0x20000
SECTION_SPACE = 0x2000
"""Distance of the sections; in each a page boundary can lie in front of any one instruction."""

CODE_SELECTOR, DATA_SELECTOR, TSS_SELECTOR = 0x10, 0x18, 0x20
RECORD_BYTES = 64
LOG, LOG_END = 0x40000, 0x44000
WRAP_BIT = 14
"""Clearing this bit of a pointer behind the log's end leads to its beginning."""

VALUES = 0x46000
"""What `show` has shown, 8 bytes each."""

# Of guests that get an SMI, an INIT or a SIPI (real_mode.py).
GDT_POINTER, IDT_POINTER = 0x4180, 0x4190
LOG_NEXT = 0x6008
"""Where the address of the next record lies."""
SMBASE = 0x30000
"""As after RESET."""
SMM_CODE = SMBASE + 0x8000
FIRMWARE = 0x3A000
"""Where the reset vector leads, and the page that a SIPI names."""
RESET_VECTOR = 0xFFF0
IN_FIRMWARE = 0x6010
"""Not 0 while the guest is on its way from there to `init:`."""
EARLY = FIRMWARE + 0x800
"""Where an NMI goes that comes on that way."""
IVT_NMI = 2 * 4
CODE_END = SMM_CODE
"""Where the sections of such a guest have to end."""

# The sections to which no vector leads have numbers beyond those of vectors, as what is in front of an instruction has.
MAIN_STUB, SMI, INIT, SYSCALL, LEAD = 0x100, 0x101, 0x102, 0x103, 0x200
