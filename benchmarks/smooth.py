"""What stepping stones cost where none are needed, for docs/open-ended.md: parent rules on a smooth problem.

    python benchmarks/smooth.py

The problem is the exam's rotated quadratic (evometa/testing_bench.py), all kinds of columns, 640 evaluations in 40
generations. Writes benchmarks/results/smooth.csv: per strategy the loss of what it recommends, as median, lowest and
highest of the seeds; of `random_search` the luckiest sample.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.finished import RESULTS
from benchmarks.tables import save
from evometa.strategies.catalogue import COLUMNS

POPULATION, GENERATIONS = 16, 40
RULES = ("best-only", "dgm", "clade", "shinka", "novelty", "uniform")


def searched(name: str, options: dict[str, Any], seeds: int) -> list[float]:
    """The loss of what a strategy recommends, per seed."""
    from evometa.strategies.genetic import genetic
    from evometa.strategies.open_ended import open_ended
    from evometa.testing_bench import Bench, losses, space_for

    space = space_for(COLUMNS)
    strategy = {"genetic": genetic, "open_ended": open_ended}[name](space, population=POPULATION, **options)
    bench, found = Bench(strategy, space, spread=False), []
    for seed in range(seeds):
        problem = bench.world(seed)
        state, _ = bench.advance(bench.start(seed), problem, GENERATIONS, seed=seed)
        genome = np.asarray(strategy.recommend(state))[None]
        found.append(float(np.asarray(losses(space, problem, genome))[0, 0]))
    return found


def rows(seeds: int) -> Iterator[dict[str, Any]]:
    """One row per strategy."""
    from evometa.testing import _random_quality
    from evometa.testing_bench import space_for

    arms = {f"open_ended, {rule}": searched("open_ended", {"parents": rule}, seeds) for rule in RULES}
    arms["open_ended, dgm, fixed rates"] = searched("open_ended", {"parents": "dgm", "self_modification": False}, seeds)
    arms["genetic"] = searched("genetic", {}, seeds)
    arms["random_search"] = list(_random_quality(space_for(COLUMNS), POPULATION, GENERATIONS, seeds, 1))
    for name, found in arms.items():
        middle = float(np.median(found))
        yield {"strategy": name, "seeds": seeds, "median": middle, "low": min(found), "high": max(found)}


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    save(arguments.out / "smooth.csv", list(rows(arguments.seeds)))


if __name__ == "__main__":
    main()
