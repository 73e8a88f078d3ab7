"""A found rule as LaTeX."""

from __future__ import annotations

from collections.abc import Mapping

from evometa.programs.code import Program
from evometa.programs.formula import latex


def latex_source(program: Program, origin: str, numbers: Mapping[str, float]) -> str:
    """An aligned block, ready to be put into a document that loads amsmath."""
    beside = "".join(f"% {name} = {value:.6g}\n" for name, value in numbers.items())
    return f"% {program.vocabulary.name} rule, {origin}, found by evometa\n{beside}{latex(program)}\n"
