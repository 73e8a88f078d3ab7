"""A genome as a reader wants to see it; imports no heavy library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from evometa.programs.code import Code
from evometa.programs.formula import text_of
from evometa.space import Space, flatten


def rates_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The rates at which a candidate was made, where its run records them; else none."""
    try:
        said = json.loads(row.get("extras") or "{}")
    except (ValueError, RecursionError):
        return {}  # an archive of anybody's: what is no record of rates is none
    rates = said.get("rates") if isinstance(said, dict) else None
    if not isinstance(rates, dict) or not all(isinstance(rate, int | float) for rate in rates.values()):
        return {}
    return {name: float(rate) for name, rate in rates.items()}


def readable(space: Space, genome: np.ndarray) -> dict[str, Any]:
    """Named values of a genome for a reader: numbers, choices, and the formula of a program; weight arrays left out."""
    names = {column.name for column in (*space.columns, *(held for held, _ in space.held))}
    vocabularies = {column.name: column.vocabulary for column in space.columns}
    values: dict[str, Any] = {}
    for name, value in flatten(space.decode_host(genome), names).items():
        words = vocabularies.get(name)
        if isinstance(value, Code):
            if words is not None:
                values[name] = text_of(words, value)
        elif not isinstance(value, np.ndarray):
            values[name] = value
    return values
