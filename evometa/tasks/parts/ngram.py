"""The n-gram learner of the language ladder: what the search may move, and its data. The model: `backoff.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from evometa.space import Candidate, log, real
from evometa.tasks.parts import backoff, words
from evometa.tasks.parts.charmodel import Sizes
from evometa.tasks.parts.learner import Learner

_ORDERS = [f"order{number}" for number in range(1, backoff.ORDERS + 1)]  # order n sees n - 1 characters
_TILT = {  # weight of a support word ~ rank ** a * length ** b, by kinds of word
    "rank": real(-1.0, 1.0),
    "length": real(-3.0, 3.0),
}
_ENDING = {
    "ending": real(-3.0, 3.0),  # the odds of the word's end are multiplied by its exponential ...
    "ending_slope": real(-3.0, 3.0),  # ... more for every five characters beyond the fifth
}
COLUMNS: dict[str, Any] = {
    "discount": {  # what a pair seen once, twice, more often loses, in counts
        "order1": real(0.0, 1.0),  # however often: hardly a letter of the alphabet is that rare
        **{name: {"once": real(0.0, 1.0), "twice": real(0.0, 1.9), "more": real(0.0, 2.9)} for name in _ORDERS[1:]},
    },
    "concentration": {name: log(0.1, 300.0) for name in _ORDERS},  # counts given to the shorter context
    "continuation": {name: real(0.0, 1.0) for name in _ORDERS[:-1]},  # share of the numbers of longer contexts
    "tilt": _TILT,
    "output": {**_ENDING, "floor": log(1e-4, 1e-1)},  # floor: share of the uniform distribution
}
GENOMES: dict[str, dict[str, Any]] = {
    "full": COLUMNS,
    "small": {
        "discount": {name: real(0.0, 1.0) for name in _ORDERS},
        "concentration": log(0.1, 300.0),
        "tilt": _TILT,
        "output": _ENDING,
    },
    "regularizer": {"discount": real(0.0, 1.0), "concentration": log(0.1, 300.0)},
}
# Today's practice: one discount and one concentration, chosen by `home` on the train languages; see docs/ladder.md.
DISCOUNT, CONCENTRATION = 0.1, 12.0
BASELINE: Candidate = {
    "discount": {name: {"once": DISCOUNT, "twice": DISCOUNT, "more": DISCOUNT} for name in _ORDERS},
    "concentration": dict.fromkeys(_ORDERS, CONCENTRATION),
    "continuation": dict.fromkeys(_ORDERS[:-1], 0.0),
    "tilt": {"rank": 0.0, "length": 0.0},
    "output": {"ending": 0.0, "ending_slope": 0.0, "floor": 1e-3},
}


def support(chosen: words.Words, table: dict[str, int], rows: int, sizes: Sizes) -> dict[str, Any]:
    """The support as weighted count tables; see `backoff.tables`."""
    data = words.windows(chosen, table, sizes.context, rows)
    return backoff.tables(data, words.known(table, sizes.classes))


def query(
    chosen: words.Words, seen: words.Words, table: dict[str, int], rows: tuple[int, int], sizes: Sizes
) -> dict[str, np.ndarray]:
    """Windows of a query, joined to the tables of the support `seen`; `rows` are the query's and the support's."""
    data = words.windows(chosen, table, sizes.context, rows[0])
    known = words.windows(seen, table, sizes.context, rows[1])
    places = backoff.lookups(data, known, words.known(table, sizes.classes))
    return {**{name: data[name] for name in ("target", "position", "weight")}, **places}


def most_rich(sizes: Sizes) -> int:
    """One number per kind of context: order, size, the character before."""
    del sizes
    return backoff.CELLS


LEARNER = Learner(GENOMES, BASELINE, most_rich, support, query, backoff.fit, backoff.judge, neural=False)
