"""What levels cost: seconds to compile, and time per lower generation beside the same trainings in a plain run.

CMA-ES over CMA-ES over SGD (`digits`, small) and over the test functions (whose inner training is next to nothing: what
is left is what a level costs), one device. `trace_seconds` (Python) and `compile_seconds` (XLA) are those of a fresh
process; `compile_ratio` is to K = 1 of the same task. `lower_ms`: an outer generation's time / its lower generations,
one being 8 candidates of one innermost search; `plain_ms`: as many trainings in a plain run of the same process, its
own CMA-ES included. Processor time, not wall time: other programs on the machine disturb it less.

    python benchmarks/nesting.py          # about 8 minutes of one core; writes benchmarks/results/nesting.csv
    python benchmarks/nesting.py --quick  # K = 1 and 2 of the functions
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.tables import save

RESULTS = Path(__file__).parent / "results" / "nesting.csv"
POPULATION, GENERATIONS = 8, {2: 32, 3: 4}  # of the levels below the top
BLOCK = 32  # generations of the plain run that are timed together
TASKS: dict[str, dict[str, Any]] = {
    "digits": {"steps": 20, "hidden": 8, "support": 128, "query": 64},
    "functions": {"dimension": 10, "instances": 1},
}


def _session(task: str, levels: int) -> Any:
    from evometa.session import prepare
    from evometa.spec import build

    nest = {"population": POPULATION, "generations": GENERATIONS.get(levels, 1)}
    spec = {"task": task, "task_options": TASKS[task], "levels": levels, "population": POPULATION, "nest": nest}
    return prepare(build({**spec, "plan": {"devices": 1, "block": BLOCK if levels == 1 else 1}}))


def _generation(session: Any, repeats: int) -> float:
    """Processor seconds of one top generation: the least of `repeats` blocks, after one to warm up."""
    block = session.plan.block
    state, _ = session.loop.advance(session.initial_state(), 0, block)
    times = []
    for number in range(1, repeats + 1):
        began = time.process_time()
        state, _ = session.loop.advance(state, number * block, block)
        times.append(time.process_time() - began)
    return min(times) / block


def measure(task: str, levels: int) -> dict[str, float]:
    from evometa.machine import use_host_devices

    use_host_devices(1)
    import jax
    import jax.numpy as jnp

    plain = _session(task, 1)
    # As many trainings in one plain generation as there are train domains.
    unit = _generation(plain, 10) / (POPULATION * len(plain.train))
    session = _session(task, levels)
    key = jax.random.key_data(jax.random.key(0))
    began = time.process_time()
    lowered = session.loop._run.lower(session.initial_state(), jnp.int32(0), jnp.int32(1), key, session.loop._data)
    traced = time.process_time()
    lowered.compile()
    compiled = time.process_time()
    found = {"trace_seconds": traced - began, "compile_seconds": compiled - traced}
    if levels == 1:
        return found
    worlds, queries = len(session.train), len(session.task.query_names)
    lower, trainings = _counts(session, levels, queries)
    searches = POPULATION * worlds * lower
    seconds = _generation(session, 5 if levels == 2 else 2)
    same = unit * POPULATION * worlds * trainings
    return {**found, "lower_ms": 1e3 * seconds / searches, "plain_ms": 1e3 * same / searches, "ratio": seconds / same}


def _counts(session: Any, levels: int, queries: int) -> tuple[float, float]:
    """Innermost generations and inner trainings of one top candidate in one world."""
    length = GENERATIONS[levels]
    support = [len(session.task.domains[0].tags["support"].split(","))]
    if levels == 2:
        return length, length * POPULATION * support[0] + queries
    from evometa.nest import search_of

    below = search_of(session.task).task
    leaves = len(below.domains[0].tags["support"].split(","))
    # A level-2 search, and what it recommends judged on one world; the top judges each query by another whole search.
    innermost, trained = length, length * POPULATION * leaves + 1
    searches = length * POPULATION * support[0] + queries
    return searches * innermost, searches * trained


def in_process(task: str, levels: int) -> dict[str, float]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": ""}
    command = [sys.executable, __file__, "--measure", task, str(levels)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description="What levels cost to compile and to run.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure", nargs=2)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], int(arguments.measure[1]))))
        return
    rows = []
    for task, levels in [("functions", 1), ("functions", 2)] if arguments.quick else _all():
        found = in_process(task, levels)
        first = next((row for row in rows if row["task"] == task), found)
        ratio = found["compile_seconds"] / first["compile_seconds"]
        rows.append({"task": task, "levels": levels, **found, "compile_ratio": ratio})
        print(rows[-1], flush=True)
    fields = ["task", "levels", "trace_seconds", "compile_seconds", "compile_ratio", "lower_ms", "plain_ms", "ratio"]
    save(arguments.out, rows, fields, digits=3)
    print(arguments.out.read_text())


def _all() -> list[tuple[str, int]]:
    return [(task, levels) for levels in (1, 2, 3) for task in TASKS]


if __name__ == "__main__":
    main()
