"""Control arms of the language ladder: the same data and learner, taught in another way.

Each stands for an objection to nested training, "is it not the same as ...?" (docs/ladder.md names them by the
ids C1 to C9). Those that read other languages take them from a pool, the first half of the train languages, so
that their one number is tuned on languages that they were not taught.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from evometa.space import log
from evometa.tasks.parts import words
from evometa.tasks.parts.charmodel import Sizes
from evometa.tasks.parts.shifts import ROWS

ROWS_SIMPLE = 9  # windows that a simple word may take on average, its end included
ADAPTATION = 8  # `maml` adapts on 1 / 8 as many advanced words as are judged, for 1 / 8 of the steps


class Control(NamedTuple):
    """A control arm: its id, what it searches in place of the genome, and whether it reads the pool."""

    id: str
    what: str
    columns: Mapping[str, Any] | None = None  # None: the learner's genome
    baseline: Mapping[str, Any] | None = None
    pool: bool = False


_UPDATE: dict[str, Any] = {"columns": {"update": log(1e-3, 100.0)}, "baseline": {"update": 0.1}, "pool": True}
_TRANSFER: dict[str, Any] = {"columns": {"transfer": log(1e-2, 3.0)}, "baseline": {"transfer": 1.0}, "pool": True}
CONTROLS = {
    "pooled": Control("C1", "one big gradient step on the pool's advanced words, then the own simple words", **_UPDATE),
    "pooled-small": Control("C1'", "many small gradient steps in place of the big one", **_UPDATE),
    "curriculum": Control("C2", "the pool's simple words, its advanced ones, then the own simple words", **_TRANSFER),
    "curriculum-shuffled": Control("C2'", "the same words of the pool, simple and advanced mixed", **_TRANSFER),
    "multilingual": Control(
        "C3", "simple words of the pool and the own, then the pool's simple and advanced ones", **_TRANSFER
    ),
    "multilingual-untuned": Control("C3'", "the same without the second part", **_TRANSFER),
    "maml": Control("C4", "searched by the loss after training went on with a few advanced words"),
    "no-separation": Control("C9", "searched by both losses, where training sees advanced words too"),
    "oracle": Control("C8", "searched on the test languages' own advanced words: it cheats"),
}


class Source(NamedTuple):
    """The words of one language, and its characters' classes."""

    lists: words.Parts
    table: dict[str, int]


class Recipe(NamedTuple):
    """What the phases of a support follow from, besides the words."""

    control: str
    carry: bool
    support: int  # words
    query: int
    pool_steps: int
    shift: str  # of the pool


def phases(recipe: Recipe, own: Source, pool: Sequence[Source], searched: bool, sizes: Sizes) -> tuple[Any, ...]:
    """What the weights go through, for learners that train step by step; empty for the own simple words alone.

    `searched`: whether the domain drives or chooses (train, validation), where `maml` may adapt.
    A phase holds windows (see `words.windows`), `alphabet` [classes], and `schedule` [steps] or `update` [steps],
    of which only the length counts; `scaled`: whether the control's number multiplies its rates.
    """
    many, advanced_rows = recipe.pool_steps, 2 * ROWS[recipe.shift] * recipe.query
    simple = [(s, s.lists.support, ROWS_SIMPLE * recipe.support) for s in pool]
    advanced = [(s, s.lists.away + s.lists.spare, advanced_rows) for s in pool]
    mine = [(own, own.lists.support, ROWS_SIMPLE * recipe.support)]
    last = _phase(mine, sizes, sizes.steps)
    if recipe.control == "pooled":
        return _phase(simple, sizes, many), _phase(advanced, sizes, 1, update=True), last
    if recipe.control == "pooled-small":
        return _phase(simple, sizes, many), _phase(advanced, sizes, many, update=True), last
    if recipe.control == "curriculum":
        # About as many steps for each as the shuffled order spends on them.
        first = round(2 * many * ROWS_SIMPLE * recipe.support / (ROWS_SIMPLE * recipe.support + advanced_rows))
        first = min(max(first, 1), 2 * many - 1)
        return _phase(simple, sizes, first, scaled=True), _phase(advanced, sizes, 2 * many - first, scaled=True), last
    if recipe.control == "curriculum-shuffled":
        return _phase(simple + advanced, sizes, 2 * many, scaled=True), last
    if recipe.control == "multilingual":
        return _phase(simple + mine, sizes, 2 * many), _phase(simple + advanced, sizes, many, scaled=True)
    if recipe.control == "multilingual-untuned":
        return (_phase(simple + mine, sizes, 2 * many, scaled=True),)
    carried = tuple(_phase([part], sizes, many) for part in simple) if recipe.carry else ()
    if recipe.control == "maml" and searched:
        few = own.lists.spare[: _few(recipe.query)]
        rows = ROWS[recipe.shift] * _few(recipe.query)
        return *carried, last, _phase([(own, few, rows)], sizes, max(1, sizes.steps // ADAPTATION))
    return (*carried, last) if carried else ()


def own_words(recipe: Recipe, own: Source, searched: bool, neural: bool) -> tuple[words.Words, int]:
    """The words that a support is made of, and its rows, where it has no phases."""
    lists, rows = own.lists, ROWS_SIMPLE * recipe.support
    if recipe.control == "no-separation" and searched:
        return lists.support + lists.spare, rows + ROWS[recipe.shift] * recipe.query
    if recipe.control == "maml" and searched and not neural:
        few = _few(recipe.query)
        return lists.support + lists.spare[:few], rows + ROWS[recipe.shift] * few
    return lists.support, rows


def both(home: dict[str, np.ndarray], away: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Two queries as one, whose loss is the mean of the two losses."""
    joined = {}
    for name, first in home.items():
        second = away[name]
        if name == "weight":
            first, second = first / first.sum(), second / second.sum()
        axis = 1 if name in ("pair", "end", "before") else 0
        joined[name] = np.concatenate([first, second], axis=axis)
    return joined


def _few(query: int) -> int:
    return max(1, query // ADAPTATION)


def _phase(
    parts: Sequence[tuple[Source, words.Words, int]],
    sizes: Sizes,
    steps: int,
    scaled: bool = False,
    update: bool = False,
) -> dict[str, Any]:
    """Words of one or more languages as one phase; an unscaled one trains at the recipe's own rates."""
    data = [words.windows(chosen, source.table, sizes.context, rows) for source, chosen, rows in parts]
    joined = {name: np.concatenate([d[name] for d in data]) for name in data[0]}
    alphabet = np.max([words.known(source.table, sizes.classes) for source, _, _ in parts], axis=0)
    kind = "update" if update else "schedule"
    return {**joined, "alphabet": alphabet, "scaled": np.float32(scaled), kind: np.zeros(steps, np.float32)}
