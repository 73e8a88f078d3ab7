"""Methods against each other: paired over the same search seeds and domains, every number with its estimand.

An `Arm` is what one method's champions lost on the judged cells; the baseline is an arm too. Differences
are arm - rival, so below zero is better. With several search seeds the question is *method against
method* (`statistics.crossed`); one search seed can only speak of *this champion*, and then says so.

- `compare_arms`: mean difference, domains won, probability of improvement;
- `summarize`: mean and interquartile mean (Agarwal et al. 2021) of one arm;
- `gap_closed`: how much of the way from a baseline to an oracle, with Fieller's interval for the ratio;
- `trend`: the slope of losses or differences over a sweep variable;
- `holm`: several claims at once. `components`, `power` and `detectable` of power.py are names here too.

How often nominal 95 % intervals covered is told with each function: simulated normal two-way data, 5 or 10
search seeds x 5 or 12 domains and 1 x 12, four mixes of variances, 500 trials each. scipy is imported when
first needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from evometa.errors import EvometaError, did_you_mean
from evometa.power import Components, components, detectable, power, residual, t_quantile
from evometa.statistics import (
    METHODS,
    NEW_DOMAINS,
    Floats,
    Interval,
    cells_of,
    crossed,
    over_domains,
    over_seeds,
)

METHODS_HERE = "method against method, on new search seeds and this domain only"
METHODS_FAMILIES = "method against method, on new search seeds and new families of domains like these"
RESAMPLES = 2000
__all__ = [
    "Arm", "Comparison", "Components", "Estimate", "Summary", "compare_arms", "components", "detectable",
    "differences", "gap_closed", "holm", "power", "restrict", "summarize", "trend",
]  # fmt: skip


class Arm(NamedTuple):
    """One method of a comparison: what its champions lost on the judged cells."""

    name: str
    seeds: tuple[int, ...]  # L search seeds
    domains: tuple[str, ...]  # N
    losses: Mapping[str, Floats]  # query -> [L, N, S]: search seeds, domains, inner seeds; NaN where a cell failed


class Estimate(NamedTuple):
    """A number that is not a mean difference, with its interval; NaN where `note` says why."""

    value: float
    low: float
    high: float
    level: float  # of the two-sided interval
    note: str = ""


class Summary(NamedTuple):
    """One arm on one query, in units of the loss."""

    arm: str
    query: str
    mean: float  # over all cells; NaN if any failed
    middle: Estimate  # interquartile mean over search seeds x domains
    per_domain: Floats  # [N]
    failed: int  # cells that were not finite


class Comparison(NamedTuple):
    """One arm against a rival on one query."""

    arm: str
    rival: str
    query: str
    seeds: tuple[int, ...]
    domains: tuple[str, ...]
    difference: Interval  # arm - rival; its estimand and unit depend on the design
    families: Interval | None  # the same with a family of domains as unit, where families were given
    per_domain: Floats  # [N] mean difference
    wins: int  # domains with a mean difference below zero
    ties: int
    improvement: Estimate  # P(arm < rival) for a search and a domain like these, ties counted half


def compare_arms(
    arm: Arm, rival: Arm, query: str, *, level: float = 0.95, groups: Mapping[str, str] | None = None
) -> Comparison:
    """`arm` against `rival` on one query, paired over search seeds and domains, inner seeds averaged.

    `groups`: domain -> family, for a second interval whose unit is the family. Several search seeds and
    domains give the two-way interval of `statistics.crossed`; one search seed falls back to
    `over_domains` (a statement on one champion), one domain to the search seeds on that domain.

    Raises `EvometaError` naming what differs where the two were not judged on the same seeds and domains.
    """
    cells, inner = _paired(arm, rival, query)
    means = cells.mean(axis=0)
    families = None
    if groups is not None:
        missing = [name for name in arm.domains if name not in groups]
        if missing:
            raise EvometaError(f"expected a family for every domain, got none for {', '.join(missing)}")
        families = _family_interval(cells, [groups[name] for name in arm.domains], level)
    return Comparison(
        arm.name,
        rival.name,
        query,
        arm.seeds,
        arm.domains,
        _interval(cells, inner, level),
        families,
        means,
        int((means < 0).sum()),
        int((means == 0).sum()),
        _improvement(cells, level),
    )


def differences(arm: Arm, rival: Arm, query: str) -> Floats:
    """`[L, N]`: arm - rival for each search seed and domain, inner seeds averaged. Raises as `compare_arms`."""
    return _paired(arm, rival, query)[0]


def restrict(arm: Arm, seeds: Sequence[int]) -> Arm:
    """The arm at these search seeds only. Raises `EvometaError` for a seed that it does not have."""
    missing = sorted(set(seeds) - set(arm.seeds))
    if missing:
        raise EvometaError(f"arm {arm.name!r} has no search seed {_some(missing)}; it has {_some(arm.seeds)}")
    rows = [arm.seeds.index(seed) for seed in seeds]
    return arm._replace(seeds=tuple(seeds), losses={query: loss[rows] for query, loss in arm.losses.items()})


def summarize(arm: Arm, query: str, *, level: float = 0.95) -> Summary:
    """Mean and interquartile mean of an arm's losses over search seeds x domains, inner seeds averaged.

    The interquartile mean drops the lowest and the highest quarter of the cells (Agarwal et al. 2021,
    "Deep RL at the edge of the statistical precipice"). Its interval: standard error by resampling search
    seeds and domains independently (the pigeonhole bootstrap, Owen 2007; resampling seeds alone would
    take the domains for fixed), t on the smaller count - 1. It covered 96 to 100 % (wide where nothing but the
    cells varies), with one search seed 91 to 96 %.
    """
    cells = _losses(arm, query).mean(axis=2)
    failed = int((~np.isfinite(arm.losses[query])).sum())
    middle = Estimate(math.nan, math.nan, math.nan, level, f"{failed} cells failed (not finite), never averaged")
    if not failed:
        middle = _interquartile(cells, level)
    return Summary(arm.name, query, float(cells.mean()), middle, cells.mean(axis=0), failed)


def gap_closed(arm: Arm, baseline: Arm, oracle: Arm, query: str, *, level: float = 0.95) -> Estimate:
    """The share of the way from baseline to oracle: (baseline - arm) / (baseline - oracle), a ratio of means.

    The interval is Fieller's (1954): all ratios r for which the mean of (baseline - arm) - r (baseline -
    oracle) is not distinguishable from zero, with the two-way variance of `statistics.crossed` (over
    domains where there is one search seed). Where the denominator itself is not clearly non-zero that set
    has no end, and no interval is given. It covered 94 to 99 %.
    """
    above, one = _paired(baseline, arm, query)
    below, other = _paired(baseline, oracle, query)
    count, forms = _forms(above.shape)
    nan = Estimate(math.nan, math.nan, math.nan, level)
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return nan._replace(note="a cell failed (not finite), never averaged")
    a, b = float(above.mean()), float(below.mean())
    if b == 0:
        return nan._replace(note="baseline and oracle have the same mean: there is no gap to close")
    found = nan._replace(value=a / b)
    if count < 2:
        return found._replace(note="no interval: at least two search seeds or domains are needed")
    t2 = t_quantile((1 + level) / 2, count - 1) ** 2
    ends: list[float] = []
    for form in forms:
        # (a - r b)^2 <= t^2 (v_aa - 2 r v_ab + r^2 v_bb): a quadratic in r.
        v_aa, v_ab, v_bb = form(above, above), form(above, below), form(below, below)
        square, linear, constant = b * b - t2 * v_bb, a * b - t2 * v_ab, a * a - t2 * v_aa
        if square <= 0:
            return found._replace(note=f"no interval: the gap itself ({b:.4g}) is not clearly different from zero")
        inside = linear * linear - square * constant
        if inside >= 0:  # below zero: a difference of variances that is negative there; another form is the larger
            ends += [(linear - math.sqrt(inside)) / square, (linear + math.sqrt(inside)) / square]
    return found._replace(low=min([*ends, a / b]), high=max([*ends, a / b]))


def trend(values: Sequence[float], cells: Sequence[Floats], *, level: float = 0.95) -> Interval:
    """How a loss, or a difference, moves with a sweep variable: its slope per unit of the variable.

    `values`: K values of the variable, `cells`: K arrays `[L, N]` of the same search seeds and domains. The
    least-squares slope of each (search seed, domain) is one cell of the two-way interval, so that what a
    domain or a search does at every value cancels. Raises `ValueError` for fewer than two different values.
    """
    x = np.asarray(values, dtype=np.float64)
    if len(cells) != len(x) or len(np.unique(x)) < 2:
        raise ValueError(f"Expected one array for each of at least two different values, got {list(values)}.")
    stacked = cells_of(np.stack(list(cells)), (3,), "cells [values, search seeds, domains]")
    centred = x - x.mean()
    slopes = np.tensordot(centred / (centred**2).sum(), stacked, axes=1)
    found = _interval(slopes, slopes[:, :, None], level)
    return found._replace(estimand=f"slope per unit of the variable; {found.estimand}")


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down adjusted p values: claim all at or below alpha, and the chance of any false one is alpha.

    NaN (no test was possible) counts as 1: it claims nothing, and it is one of the claims.
    """
    p = np.nan_to_num(np.asarray(p_values, dtype=np.float64), nan=1.0)
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted.tolist()


