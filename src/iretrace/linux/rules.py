"""The frontier as data: which names the tree's C does not answer, what answers them instead, and why that is right.

The rows are TOML, in rules/*.toml and in files that a user adds (`--rules`); a later row replaces an earlier one of the
same table and name. Every row has `why`; `versions` (">=6.2, <6.13") limits it to some trees. docs: rules/README.md.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from iretrace.linux.answers import Answer, Model, Neutral, Storage, Value
from iretrace.linux.notes import Note, Notes
from iretrace.linux.unmodelled import Unmodelled
from iretrace.verdict import Assumption, InputError

TABLES = (
    "function", "macro", "global", "static_key", "feature", "config", "shared", "masked", "opaque_struct", "object",
    "initial", "static_call", "event_path",
)  # fmt: skip
MAX_BYTES = 1 << 20
"""A longer file of rows is none."""

LEDGER_KINDS = {
    "config": "config", "feature": "option", "static_key": "option", "initial": "initial", "object": "initial",
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One row: its table, name, all its keys, and where it stands ("frontier.toml:12"). It is the note of its use."""

    table: str
    name: str
    keys: Mapping[str, Any]
    where: str

    @property
    def what(self) -> str:
        """What answers the name: neutral, value=N, model=NAME, refuse, source, zero, ..."""
        return str(self.keys.get("what", ""))

    @property
    def why(self) -> str:
        """One line: why that is right for the modelled slice."""
        return str(self.keys["why"])

    @property
    def never(self) -> bool:
        """A step of the first state that says that KVM has no such vCPU."""
        return "refused" in self.keys and not {"call", "value"} & self.keys.keys()

    def is_for(self, vcpu: str) -> bool:
        """Whether the row counts for a vCPU kind: its key `vcpu` names it, alone or in a list, or it has none."""
        kinds = self.keys.get("vcpu", vcpu)
        return vcpu in kinds if isinstance(kinds, list) else bool(vcpu == kinds)

    def assumption(self) -> Assumption:
        """The row as an entry of the ledger."""
        kind = LEDGER_KINDS.get(self.table, "")
        if self.table == "global":
            kind = "option" if self.keys.get("option") else "initial"
        elif not kind:
            kind = "model" if self.what.startswith("model=") else "stub"
        detail = self.what or str(self.keys.get("on", self.keys.get("value", self.keys.get("call", ""))))
        return Assumption(kind, f"{self.name}: {detail}".rstrip(": "), self.where, self.why)


def version_key(version: str) -> tuple[int, ...]:
    """A version as numbers, for comparison: "6.1.192" -> (6, 1, 192)."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def applies(versions: str, version: str) -> bool:
    """Whether a `versions` key such as ">=6.2, <6.13" admits a tree's version. Empty admits all."""
    have = version_key(version)
    for term in filter(None, (part.strip() for part in versions.split(","))):
        match = re.fullmatch(r"(>=|<)\s*(\d+(?:\.\d+)*)", term)
        if match is None:
            raise InputError(f"versions {versions!r}: write terms such as '>=6.2' or '<6.13', joined by commas")
        want = version_key(match[2])
        if (have >= want) != (match[1] == ">="):
            return False
    return True


