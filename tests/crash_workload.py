"""A small run that goes on wherever it was stopped, and a process that can be stopped anywhere.

As a script it is the process: it imports what commits and checkpoints need, then forks one child for
every line `run FOLDER` (or `merge FOLDER`, `mend FOLDER`) on standard input. The child waits for the line
`go` (so that strace can attach), runs, and its wait status is printed.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from archive_samples import make_block, make_cells, make_table

from evometa import checkpoint
from evometa.archives import compact, events, repair, rows, schema, write
from evometa.errors import StorageError

BLOCKS = 3


def advance(run: Path, ack, blocks: int = BLOCKS) -> None:
    """Run until `blocks` blocks are stored; `ack` is called with each thing once it is durable."""
    write.write_once(run / "run.json", json.dumps({"format": "1.0", "schema_digest": schema.digest()}).encode())
    found = checkpoint.load(run, {"mean": np.zeros(8)}, spec_digest="s")
    first, state = found[:2] if found else (0, {"mean": np.zeros(8)})
    events.append(run, "resumed" if first else "started", generation=first, generations=blocks)
    for generation in range(first, blocks):
        table = make_table(make_block(generation))
        part = write.commit(run / "lineage", table, generation)
        ack(f"part {part.name}")
        genomes = rows.block_from_table(table, make_cells(6), 8, 1).genomes
        state = {"mean": state["mean"] + genomes.sum(axis=(0, 1))}
        path = checkpoint.save(run, generation + 1, state, {"spec_digest": "s", "last_part": part.name})
        ack(f"checkpoint {path.stem}")


def merge(run: Path, ack, rows: int = 16) -> None:
    """Compact the run: two blocks a file, and the rest."""
    done = compact.compact(run, rows=rows)
    ack(f"compacted {done.files}")
    compact.clear(run, 0.0)


def mend(run: Path, ack) -> None:
    """Repair the run."""
    done = repair.repair(run)
    ack(f"repaired {len(done.lost)}")


def tree(run: Path) -> dict[str, bytes]:
    """Every file of a run by name, but for the staging area and the events (they have times)."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and ".staging" not in path.parts and path.name != "events.jsonl"
    }


WORK = {"run": advance, "merge": merge, "mend": mend}


def _child(verb: str, run: Path, acks: int, ready: int, gate: int) -> None:
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER: strace may attach
    os.write(ready, b".")
    os.read(gate, 1)
    try:
        WORK[verb](run, lambda text: os.write(acks, text.encode() + b"\n"))
    except StorageError as error:
        os.write(acks, f"StorageError {error}\n".encode())
        os._exit(74)
    except BaseException as error:
        os.write(acks, f"{type(error).__name__} {error}\n".encode())
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Serve until standard input ends."""
    with tempfile.TemporaryDirectory() as folder:
        for work in (advance, merge, mend):  # so that no import happens in a child
            work(Path(folder) / "warm", lambda text: None)
    print("ready", flush=True)
    for line in sys.stdin:
        verb, name = line.split(maxsplit=1)
        run = Path(name.strip())
        gate, opener = os.pipe()
        waiting, ready = os.pipe()
        # Opened here: strace, which may attach at any moment, is to count the calls of the run alone.
        acks = os.open(f"{run}.acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        pid = os.fork()
        if pid == 0:
            os.close(opener)
            _child(verb, run, acks, ready, gate)
        for descriptor in (acks, gate, ready):
            os.close(descriptor)
        os.read(waiting, 1)
        os.close(waiting)
        print(pid, flush=True)
        sys.stdin.readline()  # go
        os.write(opener, b".")
        os.close(opener)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
