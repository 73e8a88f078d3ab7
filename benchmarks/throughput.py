"""Candidates per second of a recorded run against a bare search that records nothing.

The task is `digits`, the strategy CMA-ES, the cores are those of this machine. The peer is what a
researcher writes by hand with evosax: ask, vmapped inner training, tell in one `lax.scan`, nothing kept.
Each measurement is a process of its own (JAX chooses its devices once), the two take turns, and compile
time is left out on both sides: the peer's scan runs once before it is timed, the run's first block is not
counted. `recording` is what the archive costs: the same blocks with and without being written.

    python benchmarks/throughput.py            # about 5 minutes; writes benchmarks/results/throughput.csv
    python benchmarks/throughput.py --only 64  # one population; the other rows stay as they are
    python benchmarks/throughput.py --quick    # a smoke test of the script itself
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results" / "throughput.csv"


def measure_run(population: int, generations: int) -> dict[str, float]:
    from evometa.machine import use_host_devices

    use_host_devices()
    import jax
    import numpy as np

    from evometa import api
    from evometa.driver import Unwatched
    from evometa.session import prepare
    from evometa.spec import build

    class Clock(Unwatched):
        def __init__(self) -> None:
            self.marks: list[tuple[int, float]] = []

        def block(self, block: Any, state: Any, seconds: float) -> None:
            self.marks.append((block.first + block.generations, time.monotonic()))

    spec = build({"task": "digits", "strategy": "cma_es", "population": population, "generations": generations})
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        api.begin(spec, Path(folder), watch=clock)
    (first, began), (last, ended) = clock.marks[0], clock.marks[-1]
    recorded = (last - first) / (ended - began)
    # The same blocks, in the same process, without a disk.
    session = prepare(spec)
    state, _ = session.loop.advance(session.initial_state(), 0, session.plan.block)
    generation, began = session.plan.block, time.monotonic()
    while generation < generations:
        count = min(session.plan.block, generations - generation)
        state, block = session.loop.advance(state, generation, count)
        generation += count
    bare = (generations - session.plan.block) / (time.monotonic() - began)
    assert np.isfinite(block.scores.fitness).any()
    return {
        "rate": recorded * population,
        "unrecorded": bare * population,
        "generation_ms": 1e3 / recorded,
        "devices": len(jax.devices()),
        "chunk": session.plan.chunk,
        "block": session.plan.block,
        "fitness": float(np.nanmin(block.scores.fitness)),
    }


def measure_peer(population: int, generations: int) -> dict[str, float]:
    import jax
    import jax.numpy as jnp
    from evosax.algorithms import CMA_ES

    from evometa.evaluate.data import load
    from evometa.names import load_task

    task = load_task("digits")
    loaded = load(task, task.split.train)
    support = jax.tree.map(lambda *x: jnp.stack(x), *[d.support for d in loaded])
    query = jax.tree.map(lambda *x: jnp.stack(x), *[d.queries["away"] for d in loaded])
    home = jax.tree.map(lambda *x: jnp.stack(x), *[d.queries["home"] for d in loaded])
    strategy = CMA_ES(population_size=population, solution=jnp.zeros(task.space.dimension))
    params = strategy.default_params.replace(std_init=0.2)

    def loss(genome: Any, key: Any, support: Any, away: Any, home: Any) -> Any:
        learned = task.fit(key, task.space.decode(genome), support)
        # The run judges both queries; so does its peer, or it would do less work.
        other = task.judge(key, learned, home)["loss"]
        return task.judge(key, learned, away)["loss"] + 0.0 * other

    over_domains = jax.vmap(loss, (None, 0, 0, 0, 0))
    over_population = jax.vmap(over_domains, (0, None, None, None, None))

    @jax.jit
    def search(state: Any, key: Any) -> Any:
        def generation(state: Any, key: Any) -> Any:
            ask, tell, luck = jax.random.split(key, 3)
            genomes, state = strategy.ask(ask, state, params)
            keys = jax.random.split(luck, len(loaded))
            fitness = over_population(jnp.clip(genomes, 0, 1), keys, support, query, home).mean(axis=1)
            fitness = jnp.where(jnp.isfinite(fitness), fitness, 1e9)
            state, _ = strategy.tell(tell, genomes, fitness, state, params)
            return state, fitness.min()

        return jax.lax.scan(generation, state, jax.random.split(key, generations))

    state = strategy.init(jax.random.key(0), jnp.full(task.space.dimension, 0.5), params)
    jax.block_until_ready(search(state, jax.random.key(1)))
    began = time.monotonic()
    _, best = jax.block_until_ready(search(state, jax.random.key(1)))
    seconds = time.monotonic() - began
    return {"rate": population * generations / seconds, "fitness": float(best[-1])}


def in_process(who: str, population: int, generations: int) -> dict[str, float]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, "--measure", who, str(population), str(generations)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", type=int, choices=(64, 256))
    parser.add_argument("--measure", nargs=3)
    arguments = parser.parse_args()
    if arguments.measure:
        who, population, generations = arguments.measure
        measure = {"run": measure_run, "peer": measure_peer}[who]
        print(json.dumps(measure(int(population), int(generations))))
        return
    sizes = [(8, 12)] if arguments.quick else [(64, 96), (256, 32)]
    rounds = 1 if arguments.quick else 3
    rows: list[dict[str, Any]] = []
    if arguments.only:
        sizes = [size for size in sizes if size[0] == arguments.only]
        with arguments.out.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["population"]) != arguments.only]
    for population, generations in sizes:
        pairs = []
        for _ in range(rounds):
            peer = in_process("peer", population, generations)
            pairs.append((in_process("run", population, generations), peer))
            print(f"population {population}: run {pairs[-1][0]}  peer {peer}", flush=True)
        ratios = sorted(run["rate"] / peer["rate"] for run, peer in pairs)
        costs = [run["unrecorded"] / run["rate"] - 1 for run, _ in pairs]
        rows.append(
            {
                "population": population,
                "run_candidates_per_second": round(median(run["rate"] for run, _ in pairs)),
                "peer_candidates_per_second": round(median(peer["rate"] for _, peer in pairs)),
                "ratio": round(median(ratios), 2),
                "ratio_low": round(ratios[0], 2),
                "ratio_high": round(ratios[-1], 2),
                "generation_ms": round(median(run["generation_ms"] for run, _ in pairs), 1),
                "recording_cost": round(median(costs), 4),
                "devices": pairs[0][0]["devices"],
                "chunk": pairs[0][0]["chunk"],
                "block": pairs[0][0]["block"],
                "rounds": rounds,
            }
        )
    rows.sort(key=lambda row: int(row["population"]))
    arguments.out.parent.mkdir(exist_ok=True)
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
