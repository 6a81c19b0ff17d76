"""The vectors of what comes from outside: guest, processor and hypervisors are told the same ones."""

from __future__ import annotations

IRQ_VECTOR = 0x30
"""Of the one device whose interrupt `irq` is, as its guest has set it up."""

SIPI_VECTOR = 0x9A
"""Of every SIPI: the page where it has the processor begin."""
