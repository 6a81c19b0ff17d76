"""`--option NAME=VALUE`: kernel configuration, module parameters, CPU features."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from iretrace.linux.rules import Rules
from iretrace.verdict import InputError

MOST_LETTERS = 64
"""So much of a name is compared with those of options."""


def set_options(rules: Rules, options: Mapping[str, int]) -> None:
    """Apply options, before the tree is indexed. InputError for a name that is no option."""
    for name, value in options.items():
        config = rules.config.get(name)
        if ("feature", name) in rules.rows:
            rules.constants["feature", name] = value
        elif ("global", name) in rules.rows and rules.rows["global", name].keys.get("option"):
            rules.constants["global", name] = value
        elif config is not None:
            rules.constants["config", name] = value
            if config != "y":
                rules.config[name] = str(value)
            elif not value:
                del rules.config[name]
        else:
            known = sorted(row.name for row in rules.table("global") if row.keys.get("option"))
            near = difflib.get_close_matches(name[:MOST_LETTERS], known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            told = f"{', '.join(known)}, X86_FEATURE_*, CONFIG_*"
            raise InputError(f"--option {name}: no such option; known are {told}{hint}")
