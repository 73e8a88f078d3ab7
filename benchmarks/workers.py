"""What a worker process costs per candidate: a 10 ms plain-Python task here, in evometa's workers, and in pebble's.

Every measurement scores the same candidates, one unit each. `inline`: the same loop in this process. `processes`: the
whole way of a run's generation (works, limits, a durable line per finished unit in the journal). `pebble`: its
ProcessPool alone, a function and a timeout, nothing recorded. The three take turns; workers are warm. With W workers
the ideal is 10 ms / W per candidate; `overhead` is what comes on top of it.

Then what a limit is worth: candidates that sleep, that spin with all signals blocked, that print without end, that take
memory without end, each under limits in a worker process. Seconds are from the moment that a limit was passed, as the
candidate itself wrote it down (of output and memory a little before), to the journal's line that says how it ended.

    python benchmarks/workers.py            # about 3 minutes; writes benchmarks/results/workers.csv and limits.csv
    python benchmarks/workers.py --quick    # a smoke test of the script itself
    python benchmarks/workers.py --limits   # limits.csv alone
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))

RESULTS = Path(__file__).parent / "results" / "workers.csv"
TASK = '''"""Ten milliseconds of sleep."""
import time
import evometa

@evometa.objective(space={"x": evometa.real(0, 1)}, runs="python", name="nap", baseline={"x": 0.5})
def task(key, candidate):
    time.sleep(0.01)
    return candidate["x"]
'''
LIMITS = {"seconds": 4.0, "memory_mb": 600, "output_mb": 1}
WILD = f'''"""Candidates that pass a limit and go on; the moment is written down."""
import signal
import time
from pathlib import Path
import evometa

def passed(x, seconds=0.0):
    Path(f"passed-{{x!r}}").write_text(repr(time.monotonic() + seconds))

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

@evometa.objective(space={{"x": evometa.real(0, 1)}}, runs="python", name="wild", baseline={{"x": 0.5}})
def task(key, candidate):
    x, held, told = candidate["x"], [], False
    mode = int(4 * x)
    if mode < 2:
        passed(x, {LIMITS["seconds"]})
    if mode == 0:
        time.sleep(987)
    if mode == 1:
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        while True:
            pass
    while True:
        if mode == 2:
            held.append(1023)
            print("." * 1023)
            over = 1024 * len(held) > 0.9 * {LIMITS["output_mb"] * 1e6}
        else:
            held += [b"." * (1 << 24)] if len(held) < 100 else []
            over = resident() > 0.97 * {LIMITS["memory_mb"]}
        if over and not told:
            told = True
            passed(x)
'''


WORDS = ("sleeps", "spins, signals blocked", "prints", "takes memory")


def nap(x: float) -> float:
    time.sleep(0.01)
    return x


def measure(workers: int, candidates: int, rounds: int) -> dict[str, float]:
    """Milliseconds per candidate of each, the median of the rounds."""
    import numpy as np
    from pebble import ProcessPool

    from evometa.archives.cells import CellJournal
    from evometa.keys import Stream, stream_key
    from evometa.session import prepare
    from evometa.spec import build

    given = {"task": "nap.py", "strategy": "random_search", "population": candidates}
    here = prepare(build({**given, "backend": "inline"}))
    there = prepare(build({**given, "backend": "processes", "workers": workers, "limits": {"seconds": 60}}))
    journal = CellJournal(Path("cells"))
    there.keep_in(journal)
    genomes = np.random.default_rng(0).uniform(size=(candidates, 1)).astype(np.float32)
    found: dict[str, list[float]] = {"inline": [], "processes": [], "pebble": []}
    with ProcessPool(max_workers=workers, context=multiprocessing.get_context("spawn")) as pool:

        def pebble(_: int) -> None:
            for future in [pool.schedule(nap, args=(float(x),), timeout=60) for x in genomes[:, 0]]:
                future.result()

        def cells(session):
            return lambda number: session.backend.host(number, stream_key(0, number, Stream.EVALUATE), genomes)

        ways = {"inline": cells(here), "processes": cells(there), "pebble": pebble}
        for number in range(rounds + 1):
            for name, way in ways.items():
                began = time.monotonic()
                way(number)
                if number:  # the first round starts the workers
                    found[name].append(1000 * (time.monotonic() - began) / candidates)
            journal.clear()
    there.close()
    return {name: median(values) for name, values in found.items()}


class Watched:
    """A journal that says when which candidate ended, and how."""

    def __init__(self) -> None:
        self.ended: dict[int, tuple[float, int]] = {}

    def get(self, generation: int, unit):
        """Nothing is known from before."""

    def put(self, generation: int, unit, outcome) -> None:
        """A unit ended."""
        self.put_all(generation, {unit: outcome})

    def put_all(self, generation: int, outcomes) -> None:
        """Some units ended: the lines are durable before the time is taken."""
        self.journal.put_all(generation, outcomes)
        self.ended |= {unit[0]: (time.monotonic(), outcome["failure"]) for unit, outcome in outcomes.items()}


def measure_limits(each: int) -> list[dict[str, object]]:
    """Seconds from a limit to the recorded end, of `each` candidates of every kind."""
    import numpy as np

    from evometa.archives.cells import CellJournal
    from evometa.keys import Stream, stream_key
    from evometa.session import prepare
    from evometa.spec import build
    from evometa.types import Failure

    Path("wild.py").write_text(WILD)
    count = each * len(WORDS)
    given = {"task": "wild.py", "strategy": "random_search", "population": count, "backend": "processes", "workers": 2}
    session = prepare(build({**given, "limits": LIMITS}))
    watched = Watched()
    watched.journal = CellJournal(Path("ends"))
    session.keep_in(watched)
    x = (np.arange(count) + 0.4) / count  # times count, and rounded: its number
    errors, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # what candidates print
    try:
        session.backend.host(0, stream_key(0, 0, Stream.EVALUATE), x[:, None].astype(np.float32))
    finally:
        session.close()
        os.dup2(errors, 2)
    passed = {round(float(path.name[7:]) * count): float(path.read_text()) for path in Path().glob("passed-*")}
    found: dict[str, list[float]] = {word: [] for word in WORDS}
    ends: dict[str, set[str]] = {word: set() for word in WORDS}
    for at, word in enumerate(np.repeat(WORDS, each)):
        if at in passed:  # else it was stopped before it came to its limit, on a busy machine
            found[word].append(watched.ended[at][0] - passed[at])
        ends[word].add(Failure(watched.ended[at][1]).name.lower())
    return [
        {
            "candidate": word, "candidates": len(found[word]), "recorded_as": " ".join(sorted(ends[word])),
            "median_seconds": round(median(found[word]), 3), "worst_seconds": round(max(found[word]), 3),
        }
        for word in WORDS
    ]  # fmt: skip


def write(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--limits", action="store_true")
    arguments = parser.parse_args()
    quick = arguments.quick
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("nap.py").write_text(TASK)
        rows = []
        for workers in () if arguments.limits else (1, 2):
            took = measure(workers, 8 if quick else 400, 1 if quick else 5)
            ideal = 10.0 / workers
            rows.append(
                {
                    "workers": workers,
                    **{f"{name}_ms": round(value, 3) for name, value in took.items()},
                    "processes_overhead_ms": round(took["processes"] - ideal, 3),
                    "pebble_overhead_ms": round(took["pebble"] - ideal, 3),
                    "processes_to_pebble": round(took["processes"] / took["pebble"], 3),
                    "processes_to_inline": round(took["processes"] / took["inline"], 3),
                }
            )
            print(rows[-1])
        limits = measure_limits(1 if quick else 8)
        print(*limits, sep="\n")
    if not quick:
        write(RESULTS.with_name("limits.csv"), limits)
        if rows:
            write(RESULTS, rows)


if __name__ == "__main__":
    main()
