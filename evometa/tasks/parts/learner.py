"""The shape of an inner learner, and how a small genome stands for a large one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from evometa.space import Candidate, Column

Genomes = Mapping[str, Mapping[str, Any]]


class Learner(NamedTuple):
    """An inner learner: its genomes, today's values, and what it does.

    A genome has columns for values of the baseline, or one column for a whole group of them: a number that then
    stands for every member. What a genome does not name stays at the baseline.
    """

    genomes: Genomes  # full, small, regularizer: nested columns
    baseline: Candidate  # every value
    most_rich: Callable[..., int]  # most_rich(sizes): how many numbers `rich` may add
    support: Callable[..., Any]  # support(words, table, rows, sizes) -> what fit sees
    query: Callable[..., Any]  # query(words, support words, table, rows, sizes) -> what judge sees
    fit: Callable[..., Any]  # fit(key, candidate, support, sizes) -> learned
    judge: Callable[..., Any]  # judge(key, learned, query, sizes) -> metrics
    neural: bool  # trains weights step by step, so that they can be carried from language to language


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Candidate:
    """`base` with the values of `over`; names that `base` lacks are kept, a number fills a whole group."""
    merged: Candidate = {name: value for name, value in over.items() if name not in base}
    for name, value in base.items():
        given = over.get(name, {} if isinstance(value, Mapping) else value)
        if isinstance(value, Mapping):
            merged[name] = merge(value, given) if isinstance(given, Mapping) else _filled(value, given)
        else:
            merged[name] = given
    return merged


def reduced(baseline: Mapping[str, Any], columns: Mapping[str, Any]) -> Candidate:
    """The baseline as a candidate of a smaller genome: a group named by one column has its first member's value."""
    out: Candidate = {}
    for name, column in columns.items():
        value = baseline[name]
        if isinstance(column, Column):
            while isinstance(value, Mapping):
                value = next(iter(value.values()))
            out[name] = value
        else:
            out[name] = reduced(value, column)
    return out


def _filled(group: Mapping[str, Any], value: Any) -> Candidate:
    return {name: _filled(old, value) if isinstance(old, Mapping) else value for name, old in group.items()}
