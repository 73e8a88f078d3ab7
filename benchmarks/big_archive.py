"""Ten million candidates on disk: how fast are the best found, and where one came from? About half an hour.

    python benchmarks/big_archive.py [--rows 10000000] [--out benchmarks/results] [--keep]
    python benchmarks/big_archive.py --questions RUN

The second asks the questions alone, of an archive that the first made and kept: big_archive-questions.csv,
medians of seven fresh processes each.
big_archive.csv has one line per measure. The archive has the schema and the files of a real run (blocks of four
generations of 256 candidates, 16 numbers, 6 cells), written without fsync. Candidates 0 to 31 of a generation have one
parent among those of the generation before and are the only ones that breed, so a line goes back to the root in one
candidate per generation; where crossover breeds, an ancestry has about ten per generation (see archive.csv). Reading is
measured in a fresh process for every line marked `cold` (the files are in the page cache, nothing is imported or opened
before but the library), `warm` is the second question to the same `Archive`. `memory` is the peak resident memory of
the process that did it. `load` is the mean number of processes that wanted a processor during the last minute.
"""

from __future__ import annotations

import argparse
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
from archive import POPULATION, SPACE, as_block, make_cells

from benchmarks.tables import save
from evometa.archives import compact, schema, write
from evometa.archives.check import check
from evometa.archives.read import Archive, list_parts
from evometa.archives.rows import lineage_table
from evometa.types import Block

QUESTIONS = ("top 10", "one row", "line to the root", "ancestors of a crossover", "one node per generation")
ROUNDS = 7
GENERATIONS, CELLS, PARENTS = 4, 6, 32  # of a block; of a candidate; of a generation


def make_block(first: int) -> Block:
    draw = np.random.default_rng([first, 7])
    shape = (GENERATIONS, POPULATION)
    loss = draw.random((*shape, CELLS), np.float32)
    links = np.full((*shape, 2, 2), -1, np.int32)
    links[..., 0] = np.arange(first, first + GENERATIONS)[:, None, None] - 1
    links[..., 1] = draw.integers(0, PARENTS, (*shape, 2))
    links[:, :PARENTS, 1:] = -1
    if first == 0:
        links[0] = -1
    return as_block(first, loss, links, draw)


def grow(run: Path, rows: int) -> None:
    """The parts that a run of so many candidates leaves, without fsync."""
    folder = run / "lineage"
    folder.mkdir(parents=True)
    cells = make_cells(CELLS)
    for first in range(0, -(-rows // POPULATION), GENERATIONS):
        table = lineage_table("x", make_block(first), cells, SPACE, ("initial", "mutation", "crossover"), 3)
        data = write.encode(table)
        digest = write.hashlib.sha256(data).hexdigest()[:16]
        (folder / f"part-{first:09d}-{digest}.parquet").write_bytes(data)


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    clock, processor = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - clock, time.process_time() - processor, result


def measure(run: Path, what: str) -> list[tuple[str, float, str]]:
    """One question, cold and warm, of this fresh process."""
    last, archive = Archive(run).generations() - 1, Archive(run)  # what the first one knows is forgotten
    questions: dict[str, Callable[[], Any]] = {
        "top 10": lambda: archive.top(10),
        "one row": lambda: archive.row(last // 2, 7),
        "line to the root": lambda: archive.ancestry(last, 0),
        "ancestors of a crossover": lambda: archive.ancestry(last, 200),
        "one node per generation": lambda: archive.ancestry(last, 0, by_generation=True),
    }
    once: dict[str, Callable[[], Any]] = {
        "compact": lambda: compact.compact(run),
        "check of every byte and reference": lambda: check(run),
    }
    found = []
    for temperature in ("cold", "warm") if what in questions else ("",):
        name = f"{what}, {temperature}".rstrip(", ")
        clock, processor, result = timed({**questions, **once}[what])
        found += [(name, clock, "s"), (f"{name}: processor", processor, "s")]
        if isinstance(result, dict) and "nodes" in result and temperature == "cold":
            found.append((f"{what}: nodes", len(result["nodes"]), "count"))
    found.append((f"{what}: memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MB"))
    return found


def fresh(run: Path, what: str) -> list[tuple[str, float, str]]:
    command = [sys.executable, __file__, "--ask", what, "--run", str(run)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [tuple(line) for line in json.loads(done.stdout)]


def middle(rounds: list[list[tuple[str, float, str]]]) -> list[tuple[str, float, str]]:
    """The median of every line."""
    return [
        (line[0][0], float(np.median([value for _, value, _ in line])), line[0][2])
        for line in zip(*rounds, strict=True)
    ]


def main() -> None:
    """Measure, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where to build it (5 GB); by default among temporary files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--keep", action="store_true", help="leave the archive there, and say where")
    parser.add_argument("--questions", type=Path, metavar="RUN", help="ask a compacted archive again")
    parser.add_argument("--ask", help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask:
        print(json.dumps(measure(arguments.run, arguments.ask)))
        return
    if arguments.questions:
        rows = Archive(arguments.questions).generations() * POPULATION
        lines = [
            line for what in QUESTIONS for line in middle([fresh(arguments.questions, what) for _ in range(ROUNDS)])
        ]
        lines += [("load", os.getloadavg()[0], "processes"), ("processors", os.cpu_count() or 1, "count")]
        _save(arguments.out / "big_archive-questions.csv", rows, lines)
        return
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="evometa-big-", dir=arguments.folder))
    found: list[tuple[str, float, str]] = []

    def note(lines: list[tuple[str, float, str]]) -> None:
        for label, value, unit in lines:
            print(f"{label:60} {value:14.4g} {unit}", flush=True)
        found.extend(lines)

    try:
        run = folder / "x"
        write.write_once(run / "run.json", json.dumps({"schema_digest": schema.digest()}).encode())
        grow(run, arguments.rows)
        os.sync()
        note([("parts before", len(list_parts(run / "lineage")), "count"), ("before: size", _size(run), "MB")])
        note([(f"before: {label}", value, unit) for label, value, unit in fresh(run, "top 10")])
        note(fresh(run, "compact"))
        compact.clear(run, 0.0)
        note([("parts after", len(list_parts(run / "lineage")), "count"), ("after: size", _size(run), "MB")])
        for what in QUESTIONS:
            note(fresh(run, what))
        note(fresh(run, "check of every byte and reference"))
        note([("load", os.getloadavg()[0], "processes"), ("processors", os.cpu_count() or 1, "count")])
    finally:
        if arguments.keep:
            print(f"kept: {folder / 'x'}")
        else:
            shutil.rmtree(folder)
    _save(arguments.out / "big_archive.csv", arguments.rows, found)


def _save(path: Path, rows: int, found: list[tuple[str, float, str]]) -> None:
    lines = [
        {"measure": label, "rows_there": rows, "value": int(value) if unit == "count" else float(value), "unit": unit}
        for label, value, unit in found
    ]
    save(path, lines)


def _size(run: Path) -> float:
    return sum(part.path.stat().st_size for part in list_parts(run / "lineage")) / 1e6


if __name__ == "__main__":
    main()
