"""A found rule as LaTeX."""

from __future__ import annotations

from collections.abc import Mapping

from evometa.printable import printable
from evometa.programs.code import Program
from evometa.programs.formula import latex


def latex_source(program: Program, origin: str, numbers: Mapping[str, float]) -> str:
    """An aligned block, ready to be put into a document that loads amsmath."""
    beside = "".join(f"% {printable(name, lines=False)} = {value:.6g}\n" for name, value in numbers.items())
    head = printable(f"% {program.vocabulary.name} rule, {origin}, found by evometa", lines=False)
    return f"{head}\n{beside}{latex(program)}\n"
