"""Damaged and forged runs, and a process that reads them: `python fuzzing.py BASE SCRATCH FIRST COUNT`.

`python fuzzing.py soak COUNT` makes a run and reads as many cases, in two processes that are started again after a
crash.

Case n is a function of n alone; every fourth is of the same runs compacted. Damage is blind (bits, bytes, whole files),
or a forgery whose every hash is right, for whoever makes an archive can compute hashes. The process has a memory limit
and prints a line for each case that ends in anything but success or an `EvometaError`; before a case it prints its
number, so that a crash has a name.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
from helpers import cli, write_tasks
from hostile import forge, forge_diary

from evometa import champion, checkpoint, compare, folder
from evometa.archives import compact, events, index, ledger, sealed
from evometa.archives import export as lineages
from evometa.archives.check import check
from evometa.archives.query import content_digest, query
from evometa.archives.read import Archive
from evometa.errors import EvometaError
from evometa.export.rule import export
from evometa.reports import changes, genealogy, tables, watch

MEMORY = 3 << 30  # bytes of address space, of which a child that has only imported takes about half
READINGS = 6  # of each case; which ones is chance
SECONDS = 20.0  # for all readings of one case
ENDS = {"read": 0, "refused": 0}  # of this process
JUNK: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, -(2**70), 10**400, 1e308, -0.0, float("nan"), float("inf"), "", "x", "0"),
    *("\x00", "../../x", "\ud800", "x" * 10_000, [], {}, [[]], [None], {"": None}, [1] * 5000, {"name": "x"}),
)


class Late(BaseException):
    """A case took too long."""


# --- damage --------------------------------------------------------------------------------------------------


def damage(run: Path, number: int) -> str:
    """Damage a run in the way of that number; returns what was done."""
    draw = random.Random(number)
    ways = (flip, flip, cut, zero, swap, forge_record, forge_record, forge_events, forge_checkpoint, forge_arrays)
    ways += (forge_bytes, forge_bytes, forge_footer, forge_column, forge_column, forge_column, bomb, deep, forge_ledger)
    ways += (forge_index, forge_index) if (run / index.FOLDER).is_dir() else ()
    way = draw.choice(ways)
    return f"{way.__name__}: {way(run, draw)}"


def _file(run: Path, draw: random.Random, pattern: str = "*") -> Path:
    return draw.choice(sorted(path for path in run.rglob(pattern) if path.is_file() and path.stat().st_size))


def flip(run: Path, draw: random.Random) -> str:
    """Single bits."""
    path = _file(run, draw)
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 1, 3, 50))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    return path.name


def cut(run: Path, draw: random.Random) -> str:
    """The end of a file is missing, or too long."""
    path = _file(run, draw)
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))] if draw.random() < 0.7 else data + draw.randbytes(40))
    return path.name


def zero(run: Path, draw: random.Random) -> str:
    """A stretch of zeros or noise."""
    path = _file(run, draw)
    data = path.read_bytes()
    start = draw.randrange(len(data))
    stretch = bytes(64) if draw.random() < 0.5 else draw.randbytes(64)
    path.write_bytes((data[:start] + stretch + data[start + 64 :])[: len(data)])
    return path.name


def swap(run: Path, draw: random.Random) -> str:
    """Two files change places, or one is in the place of another."""
    one, two = _file(run, draw), _file(run, draw)
    first, second = one.read_bytes(), two.read_bytes()
    two.write_bytes(first)
    if draw.random() < 0.5:
        one.write_bytes(second)
    return f"{one.name} {two.name}"


def mutate(value: Any, draw: random.Random) -> Any:
    """The JSON value with one place changed: other types, missing and new keys, absurd numbers."""
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        node = waiting.pop()
        pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in pairs:
            places.append((node, key))
            waiting.append(child)
    if not places:
        return draw.choice(JUNK)
    node, key = draw.choice(places)
    if draw.random() < 0.2 and isinstance(node, dict):
        del node[key]
    else:
        node[key] = draw.choice(JUNK)
    return value


def forge_record(run: Path, draw: random.Random) -> str:
    """run.json holds something else."""
    forge(run, lambda record: mutate(record, draw))
    return ""


def forge_events(run: Path, draw: random.Random) -> str:
    """The diary says something else."""
    at = draw.randrange(len(events.read_lines(run / "events.jsonl")))
    forge_diary(run, lambda entry: mutate(dict(entry), draw) if entry.get("seq") == at else entry)
    return str(at)


def forge_ledger(run: Path, draw: random.Random) -> str:
    """The ledger beside the run says something else."""
    path = run.parent / ledger.FILE
    entry = {k: v for k, v in json.loads(path.read_text().splitlines()[0]).items() if k not in ("hash", "prev", "seq")}
    path.unlink()
    with_junk = mutate(entry, draw)
    if isinstance(with_junk, dict):
        ledger.append(run.parent, with_junk)
    return ""


def forge_checkpoint(run: Path, draw: random.Random) -> str:
    """A checkpoint's description is another."""
    path = _file(run / "checkpoints", draw, "*.json")
    record = mutate(sealed.unseal(path.read_bytes(), path), draw)
    path.write_bytes(sealed.seal(record if isinstance(record, dict) else {}))
    return path.name


