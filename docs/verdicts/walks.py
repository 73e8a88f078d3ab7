"""Is a search that is told permuted scores the same as one told random numbers? Added after the verdict on counts.

    python docs/verdicts/walks.py            # about 3 minutes; writes docs/verdicts/results/walks.csv
    python docs/verdicts/walks.py --quick --out walks.csv

CMA-ES from the baseline of the ladder's n-gram learner, 24 generations of 16, as in studies/ngram.toml, for 1,500
search seeds: once told permuted scores (`placebo`), once random numbers (`walk`), with the keys and functions of a real
run. The scores that are permuted are made up (a weighted squared distance from the baseline), so a search costs
milliseconds; its ranks are as random as those of real ones. Then five finalists as a real run draws them, and one of
them chosen by permuted validation scores. What they lose is measured on the validation languages (ar he ta), advanced
words.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.tables import save
from evometa.keys import Stream, stream_key
from evometa.loop import misled
from evometa.session import prepare
from evometa.spec import build
from evometa.types import Scores

GENERATIONS, POPULATION, OBSERVED = 24, 16, 4
SPEC = {
    "task": "ladder",
    "task_options": {"learner": "ngram"},
    "strategy": "cma_es",
    "population": POPULATION,
    "generations": GENERATIONS,
    "plan": {"chunk": 4},
}


def finalists(strategy: Any, prior: Any, placebo: bool | str, seed: Any) -> tuple[Any, Any]:
    """Of one search: what it recommends and four candidates drawn at random `[5, D]`, and their permutation `[5]`."""
    start = strategy.recommend(prior)
    weights = jnp.arange(1, start.size + 1)
    root = jax.random.fold_in(jax.random.key(seed), 0)

    def generation(state: Any, number: Any) -> tuple[Any, Any]:
        genomes, _, state = strategy.ask(stream_key(root, number, Stream.ASK), state)
        loss = (weights * (genomes - start) ** 2).sum(axis=1)[:, None]
        empty = jnp.zeros((POPULATION, 0)), jnp.zeros(POPULATION, jnp.int8)
        told = misled(
            stream_key(root, number, Stream.PLACEBO), Scores(loss, jnp.isfinite(loss), loss, *empty, {}), placebo
        )
        return strategy.tell(stream_key(root, number, Stream.TELL), state, genomes, told), genomes

    state, genomes = jax.lax.scan(generation, prior, jnp.arange(GENERATIONS))
    luck = stream_key(root, GENERATIONS, Stream.PLACEBO)
    low, high = jnp.zeros((1, 2), int), jnp.array([[GENERATIONS, POPULATION]])
    drawn = jax.random.randint(jax.random.fold_in(luck, 1), (4 * OBSERVED, 2), low, high)[:OBSERVED]
    chosen = [strategy.recommend(state)[None], genomes[drawn[:, 0], drawn[:, 1]]]
    return jnp.concatenate(chosen), jax.random.permutation(luck, OBSERVED + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20 search seeds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "walks.csv")
    arguments = parser.parse_args()
    seeds = 20 if arguments.quick else 1500
    session = prepare(build(SPEC))
    space, prior = session.task.space, session.initial_state()

    def losses(genomes: np.ndarray) -> np.ndarray:
        parts = np.array_split(genomes.astype(np.float32), max(1, len(genomes) // 500))
        judged = [session.validation().judge(part, 1, 0, Stream.VALIDATE, 0).losses("away") for part in parts]
        return np.concatenate([one.mean(axis=(1, 2)) for one in judged])

    baseline = losses(space.encode(session.task.baseline)[None])[0]
    found: dict[str, dict[str, np.ndarray]] = {}
    for arm, placebo in (("placebo", True), ("walk", "noise")):
        search = jax.jit(lambda q, p=placebo: jax.lax.map(lambda s: finalists(session.strategy, prior, p, s), q))
        genomes, order = map(np.asarray, search(jnp.arange(seeds, dtype=jnp.uint32)))
        lost = losses(genomes.reshape(-1, space.dimension)).reshape(seeds, -1) - baseline
        told = np.take_along_axis(lost, order, axis=1).argmin(axis=1)
        found[arm] = {
            "recommendation": lost[:, 0],
            "finalists": lost.mean(axis=1),
            "champion": lost[np.arange(seeds), told],
        }
    rows = []
    for what in found["walk"]:
        gap = found["placebo"][what] - found["walk"][what]
        half = 1.96 * float(gap.std(ddof=1)) / seeds**0.5
        means = {arm: float(one[what].mean()) for arm, one in found.items()}
        mean = float(gap.mean())
        rows.append(
            {"what": what, "search_seeds": seeds, **means, "difference": mean, "low": mean - half, "high": mean + half}
        )
    save(arguments.out, rows)
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
