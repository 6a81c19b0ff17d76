"""Which functions of a tree can pause: those that call a pausing primitive, directly or through others.

Found in the text of KVM's sources, from the primitives up to their callers, without parsing: too many are harmless,
one that is missed shows up when it pauses (program.Retry).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from iretrace.linux.index import Index

DIRECTORIES = ("arch/x86/kvm/", "virt/kvm/")
_LEFT_OUT = re.compile(r"/(vmx|mmu)/|/(xen|hyperv|emulate|cpuid)\.c$")
_BODY = re.compile(r"\n\{")
_HEAD = re.compile(r"\n\w[\w \t*]*[ \t*\n](\w+)\([^;{}()]*(?:\([^;{}()]*\)[^;{}()]*)*\)\s*\Z")
_WORD = re.compile(r"\w+(?=\s*\()|(?<=\()\w+(?=\)\s*\()")


def sleepers(
    index: Index, root: str, primitives: Iterable[str], answered: Mapping[str, object], targets: Mapping[str, str]
) -> list[tuple[str, str]]:
    """(function, file) of the functions that can pause and that `root` reaches, itself among them.

    primitives: the functions that pause. answered: functions that rules answer, which end the search. targets: member
    of the vendor's table -> function, for static calls.
    """
    callers: dict[str, set[tuple[str, str]]] = {}
    for source in index.sources:
        if source.path.startswith(DIRECTORIES) and not _LEFT_OUT.search(source.path):
            for name, body in _functions(source.text):
                for callee in set(_WORD.findall(body)):
                    callers.setdefault(callee, set()).add((name, source.path))
    aliases: dict[str, list[str]] = {}
    for member, function in targets.items():
        aliases.setdefault(function, []).extend((member, "kvm_x86_" + member))
    found: dict[tuple[str, str], set[str]] = {}
    waiting = list(primitives)
    while waiting:
        name = waiting.pop()
        for word in (name, *aliases.get(name, ())):
            for caller in callers.get(word, ()):
                if caller[0] in answered:
                    continue
                if caller not in found:
                    waiting.append(caller[0])
                found.setdefault(caller, set()).add(name)
    return _reached(root, found)


def _reached(root: str, found: Mapping[tuple[str, str], set[str]]) -> list[tuple[str, str]]:
    """Of the functions found, those that the root reaches; found: function -> what it calls that can pause."""
    reached: set[tuple[str, str]] = set()
    waiting = [root]
    while waiting:
        name = waiting.pop()
        for function, callees in found.items():
            if function[0] == name and function not in reached:
                reached.add(function)
                waiting += callees
    return sorted(reached)


def _functions(text: str) -> Iterator[tuple[str, str]]:
    """Name and body of the functions of a file in kernel style."""
    last = text.rfind("\n}")
    done = 0
    for match in _BODY.finditer(text, 0, max(last, 0)):
        if match.start() < done:
            continue
        done = text.index("\n}", match.end()) + 2
        head = _HEAD.search(text[max(0, match.start() - 400) : match.start()])
        if head:
            yield head[1], text[match.start() : done]
