"""The kvm_amd of this machine: nothing is emulated, and the harness is a process like any other."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

from iretrace.linux.debian import Unavailable
from iretrace.live.harness import Broken, end, last_line, read_lines, spawn


def host_kernel(root: Path = Path("/")) -> str:
    """The running kernel's release; Unavailable unless its /dev/kvm is that of kvm_amd on a processor with SVM."""
    if not (root / "dev/kvm").exists():
        raise Unavailable("--on host: there is no /dev/kvm; load kvm_amd, or use --on qemu")
    if not (root / "sys/module/kvm_amd").is_dir():
        modules = root / "sys/module"
        others = sorted(path.name for path in modules.iterdir() if path.name.startswith("kvm_"))
        what = f"it belongs to {others[0]}" if others else "and no module kvm_amd is loaded"
        raise Unavailable(f"--on host: /dev/kvm is not that of kvm_amd ({what}); use --on qemu")
    flags = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    if " svm" not in flags:
        raise Unavailable("--on host: this processor has no SVM, so /dev/kvm is a variant of kvm_amd; use --on qemu")
    if not os.access(root / "dev/kvm", os.R_OK | os.W_OK):
        raise Unavailable("--on host: /dev/kvm cannot be opened; join the group kvm, or use --on qemu")
    return os.uname().release


def run_here(harness: Path, guests: bytes, directory: Path) -> Generator[str, None, None]:
    """The lines that the harness prints. Broken when it ends, or falls silent, before it is done."""
    file, complaints = directory / "guests", directory / "complaints"
    file.write_bytes(guests)
    process = spawn([str(harness), str(file)], complaints)
    try:
        yield from read_lines(process)
    except Broken as error:
        raise Broken(f"{error}{last_line(complaints)}") from None
    finally:
        end(process)
