"""Does evometa claim anything where there is nothing to claim? About ten minutes on two cores.

    python benchmarks/calibration.py                          # all sections, into benchmarks/results
    python benchmarks/calibration.py simulated noise          # some of them
    python benchmarks/calibration.py page                     # print the tables of docs/trust.md from what was measured
    python benchmarks/calibration.py --quick --out runs/quick # few trials and runs: a test of the script itself

simulated: an arm against its own clone, losses drawn from a model whose parts are known (calibration-simulated.csv).
resampled: the same with losses of real champions on sealed data: the ladder's demonstration languages, opened once
    and recorded in the runs' ledger (calibration-resampled.csv; the losses in calibration-losses.csv).
promises: what a champion promises on its validation domains against a fresh judging of the same champion on them;
    beside it, what the luckiest observed fitness would have promised (calibration-promises.csv).
noise: searches with nothing to find (a loss that no candidate can change; scores permuted among candidates), judged
    on their sealed domains (calibration-noise.csv).

Every rate has a binomial interval; they hold together, all lines of a table at once, with 95 %. `MARGINS`
in calibration_runs.py are what was called small enough to be nothing before any of these numbers was seen.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.calibration_runs import KEPT, champions, noise, opened, promises, word_losses
from benchmarks.coverage import write
from benchmarks.tables import save as save_table
from evometa.comparison import Arm
from evometa.machine import keep_compilations, use_host_devices
from evometa.statistics import Floats
from evometa.verdict import Finding, evaluate, rule_from

SEED = 20260
RATES = [
    "setting", "method", "coverage", "false_better", "false_worse", "false_either", "low", "high", "compatible",
    "trials",
]  # fmt: skip
BETTER = rule_from(
    {
        "claims": [
            {"name": "better", "kind": "better", "arm": "one", "rival": "other"},
            {"name": "worse", "kind": "worse", "arm": "one", "rival": "other"},
        ],
        "confirms": ["better"],
        "refutes": ["worse"],
    }
)
ANY = rule_from(
    {"claims": [{"name": n, "kind": "better", "arm": n, "rival": "other"} for n in ("one", "two", "three")]}
)


# --- counting ---------------------------------------------------------------------------------------------------


class Count:
    """How often an interval held the truth, and how often the verdict rule claimed a side without cause."""

    def __init__(self, setting: str, method: str) -> None:
        self.setting, self.method = setting, method
        self.covered = self.better = self.worse = self.trials = 0

    def compare(self, one: Floats, other: Floats, truth: float = 0.0) -> None:
        """Two arms `[L, N, S]` through the rule; a claim counts as false where it says the wrong side of `truth`."""
        found = judged({"one": one - truth, "other": other})[0]
        self.add(found.low <= 0 <= found.high, found.holds, found.low > 0)

    def add(self, covered: bool, better: bool, worse: bool = False) -> None:
        self.covered += bool(covered)
        self.better += bool(better)
        self.worse += bool(worse)
        self.trials += 1

    def row(self, lines: int, sides: int = 2) -> dict[str, object]:
        from scipy.stats import binomtest

        either, aim = self.better + self.worse, 0.025 * sides
        found = binomtest(either, self.trials).proportion_ci(1 - 0.05 / lines)
        low, high = float(found.low), float(found.high)
        rates = {
            "coverage": self.covered, "false_better": self.better, "false_worse": self.worse, "false_either": either,
            }  # fmt: skip
        verdict = "yes" if low <= aim <= high else "below: conservative" if high < aim else "ABOVE"
        shown = {name: f"{value / self.trials:.4f}" for name, value in rates.items()}
        about = {"low": f"{low:.4f}", "high": f"{high:.4f}", "compatible": verdict, "trials": self.trials}
        return {"setting": self.setting, "method": self.method, **shown, **about}


def judged(losses: dict[str, Floats], rule: Any = BETTER) -> tuple[Finding, ...]:
    """The findings of the rule on arms of losses `[L, N, S]`."""
    arms = {}
    for name, loss in losses.items():
        domains = tuple(f"d{n}" for n in range(loss.shape[1]))
        arms[name] = Arm(name, tuple(range(len(loss))), domains, {"away": loss})
    return evaluate(rule, arms, "away").findings


def rates(counts: Sequence[Count]) -> list[dict[str, object]]:
    """Rows of a table of counts, whose binomial intervals hold together."""
    return [count.row(len(counts)) for count in counts]


# --- an arm against its clone, simulated ------------------------------------------------------------------------

# Standard deviations: of a search seed, of search x domain, of an inner seed, and of method x domain: two methods that
# are equal on average over domains and on no single one.
MODELS = {
    "clone": (1.0, 1.0, 1.0, 0.0),
    "clone, searches hardly differ": (0.1, 1.0, 1.0, 0.0),
    "clone, searches differ most": (1.0, 0.1, 0.3, 0.0),
    "clone, inner seeds only": (0.0, 0.0, 1.0, 0.0),
    "equal on average, domains differ most": (0.1, 0.3, 0.3, 1.0),
    "equal on average": (0.7, 1.0, 1.0, 1.0),
}
DESIGNS = ((5, 8), (10, 8), (10, 16))
INNER = 5


def draw(rng: np.random.Generator, model: str, searches: int, domains: int, heavy: bool = False) -> Floats:
    """Losses `[L, N, S]` of one arm, but for what a domain does to every arm alike."""
    search, cell, inner, method = MODELS[model]
    luck = rng.standard_t(3, (searches, 1, 1)) if heavy else rng.normal(size=(searches, 1, 1))
    loss = search * luck + cell * rng.normal(size=(searches, domains, 1))
    loss = loss + method / np.sqrt(2) * rng.normal(size=(1, domains, 1))
    return loss + inner * rng.normal(size=(searches, domains, INNER))


def simulated(rng: np.random.Generator, trials: int) -> list[dict[str, object]]:
    """`compare_arms` and the verdict's "better" where two arms are equal."""
    settings = [(f"{L} x {N}, {model}", model, L, N, False) for L, N in DESIGNS for model in MODELS]
    settings += [(f"{L} x {N}, clone, heavy tails (t, 3 df)", "clone", L, N, True) for L, N in ((5, 8), (10, 16))]
    settings += [(f"10 x 1, {model}", model, 10, 1, False) for model in ("clone", "clone, searches differ most")]
    counts = []
    for setting, model, searches, domains, heavy in settings:
        count = Count(setting, "better / worse")
        for _ in range(trials):
            count.compare(draw(rng, model, searches, domains, heavy), draw(rng, model, searches, domains, heavy))
        counts.append(count)
    # One search seed can only speak of its champion: two champions of one method do differ.
    misread = Count("1 x 8, clone", "over domains, misread as method against method")
    for _ in range(trials):
        misread.compare(draw(rng, "clone", 1, 8), draw(rng, "clone", 1, 8))
    family = Count("10 x 8, three clones against one rival", "any of three better, Holm; coverage of all three")
    for _ in range(trials):
        arms = {name: draw(rng, "clone", 10, 8) for name in ("one", "two", "three", "other")}
        found = judged(arms, ANY)
        family.add(all(f.low <= 0 <= f.high for f in found), any(f.holds_adjusted for f in found))
    rows = rates([*counts, misread, family])
    rows[-1] = family.row(len(rows), sides=1)
    return rows