# --- inside ----------------------------------------------------------------------------------------------------


def _losses(arm: Arm, query: str) -> Floats:
    if query not in arm.losses:
        known = ", ".join(arm.losses)
        raise EvometaError(
            f"arm {arm.name!r} was not judged on query {query!r}.{did_you_mean(query, arm.losses)} Known: {known}"
        )
    return arm.losses[query]


def _paired(arm: Arm, rival: Arm, query: str) -> tuple[Floats, Floats]:
    """Differences `[L, N]` (inner seeds averaged), and `[L, N, S]` where both have the same inner seeds."""
    one, other = _losses(arm, query), _losses(rival, query)
    for what, mine, theirs in (("search seeds", arm.seeds, rival.seeds), ("domains", arm.domains, rival.domains)):
        if set(mine) != set(theirs):
            only = [
                f"only {name!r} has {_some(sorted(set(a) - set(b)))}"
                for name, a, b in ((arm.name, mine, theirs), (rival.name, theirs, mine))
                if set(a) - set(b)
            ]
            raise EvometaError(
                f"expected {arm.name!r} and {rival.name!r} on the same {what}, but {' and '.join(only)}."
                " Compare what both have, or run and open the missing ones"
            )
    rows = [rival.seeds.index(seed) for seed in arm.seeds]
    columns = [rival.domains.index(name) for name in arm.domains]
    other = other[rows][:, columns]
    cells = one.mean(axis=2) - other.mean(axis=2)
    return cells, one - other if one.shape == other.shape else cells[:, :, None]