def forge_arrays(run: Path, draw: random.Random) -> str:
    """The arrays of a checkpoint: headers that claim anything, under the right name."""
    path = _file(run / "checkpoints", draw, "*.safetensors")
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = data[8 : 8 + size]
    way = draw.randrange(4)
    if way == 0:
        data = struct.pack("<Q", draw.choice((2**63, 2**40, 100_000_000, 0, size + 1))) + data[8:]
    elif way == 1:
        changed = json.dumps(mutate(json.loads(header), draw)).encode()
        data = struct.pack("<Q", len(changed)) + changed + data[8 + size :]
    elif way == 2:
        big = json.dumps({"a": {"dtype": "F64", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}).encode()
        data = struct.pack("<Q", len(big)) + big
    else:
        data = data[: draw.randrange(len(data))]
    _rename(path, data)
    return path.name


def _rename(path: Path, data: bytes) -> None:
    digest = hashlib.sha256(data).hexdigest()
    record = sealed.unseal(path.with_suffix(".json").read_bytes(), path)
    stem = f"{path.stem[:-16]}{digest[:16]}"
    path.with_suffix(".json").unlink()
    path.unlink()
    path.with_name(f"{stem}.safetensors").write_bytes(data)
    path.with_name(f"{stem}.json").write_bytes(sealed.seal({**record, "sha256": digest}))


def forge_index(run: Path, draw: random.Random) -> str:
    """What an index says of its part, with a right seal; or the arrays behind it."""
    path = _file(run / index.FOLDER, draw)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    text, arrays = data[8 : 8 + size], bytearray(data[8 + size :])
    if draw.random() < 0.7 or not arrays:
        record = mutate(sealed.unseal(text, path), draw)
        text = sealed.seal(record if isinstance(record, dict) else {})
    else:
        arrays[draw.randrange(len(arrays))] ^= 1 << draw.randrange(8)
        del arrays[draw.choice((len(arrays), draw.randrange(len(arrays)))) :]
    path.write_bytes(len(text).to_bytes(8, "little") + text + arrays)
    return path.name


def _part(run: Path, draw: random.Random) -> Path:
    return _file(run, draw, "part-*.parquet")


def _put(path: Path, data: bytes) -> None:
    path.unlink()
    path.with_name(f"{path.name[:15]}{hashlib.sha256(data).hexdigest()[:16]}.parquet").write_bytes(data)


def forge_bytes(run: Path, draw: random.Random) -> str:
    """Bytes of a part, under the name that they have now."""
    path = _part(run, draw)
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 2, 20))):
        data[draw.randrange(len(data))] = draw.randrange(256)
    _put(path, bytes(data))
    return path.name


