"""Do the intervals of evometa/statistics.py cover what they say? Simulated, seeded, about a minute.

    python benchmarks/coverage.py [--trials 10000] [--out benchmarks/results]

Every line of coverage.csv simulates comparisons whose true difference is known.

- `nominal` and `coverage`: how often the interval should contain, and did contain, the truth. For a
  test (sign_flip) the share of comparisons without a false rejection. `mc_error` is the standard
  error of `coverage` (so two of them are the noise of this table).
- `false_accept`: how often "the champion is better" was claimed (interval or rejection wholly below
  zero) although the truth was no difference; nominal is half of 1 - `nominal`. For equivalence: how
  often "no effect" was claimed with the truth exactly on the margin; nominal 0.05.

likely_best.csv compares what a champion promises with what it keeps: `bias` is promised minus true
loss in units of the noise of one cell (below zero = oversold), `regret` the true loss above that of
the best candidate, `stays` how often the recommendation (candidate 0; "ahead by": the search had
reason to recommend it, otherwise it is one among equals) is kept.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from evometa.likely import likely_best
from evometa.statistics import (
    Interval,
    crossed,
    equivalent,
    over_domains,
    over_seeds,
    sign_flip,
)

Floats = NDArray[np.floating]
SEED = 20240
RESAMPLES = 1000
FIELDS = ["setting", "method", "nominal", "coverage", "mc_error", "false_accept", "trials"]
CHOICE_FIELDS = ["setting", "method", "bias", "mc_error", "regret", "stays", "trials"]


class Tally:
    """Counts covered and falsely accepted comparisons of one line of the table."""

    def __init__(self, setting: str, method: str, nominal: float = 0.95) -> None:
        self.setting, self.method, self.nominal = setting, method, nominal
        self.covered = self.accepted = self.trials = 0

    def interval(self, low: float, high: float, truth: float = 0.0) -> None:
        self.add(low <= truth <= high, high < truth)

    def add(self, covered: bool, accepted: bool) -> None:
        self.covered += bool(covered)
        self.accepted += bool(accepted)
        self.trials += 1

    def row(self) -> dict[str, object]:
        share = self.covered / self.trials
        return {
            "setting": self.setting,
            "method": self.method,
            "nominal": f"{self.nominal:.4f}",
            "coverage": f"{share:.4f}",
            "mc_error": f"{math.sqrt(share * (1 - share) / self.trials):.4f}",
            "false_accept": f"{self.accepted / self.trials:.4f}",
            "trials": self.trials,
        }


def pooled_t(cells: Floats) -> tuple[float, float]:
    """Student's t over all cells: what happens when seeds stand in for domains."""
    from scipy.special import stdtrit

    half = stdtrit(cells.size - 1, 0.975) * cells.std(ddof=1) / math.sqrt(cells.size)
    return cells.mean() - half, cells.mean() + half


def stratified_bootstrap(rng: np.random.Generator, cells: Floats) -> tuple[float, float]:
    """Percentile interval; seeds `[L, N]` are resampled within each domain (column)."""
    searches, domains = cells.shape
    rows = rng.integers(0, searches, (RESAMPLES, searches, domains))
    means = cells[rows, np.arange(domains)].mean((1, 2))
    low, high = np.quantile(means, [0.025, 0.975])
    return low, high


# --- estimand 2: new domains --------------------------------------------------------------------

EFFECTS: dict[str, Callable[[np.random.Generator, int], Floats]] = {  # mean 0, domain effects
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy tails (t, 3 df)": lambda rng, n: rng.standard_t(3, n),
    "very heavy tails (t, 2 df)": lambda rng, n: rng.standard_t(2, n),
    "skewed (exponential)": lambda rng, n: rng.exponential(size=n) - 1,
    "skewed, bad tail (lognormal)": lambda rng, n: rng.lognormal(size=n) - math.exp(0.5),
    "skewed, good tail (- lognormal)": lambda rng, n: math.exp(0.5) - rng.lognormal(size=n),
    "one domain in 10 differs": lambda rng, n: 5.0 * (rng.random(n) < 0.1) - 0.5,
}


