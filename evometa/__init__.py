"""evometa: search for how to learn.

Everything public is reached from here. Names are imported when first used, so that
`import evometa` and `evometa --help` stay instant.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# name -> module that defines it: the whole public surface
_PUBLIC = {
    "Space": "evometa.space",
    "real": "evometa.column",
    "log": "evometa.column",
    "integer": "evometa.column",
    "categorical": "evometa.column",
    "weights": "evometa.column",
    "program": "evometa.column",
    "Domain": "evometa.contract",
    "Split": "evometa.contract",
    "Objective": "evometa.contract",
    "Task": "evometa.contract",
    "task": "evometa.contract",
    "objective": "evometa.contract",
    "command_task": "evometa.contract",
    "leave_one_out": "evometa.contract",
    "Strategy": "evometa.types",
    "Scores": "evometa.types",
    "Failure": "evometa.types",
    "EvometaError": "evometa.errors",
    "strategy": "evometa.api",
    "search": "evometa.api",
    "run": "evometa.api",
    "resume": "evometa.api",
    "open": "evometa.api",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'evometa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