def forge_footer(run: Path, draw: random.Random) -> str:
    """The header of a part (at its end, in thrift): lengths, counts and types are anything."""
    path = _part(run, draw)
    data = bytearray(path.read_bytes())
    length = struct.unpack("<I", data[-8:-4])[0]
    if draw.random() < 0.2:
        data[-8:-4] = struct.pack("<I", draw.choice((0, 2**31, 2**32 - 1, len(data), length * 2)) & 0xFFFFFFFF)
    else:
        for _ in range(draw.choice((1, 1, 2, 5))):
            at = len(data) - 8 - draw.randrange(length) - 1
            data[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
    _put(path, bytes(data))
    return path.name


def forge_column(run: Path, draw: random.Random) -> str:
    """A column of other values, of another type, of nulls, twice or not at all; or no rows."""
    path = _part(run, draw)
    table = pq.read_table(path)
    at = draw.randrange(table.num_columns)
    name, n = table.column_names[at], len(table)
    odd = [
        pa.array([draw.choice(("x", "", "\x1b[2J", None)) for _ in range(n)], pa.string()),
        pa.array([draw.choice((-(2**31), 2**31 - 1, -1, 0, None)) for _ in range(n)], pa.int32()),
        pa.array([draw.choice((2**62, -1, None)) for _ in range(n)], pa.int64()),
        pa.array([draw.choice((float("nan"), float("inf"), 0.0, None)) for _ in range(n)], pa.float64()),
        pa.array([[float(i)] * (i % 3) for i in range(n)], pa.list_(pa.field("element", pa.float32()))),
        pa.array([None] * n, table.schema.field(at).type),
        pa.array([b"\xff\xfe"] * n, pa.binary()),
        table[name].combine_chunks().take(pa.array([draw.randrange(n) for _ in range(n)])),
    ]
    kind = draw.randrange(len(odd) + 3)
    if kind < len(odd):
        made = odd[kind]
        with contextlib.suppress(pa.ArrowException, OSError):
            # Of the declared type where that goes: then only the values are odd.
            made = made.cast(table.schema.field(at).type) if draw.random() < 0.7 else made
        table = table.set_column(at, name, made)
    elif kind == len(odd):
        table = table.drop_columns([name])
    elif kind == len(odd) + 1:
        table = table.append_column(draw.choice((name, "later")), table[name])
    else:
        table = table.slice(0, draw.choice((0, 1, n - 1)))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True, compression="zstd")
    _put(path, sink.getvalue().to_pybytes())
    return f"{name} {kind}"


def bomb(run: Path, draw: random.Random) -> str:
    """A small file of very many rows."""
    path = _part(run, draw)
    schema, n = pq.read_schema(path), draw.choice((10**5, 10**6, 3 * 10**6))
    counted = "generation" if "generation" in schema.names else "first_generation"
    zeros = pa.Array.from_buffers(pa.int32(), n, [None, pa.py_buffer(bytes(4 * n))])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({counted: zeros}), sink, compression="zstd", row_group_size=n)
    _put(path, sink.getvalue().to_pybytes())
    return f"{n} rows in {len(sink.getvalue())} bytes"


def deep(run: Path, draw: random.Random) -> str:
    """JSON of a hundred thousand brackets."""
    path = draw.choice((run / "run.json", run / "events.jsonl", _file(run / "checkpoints", draw, "*.json")))
    text = draw.choice(("[" * 100_000, '{"a":' * 100_000, "[" * 50_000 + "]" * 50_000, "1" * 100_000))
    path.write_text(text)
    return path.name


# --- reading -------------------------------------------------------------------------------------------------


def readings(run: Path) -> dict[str, Callable[[], Any]]:
    """Everything that reads an archive, by name."""
    archive = lambda: Archive(run)  # noqa: E731
    return {
        "check": lambda: check(run),
        "record": lambda: folder.read_record(run),
        "table": lambda: archive().table().nbytes,
        "top": lambda: tables.top_rows(archive().top(5)),
        "ancestry": lambda: genealogy.tree_text(archive().ancestry(2, 0)),
        "row": lambda: tables.candidate_text(archive().row(1, 1), None),
        "parts": lambda: tables.parts_rows(run),
        "judgements": lambda: (archive().judgements().nbytes, archive().timings().nbytes, archive().scores().nbytes),
        "content": lambda: content_digest(run),
        "report": lambda: tables.report_text(tables.report_data(run)),
        "runs": lambda: tables.runs_table(tables.runs_rows(run.parent), run.parent),
        "watch": lambda: watch.text(watch.state(run, archive())),
        "champion": lambda: champion.last(run),
        "diff": lambda: changes.diff_text(changes.diff_data(run, (2, 0))),
        "compare": lambda: compare.results(compare.load([run]), "baseline", None),
        "export": lambda: export(run, "python"),
        "csv": lambda: lineages.export(run, "csv", io.StringIO()),
        "line": lambda: archive().ancestry(2, 0, by_generation=True),
        "checkpoint": lambda: _checkpoint(run),
        "lock": lambda: _lock(run),
    }


def _checkpoint(run: Path) -> None:
    from safetensors.numpy import load

    for found in sealed.scan(run):
        meta = (found.record or {}).get("meta", {})
        like = {}
        if found.record and not sealed.scan(run)[-1].problem:
            with contextlib.suppress(Exception):  # the state that it is of, as far as one can tell
                like = load(found.path.with_suffix(".safetensors").read_bytes())
        checkpoint.load(run, like, spec_digest=str(meta.get("spec_digest")))


def _lock(run: Path) -> None:
    with folder.locked(run):
        folder.target(run)