def new_domains(rng: np.random.Generator, trials: int) -> Iterator[Tally]:
    settings = [(n, "normal") for n in (4, 8, 12)]
    settings += [(n, name) for name in EFFECTS if name != "normal" for n in (4, 8, 12)]
    for domains, name in settings:
        where = f"new domains: {domains} x 10 seeds, {name}"
        told, signs = Tally(where, "over_domains"), Tally(where, "sign_flip")
        naive = Tally(where, "pooled t (naive)")
        smallest = 2.0 ** (1 - domains)
        signs.nominal = 1 - math.floor(0.05 / smallest) * smallest
        for _ in range(trials):
            effects = EFFECTS[name](rng, domains)
            cells = effects[:, None] + rng.normal(size=(domains, 10))
            interval = over_domains(cells)
            told.interval(interval.low, interval.high)
            naive.interval(*pooled_t(cells))
            p_value = interval.p_value if interval.p_value is not None else 1.0
            rejected = p_value <= 0.05
            signs.add(not rejected, rejected and interval.difference < 0)
        yield from (told, signs, naive) if name == "normal" else (told, signs)


def families(rng: np.random.Generator, trials: int) -> Iterator[Tally]:
    """Half of the spread between domains is shared within a family."""
    labels = [family for family in range(6) for _ in range(2)]
    where = "new domains: 12 in 6 families x 10 seeds"
    by_family = Tally(where, "over_domains, groups=family")
    by_domain = Tally(where, "over_domains without groups (naive)")
    for _ in range(trials):
        effects = rng.normal(size=6)[labels] + rng.normal(size=12)
        cells = effects[:, None] + rng.normal(size=(12, 10))
        for tally, groups in ((by_family, labels), (by_domain, None)):
            told = over_domains(cells, groups=groups)
            tally.interval(told.low, told.high)
    yield from (by_family, by_domain)


# --- estimand 3: method against method ----------------------------------------------------------


def methods(rng: np.random.Generator, trials: int) -> Iterator[Tally]:
    layouts = [(10, 8, *sizes) for sizes in ((1, 1), (0.3, 1), (1, 0.3), (0.3, 0.3), (0, 0))]
    layouts += [(10, 4, 1, 1), (3, 8, 1, 1)]
    for searches, domains, search_sd, domain_sd in layouts:
        where = (
            f"method: {domains} domains x {searches} search seeds, sd search {search_sd}, domain {domain_sd}, cell 1"
        )
        told = Tally(where, "crossed")
        boot, naive = Tally(where, "stratified bootstrap (naive)"), Tally(where, "pooled t (naive)")
        for trial in range(trials):
            cells = search_sd * rng.normal(size=(searches, 1)) + rng.normal(size=(searches, domains))
            cells += domain_sd * rng.normal(size=(1, domains))
            interval = crossed(cells)
            told.interval(interval.low, interval.high)
            naive.interval(*pooled_t(cells))
            if trial < min(trials, 4000):  # the bootstrap is a thousand times the work
                boot.interval(*stratified_bootstrap(rng, cells))
        yield from (told, boot, naive)


# --- estimand 1: these domains ------------------------------------------------------------------


def these_domains(rng: np.random.Generator, trials: int) -> Iterator[Tally]:
    for seeds, shared in ((10, False), (10, True), (4, False)):
        kind = "shared between" if shared else "apart in"
        where = f"these domains: 8 x {seeds} seeds {kind} domains"
        told = Tally(where, "over_seeds")
        misused = Tally(where, "over_seeds, read as new domains (naive)")
        for _ in range(trials):
            effects = rng.normal(size=8)
            noise = rng.normal(size=(8, seeds))
            noise += rng.normal(size=seeds) if shared else 0.0
            interval = over_seeds(effects[:, None] + noise)
            told.interval(interval.low, interval.high, float(effects.mean()))
            misused.interval(interval.low, interval.high)
        yield from (told, misused)


# --- tests --------------------------------------------------------------------------------------


def uniformity(rng: np.random.Generator, trials: int) -> Iterator[Tally]:
    """Sign-flip p values without an effect: P(p <= level) at the level that n units can attain."""
    for units in (4, 8, 12, 40):
        levels = (0.01, 0.05, 0.1, 0.25, 0.5) if units <= 32 else (0.05, 0.5)
        smallest = 2.0 ** (1 - units)
        draws = rng.normal(size=(trials if units <= 32 else 4000, units))
        p = np.array([sign_flip(row, seed=i)[0] for i, row in enumerate(draws)])
        for level in levels:
            attainable = math.floor(level / smallest) * smallest
            if attainable == 0:
                continue
            tally = Tally(f"sign flips: {units} units, p <= {attainable:.4f}", "sign_flip")
            tally.nominal = 1 - attainable
            for value, mean in zip(p, draws.mean(1), strict=True):
                tally.add(value > attainable + 1e-12, value <= attainable + 1e-12 and mean < 0)
            yield tally


