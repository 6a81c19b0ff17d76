"""`--option NAME=VALUE`: kernel configuration, module parameters, CPU features."""

from __future__ import annotations

from collections.abc import Mapping

from iretrace.linux.rules import Rules
from iretrace.verdict import InputError


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
            raise InputError(f"--option {name}: no such option; known are {', '.join(known)}, X86_FEATURE_*, CONFIG_*")