def merged(base: Path, scratch: Path) -> Path:
    """The runs of `base` compacted, beside `scratch`: two files with two row groups each at the most, and an index."""
    found = scratch.with_name(f"{scratch.name}-merged")
    if not found.exists():
        half = scratch.with_name(f"{scratch.name}-half")
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(base, half)
        with mock.patch.object(compact, "GROUP", 6):
            compact.compact(half / "x", rows=12)
        compact.clear(half / "x", 0.0)
        half.rename(found)
    return found


def case(base: Path, scratch: Path, number: int) -> list[str]:
    """What went wrong in one case: a line for each reading that ended in anything but success or a typed error."""
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(merged(base, scratch) if number % 4 == 3 else base, scratch)
    run = scratch / "x"
    wrong = []
    try:
        did = damage(run, number)
    except (EvometaError, ValueError, pa.ArrowException, IndexError, UnicodeError) as error:
        return [f"case {number}: no damage done: {error!r}"] if "-v" in sys.argv else []
    every = readings(run)
    asked = {name: every[name] for name in random.Random(number).sample(sorted(every), READINGS)}
    if number % 10 == 0:  # a database is started for each
        asked["query"] = lambda: query(run, "SELECT * FROM lineage, scores LIMIT 1", seconds=5.0)
    for name, read in asked.items():
        try:
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            read()
            ENDS["read"] += 1
        except EvometaError:
            ENDS["refused"] += 1
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            ours = [f for f in traceback.extract_tb(error.__traceback__) if "/evometa/" in f.filename]
            near = ours[-1] if ours else place
            text = f"{type(error).__name__}: {str(error)[:100]!r}"
            wrong.append(f"case {number} ({did}) {name}: {text} at {Path(near.filename).name}:{near.lineno}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return wrong


def main() -> None:
    """Read `COUNT` cases from `FIRST` on."""
    base, scratch, first, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    faulthandler.enable()
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    def late(*_: object) -> None:
        raise Late

    signal.signal(signal.SIGALRM, late)
    logging_off()
    for number in range(first, first + count):
        print(f"case {number}", flush=True)
        for line in case(base, scratch, number):
            print(f"WRONG {line}", flush=True)
    # Not getrusage's: that one remembers what the process was that forked this one.
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
    print(f"done {json.dumps({**ENDS, 'peak': peak})}", flush=True)
    os._exit(0)


def search(base: Path, scratch: Path, first: int, count: int, workers: int = 2) -> tuple[list[str], dict[str, int]]:
    """What went wrong in `count` cases, crashes of the reading process too, and how the others ended."""
    share = -(-count // workers)
    spans = [(first + i * share, min(share, count - i * share)) for i in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda i: _search(base, scratch / str(i), *spans[i]), range(workers)))
    ends = {name: sum(one[name] for _, one in found) for name in ENDS}
    return [line for wrong, _ in found for line in wrong], {**ends, "peak": max(one["peak"] for _, one in found)}


def _search(base: Path, scratch: Path, first: int, count: int) -> tuple[list[str], dict[str, int]]:
    wrong: list[str] = []
    ends = dict.fromkeys((*ENDS, "peak"), 0)
    at, end = first, first + count
    while at < end:
        command = [sys.executable, __file__, str(base), str(scratch), str(at), str(end - at)]
        child = subprocess.run(command, capture_output=True, text=True)
        lines = child.stdout.splitlines()
        wrong += [line for line in lines if line.startswith("WRONG")]
        if lines and lines[-1].startswith("done "):
            said = json.loads(lines[-1][5:])
            return wrong, {name: ends[name] + said[name] for name in ends}
        seen = [int(line.split()[1]) for line in lines if line.startswith("case ")]
        at = (seen[-1] if seen else at) + 1
        last = (child.stderr.strip().splitlines() or [""])[-1]
        wrong.append(f"WRONG case {at - 1}: the process ended with {child.returncode}: {last[:200]}")
    return wrong, ends


def soak(count: int) -> None:
    """As many cases, on a run that is made for it; ends with status 1 where something went wrong."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_tasks(Path(folder))
        small = ("--population", 6, "--generations", 3, "--strategy", "genetic")
        assert cli("run", "plain.py", *small, "--name", "x").code == 0 and cli("unseal", "x").code == 0
        wrong, ends = search(Path("runs").absolute(), Path("scratch").absolute(), 0, count)
    print("\n".join([*wrong, f"{count} damaged archives: {ends}, {len(wrong)} wrong"]))
    sys.exit(bool(wrong))


def logging_off() -> None:
    """A broken checkpoint is said in the log, which is not what is looked at here."""
    import logging

    logging.disable()


if __name__ == "__main__":
    soak(int(sys.argv[2])) if sys.argv[1] == "soak" else main()