def equivalence(rng: np.random.Generator, trials: int) -> Iterator[Tally]:
    """The truth lies on the margin, so every claim of "no effect" is false: at most 5 %."""
    for shape, function in (((8, 10), over_domains), ((10, 8), crossed)):
        where = f"equivalence: {shape[0]} x {shape[1]}, truth on the margin"
        tally = Tally(where, f"equivalent({function.__name__})", 0.9)
        for _ in range(trials):
            cells = 2.0 + 0.5 * rng.normal(size=(shape[0], 1)) + rng.normal(size=shape)
            if function is crossed:
                cells += 0.5 * rng.normal(size=(1, shape[1]))
            told: Interval = function(cells)
            result = equivalent(told, margin=2.0)
            tally.add(result.low <= 2.0 <= result.high, result.equivalent)
        yield tally


# --- the champion -------------------------------------------------------------------------------


def champions(rng: np.random.Generator, trials: int) -> Iterator[dict[str, object]]:
    sizes = ((4, 2), (8, 4), (16, 8))
    settings = [(k, n, spread, 0.0, 0.0) for k, n in sizes for spread in (0, 0.5, 1)]
    settings += [(8, 4, spread, 0.7, 0.0) for spread in (0, 0.5, 1)]
    settings += [(8, 4, spread, 0.0, 0.7) for spread in (0, 0.5, 1)]
    for candidates, domains, spread, uneven, ahead in settings:
        where = f"{candidates} candidates, {domains} domains, true sd {spread}"
        where += f", noise uneven (log sd {uneven})" if uneven else ""
        where += f", recommendation ahead by {ahead}" if ahead else ""
        methods = ("likely_best", "likely_best, evidence=1", "smallest mean (naive)")
        seen: dict[str, list[tuple[float, float, bool]]] = {method: [] for method in methods}
        for _ in range(trials):
            truth = spread * rng.normal(size=candidates)
            truth[0] -= ahead
            noise = np.exp(uneven * rng.normal(size=(candidates, 1)))
            losses = truth[:, None] + rng.normal(size=domains)
            losses = losses + noise * rng.normal(size=(candidates, domains))
            means = losses.mean(1)
            picks = [(c.index, c.loss) for c in (likely_best(losses), likely_best(losses, evidence=1))]
            picks.append((int(means.argmin()), float(means.min())))
            for method, (index, promised) in zip(methods, picks, strict=True):
                kept = truth[index]
                seen[method].append((promised - kept, kept - truth.min(), index == 0))
        for method in methods:
            bias, regret, stays = np.array(seen[method], float).T
            yield {
                "setting": where,
                "method": method,
                "bias": f"{bias.mean():+.3f}",
                "mc_error": f"{bias.std(ddof=1) / math.sqrt(trials):.3f}",
                "regret": f"{regret.mean():.3f}",
                "stays": f"{stays.mean():.3f}",
                "trials": trials,
            }


def write(path: Path, fields: list[str], rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, fields, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    widths = [max(len(str(row[f])) for row in [*rows, {f: f}]) for f in fields]
    print(f"\n{path}")
    for row in [{f: f for f in fields}, *rows]:
        print("  ".join(str(row[f]).ljust(w) for f, w in zip(fields, widths, strict=True)).rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=10_000, help="simulated comparisons a line")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    started = time.perf_counter()
    parts = (new_domains, families, methods, these_domains, uniformity, equivalence)
    rows = [
        tally.row()
        for number, part in enumerate(parts)
        for tally in part(np.random.default_rng([SEED, number]), arguments.trials)
    ]
    write(arguments.out / "coverage.csv", FIELDS, rows)
    rng = np.random.default_rng([SEED, len(parts)])
    write(
        arguments.out / "likely_best.csv",
        CHOICE_FIELDS,
        list(champions(rng, min(arguments.trials, 4000))),
    )
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
