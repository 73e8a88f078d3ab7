"""What a design of so many search seeds and domains could find, from the variances that were observed."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from evometa.statistics import Floats, cells_of, sample_variance


class Components(NamedTuple):
    """Variance components of paired differences `[L, N]`, in squared units of the loss."""

    searches: float
    domains: float
    residual: float  # of one cell: search x domain, and the inner seeds


def components(differences: Floats) -> Components:
    """Variance components of `[L, N]` by the method of moments, none below zero (Searle et al. 1992, ch. 4).

    NaN where a cell failed or where there are fewer than two search seeds or domains.
    """
    cells = cells_of(differences, (2,), "differences [search seeds, domains]")
    searches, domains = cells.shape
    if min(cells.shape) < 2 or not np.isfinite(cells).all():
        return Components(math.nan, math.nan, math.nan)
    cell = max(0.0, residual(cells, cells))
    return Components(
        max(0.0, sample_variance(cells.mean(axis=1)) - cell / domains),
        max(0.0, sample_variance(cells.mean(axis=0)) - cell / searches),
        cell,
    )


def power(found: Components, searches: int, domains: int, effect: float, alpha: float = 0.05) -> float:
    """The chance that the two-way interval of `searches` x `domains` excludes zero where the truth is `effect`.

    Noncentral t on the smaller count - 1, with the standard error that the components give. They are
    estimates from few units, so this is a rough number. NaN for a design of fewer than two of either.
    """
    error = _error(found, searches, domains)
    freedom = min(searches, domains) - 1
    if freedom < 1 or math.isnan(error):
        return math.nan
    if error == 0:
        return float(effect != 0)
    from scipy.special import chdtri, ndtr

    # P(|Z + shift| > limit sqrt(V / freedom)), averaged over V ~ chi2 by its quantiles: good to 1e-4, where scipy's
    # noncentral t (1.17) is NaN at some large shifts.
    limit, shift = t_quantile(1 - alpha / 2, freedom), abs(effect) / error
    spread = np.sqrt(chdtri(freedom, (np.arange(4000) + 0.5) / 4000) / freedom)
    return float(np.mean(ndtr(shift - limit * spread) + ndtr(-shift - limit * spread)))


def detectable(found: Components, searches: int, domains: int, chance: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true difference (in units of the loss) that such a design finds with that chance; see `power`."""
    error = _error(found, searches, domains)
    if min(searches, domains) < 2 or math.isnan(error) or error == 0:
        return error if error == 0 else math.nan
    from scipy.optimize import brentq

    def short(effect: float) -> float:
        return power(found, searches, domains, effect, alpha) - chance

    high = error
    while short(high) < 0:
        high *= 2
    root: Any = brentq(short, 0.0, high)
    return float(root)


def residual(a: Floats, b: Floats) -> float:
    """Mean product of what is left of two `[L, N]` after row and column means: the residual mean square of one."""
    parts = [x - x.mean(axis=1, keepdims=True) - x.mean(axis=0, keepdims=True) + x.mean() for x in (a, b)]
    return float((parts[0] * parts[1]).sum()) / ((a.shape[0] - 1) * (a.shape[1] - 1))


def _error(found: Components, searches: int, domains: int) -> float:
    return math.sqrt(found.searches / searches + found.domains / domains + found.residual / (searches * domains))


def t_quantile(probability: float, freedom: float) -> float:
    """The quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))
