"""The models by name."""

from __future__ import annotations

from collections.abc import Callable
from inspect import isfunction
from typing import Any

from iretrace.linux.models import debug, findings, frontier, memory, thread

MODELS: dict[str, Callable[..., Any]] = {
    name: model
    for module in (memory, thread, debug, frontier, findings)
    for name, model in vars(module).items()
    if isfunction(model) and model.__module__ == module.__name__ and not name.startswith("_")
}
"""What rules may name: the public functions of these modules."""
