"""A found rule as LaTeX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evometa.export.beside import Values
from evometa.printable import printable
from evometa.programs.code import Program
from evometa.programs.formula import latex


def latex_source(
    program: Program, origin: str, beside: Values, task: str = "", options: Mapping[str, Any] | None = None
) -> str:
    """An aligned block, ready to be put into a document that loads amsmath; what is beside the rule as comments."""
    del task
    named = {**beside, **({"mup": "true"} if (options or {}).get("mup") is True else {})}
    shown = {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in named.items()}
    notes = "".join(f"% {printable(f'{name} = {value}', lines=False)}\n" for name, value in shown.items())
    head = printable(f"% {program.vocabulary.name} rule, {origin}, found by evometa", lines=False)
    return f"{head}\n{notes}{latex(program)}\n"
