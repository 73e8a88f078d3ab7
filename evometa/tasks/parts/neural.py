"""The neural learner of the language ladder: what the search may move, and its data. The model: `charmodel.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from evometa.space import Candidate, log, real
from evometa.tasks.parts import charmodel, words
from evometa.tasks.parts.charmodel import Sizes
from evometa.tasks.parts.learner import Learner

# What the search may move, and what a careful user has today: one Adam rate and no dropout, as chosen by
# `home` on the search languages, every other mechanism at its neutral value.
COLUMNS: dict[str, Any] = {
    "rate": {  # Adam's step size, per layer
        "embedding": log(1e-3, 0.3),
        "hidden": log(1e-3, 0.3),
        "output": log(1e-3, 0.3),
    },
    "momentum": real(0.5, 0.98),  # Adam's beta1
    "decay": log(1e-4, 3.0),  # decoupled weight decay, per unit of rate
    "anneal": real(0.0, 2.0),  # rate x (1 - step / steps) ** anneal
    "scale": {  # standard deviation of initial weights, in units of 1 / sqrt(inputs)
        "hidden": log(0.3, 3.0),
        "output": log(0.03, 3.0),
    },
    "dropout": {  # hidden units; whole context characters
        "hidden": real(0.0, 0.6),
        "context": real(0.0, 0.4),
    },
    "fade": log(0.5, 2.0),  # a context character k places further away is scaled by fade ** k
    "smoothing": real(0.0, 0.3),  # label smoothing
    "tilt": {  # training weight of a word ~ rank ** a * length ** b
        "rank": real(-1.0, 1.0),
        "length": real(-3.0, 3.0),
    },
    "output": {
        "temperature": log(0.5, 2.0),  # logits are divided by it
        "ending": real(-3.0, 3.0),  # added to the logit of the word's end ...
        "ending_slope": real(-3.0, 3.0),  # ... more for every five characters beyond the fifth
        "counts": real(0.0, 1.0),  # share of the support's smoothed three-character counts in the mixture
        "concentration": log(0.5, 50.0),  # how strongly those counts back off to shorter contexts
        "floor": log(1e-4, 1e-1),  # share of the uniform distribution
    },
}
BASELINE: Candidate = {
    "rate": {"embedding": 0.03, "hidden": 0.03, "output": 0.03},
    "momentum": 0.9,
    "decay": 0.01,
    "anneal": 1.0,
    "scale": {"hidden": 1.0, "output": 0.3},
    "dropout": {"hidden": 0.0, "context": 0.0},
    "fade": 1.0,
    "smoothing": 0.0,
    "tilt": {"rank": 0.0, "length": 0.0},
    "output": {
        "temperature": 1.0,
        "ending": 0.0,
        "ending_slope": 0.0,
        "counts": 0.0,
        "concentration": 5.0,
        "floor": 1e-3,
    },
}
GENOMES: dict[str, dict[str, Any]] = {
    "full": COLUMNS,
    "small": {
        "rate": log(1e-3, 0.3),
        "momentum": COLUMNS["momentum"],
        "decay": COLUMNS["decay"],
        "anneal": COLUMNS["anneal"],
        "scale": COLUMNS["scale"],
        "dropout": COLUMNS["dropout"],
        "smoothing": COLUMNS["smoothing"],
        "output": {"temperature": COLUMNS["output"]["temperature"]},
    },
    "regularizer": {"decay": COLUMNS["decay"], "dropout": {"hidden": COLUMNS["dropout"]["hidden"]}},
}


def support(chosen: words.Words, table: dict[str, int], rows: int, sizes: Sizes) -> dict[str, Any]:
    """The support as windows in `rows` rows, with its alphabet and counts of three characters."""
    data = words.windows(chosen, table, sizes.context, rows)
    return {**data, "alphabet": words.known(table, sizes.classes), "counts": words.counts(data, sizes.classes)}


def query(
    chosen: words.Words, seen: words.Words, table: dict[str, int], rows: tuple[int, int], sizes: Sizes
) -> dict[str, np.ndarray]:
    """A query as windows; `rows` are the query's and the support's."""
    del seen
    return words.windows(chosen, table, sizes.context, rows[0])


def most_rich(sizes: Sizes) -> int:
    """One number per weight of the hidden layer."""
    return sizes.context * sizes.embedding * sizes.hidden


LEARNER = Learner(GENOMES, BASELINE, most_rich, support, query, charmodel.fit, charmodel.judge, neural=True)