def read_rows(name: str, text: str, version: str) -> list[Row]:
    """The rows of one TOML text that apply to a tree of this version. InputError if it is no such file."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name}: {error}") from None
    lines = text.splitlines()
    rows: list[Row] = []
    for table, entries in tables.items():
        if table not in TABLES or not isinstance(entries, list):
            raise InputError(f"{name}: unknown table [[{table}]]; known are {', '.join(TABLES)}")
        starts = [number for number, line in enumerate(lines, 1) if line.strip() == f"[[{table}]]"]
        for keys, line in zip(entries, starts, strict=True):
            rows += _rows(table, keys, f"{name}:{line}", version)
    return rows


def _rows(table: str, keys: dict[str, Any], where: str, version: str) -> list[Row]:
    if not isinstance(keys.get("why"), str):
        raise InputError(f'{where}: a row needs why = "..."')
    if not applies(str(keys.get("versions", "")), version):
        return []
    names = keys["name"] if "name" in keys else keys.get("names", "")
    if not names:
        raise InputError(f'{where}: a row needs name = "..." or names = [...]')
    return [Row(table, name, keys, where) for name in ([names] if isinstance(names, str) else names)]


Models = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True, slots=True)
class Traced:
    """The note that a tracepoint was asked for, which has no row."""

    name: str


@dataclass
class Rules:
    """The rows for one tree, asked by the lowering (program.Rules) and by the models. Notes the rows that are used."""

    rows: dict[tuple[str, str], Row]
    models: Models
    tracepoints: frozenset[str] = frozenset()
    """Names X for which the tree declares a tracepoint: trace_X() is neutral."""
    constants: dict[tuple[str, str], int] = field(default_factory=dict)
    """Options given by the user: ("global", name), ("feature", name) or ("config", name) -> value."""
    notes: Notes = field(default_factory=Notes)

    def __post_init__(self) -> None:
        self.shared = frozenset(row.name for row in self.table("shared"))
        self.opaque_structs = {row.name: int(row.keys["size"]) for row in self.table("opaque_struct")}
        self.static_calls = {row.name: str(row.keys["table"]) for row in self.table("static_call")}
        self.opaque_macros = frozenset(row.name for row in self.table("macro"))
        self.config = {row.name: str(row.keys["value"]) for row in self.table("config")}
        self._answers: dict[str, Answer | None] = {}

    def table(self, table: str) -> list[Row]:
        """The rows of a table, in order."""
        return [row for key, row in self.rows.items() if key[0] == table]

    def row(self, table: str, name: str) -> Row | None:
        """The row of a name, noted as used."""
        row = self.rows.get((table, name))
        if row is not None:
            self.notes.note(row)
        return row

    def function(self, name: str, path: str) -> Answer | None:
        """How a function or opaque macro is answered; None: from source."""
        if name not in self._answers:
            self._answers[name] = self._function(name)
        answer = self._answers[name]
        if answer is not None:
            self.notes.note(self.rows.get(("macro", name)) or self.rows.get(("function", name)) or Traced(name))
        return answer

    def _function(self, name: str) -> Answer | None:
        row = self.rows.get(("function", name)) or self.rows.get(("macro", name))
        if row is not None:
            return self._answer(row)
        if name.startswith("trace_") and self._tracepoint(name[len("trace_") :]):
            return Neutral("a tracepoint: it only records")
        return None

    def _tracepoint(self, name: str) -> bool:
        bare = name.removesuffix("_rcuidle")
        return bare in self.tracepoints or bare.removesuffix("_enabled") in self.tracepoints

    def _answer(self, row: Row) -> Answer | None:
        kind, _, rest = row.what.partition("=")
        returns = str(row.keys.get("returns", ""))
        if kind == "neutral":
            return Neutral(row.why)
        if kind in ("source", "intrinsic"):
            return None
        if kind == "value":
            return Value(int(rest, 0), returns, row.why)
        if kind == "refuse":
            return Model(_refusal(row), returns or "void", why=row.why)
        if kind == "model" and rest in self.models:
            return Model(
                self.models[rest],
                returns,
                tuple(row.keys.get("by_address", ())),
                bool(row.keys.get("site", False)),
                bool(row.keys.get("pauses", False)),
                row.why,
            )
        known = "neutral, value=N, model=NAME, refuse, source or intrinsic"
        raise InputError(f"{row.where}: what = {row.what!r} for {row.name}; write {known}")

    def global_(self, name: str, path: str) -> int | Storage | None:
        """A global's value or storage; None: unknown (const ones come from source)."""
        row = self.row("global", name)
        if row is None:
            return None
        if any(not self._has(needed) for needed in row.keys.get("needs", ())):
            return 0
        if ("global", name) in self.constants:
            return self.constants["global", name]
        kind, _, rest = row.what.partition("=")
        if kind == "value":
            return int(rest, 0)
        return Storage(row.what, writable=not row.keys.get("const", False))

    def _has(self, needed: str) -> bool:
        """Whether the host CPU has a feature, or a module parameter is on: without, another parameter is off."""
        if ("feature", needed) in self.rows:
            return bool(self.feature(needed, "host"))
        return self.global_(needed, "") != 0

    def static_key(self, name: str) -> bool | None:
        """Whether a static key is on; None: unknown."""
        row = self.row("static_key", name)
        return None if row is None else bool(row.keys["on"])

    def feature(self, name: str, who: str, vcpu: str = "") -> bool | None:
        """Whether the host CPU ("host"), KVM's capabilities ("kvm") or the guest's CPUID ("guest") has a feature. vcpu:
        the kind of the guest's vCPU, where a row lists those that have it."""
        if ("feature", name) in self.constants:
            return bool(self.constants["feature", name])
        row = self.row("feature", name)
        if row is None:
            return None
        there = row.keys.get(who, row.keys["on"])
        return vcpu in there if isinstance(there, list) else bool(there)

    def assumptions(self, vcpu: str, notes: Collection[Note]) -> tuple[Assumption, ...]:
        """What was noted of rules, as ledger entries for a vCPU kind: the rows in their order, the user's options, and
        the tracepoints as one."""
        rows = [row for key, row in self.rows.items() if row in notes and key not in self.constants]
        used = [row.assumption() for row in rows if row.is_for(vcpu)]
        used += [
            Assumption("option", f"{name}: {value}", "--option", "the user says so")
            for (_, name), value in self.constants.items()
        ]
        traced = sorted(note.name for note in notes if isinstance(note, Traced))
        if traced:
            what = f"tracepoints: {', '.join(traced)}"
            used.append(Assumption("stub", what, "arch/x86/kvm/trace.h", "a tracepoint only records"))
        return tuple(used)


