"""What a Ray cluster costs, how it grows, and when a generation is too long a wait for a thousand workers.

Measured: several Ray nodes on this machine (`ray.cluster_utils`), one worker each. `overhead`: milliseconds per task of
tasks that do nothing, bare Ray against evometa's engine (one candidate in a task, then packed as the dispatcher packs
them); the two take turns in one process, so read the ratio. `efficiency`: the share of the time that workers spend in
tasks of 0.1 s (which sleep: nodes share this machine's cores), for both.

Simulated: a discrete-event model of 1,000 workers with stragglers (log-normal durations) and workers that are lost,
and a driver that hands out one task after the other. `barrier` is what evometa does: a generation is told when its
last candidate is home. `told_at_95`: without its slowest 5 %, which are stopped. `asynchronous`: a new candidate
whenever one is home. Each is the share of the workers' time that went into results that count.

    python benchmarks/scale.py             # about 2 minutes; writes benchmarks/results/scale*.csv
    python benchmarks/scale.py --quick     # a smoke test of the script itself
    python benchmarks/scale.py --simulate  # the simulation alone
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from tables import save

RESULTS = Path(__file__).parent / "results"
NODES = Path(__file__).parent.parent / "tests" / "ray_cluster.py"
NAP = 0.1

# --- measured ------------------------------------------------------------------------------------


class Naps:
    """What the workers of the measurement do: sleep for as long as their work says."""

    def answer(self, head: Mapping[str, Any], body: bytes, say: Any) -> None:
        for place in range(len(head["covers"])):
            say.begin(place)
            time.sleep(head["work"]["nap"])
            say.done(place, {"failure": 0, "message": ""})


def build(order: Mapping[str, Any]) -> Naps:
    return Naps()


class Units:
    """`count` candidates for the dispatcher."""

    def __init__(self, count: int, nap: float, most: int | None) -> None:
        self.units, self.nap, self.most = [(index, "", 0) for index in range(count)], nap, most
        self.word = secrets.token_hex(8)

    def group(self, unit: Any) -> None:
        return None

    def pack(self, units: Sequence[Any], fresh: bool) -> Any:
        from evometa.backends.dispatch import Limits, work

        return work(self.word, units, {"nap": self.nap}, b"", Limits(), fresh)

    def failed(self, unit: Any, failure: Any, message: str) -> Any:
        raise SystemExit(f"{unit} failed: {message}")


def timed(warm: Callable[[], Any], what: Callable[[], Any]) -> float:
    """Seconds of the second. The first comes before: Ray ends idle workers while the other side has its turn."""
    warm()
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def measure(nodes: int, tasks: int, naps: int, rounds: int) -> dict[str, Any]:
    """One driver on a cluster of so many nodes; RAY_ADDRESS names it."""
    from evometa.backends.dispatch import Dispatcher
    from evometa.backends.ray import RayEngine

    engine = RayEngine({"builder": "scale:build", "plan": {"platform": "cpu"}}, note=lambda text: None)
    import ray

    @ray.remote(max_retries=0, num_cpus=1)
    def bare(nap: float) -> int:
        time.sleep(nap)
        return 0

    dispatcher = Dispatcher(engine)

    def ours(count: int, nap: float, most: int | None) -> Callable[[], Any]:
        return lambda: dispatcher.gather(Units(count, nap, most))

    def theirs(count: int, nap: float) -> Callable[[], Any]:
        return lambda: ray.get([bare.remote(nap) for _ in range(count)])

    their_warm, our_warm = theirs(4 * nodes, NAP), ours(4 * nodes, NAP, 1)
    found: dict[str, list[float]] = {name: [] for name in ("bare", "one", "packed", "bare_naps", "naps")}
    for _ in range(rounds):
        found["bare"].append(1e3 * timed(their_warm, theirs(tasks, 0.0)) / tasks)
        found["one"].append(1e3 * timed(our_warm, ours(tasks, 0.0, 1)) / tasks)
        found["packed"].append(1e3 * timed(our_warm, ours(tasks, 0.0, None)) / tasks)
        found["bare_naps"].append(naps * NAP / timed(their_warm, theirs(naps * nodes, NAP)))
        found["naps"].append(naps * NAP / timed(our_warm, ours(naps * nodes, NAP, 1)))
    engine.close()
    return {
        "nodes": nodes,
        "bare_ms": median(found["bare"]),
        "task_ms": median(found["one"]),
        "ratio": median(one / bare for one, bare in zip(found["one"], found["bare"], strict=True)),
        "packed_ms": median(found["packed"]),
        "bare_efficiency": median(found["bare_naps"]),
        "efficiency": median(found["naps"]),
        "rounds": rounds,
    }


def on_cluster(nodes: int, tasks: int, naps: int, rounds: int) -> dict[str, Any]:
    environment = {
        **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    command = [sys.executable, str(NODES), *["1"] * nodes]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as cluster:
        assert cluster.stdin is not None and cluster.stdout is not None
        environment["RAY_ADDRESS"] = cluster.stdout.readline().strip()
        command = [sys.executable, __file__, "--measure", *map(str, (nodes, tasks, naps, rounds))]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        cluster.stdin.close()
        cluster.wait()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# --- simulated -----------------------------------------------------------------------------------

WORKERS = 1000
HAND_OUT = 0.002  # seconds of the driver per task; see `task_ms`
RESTART = 5.0  # seconds until a lost worker is replaced


def simulate(
    generations: int, population: int, workers: int, seconds: float, sigma: float, lost: float, told: float, seed: int
) -> float:
    """Share of the workers' time that went into results that count.

    Durations are log-normal with this median and sigma. A try fails with probability `lost`, at any moment of it; the
    third one holds. A generation ends when the share `told` of its candidates is home; 0: there are none, a free
    worker gets a new candidate at once.
    """
    draw = np.random.default_rng(seed)
    driver, useful, began = 0.0, 0.0, 0.0
    count = generations * population
    durations = draw.lognormal(np.log(seconds), sigma, count)
    fails = draw.random((count, 2)) < lost
    parts = draw.random((count, 2))
    free = [0.0] * workers
    finished: list[tuple[float, float]] = []
    for generation in range(generations):
        finished = finished if told == 0 else []
        for task in range(generation * population, (generation + 1) * population):
            driver = max(driver, began, free[0]) + HAND_OUT
            end = driver
            for fail, part in zip(fails[task], parts[task], strict=True):
                if not fail:
                    break
                end += part * durations[task] + RESTART
            end += durations[task]
            heapq.heapreplace(free, end)
            finished.append((end, durations[task]))
        if told:
            finished.sort()
            finished = finished[: max(1, round(told * population))]
            began = finished[-1][0]
            useful += sum(duration for _, duration in finished)
            free = [min(end, began) for end in free]  # what is not waited for is stopped
            heapq.heapify(free)
    if told:
        return float(useful / (workers * began))
    # As long as every worker has something to do: what comes after is the end of the simulation, not of a search.
    until = free[0]
    return float(sum(duration for end, duration in finished if end <= until) / (workers * until))


def simulated(workers: int, seeds: int) -> list[dict[str, Any]]:
    rows = []
    for per_worker, seconds, sigma, lost in product((1, 4, 16), (1.0, 60.0), (0.1, 0.5, 1.0, 1.5), (0.0, 0.02)):
        population = per_worker * workers
        generations = max(2, 16 // per_worker)

        def share(told: float, parameters: Any = (generations, population, workers, seconds, sigma, lost)) -> float:
            return mean(simulate(*parameters, told, seed) for seed in range(seeds))

        row = {"workers": workers, "per_worker": per_worker, "seconds": seconds, "sigma": sigma, "lost": lost}
        row |= {"barrier": share(1.0), "told_at_95": share(0.95), "asynchronous": share(0.0)}
        rows.append({**row, "gain": row["asynchronous"] / row["barrier"]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure", nargs=4, type=int)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    rows = simulated(50 if arguments.quick else WORKERS, 1 if arguments.quick else 3)
    save(arguments.out / "scale-simulated.csv", rows, digits=3)
    for row in rows:
        print({name: round(value, 3) for name, value in row.items()})
    if arguments.simulate:
        return
    sizes = (40, 5, 1) if arguments.quick else (500, 40, 3)
    rows = [on_cluster(nodes, *sizes) for nodes in (1, 2)]
    save(arguments.out / "scale.csv", rows, digits=3)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
