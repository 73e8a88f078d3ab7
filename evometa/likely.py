"""The likely-best of finished candidates, not the luckiest: empirical Bayes on re-judged losses."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evometa.statistics import ROUNDING, Floats, cells_of, sample_variance, scaled

PRIOR_FREEDOM = 8.0  # degrees of freedom that `likely_best` lends to the pooled noise


class Choice(NamedTuple):
    """A champion chosen among K re-judged candidates, and what it may promise."""

    index: int  # the champion
    loss: float  # its posterior mean loss: what it may promise on new domains
    naive_loss: float  # its plain mean loss, which selection makes too good
    posterior: Floats  # [K] posterior mean loss, +inf where failed
    probability_best: Floats  # [K] sums to 1, 0 where failed
    between: float  # tau: spread of the true losses; 0 = nothing tells the candidates apart
    p_value: float | None  # of "all candidates are equal"; None where there is no noise estimate
    failed: NDArray[np.bool_]  # [K] a cell was not finite
    unit: str  # "domain", or "replicate" where there is only one domain
    count: int
    note: str = ""


def likely_best(losses: ArrayLike, prior: int = 0, evidence: float = 0.25) -> Choice:
    """Choose a champion among finished candidates by empirical Bayes, and say what it may promise.

    `losses`: `[K, N, R]` (candidates, validation domains, replicates) or `[K, N]`, re-judged with
    fresh common random numbers: the numbers that the search itself selected on must not be among
    them. `prior` is the index of the search's recommendation.

    Replicates are averaged; the unit is a domain (a replicate where there is one domain only).
    What a domain does to all candidates alike is removed (pairing), which leaves for candidate k
    a mean m_k and its squared standard error s_k^2, drawn part of the way to the pooled one
    because it comes from few units (Smyth 2004). True losses are taken as normal about a common
    mean with variance tau^2, found by Paule & Mandel's equation (1982). The posterior mean is
    `mean + (m_k - mean) tau^2 / (tau^2 + s_k^2)`, and its smallest is the champion.

    Without evidence the recommendation stays: tau is zero where the spread of the candidates is
    no larger than its noise, judged by the F test of equal candidates at `evidence` (1 = move on
    any excess: a little more is gained where the recommendation is one among equals, more lost
    where it is better than the rest, see benchmarks/results/likely_best.csv).

    A candidate with a cell that is not finite cannot win and counts for nothing; if that is the
    recommendation, the first other candidate takes its place in ties. One candidate, or a single
    cell each, leaves nothing to choose by: the recommendation stays.

    Raises `ValueError` if all candidates failed, if `prior` is no index, or for another shape.
    """
    cells = cells_of(losses, (2, 3), "losses [candidates, domains, replicates]")
    cells = cells[:, :, None] if cells.ndim == 2 else cells
    if not 0 <= prior < len(cells):
        raise ValueError(f"Expected prior in 0..{len(cells) - 1}, the recommendation's index, got {prior}.")
    if not 0 < evidence <= 1:
        raise ValueError(f"Expected 0 < evidence <= 1, got {evidence=}.")
    failed = np.asarray(~np.isfinite(cells).all(axis=(1, 2)))
    if failed.all():
        raise ValueError(f"All {len(cells)} candidates failed: no champion. Read why in their failure column.")
    alive = np.flatnonzero(~failed)
    stay = 0 if failed[prior] else int(np.flatnonzero(alive == prior)[0])
    x, scale = scaled(cells[alive])
    unit = "domain" if x.shape[1] > 1 else "replicate"
    paired = x.mean(2) if unit == "domain" else x[:, 0, :]  # [A, units]
    means = paired.mean(1)  # [A]
    between, p_value, posterior, chance, note = _shrink(paired, stay, evidence)
    winner = int(posterior.argmin())
    winner = stay if posterior[stay] == posterior[winner] else winner
    notes = [note, f"{int(failed.sum())} of {len(cells)} candidates failed" if failed.any() else ""]
    if failed[prior]:
        notes.append("the recommendation itself failed")
    full = np.full(len(cells), math.inf)
    full[alive] = [float(value) * scale for value in posterior]
    probability = np.zeros(len(cells))
    probability[alive] = chance
    index = int(alive[winner])
    return Choice(
        index=index,
        loss=float(full[index]),
        naive_loss=float(means[winner]) * scale,
        posterior=full,
        probability_best=probability,
        between=between * scale,
        p_value=p_value,
        failed=failed,
        unit=unit,
        count=paired.shape[1],
        note="; ".join(filter(None, notes)),
    )


def _shrink(paired: Floats, stay: int, evidence: float) -> tuple[float, float | None, Floats, Floats, str]:
    """tau, p value, posterior means [A], probability of being best [A], note, of `likely_best`."""
    candidates, units = paired.shape
    means = paired.mean(1)
    even = np.full(candidates, 1 / candidates)
    if candidates == 1:
        return 0.0, None, means, even, "one candidate"
    if units == 1:  # the recommendation was chosen before these losses were seen: its own is fair
        note = "one cell per candidate, no noise estimate: the recommendation stays"
        return 0.0, None, np.full(candidates, means[stay]), even, note
    residual = paired - paired.mean(0)
    own = residual.var(1, ddof=1) / units * candidates / (candidates - 1)
    pooled = float(own.mean())
    spread = sample_variance(means)
    if spread <= ROUNDING:
        return 0.0, 1.0, np.full(candidates, means[stay]), even, "all candidates are equal"
    if pooled <= ROUNDING:
        best = (means == means.min()).astype(np.float64)
        note = "no noise: every unit tells the same differences"
        return math.sqrt(spread), 0.0, means, best / best.sum(), note
    noise = ((units - 1) * own + PRIOR_FREEDOM * pooled) / (units - 1 + PRIOR_FREEDOM)

    def excess(tau2: float) -> float:  # Paule & Mandel: weighted squares against their expectation
        weight = 1 / (tau2 + noise)
        squares = weight * (means - (weight @ means) / weight.sum()) ** 2
        return float(squares.sum()) - (candidates - 1)

    from scipy.optimize import brentq
    from scipy.special import fdtrc, ndtr

    ratio = excess(0.0) / (candidates - 1) + 1
    p_value = float(fdtrc(candidates - 1, (candidates - 1) * (units - 1), ratio))
    tau2 = 0.0
    if ratio > 1 and p_value <= evidence:
        tau2 = float(brentq(excess, 0.0, 2 * spread, xtol=1e-12 * spread))  # type: ignore[arg-type]
    weight = 1 / (tau2 + noise)
    centre = float(weight @ means / weight.sum())
    posterior = centre + (means - centre) * tau2 / (tau2 + noise)
    if tau2 == 0:
        note = "no evidence that the candidates differ: the recommendation stays"
        return 0.0, p_value, posterior, even, note
    width = np.sqrt(tau2 * noise / (tau2 + noise))
    low, high = (posterior - 8 * width).min(), (posterior + 8 * width).min()
    z = (np.linspace(low, high, 2001) - posterior[:, None]) / width[:, None]  # [A, grid]
    above = np.maximum(ndtr(-z), 1e-300)
    density = np.exp(-0.5 * z**2) / width[:, None]
    chance = (density / above * np.exp(np.log(above).sum(0))).sum(1)  # k is here, others above
    return math.sqrt(tau2), p_value, posterior, chance / chance.sum(), ""
