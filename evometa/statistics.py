"""Numbers that may be believed: every interval names its estimand and its unit.

A difference is loss of the champion minus loss of its rival on the same cell, so below zero is
better. Three questions, three functions:

1. `over_seeds`, `per_domain`: this champion on these domains only; the unit is an inner seed.
2. `over_domains`: this champion on new domains like these; the unit is a domain, or a family of
   related domains.
3. `crossed`: method against method, on new search seeds and new domains at once.

`equivalent` is the only way to claim "no effect"; likely.py chooses a champion without promising
the luckiest number. Shared rules:

- A cell that is not finite is a failed fit, not a small or a large number, so it is never
  averaged over and never dropped in silence: the interval is NaN, `failed` counts the cells and
  `note` says so. Who wants an interval over the cells that worked selects them in plain sight,
  and reports how many failed.
- One unit has no spread: low and high are NaN (never a fake interval of width zero), and `note`
  says why. Units that all agree exactly give a true interval of width zero.
- Cells are weighted equally within a unit and units are weighted equally. Results are float64.

numpy and scipy only; scipy is imported when first needed. `benchmarks/coverage.py` measures what
is promised here.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

THESE_DOMAINS = "this champion on these domains only"
NEW_DOMAINS = "this champion on new domains like these"
NEW_FAMILIES = "this champion on new families of domains like these"
METHODS = "method against method, on new search seeds and new domains like these"

EXACT_UNITS = 32  # sign flips are counted exactly up to here, sampled above
SAMPLED_FLIPS = 100_000
ROUNDING = 1e-30  # variance of numbers of size one that is only rounding


class Interval(NamedTuple):
    """A mean difference and what may be said of it; `low`, `high` are NaN where `note` says why."""

    difference: float  # mean over units, in units of the loss; NaN if any cell failed
    low: float
    high: float
    level: float  # of the two-sided interval, 0.95
    estimand: str  # what the interval is about, in words for a report
    unit: str  # what was counted: "inner seed", "domain", "family", "search seed x domain"
    count: int  # number of units; for crossed designs the smaller of the two counts
    p_value: float | None  # two-sided, of no difference; None where there is none
    test: str = ""  # which test gave p_value: "sign-flip, exact", "sign-flip, sampled", "t"
    error: float = math.nan  # standard error of the difference
    freedom: float = math.nan  # degrees of freedom of the t interval
    failed: int = 0  # cells that were not finite
    note: str = ""


class Equivalence(NamedTuple):
    """The result of two one-sided tests. `equivalent` is a claim only when it is True."""

    equivalent: bool  # the whole interval low..high lies strictly inside -margin..margin
    p_value: float  # the larger of the two one-sided p values; NaN where no test was possible
    margin: float
    difference: float
    low: float  # two-sided interval of level 1 - 2 alpha
    high: float
    alpha: float
    estimand: str
    unit: str
    count: int
    note: str = ""


def over_seeds(differences: ArrayLike, level: float = 0.95) -> Interval:
    """Estimand 1: this champion on these domains only. The unit is an inner seed.

    `differences`: `[N, S]` (domains, inner seeds) or `[S]` for one domain. Each seed's
    differences are averaged over the domains, then Student's t over the S means, so seeds may be
    shared between domains (common random numbers) or independent. It says nothing about any other
    domain, however many seeds there are.

    Raises `ValueError` for another number of dimensions, an empty array, or a level out of range.
    """
    cells = cells_of(differences, (1, 2), "differences [domains, seeds] or [seeds]")
    return _one_way(cells, lambda x: x.mean(0) if x.ndim == 2 else x, level, THESE_DOMAINS, "inner seed")


def per_domain(differences: ArrayLike, level: float = 0.95, names: Sequence[str] | None = None) -> list[Interval]:
    """Estimand 1 for each domain alone: N intervals, each over the inner seeds of one domain.

    `differences`: `[N, S]`. A failed cell spoils its own domain only. The intervals are not
    corrected for there being N of them.
    """
    cells = cells_of(differences, (2,), "differences [domains, seeds]")
    names = [str(n) for n in range(len(cells))] if names is None else names
    if len(names) != len(cells):
        raise ValueError(f"Expected one name per domain ({len(cells)}), got {len(names)}.")
    return [
        _one_way(row, lambda x: x, level, f"this champion on domain {name} only", "inner seed")
        for name, row in zip(names, cells, strict=True)
    ]


def over_domains(differences: ArrayLike, level: float = 0.95, groups: Sequence[object] | None = None) -> Interval:
    """Estimand 2: this champion on new domains like these. The unit is a domain, or a family.

    `differences`: `[N, S]` (domains, inner seeds) or `[N]`. Seeds are averaged within a domain
    first, so more seeds make a domain's mean sharper and never stand in for domains. Student's t
    over the domain means; `p_value` is the sign-flip test of the same means (Fisher 1935), exact
    up to 32 units. With N units no p value is below 2^(1 - N).

    `groups`: N labels. Domains with one label are a family of relatives (languages of one branch,
    series of one source): their mean is one unit, and the estimand is "new families like these".

    Both lean on domain means that are roughly symmetric. Heavy tails only widen the interval, but
    with 4 to 12 strongly skewed domains (lognormal) 95 % intervals covered 84 to 86 %, and no
    interval sees a rare kind of domain that was not drawn: where one domain in ten differed, 59
    to 72 % (benchmarks/results/coverage.csv).
    """
    cells = cells_of(differences, (1, 2), "differences [domains, seeds] or [domains]")
    family = None
    if groups is not None:
        if len(groups) != len(cells):
            raise ValueError(f"Expected one group label per domain ({len(cells)}), got {len(groups)}.")
        order = {label: i for i, label in enumerate(dict.fromkeys(groups))}
        family = np.array([order[label] for label in groups])

    def units(x: Floats) -> Floats:
        means = x.mean(1) if x.ndim == 2 else x
        return means if family is None else np.bincount(family, means) / np.bincount(family)

    if family is None:
        return _one_way(cells, units, level, NEW_DOMAINS, "domain")
    return _one_way(cells, units, level, NEW_FAMILIES, "family")


def crossed(differences: ArrayLike, level: float = 0.95) -> Interval:
    """Estimand 3: method against method. Search seeds and domains are both samples, crossed.

    `differences`: `[L, N]`: what search seed l's champion of one method loses to the other
    method's on domain n (inner seeds averaged). With row means r, column means c and residual
    mean square e, `vL = var(r) / L`, `vS = var(c) / N`, `vRes = e / (L N)`, the variance of the
    grand mean of a two-way random layout is `vL + vS - vRes` (Searle, Casella & McCulloch 1992;
    Owen & Eckles 2012), kept at or above vL and vS. t on the smaller count - 1. Resampling cells
    within domains forgets that all cells of a domain, and of a search, go up and down together.
    """
    cells = cells_of(differences, (2,), "differences [search seeds, domains]")
    _check_level(level)
    searches, domains = cells.shape
    count, unit = min(cells.shape), "search seed x domain"
    note = f"{searches} search seeds x {domains} domains"
    told = Interval(math.nan, math.nan, math.nan, level, METHODS, unit, count, None, note=note)
    if _failed(cells):
        return _spoiled(told, cells)
    x, scale = scaled(cells)
    mean = float(x.mean())
    if count < 2:
        why = f"no interval: {note}; at least two of each are needed to see both spreads"
        return told._replace(difference=mean * scale, note=why)
    rows, columns = x.mean(1), x.mean(0)
    residual = x - rows[:, None] - columns[None, :] + mean
    v_searches = sample_variance(rows) / searches
    v_domains = sample_variance(columns) / domains
    v_residual = float((residual**2).sum()) / ((searches - 1) * (domains - 1)) / x.size
    variance = max(v_searches + v_domains - v_residual, v_searches, v_domains)
    if variance <= ROUNDING:  # both kinds of means agree exactly: what is left is the cells' own
        variance = v_residual
    if np.ptp(x) == 0:
        told = told._replace(note=f"{note}; all cells are equal")
        return _with_t(told, float(x[0, 0]), 0.0, count - 1, scale)
    error = math.sqrt(variance)
    told = told._replace(p_value=2 * _t_below(-abs(mean), error, count - 1), test="t")
    return _with_t(told, mean, error, count - 1, scale)


def equivalent(differences: ArrayLike | Interval, margin: float, alpha: float = 0.05) -> Equivalence:
    """Two one-sided t tests (Schuirmann 1987): is the difference smaller than `margin` either way?

    `differences`: an `Interval` of any estimand above, or an array for `over_domains` (`[N, S]`
    or `[N]`). `margin` is in units of the loss, above zero, and is to be stated before looking.
    Equivalent when the 1 - 2 alpha interval lies strictly inside -margin..margin. Where there is
    no interval the answer is False: absence of evidence is not evidence of absence.
    """
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"Expected a finite margin above 0, in units of the loss, got {margin=}.")
    if not 0 < alpha < 0.5:
        raise ValueError(f"Expected 0 < alpha < 0.5, got {alpha=}.")
    told = differences if isinstance(differences, Interval) else over_domains(differences)
    if math.isnan(told.low):
        low, high, p_value = math.nan, math.nan, math.nan
    else:
        half = _t_quantile(1 - alpha, told.freedom) * told.error if told.error else 0.0
        low, high = told.difference - half, told.difference + half
        p_value = max(
            _t_below(-margin - told.difference, told.error, told.freedom),
            _t_below(told.difference - margin, told.error, told.freedom),
        )
    inside = -margin < low and high < margin
    about = (told.estimand, told.unit, told.count, told.note)
    return Equivalence(inside, p_value, margin, told.difference, low, high, alpha, *about)


def sign_flip(units: ArrayLike, seed: int = 0) -> tuple[float, str]:
    """Two-sided sign-flip test of the mean of `units`: its p value, and "exact" or "sampled".

    `units`: `[n]`, finite. The p value is the share of the 2^n ways to flip signs whose |sum| is
    at least the observed one. Exact up to `EXACT_UNITS`: the sums of the two halves are listed
    and the pairs counted by binary search (meet in the middle), so 32 units take two lists of
    2^16. Above that, `SAMPLED_FLIPS` flips drawn from `seed`, the observed one counted in
    (Phipson & Smyth 2010). Valid where the units are independent and, without an effect,
    symmetric about zero.
    """
    x = cells_of(units, (1,), "units [n]")
    if _failed(x):
        raise ValueError("Expected finite units; a failed unit has no sign to flip.")
    x, _ = scaled(x)
    rounding = 1e-12 * float(np.abs(x).sum())
    observed = abs(float(x.sum())) - rounding  # equal up to rounding counts as equal
    if observed <= 0:
        return 1.0, "exact"
    if len(x) <= EXACT_UNITS:
        left, right = _signed_sums(x[: len(x) // 2]), np.sort(_signed_sums(x[len(x) // 2 :]))
        above = len(right) - np.searchsorted(right, observed - left, side="left")
        return 2.0 * int(above.sum()) / 2.0 ** len(x), "exact"  # sums are symmetric: as many below
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(100):
        kept = rng.integers(0, 2, (SAMPLED_FLIPS // 100, len(x)), dtype=np.bool_)
        hits += int((np.abs(2 * (kept @ x) - x.sum()) >= observed).sum())
    return (hits + 1) / (SAMPLED_FLIPS + 1), "sampled"


def _one_way(cells: Floats, units: Callable[[Floats], Floats], level: float, estimand: str, unit: str) -> Interval:
    """Student's t over `units(cells)` and the sign-flip test of the same units."""
    _check_level(level)
    count = len(units(np.zeros_like(cells)))
    told = Interval(math.nan, math.nan, math.nan, level, estimand, unit, count, None)
    if _failed(cells):
        return _spoiled(told, cells)
    x, scale = scaled(cells)
    x = units(x)
    mean, error = float(x.mean()), 0.0
    if count < 2:
        why = f"no interval: one {unit} has no spread; at least two are needed"
        return told._replace(difference=mean * scale, note=why)
    p_value, how = sign_flip(x)
    told = told._replace(p_value=p_value, test=f"sign-flip, {how}")
    if np.ptp(x) == 0:
        mean = float(x[0])
        told = told._replace(note=f"every {unit} gave the same difference")
    else:
        error = math.sqrt(sample_variance(x) / count)
    return _with_t(told, mean, error, count - 1, scale)