def rules_in(notes: Iterable[Note]) -> set[Note]:
    """Those notes that are about rules."""
    return {note for note in notes if isinstance(note, Row | Traced)}


def _refusal(row: Row) -> Callable[..., Any]:
    def refuse(run: Any, *args: int) -> int:
        raise Unmodelled(f"{row.name}() is reached, which is outside of what is modelled: {row.why} ({row.where})")

    return refuse


def load_rules(version: str, extra: Sequence[Path], models: Models, tracepoints: Iterable[str] = ()) -> Rules:
    """The shipped rows and then those of the user's files, for a tree of this version. InputError on bad files."""
    rows: dict[tuple[str, str], Row] = {}
    shipped = sorted(resources.files(__package__).joinpath("rules").iterdir(), key=lambda item: item.name)
    texts = [(f"rules/{item.name}", item.read_text()) for item in shipped if item.name.endswith(".toml")]
    texts += [(str(path), _own_rows(path)) for path in extra]
    for name, text in texts:
        for row in read_rows(name, text, version):
            rows[row.table, row.name] = row
    _hold_event_path(rows)
    return Rules(rows, models, frozenset(tracepoints))


def _own_rows(path: Path) -> str:
    """The text of a file of the user's."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; --rules FILE holds rows as --dry prints them")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise InputError(f"{path}: larger than {MAX_BYTES >> 10} KiB; --rules FILE holds rows as --dry prints them")
        return content.decode("utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: no text; --rules FILE holds rows as --dry prints them") from None


def _hold_event_path(rows: Mapping[tuple[str, str], Row]) -> None:
    """InputError if a row answers for a function that must run from source."""
    for table, name in rows:
        for answer in (rows.get(("function", name)), rows.get(("macro", name))) if table == "event_path" else ():
            if answer is not None and answer.what not in ("source", "intrinsic"):
                raise InputError(f"{answer.where}: {name}() is part of the event path and must run from source")
