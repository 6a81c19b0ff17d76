"""The processor's rules, each with its source: what `iretrace rules` prints and what docs/rules.md is made from."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Sequence
from importlib import import_module

import iretrace.machine
from iretrace.litmus.lex import nearest, quote
from iretrace.report.terminal import wrap
from iretrace.subset import RULES, Rule
from iretrace.verdict import InputError

INDENT = "    "

HEAD = """\
# The processor's rules

Generated from the code (`@rule` in src/iretrace/machine/); `python tools/rules.py` makes it anew.
`iretrace rules NAME` prints one. There are {count}, each a function with a source:

"""

CONFIDENCE = {
    "read": "read in the source that is named",
    "derived": "follows from other rules",
    "emulator": "an emulator's or another hypervisor's code",
    "memory": "from memory, not confirmed",
}
"""How sure a rule is: what the words mean."""


def rooms() -> Iterator[tuple[str, str, list[Rule]]]:
    """(file, what it is about in a sentence, its rules by name) for each file that has rules, by name."""
    for found in sorted(pkgutil.iter_modules(iretrace.machine.__path__), key=lambda found: found.name):
        module = import_module(f"iretrace.machine.{found.name}")
        rules = sorted((rule for rule in RULES.values() if rule.module == module.__name__), key=lambda rule: rule.name)
        if rules:
            about = (module.__doc__ or "").strip().split("\n\n")[0]
            yield f"machine/{found.name}.py", " ".join(about.split()), rules


def rules_text(names: Sequence[str]) -> str:
    """The rules of these names in the order given, or all of them by file. InputError for a name that there is not."""
    grouped = list(rooms())
    if not names:
        return "\n".join(
            "\n".join([*wrap(f"{file}: {about}"), "", *(_told(rule) for rule in rules)])
            for file, about, rules in grouped
        )
    known = {rule.name: rule for _, _, rules in grouped for rule in rules}
    for name in names:
        if name not in known:
            raise InputError(f"no rule is called {quote(name)}; {nearest(name, known, 'iretrace rules lists them')}")
    return "".join(f"{_told(known[name])}" for name in names)


def _told(rule: Rule) -> str:
    source = f"{rule.source} ({rule.confidence})"
    return "\n".join([rule.name, *wrap(rule.text, INDENT, INDENT), *wrap(source, INDENT, INDENT), ""])


def rules_page() -> str:
    """docs/rules.md."""
    grouped = list(rooms())
    count = sum(len(rules) for _, _, rules in grouped)
    parts = [
        HEAD.format(count=count),
        *(f"- **{word}**: {meaning}\n" for word, meaning in CONFIDENCE.items()),
    ]
    for file, about, rules in grouped:
        parts.append(f"\n## {file}\n\n{about}\n\n")
        parts += [f"- `{rule.name}`: {rule.text}\n  *{rule.source}* ({rule.confidence})\n" for rule in rules]
    return "".join(parts)
