"""The manual page and the completions of shells, made from the parser of the command line, so that they agree."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from iretrace import __version__
from iretrace.cli.arguments import STATUS, make_parser
from iretrace.kvm.revisions import REVISIONS
from iretrace.litmus.corpus import shipped
from iretrace.litmus.grammar import VCPUS

FILES, TESTS, VALUES, NOTHING = "files", "tests", "values", "nothing"
"""What completes the value of an option or an argument."""

KNOWN: Mapping[str, Callable[[], tuple[str, ...]]] = {"--vcpu": lambda: VCPUS, "--revision": lambda: tuple(REVISIONS)}
"""Options that say themselves what is wrong with another value."""

TEXT = {
    "FILES": "~/.cache/iretrace (or $XDG_CACHE_HOME/iretrace): results of earlier checks with the patches that were"
    " judged, unpacked archives and revisions, kernels for run. It can be removed at any time.",
    "ENVIRONMENT": "XDG_CACHE_HOME: see FILES."
    " NO_COLOR, FORCE_COLOR, TERM=dumb: whether there is colour where"
    " --color is auto. IRETRACE_DEBUG=1: where a bug of iretrace itself is.",
    "SECURITY": "A tree, a patch and a repository are read as hostile data: nothing of them is built, executed or"
    " obeyed, but for run --build, which is there to execute the build of a tree. Nothing is sent anywhere; run fetches"
    " Debian's kernels with apt.",
}


@dataclass(frozen=True, slots=True)
class Word:
    """An option or a positional argument. names: "--test", or none. takes: what completes its value; values: which."""

    names: tuple[str, ...]
    metavar: str
    help: str
    takes: str
    values: tuple[str, ...] = ()


def commands() -> Mapping[str, tuple[str, argparse.ArgumentParser]]:
    """Name -> (what it is for, its parser)."""
    for action in make_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            about = {choice.dest: choice.help or "" for choice in action._choices_actions}
            return {name: (about[name], parser) for name, parser in action.choices.items()}
    raise AssertionError("the parser has commands")


def words(parser: argparse.ArgumentParser) -> Iterator[Word]:
    """The options and arguments of a command."""
    for action in parser._actions:
        metavar = action.metavar if isinstance(action.metavar, str) else ""
        choices = tuple(map(str, action.choices or ()))
        known = choices or next((KNOWN[name]() for name in action.option_strings if name in KNOWN), ())
        takes = NOTHING if action.nargs == 0 else VALUES if choices else ""
        if not takes:
            is_test = any(name in metavar for name in ("NAME|FILE|DIR", "ID"))
            is_file = any(name in metavar for name in ("FILE", "DIR", "TREE")) or metavar in ("A", "B")
            takes = TESTS if is_test else FILES if is_file else VALUES
        yield Word(tuple(action.option_strings), metavar or "|".join(choices), action.help or "", takes, known)


def manual() -> str:
    """The page as roff (man(7))."""
    lines = [
        f'.TH IRETRACE 1 "" "iretrace {__version__}" "User Commands"',
        ".SH NAME",
        r"iretrace \- checks KVM's event injection on AMD against the processor that it imitates",
        ".SH SYNOPSIS",
        ".B iretrace",
        r"\fICOMMAND\fR [\fIARGUMENT\fR]...",
        ".SH COMMANDS",
    ]
    for name, (_, parser) in commands().items():
        lines += [f".SS {name}", _roff(parser.description or "")]
        for word in words(parser):
            if word.help == argparse.SUPPRESS or "--help" in word.names:
                continue
            lines += [".TP", _title(word), _roff(word.help % {"prog": "iretrace"})]
    lines += [".SH EXIT STATUS", _roff(STATUS.removeprefix("exit status: "))]
    for title, text in TEXT.items():
        lines += [f".SH {title}", _roff(text)]
    return "\n".join(lines) + "\n"


def _title(word: Word) -> str:
    value = "" if word.takes == NOTHING else rf"\fI{_escaped(word.metavar)}\fR"
    if not word.names:
        return value
    return ", ".join(rf"\fB{_escaped(name)}\fR" for name in word.names) + (f" {value}" if value else "")


def _roff(text: str) -> str:
    return "\n".join(_escaped(line) for line in text.splitlines())


def _escaped(text: str) -> str:
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{text}" if text.startswith((".", "'")) else text


def bash() -> str:
    """For ~/.local/share/bash-completion/completions/iretrace."""
    cases = []
    for name, (_, parser) in commands().items():
        options = " ".join(option for word in words(parser) for option in word.names)
        values = "".join(
            f"            {'|'.join(word.names)}) {_bash_values(word)} ;;\n"
            for word in words(parser)
            if word.names and word.takes != NOTHING
        )
        positional = next((_bash_values(word) for word in words(parser) if not word.names), "COMPREPLY=()")
        cases.append(
            f'    {name})\n        case "$previous" in\n{values}            *)\n'
            f'            if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "{options}" -- "$word"))\n'
            f"            else {positional}; fi ;;\n        esac ;;\n"
        )
    return (
        "# bash completion of iretrace; made by `iretrace completion bash`\n_iretrace() {\n"
        "    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}\n"
        f'    local tests="{" ".join(test.name for test in shipped())}"\n'
        "    if [[ $COMP_CWORD == 1 ]]; then\n"
        f'        COMPREPLY=($(compgen -W "{" ".join(commands())}" -- "$word")); return\n    fi\n'
        f"    case ${{COMP_WORDS[1]}} in\n{''.join(cases)}    esac\n}}\ncomplete -F _iretrace iretrace\n"
    )


def _bash_values(word: Word) -> str:
    if word.takes == FILES:
        return 'COMPREPLY=($(compgen -f -- "$word"))'
    if word.takes == TESTS:
        return 'COMPREPLY=($(compgen -W "$tests" -- "$word") $(compgen -f -- "$word"))'
    return f'COMPREPLY=($(compgen -W "{" ".join(word.values)}" -- "$word"))'


def zsh() -> str:
    """For a directory of $fpath, as _iretrace."""
    tests = " ".join(test.name for test in shipped())
    cases = []
    for name, (_, parser) in commands().items():
        specs = []
        for word in words(parser):
            action = {FILES: ":file:_files", TESTS: ":test:_iretrace_tests", NOTHING: ""}.get(
                word.takes, f":value:({' '.join(word.values)})"
            )
            specs += [f"'*{option}[{_zsh(word.help)}]{action}'" for option in word.names] or [f"'*{action or ':: '}'"]
        cases.append(f"        {name}) _arguments {' '.join(specs)} ;;\n")
    listed = " ".join(f"'{name}:{_zsh(about)}'" for name, (about, _) in commands().items())
    return (
        "#compdef iretrace\n# zsh completion of iretrace; made by `iretrace completion zsh`\n"
        f"_iretrace_tests() {{\n    compadd {tests}\n    _files\n}}\n_iretrace() {{\n    local -a listed=({listed})\n"
        "    if (( CURRENT == 2 )); then _describe command listed; return; fi\n"
        "    local command=$words[2]\n    shift words; (( CURRENT-- ))\n    case $command in\n"
        f'{"".join(cases)}    esac\n}}\n_iretrace "$@"\n'
    )


def _zsh(text: str) -> str:
    for char in "'[]:":
        text = text.replace(char, " ")
    return text


def fish() -> str:
    """For ~/.config/fish/completions/iretrace.fish."""
    lines = ["# fish completion of iretrace; made by `iretrace completion fish`"]
    for name, (about, _) in commands().items():
        lines.append(f"complete -c iretrace -n __fish_use_subcommand -f -a {name} -d '{_fish(about)}'")
    tests = " ".join(test.name for test in shipped())
    for name, (_, parser) in commands().items():
        start = f"complete -c iretrace -n '__fish_seen_subcommand_from {name}'"
        for word in words(parser):
            value = {FILES: " -r -F", TESTS: f" -r -F -a '{tests}'", NOTHING: ""}.get(
                word.takes, f" -x -a '{' '.join(word.values)}'"
            )
            for option in word.names:
                switch = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
                lines.append(f"{start} {switch}{value} -d '{_fish(word.help)}'")
            if not word.names and word.takes == TESTS:
                lines.append(f"{start} -a '{tests}'")
            elif not word.names and word.values:
                lines.append(f"{start} -f -a '{' '.join(word.values)}'")
    return "\n".join(lines) + "\n"


def _fish(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


COMPLETIONS: Mapping[str, Callable[[], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
