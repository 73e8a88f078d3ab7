"""Every built-in strategy on one page: plain data, so that listing them imports no library.

`evosax_table.py` holds the rows of the evosax methods, with their defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evometa.column import KINDS, PLAIN
from evometa.strategies.evosax_table import METHODS

NUMBERS = frozenset({"real", "log", "integer", "weights"})
EVERY = frozenset(KINDS)
COLUMNS = frozenset(PLAIN)  # all but programs


@dataclass(frozen=True)
class Entry:
    """What a reader wants to know about a strategy before choosing it."""

    factory: str  # "module:function"
    summary: str
    source: str
    searches: frozenset[str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    minimum: int = 2  # smallest population
    even: bool = False  # must the population be even?
    parents: str = "none"  # what the lineage records as parents
    traceable: bool = True
    objectives: int = 1


_OWN = {
    "random_search": Entry(
        "evometa.strategies.quasi:random_search", "Independent samples of the space; the row to beat.",
        "Bergstra & Bengio 2012", EVERY, minimum=1,
    ),
    "static": Entry(
        "evometa.strategies.static:static", "No search: the start, again and again; a control.",
        "a control", EVERY, minimum=1,
    ),
    "sobol": Entry(
        "evometa.strategies.quasi:sobol", "Consecutive points of one scrambled Sobol sequence.",
        "Sobol 1967; Owen 1998; scipy", COLUMNS, minimum=1, traceable=False,
    ),
    "genetic": Entry(
        "evometa.strategies.genetic:genetic",
        "Own genetic search: re-judged elites, self-adapted mutation, all columns.",
        "Schwefel 1995; Muhlenbein & Schlierkamp-Voosen 1993", COLUMNS,
        {"sigma": 0.2, "parents": 0.2, "elites": 1, "crossover": 0.7, "rate": None, "smallest": 1e-4},
        minimum=4, parents="true parents (one or two)",
    ),
    "linear_gp": Entry(
        "evometa.strategies.linear_gp:linear_gp",
        "Linear genetic programming: update rules, their constants and all columns beside them.",
        "Brameier & Banzhaf 2007", EVERY,
        {
            "crossover": 0.4, "tournament": 3, "islands": 1, "migration": 0.02, "cases": 0, "elites": 3, "tuned": 0.25,
            "grow": 0.0, "fresh": 0.1, "warm": 0.5, "together": 0.0, "tries": 4, "remembered": 4096,
            "parsimony": 0.02, "sigma": 0.1, "smallest": 1e-4, "rate": None,
        },
        minimum=8, parents="true parents (one or two)",
    ),
    "open_ended": Entry(
        "evometa.strategies.open_ended:open_ended",
        "Open-ended search: keeps every viable candidate, breeds from stepping stones, varies its own variation.",
        "Zhang et al. 2025 (DGM); Lange et al. 2025 (ShinkaEvolve); Wang et al. 2025 (HGM)", EVERY,
        {
            "parents": "dgm", "capacity": 512, "when_full": "crowded", "criterion": "finite", "slack": 0.5,
            "behaviour": "genome", "neighbours": 5, "islands": 1, "migration_interval": 10, "migrants": 1,
            "self_modification": True, "rejudge": 0.05, "fresh": 0.0, "warm": 0.5, "crossover": 0.4, "changes": 1.5,
            "sigma": 0.1, "smallest": 1e-4, "rate": None, "tries": 4,
            "record_rates": False,
        },
        minimum=4, parents="true parents (one or two)",
    ),
    "poet": Entry(
        "evometa.strategies.poet:poet",
        "POET: environments and their solvers together, a niche each; solvers are tried in each other's worlds.",
        "Wang et al. 2019, 2020", COLUMNS,
        {
            "transfer": 4, "reproduce": 6, "easiest": 0.15, "hardest": 0.7, "admitted": 2, "reach": 0.15,
            "neighbours": 3, "sigma": 0.2, "smallest": 1e-4, "rate": None,
        },
        minimum=4, parents="the solver; for a transfer also the niche's former solver",
    ),
    "tpe": Entry(
        "evometa.strategies.optuna_adapter:tpe", "Tree-structured Parzen estimator; strong where evaluations are few.",
        "Bergstra et al. 2011; Optuna", COLUMNS,
        {"n_startup_trials": 10, "n_ei_candidates": 24, "multivariate": True},
        minimum=1, parents="the 8 best so far", traceable=False,
    ),
    "nsga2": Entry(
        "evometa.strategies.optuna_adapter:nsga2", "NSGA-II: a population along the trade-off of several objectives.",
        "Deb et al. 2002; Optuna", COLUMNS,
        {"objectives": 2, "crossover_prob": 0.9, "mutation_prob": None, "eta": 5.0},
        minimum=4, parents="the pool it may have bred from (16 best survivors)", traceable=False, objectives=2,
    ),
}  # fmt: skip

_FAMILY_PARENTS = {
    "distribution": "the 8 best of the generation that last shaped the distribution",
    "population": "the pool it may have bred from (16 best slots)",
}

CATALOGUE: dict[str, Entry] = {
    **_OWN,
    **{
        name: Entry(
            f"evometa.strategies.evosax_adapter:{name}", method.summary, f"{method.source}; evosax {method.algorithm}",
            NUMBERS, {"sigma": method.sigma, **method.defaults}, method.minimum, method.even,
            _FAMILY_PARENTS[method.family], method.traceable,
        )
        for name, method in METHODS.items()
    },
}  # fmt: skip


def describe(name: str) -> dict[str, Any]:
    """Plain data about one built-in strategy: name, summary, kinds of column, defaults, parents recorded ...

    Imports nothing but this table. Raises `NotFound` for an unknown name.
    """
    from evometa.errors import NotFound, did_you_mean

    if name not in CATALOGUE:
        raise NotFound(
            f"strategy: expected a known name, got {name!r}.{did_you_mean(name, CATALOGUE)} See `evometa strategies`"
        )
    entry = CATALOGUE[name]
    return {
        "name": name,
        "summary": entry.summary,
        "source": entry.source,
        "factory": entry.factory,
        "searches": [kind for kind in KINDS if kind in entry.searches],
        "defaults": dict(entry.defaults),
        "minimum_population": entry.minimum,
        "even_population": entry.even,
        "parents": entry.parents,
        "traceable": entry.traceable,
        "objectives": entry.objectives,
    }


def markdown() -> str:
    """The table in docs/strategies.md, a row per strategy."""
    lines = [
        "| strategy | what it is | source | columns | hyperparameters and defaults | population | parents | traceable |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for name, entry in CATALOGUE.items():
        columns = {EVERY: "all, programs too", COLUMNS: "all but programs"}.get(entry.searches, "numbers")
        defaults = ", ".join(f"`{key}={value}`" for key, value in entry.defaults.items()) or "none"
        least = f"{entry.minimum}+{', even' if entry.even else ''}"
        cells = (f"`{name}`", entry.summary, entry.source, columns, defaults, least, entry.parents)
        lines.append(f"| {' | '.join(cells)} | {'yes' if entry.traceable else 'no'} |")
    return "\n".join(lines)