def _some(values: Sequence[object]) -> str:
    shown = [str(value) for value in values[:4]]
    return ", ".join(shown) + (f" and {len(values) - 4} more" if len(values) > 4 else "")


def _interval(cells: Floats, inner: Floats, level: float) -> Interval:
    """The interval of `[L, N]` that the design allows; `inner` `[L, N, S]` serves where it is one cell only."""
    searches, domains = cells.shape
    if searches > 1 and domains > 1:
        return crossed(cells, level)
    if domains > 1:
        return over_domains(cells[0], level)
    if searches > 1:
        return over_seeds(cells[:, 0], level)._replace(estimand=METHODS_HERE, unit="search seed")
    return over_seeds(inner[0], level)


def _family_interval(cells: Floats, labels: Sequence[str], level: float) -> Interval:
    if len(cells) == 1:
        return over_domains(cells[0], level, groups=labels)
    names = list(dict.fromkeys(labels))
    means = np.stack([cells[:, [n for n, x in enumerate(labels) if x == name]].mean(axis=1) for name in names], axis=1)
    found = crossed(means, level)
    note = found.note.replace(" domains", " families")
    return found._replace(estimand=METHODS_FAMILIES, unit="search seed x family", note=note)


def _interquartile(cells: Floats, level: float) -> Estimate:
    from scipy.stats import trim_mean

    value = float(trim_mean(cells.ravel(), 0.25))
    sizes = [size for size in cells.shape if size > 1]
    if not sizes or min(sizes) < 3:
        why = (
            "no interval: at least three search seeds and three domains are needed (or three of one, one of the other)"
        )
        return Estimate(value, math.nan, math.nan, level, why)
    searches, domains = cells.shape
    draw = np.random.default_rng(0)  # a fixed stream: the same cells give the same interval
    rows = draw.integers(0, searches, (RESAMPLES, searches, 1))
    columns = draw.integers(0, domains, (RESAMPLES, 1, domains))
    resampled = trim_mean(cells[rows, columns].reshape(RESAMPLES, -1), 0.25, axis=1)
    half = t_quantile((1 + level) / 2, min(sizes) - 1) * float(np.std(resampled, ddof=1))
    about = METHODS.split(", ")[1] if len(sizes) == 2 else NEW_DOMAINS if searches == 1 else METHODS_HERE
    return Estimate(value, value - half, value + half, level, about)