# --- the same with losses of real champions ---------------------------------------------------------------------


def resampled(rng: np.random.Generator, trials: int, searches: int, runs: Path) -> Iterator[Any]:
    """Rates over resamples of real sealed losses; then the losses themselves."""
    groups = {group: champions(group, searches, runs) for group in ("n-gram", "n-gram-home", "network")}
    tables = {group: opened(paths) for group, paths in groups.items()}
    losses = {group: found.arms["champions"].losses["away"] for group, found in tables.items()}
    half, counts = searches // 2, []
    for group in ("n-gram", "network"):
        cells = losses[group]
        for k in (5, half):
            apart = Count(f"{group}: {k} x 8, two halves of {2 * k} clones", "better / worse")
            for _ in range(trials):
                chosen = rng.permutation(searches)[: 2 * k]
                apart.compare(cells[chosen[:k]], cells[chosen[k:]])
            counts.append(apart)
        for k, n in DESIGNS:
            again = Count(f"{group}: {k} x {n}, clones and languages drawn with replacement", "better / worse")
            for _ in range(trials):
                names = rng.integers(0, cells.shape[1], n)
                pick = [cells[rng.integers(0, searches, k)][:, names] for _ in range(2)]
                again.compare(*pick)
            counts.append(again)
    # A difference that is there: searched on away words against searched on home words, the same search seeds.
    away, home = losses["n-gram"], losses["n-gram-home"]
    truth = float((away - home).mean())
    for k, n, replace in ((5, 8, True), (10, 8, True), (10, 16, True), (5, 5, False)):
        how = "with replacement" if replace else "without: too wide for 8 languages in all"
        count = Count(f"n-gram: {k} x {n}, away - home = {truth:+.4f}, drawn {how}", "better / worse than the truth")
        for _ in range(trials):
            rows = rng.choice(searches, k, replace=replace)
            names = rng.choice(away.shape[1], n, replace=replace)
            count.compare(away[rows][:, names], home[rows][:, names], truth)
        counts.append(count)
    counts += words_resampled(rng, trials, *word_losses(groups["n-gram"]))
    yield rates(counts)
    yield [
        {"group": group, "search_seed": seed, "language": language, "inner_seeds": cells.shape[2],
         "loss": f"{cells[seed, n].mean():.5f}", "sd_inner": f"{cells[seed, n].std(ddof=1):.5f}"}
        for group, cells in losses.items() for seed in range(searches)
        for n, language in enumerate(tables[group].domains)
    ]  # fmt: skip


