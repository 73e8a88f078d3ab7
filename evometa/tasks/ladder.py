"""The language ladder: train on a language's simple words, be judged on its advanced ones.

Source: the procedure of seed 000 (docs: "nested generalization training"). A language is a domain. The
inner learner, a small character model, sees frequent words only (rank <= 2000); `home` is other frequent
words, `away` is rare words (rank > 8000). The genome is the learner's update rule and output rule,
searched on some languages and carried to languages that no one has looked at. Loss: nats per character,
ends of words included; see `parts/charmodel.py` for why it is a proper code length.

A demo task: its test languages have been looked at while it was built. Verdicts use other languages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from evometa.contract import Domain, Objective, Split, Task
from evometa.errors import ConfigError, did_you_mean
from evometa.space import Candidate, Column, Space, log, real
from evometa.tasks.parts import charmodel, words

# What the search may move, and what a careful user has today: one Adam rate and no dropout, as chosen by
# `home` on the search languages, every other mechanism at its neutral value.
NEURAL_COLUMNS: dict[str, Any] = {
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
NEURAL_BASELINE: Candidate = {
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


class Learner(NamedTuple):
    """An inner learner: its columns, today's values, the two of them that regularize, and what it does."""

    columns: Mapping[str, Any]
    baseline: Candidate
    regularizers: tuple[str, ...]
    fit: Callable[..., Any]  # fit(key, candidate, support, sizes) -> learned
    judge: Callable[..., Any]  # judge(key, learned, query, sizes) -> metrics


LEARNERS = {
    "neural": Learner(NEURAL_COLUMNS, NEURAL_BASELINE, ("decay", "dropout.hidden"), charmodel.fit, charmodel.judge),
}
GENOMES = ("full", "regularizer")

PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {
        "task": {"languages": 2, "steps": 30, "hidden": 16, "support": 200, "query": 40},
        "generations": 3,
        "population": 8,
    },
    "standard": {"task": {}, "generations": 32, "population": 24},
    "full": {"task": {"steps": 600, "hidden": 64, "support": 1500, "query": 500}, "generations": 80, "population": 32},
}


def ladder(
    *,
    genome: Literal["full", "regularizer"] = "full",
    learner: str = "neural",
    languages: int = 8,
    support: int = 1400,
    query: int = 300,
    context: int = 4,
    embedding: int = 8,
    hidden: int = 48,
    steps: int = 400,
    batch: int = 64,
) -> Task:
    """The language ladder as a task.

    `genome`: "full" searches every column; "regularizer" only weight decay and dropout, the rest staying
    at the baseline (control C7). `languages`: how many of the eight search languages drive the search.
    `support`, `query`: words per language and part (support + query <= 2000). `context`: characters the
    model sees (>= 2). `embedding`, `hidden`: layer widths. `steps`, `batch`: inner training, `batch` a
    multiple of 8.
    """
    if learner not in LEARNERS:
        hint = did_you_mean(learner, LEARNERS)
        raise ConfigError(f"ladder: expected a learner of {', '.join(LEARNERS)}, got {learner!r}.{hint}")
    if genome not in GENOMES:
        hint = did_you_mean(genome, GENOMES)
        raise ConfigError(f"ladder: expected a genome of {', '.join(GENOMES)}, got {genome!r}.{hint}")
    if not 1 <= languages <= len(words.TRAIN):
        raise ConfigError(f"ladder: expected 1 <= languages <= {len(words.TRAIN)}, got {languages}")
    if batch % charmodel.GROUPS or batch < charmodel.GROUPS or context < 2:
        groups = charmodel.GROUPS
        raise ConfigError(f"ladder: expected batch a multiple of {groups} and context >= 2, got {batch=}, {context=}")
    chosen = LEARNERS[learner]
    sizes = charmodel.Sizes(context=context, embedding=embedding, hidden=hidden, batch=batch, steps=steps)
    columns, baseline = chosen.columns, chosen.baseline
    if genome == "regularizer":
        columns, baseline = _only(columns, chosen.regularizers), _only(baseline, chosen.regularizers)
    train = tuple(words.TRAIN)[:languages]
    named = (*train, *words.VALIDATION, *words.TEST)
    options = {
        "learner": learner,
        "languages": languages,
        "support": support,
        "query": query,
        "context": context,
        "embedding": embedding,
        "hidden": hidden,
        "steps": steps,
        "batch": batch,
    }
    return Task(
        name="ladder",
        space=Space(columns),
        domains=tuple(_domain(language, support, query, sizes) for language in named),
        fit=partial(_fit, chosen=chosen, sizes=sizes),
        judge=partial(chosen.judge, sizes=sizes),
        objective=Objective(query="away", reduction="mean"),
        baseline=baseline,
        split=Split(train=train, validation=tuple(words.VALIDATION), test=tuple(words.TEST)),
        controls={} if genome == "regularizer" else {"regularizer": partial(ladder, genome="regularizer", **options)},
        source=__name__,
    )


def complete(candidate: Mapping[str, Any], learner: str = "neural") -> Candidate:
    """A candidate of any genome with the baseline's values for what it does not name."""
    return _merge(LEARNERS[learner].baseline, candidate)


def _fit(key: Any, candidate: Candidate, support: Any, *, chosen: Learner, sizes: charmodel.Sizes) -> Any:
    return chosen.fit(key, _merge(chosen.baseline, candidate), support, sizes)


def _domain(language: str, support: int, query: int, sizes: charmodel.Sizes) -> Domain:
    # Functions, not arrays: a test language is read when it is unsealed and not before.
    queries = {name: partial(_query, language, name, support, query, sizes) for name in ("home", "away")}
    seen = partial(_support, language, support, query, sizes)
    return Domain(language, seen, queries, {"script": words.SCRIPTS[language]})


def _support(language: str, support: int, query: int, sizes: charmodel.Sizes) -> dict[str, Any]:
    chosen = words.parts(language, support, query).support
    table = words.alphabet(chosen, sizes.classes)
    data = words.windows(chosen, table, sizes.context, 9 * support)
    known = (np.arange(sizes.classes) < 2 + len(table)).astype(np.float32)
    return {**data, "alphabet": known, "counts": words.counts(data, sizes.classes)}


def _query(language: str, name: str, support: int, query: int, sizes: charmodel.Sizes) -> dict[str, Any]:
    lists = words.parts(language, support, query)
    table = words.alphabet(lists.support, sizes.classes)
    # Rows per word differ between parts (rare words are longer), never between languages: shapes stay equal.
    chosen, rows = (lists.home, 9) if name == "home" else (lists.away, 12)
    return words.windows(chosen, table, sizes.context, rows * query)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Candidate:
    return {
        name: _merge(value, over.get(name, {})) if isinstance(value, Mapping) else over.get(name, value)
        for name, value in base.items()
    }


def _only(tree: Mapping[str, Any], names: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in tree.items():
        full = f"{prefix}{name}"
        if isinstance(value, Column) or not isinstance(value, Mapping):
            if full in names:
                kept[name] = value
        elif inside := _only(value, names, f"{full}."):
            kept[name] = inside
    return kept