def _improvement(cells: Floats, level: float) -> Estimate:
    """P(difference < 0) with the interval of Korn & Graubard (1998) for shares of clustered cells.

    Clopper-Pearson on the effective number of cells: what the two-way variance says they are worth, and
    never more than there are. Where all agree there is no variance to see, and the smaller count is used.
    It covered 92 to 100 %.
    """
    if not np.isfinite(cells).all():
        return Estimate(math.nan, math.nan, math.nan, level, "a cell failed (not finite), never averaged")
    marks = np.where(cells < 0, 1.0, np.where(cells > 0, 0.0, 0.5))
    share, sizes = float(marks.mean()), [size for size in cells.shape if size > 1]
    if not sizes:
        return Estimate(share, math.nan, math.nan, level, "no interval: one search seed on one domain")
    units = float(min(sizes))
    error = _interval(marks, marks[:, :, None], level).error
    if error > 0:
        quantiles = t_quantile((1 + level) / 2, cells.size - 1) / t_quantile((1 + level) / 2, units - 1)
        units = min(float(cells.size), share * (1 - share) / error**2 * quantiles**2)
    from scipy.special import betaincinv

    hits, tail = share * units, (1 - level) / 2
    low = 0.0 if hits <= 0 else float(betaincinv(hits, units - hits + 1, tail))
    high = 1.0 if hits >= units else float(betaincinv(hits + 1, units - hits, 1 - tail))
    return Estimate(share, low, high, level)


def _forms(shape: tuple[int, ...]):
    """The units' count, and the covariances of two grand means whose largest is the variance of `_interval`."""
    searches, domains = shape

    def rows(a: Floats, b: Floats) -> float:
        return _covariance(a.mean(axis=1), b.mean(axis=1))

    def columns(a: Floats, b: Floats) -> float:
        return _covariance(a.mean(axis=0), b.mean(axis=0))

    def both(a: Floats, b: Floats) -> float:
        return rows(a, b) + columns(a, b) - residual(a, b) / a.size

    if searches > 1 and domains > 1:
        return min(shape), (rows, columns, both)
    return max(shape), (columns,) if domains > 1 else (rows,)


def _covariance(a: Floats, b: Floats) -> float:
    """Covariance of two means of the same n paired units."""
    return float(((a - a.mean()) * (b - b.mean())).sum()) / (len(a) - 1) / len(a)
