"""What does it cost to keep everything, and how fast is it found again? About two minutes.

    python benchmarks/archive.py [--quick] [--out benchmarks/results]

archive.csv has one line per measure. A commit is 256 candidates (16 numbers, 18 cells, two parents)
made durable as one part, with an empty archive, with 10^3 and with 10^6 rows there already. `raw` is
the same bytes written to a new file and fsynced, nothing else, taken in turn with the commits: the
ratio is what hashes, names and folder fsyncs cost. Reading is measured on the part files as a run
leaves them, nothing compacted, in a fresh process: `cold` includes reading and verifying every byte
(the files are in the page cache), `warm` is the second question to the same `Archive`. `processor` is
the time that the process itself took, which other work on the machine lengthens less than the clock's.
`load` is the mean number of processes that wanted a processor during the last minute.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from evometa.archives import schema, write
from evometa.archives.check import check
from evometa.archives.query import content_digest, query
from evometa.archives.read import Archive, list_parts
from evometa.archives.rows import lineage_table
from evometa.space import Space, categorical, log, real, weights
from evometa.types import Block, Cell, Scores

SPACE = Space(
    {
        "lr": log(1e-4, 1.0),
        "momentum": real(0.0, 0.99),
        "act": categorical(["relu", "tanh", "gelu"]),
        "w": weights((13,)),
    }
)
POPULATION = 256


def make_cells(count: int) -> list[Cell]:
    return [Cell(f"world-{i // 3}", "away", "train", i % 3) for i in range(count)]


def make_block(generation: int, population: int = POPULATION, cells: int = 18, parents: int = 2) -> Block:
    """A generation as a genetic search leaves it: bred from 32 of the one before, a fifth with two parents."""
    draw = np.random.default_rng([generation, population])
    shape = (1, population)
    loss = draw.random((*shape, cells), np.float32)
    links = np.full((*shape, parents, 2), -1, np.int32)
    if generation:
        links[..., 0] = generation - 1
        links[..., 1] = draw.integers(0, 32, (*shape, parents))
        links[draw.random(shape) < 0.8, 1:] = -1
    return as_block(generation, loss, links, draw)


def as_block(first: int, loss: np.ndarray, links: np.ndarray, draw: np.random.Generator) -> Block:
    """Generations of random genomes with these losses `[G, P, C]` and parents `[G, P, K, 2]`."""
    shape = loss.shape[:2]
    scores = Scores(
        loss=loss,
        evaluated=np.ones(loss.shape, bool),
        fitness=loss.mean(-1, keepdims=True),
        descriptor=np.zeros((*shape, 0), np.float32),
        failure=np.zeros(shape, np.int8),
        metrics={"support_loss": loss / 2, "inner_steps": np.full(loss.shape, 100, np.int32)},
    )
    return Block(first, draw.standard_normal((*shape, SPACE.dimension)).astype(np.float32), links, scores, {})


def make_table(generation: int, **options: int) -> Any:
    block = make_block(generation, **options)
    cells = make_cells(block.scores.loss.shape[-1])
    return lineage_table("x", block, cells, SPACE, ("initial", "mutation", "crossover"), 3)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def raw(folder: Path, data: bytes, number: int) -> None:
    """Write and fsync, the least that durable can mean."""
    descriptor = os.open(folder / f"raw-{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.write(descriptor, data)
    os.fsync(descriptor)
    os.close(descriptor)


def measure_building() -> list[tuple[str, int, float, str]]:
    found = []
    for population, cells, parents in ((32, 4, 2), (256, 18, 2), (256, 18, 16)):
        block, names = make_block(1, population, cells, parents), make_cells(cells)
        times = [
            timed(lambda b=block, n=names: lineage_table("x", b, n, SPACE, ("a", "b", "c"), 3))[0] for _ in range(40)
        ]
        label = f"rows of one generation ({population} candidates, {cells} cells, {parents} parents)"
        found.append((label, 0, float(np.median(times) * 1e3), "ms"))
    return found


def measure_commits(run: Path, there: int, count: int) -> list[tuple[str, int, float, str]]:
    """Commit times with `there` rows on disk; leaves the new parts there."""
    first = len(list_parts(run / "lineage"))
    scratch = run.parent / "raw"
    scratch.mkdir(exist_ok=True)
    commits, raws, builds = [], [], []
    for generation in range(first, first + count):
        seconds, table = timed(lambda g=generation: make_table(g))
        builds.append(seconds)
        seconds, path = timed(lambda t=table, g=generation: write.commit(run / "lineage", t, g))
        commits.append(seconds)
        data = path.read_bytes()
        raws.append(timed(lambda d=data, g=generation: raw(scratch, d, g))[0])
    shutil.rmtree(scratch)
    milli = {name: np.percentile(np.array(times) * 1e3, [50, 99]) for name, times in (("c", commits), ("r", raws))}
    return [
        ("commit of 256 candidates, p50", there, milli["c"][0], "ms"),
        ("commit of 256 candidates, p99", there, milli["c"][1], "ms"),
        ("raw write and fsync of the same bytes, p50", there, milli["r"][0], "ms"),
        ("raw write and fsync of the same bytes, p99", there, milli["r"][1], "ms"),
        ("commit / raw, p50", there, milli["c"][0] / milli["r"][0], "ratio"),
        ("durable candidates per second", there, POPULATION / np.mean(commits), "1/s"),
    ]


def grow(run: Path, rows: int) -> None:
    """Fill an archive up to `rows`, without fsync (nothing is measured here)."""
    folder = run / "lineage"
    folder.mkdir(parents=True, exist_ok=True)
    for generation in range(len(list_parts(folder)), rows // POPULATION):
        data = write.encode(make_table(generation))
        digest = write.hashlib.sha256(data).hexdigest()[:16]
        (folder / f"part-{generation:09d}-{digest}.parquet").write_bytes(data)


def measure_reading(run: Path) -> list[tuple[str, int, float, str]]:
    """Times of a fresh process over the run's parts."""
    archive = Archive(run)
    there = POPULATION * len(archive.parts())
    last = archive.generations() - 1
    found = []

    def note(label: str, work: Callable[[], Any]) -> Any:
        processor = time.process_time()
        seconds, result = timed(work)
        found.append((label, there, seconds, "s"))
        found.append((f"{label}: processor", there, time.process_time() - processor, "s"))
        return result

    note("top 10, cold", lambda: archive.top(10))
    note("top 10, warm", lambda: archive.top(10))
    note("one row", lambda: archive.row(last // 2, 7))
    graph = note("all ancestors, cold", lambda: archive.ancestry(last, 0))
    note("all ancestors, warm", lambda: archive.ancestry(last, 0))
    found.append(("all ancestors: how many", there, len(graph["nodes"]), "count"))
    found.append(("all ancestors: generations back", there, last - graph["nodes"][-1]["generation"], "count"))
    note("ancestors 10 generations back, warm", lambda: archive.ancestry(last, 0, depth=10))
    found.append(("memory of the reading process, peak", there, _peak(), "MB"))
    note(
        "SQL: mean fitness per generation",
        lambda: query(run, "SELECT generation, avg(fitness) FROM lineage GROUP BY 1"),
    )
    note("SQL: params.lr of the best 10", lambda: query(run, "SELECT params.lr FROM lineage ORDER BY fitness LIMIT 10"))
    note("check of every byte and reference", lambda: check(run))
    note("content digest", lambda: content_digest(run))
    return found


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10^4 rows instead of 10^6, and few commits")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(measure_reading(arguments.read)))
        return
    steps, count = ((1_000, 10_000), 8) if arguments.quick else ((1_000, 1_000_000), 200)
    folder = Path(tempfile.mkdtemp(prefix="evometa-archive-"))
    try:
        run = folder / "x"
        write.write_once(run / "run.json", json.dumps({"schema_digest": schema.digest()}).encode())
        found = measure_building() + measure_commits(run, 0, count)
        for rows in steps:
            shutil.rmtree(run / "lineage")
            grow(run, rows)
            os.sync()
            found += measure_commits(run, rows, count)
        size = sum(part.path.stat().st_size for part in list_parts(run / "lineage"))
        found.append(("bytes per row", steps[-1], size / (POPULATION * len(list_parts(run / "lineage"))), "B"))
        fresh = subprocess.run(
            [sys.executable, __file__, "--read", str(run)], capture_output=True, text=True, check=True
        )
        found += json.loads(fresh.stdout)
        found.append(("load", steps[-1], os.getloadavg()[0], "processes"))
        found.append(("processors", steps[-1], os.cpu_count() or 1, "count"))
    finally:
        shutil.rmtree(folder)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with open(arguments.out / "archive.csv", "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["measure", "rows_there", "value", "unit"])
        for label, there, value, unit in found:
            table.writerow([label, there, f"{value:.4g}" if unit != "count" else value, unit])
            print(f"{label:75} {there:>9,} {value:12.4g} {unit}")


if __name__ == "__main__":
    main()
