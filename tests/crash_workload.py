"""A small run that goes on wherever it was stopped, and a process that can be stopped anywhere.

As a script it is the process: it imports what commits and checkpoints need, then forks one child for
every line `run FOLDER` (or `merge`, `mend`, `fetch FOLDER`) on standard input. The child waits for the line
`go` (so that strace can attach), runs, and its wait status is printed.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from archive_samples import make_block, make_cells, make_table

from evometa import checkpoint, upkeep
from evometa.archives import compact, events, ledger, place, pull, repair, rows, schema, store, write
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


class Objects:
    """A store without a network: what a folder holds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bucket = folder, "bucket"

    def list(self, prefix: str, most: int | None = None) -> list[store.Entry]:
        paths = sorted(path for path in (self.folder / prefix).rglob("*") if path.is_file())
        return [store.Entry(str(path.relative_to(self.folder)), path.stat().st_size, _tag(path)) for path in paths]

    def has(self, key: str) -> bool:
        return (self.folder / key).is_file()

    def get(self, key: str, most: int = 0) -> tuple[bytes, str]:
        if not self.has(key):
            raise store.Gone(key)
        return (self.folder / key).read_bytes(), _tag(self.folder / key)

    def stream(self, key: str):
        data, tag = self.get(key)
        return iter([data]), tag


def _tag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Serial:
    """A pool of threads without threads: calls are counted in the order of the code."""

    def __init__(self, workers: int) -> None:
        self.map = map

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass


def bucket(folder: Path, blocks: int = 1) -> None:
    """A run and its ledger as objects of a store, in `folder`/objects."""
    run = folder / "objects/runs/x"
    run.mkdir(parents=True)
    advance(run, lambda text: None, blocks)
    ledger.append(run.parent, {"data_digest": "d"})
    for path in folder.rglob(".staging"):
        path.rmdir()


def fetch(folder: Path, ack) -> None:
    """Pull the run of `bucket(folder)` to `folder`/home/x, over an empty cache."""
    with (
        mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(folder / "cache")}),
        mock.patch.object(place, "Store", lambda name: Objects(folder / "objects")),
        mock.patch.object(pull, "ThreadPoolExecutor", Serial),
        mock.patch.dict(place._stores, clear=True),
        mock.patch.dict(pull._known, clear=True),
        mock.patch.dict(pull._lines, clear=True),
    ):
        done = upkeep.pull("s3://bucket/runs/x", folder / "home/x")
    ack(f"pulled {done['files']}")


def tree(run: Path) -> dict[str, bytes]:
    """Every file of a run by name, but for the staging area and the events (they have times)."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and ".staging" not in path.parts and path.name != "events.jsonl"
    }


WORK = {"run": advance, "merge": merge, "mend": mend, "fetch": fetch}


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
        bucket(Path(folder))
        fetch(Path(folder), lambda text: None)
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
