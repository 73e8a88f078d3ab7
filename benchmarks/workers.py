"""What a worker process costs per candidate: a 10 ms plain-Python task here, in evometa's workers, and in pebble's.

Every measurement scores the same candidates, one unit each. `inline`: the same loop in this process. `processes`: the
whole way of a run's generation (works, limits, a durable line per finished unit in the journal). `pebble`: its
ProcessPool alone, a function and a timeout, nothing recorded. The three take turns; workers are warm. With W workers
the ideal is 10 ms / W per candidate; `overhead` is what comes on top of it.

    python benchmarks/workers.py            # about 2 minutes; writes benchmarks/results/workers.csv
    python benchmarks/workers.py --quick    # a smoke test of the script itself
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        import os

        os.chdir(folder)
        Path("nap.py").write_text(TASK)
        rows = []
        for workers in (1, 2):
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
    if not quick:
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