def words_resampled(rng: np.random.Generator, trials: int, nats: Floats, characters: Floats) -> Iterator[Count]:
    """Clones judged on samples of words: the same words for both arms, or each on its own."""
    searches, languages, words = nats.shape

    def sample(rows: Any, times: Floats) -> Floats:
        """Losses `[L, N, 1]` where word w of language n counts `times[n, w]` times."""
        total = np.einsum("lnw,nw->ln", nats[rows], times)
        return (total / (characters * times).sum(axis=1))[:, :, None]

    def bootstrap() -> Floats:
        return rng.multinomial(words, np.full(words, 1 / words), size=languages).astype(float)

    for k in (5, searches // 2):
        for shared in (True, False):
            which = "the same words" if shared else "each its own words"
            count = Count(f"n-gram: {k} x 8, two halves of {2 * k} clones, {which}", "better / worse")
            for _ in range(trials):
                chosen, times = rng.permutation(searches)[: 2 * k], bootstrap()
                count.compare(sample(chosen[:k], times), sample(chosen[k:], times if shared else bootstrap()))
            yield count
    itself = Count("n-gram: 1 x 8, one champion on two halves of the words", "better / worse, over domains")
    for _ in range(trials):
        rows = [int(rng.integers(searches))]
        order = np.argsort(rng.random((languages, words)), axis=1)
        first = (order < words // 2).astype(float)
        itself.compare(sample(rows, first), sample(rows, 1.0 - first))
    yield itself


# --- the page ---------------------------------------------------------------------------------------------------


def page(name: str, results: Path) -> list[str]:
    """A table of docs/trust.md, from the committed figures."""
    with (results / f"calibration-{name}.csv").open() as file:
        table = list(csv.DictReader(file))
    if name in ("simulated", "resampled"):
        lines = ["| setting | coverage | claims a side | compatible with 5 % |", "| --- | ---: | ---: | --- |"]
        for row in table:
            aim = "2.5 %: " if "Holm" in row["method"] else ""
            what = row["setting"] + (", misread (see below)" if "misread" in row["method"] else "")
            rates = f"{float(row['coverage']):.3f} | {float(row['false_either']):.3f}"
            lines.append(f"| {what} | {rates} | {aim}{row['compatible']} |")
        return lines
    lines = ["| setting | what | mean and 95 % interval | claim | holds |", "| --- | --- | --- | --- | --- |"]
    for row in table:
        claim = f"{row['claim']}, margin {row['margin']} {row['unit']}"
        interval = f"{row['mean']} [{row['low']}, {row['high']}]"
        lines.append(
            f"| {row['setting']}, {row['runs']} runs | {row['what']} | {interval} | {claim} | {row['holds']} |"
        )
    return lines


# --- all of it --------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    sections = ("simulated", "resampled", "promises", "noise")
    parser.add_argument("section", nargs="*", choices=[*sections, "page", []], help="default: all but page")
    parser.add_argument("--trials", type=int, default=4000, help="comparisons a line")
    parser.add_argument("--quick", action="store_true", help="100 comparisons a line, 10 runs a group")
    parser.add_argument("--runs", type=Path, help="keep the runs here, and go on with those that are there")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    trials, searches = (100, 10) if arguments.quick else (arguments.trials, 30)
    use_host_devices(1)
    keep_compilations()
    with tempfile.TemporaryDirectory() as made, mock.patch("evometa.verdict.detectable", lambda *_, **__: float("nan")):
        # What a design could find decides no claim, and takes longer than all the rest.
        runs: Path = arguments.runs or Path(made)
        sources: dict[str, Callable[[], None]] = {
            "simulated": lambda: save("simulated", RATES, simulated(np.random.default_rng([SEED, 0]), trials)),
            "resampled": lambda: save_resampled(trials, min(searches, 20), runs),
            "promises": lambda: save("promises", KEPT, list(promises(searches, runs))),
            "noise": lambda: save("noise", KEPT, list(noise(searches, runs))),
            "page": lambda: show(),
        }

        def save(name: str, fields: list[str], rows: list[dict[str, object]]) -> None:
            write(arguments.out / f"calibration-{name}.csv", fields, rows)

        def save_resampled(trials: int, searches: int, runs: Path) -> None:
            table, losses = resampled(np.random.default_rng([SEED, 1]), trials, searches, runs)
            save("resampled", RATES, table)
            save_table(arguments.out / "calibration-losses.csv", losses)  # too long to print

        def show() -> None:
            print("\n\n".join("\n".join(page(name, arguments.out)) for name in sections))

        for name in arguments.section or sections:
            started = time.perf_counter()
            sources[name]()
            print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