def _with_t(told: Interval, mean: float, error: float, freedom: int, scale: float) -> Interval:
    half = _t_quantile((1 + told.level) / 2, freedom) * error if error else 0.0
    return told._replace(
        difference=mean * scale,
        low=(mean - half) * scale,
        high=(mean + half) * scale,
        error=error * scale,
        freedom=float(freedom),
    )


def _spoiled(told: Interval, cells: Floats) -> Interval:
    failed = _failed(cells)
    note = f"no interval: {failed} of {cells.size} cells failed (not finite), never averaged"
    return told._replace(failed=failed, note=note)


def cells_of(values: ArrayLike, dimensions: tuple[int, ...], name: str) -> Floats:
    """`values` as float64. Raises `ValueError`, saying what `name` is, for other dimensions or no number."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in dimensions or array.size == 0:
        raise ValueError(f"Expected {name}, not empty, got an array of shape {array.shape}.")
    return array


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"Expected 0 < level < 1, such as 0.95, got {level=}.")


def _failed(cells: Floats) -> int:
    return int((~np.isfinite(cells)).sum())


def scaled(x: Floats) -> tuple[Floats, float]:
    """`x` over a power of two (exact), so that squares of huge or tiny losses stay in range."""
    largest = float(np.abs(x).max())
    scale = math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest else 1.0
    return x / scale, scale


def sample_variance(x: Floats) -> float:
    """The unbiased variance of a sample."""
    return float(x.var(ddof=1))


def _signed_sums(x: Floats) -> Floats:
    """`[2^n]`: the sum of `x` under every way to choose signs."""
    sums = np.zeros(1)
    for value in x:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _t_quantile(probability: float, freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def _t_below(value: float, error: float, freedom: float) -> float:
    """P(error T < value) for Student's T; a step where the error is zero."""
    from scipy.special import stdtr

    if error == 0:
        return 0.5 * (1 + (value > 0) - (value < 0))
    return float(stdtr(freedom, value / error))
