"""The diary of a run, `events.jsonl`: what happened to it, one line each, chained by hashes.

Every line carries the hash of the one before, so a changed or removed line shows. A last line that a
crash tore (its end is missing, or zeros are where bytes never reached the disk) is nobody's loss, for it
was never acknowledged: readers pass over it, and the next append removes it and says so. A last line
that is wrong in any other way was damaged after it was written, and that is never passed over.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evometa.archives import mirror, shapes
from evometa.archives.regular import open_file, read_file
from evometa.archives.write import ensure_folder, storage, sync_folder
from evometa.errors import IntegrityError

FILE = "events.jsonl"
START = "0" * 64
_RACES = 50  # that an append to a shared file may lose against other machines
Entry = dict[str, Any]


def append(run_folder: Path, kind: str, **fields: Any) -> Entry:
    """Add an event durably and return it, with its `seq`, `time` and `hash`.

    Fields are anything JSON. Raises `StorageError` where the disk refuses, `IntegrityError` where the
    last whole line is not what was written.
    """
    return append_line(Path(run_folder) / FILE, {"kind": kind, **fields})


def read(run_folder: Path) -> list[Entry]:
    """All events in order; none where there is no file. Raises `IntegrityError` that names the line."""
    path = Path(run_folder) / FILE
    entries = read_lines(path)
    for entry in entries:
        shapes.require(entry, {"kind": str}, path, f"line {entry['seq'] + 1}")
    return entries


def diary(run_folder: Path) -> list[Entry]:
    """The same, for whoever counts on what the events say: each holds what its kind has to."""
    path, entries = Path(run_folder) / FILE, read(run_folder)
    for entry in entries:
        shapes.require(entry, shapes.EVENTS.get(entry["kind"], {}), path, f"line {entry['seq'] + 1}")
    return entries


def append_line(path: Path, fields: Entry, *, shared: bool = False) -> Entry:
    """Add a line to a chained file, for one of several processes at a time.

    `shared`: of several machines, too, where the file lies in an object store.
    """
    for _ in range(_RACES if shared else 0):
        mirror.fetch_lines(path)
        with suppress(mirror.Overtaken):
            return _add(path, fields)
    return _add(path, fields)


def _add(path: Path, fields: Entry) -> Entry:
    with storage(path):
        ensure_folder(path.parent)
        fresh = not path.exists()
        descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # released by close, and by death
            entry = _append(descriptor, path, fields)
        finally:
            os.close(descriptor)
        if fresh:
            sync_folder(path.parent)
    return entry


def read_lines(path: Path) -> list[Entry]:
    """All entries of a chained file, the chain verified; a torn last line is left out."""
    try:
        data = read_file(path)
    except FileNotFoundError:
        return []
    entries, _ = _parse(data, path)
    return entries


def _append(descriptor: int, path: Path, fields: Entry) -> Entry:
    data = _whole(descriptor)
    entries, good = _parse(data, path)
    torn = data[good:]
    lines: list[Entry] = []
    if torn:
        lost = {"kind": "repaired", "removed_bytes": len(torn), "removed_sha256": hashlib.sha256(torn).hexdigest()}
        lines.append(_entry(lost, entries))
    lines.append(_entry(fields, entries + lines))
    text = b"".join(_line(entry) for entry in lines)
    if good and data[good - 1 : good] != b"\n":
        text = b"\n" + text  # the crash tore off nothing but the end of the line
    mirror.put_lines(path, data, data[:good] + text)
    os.ftruncate(descriptor, good)
    try:
        _write_at(descriptor, text, good)
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, good)
        raise
    return lines[-1]


def good_part(data: bytes) -> tuple[list[Entry], int, str]:
    """Entries, how many bytes they take, and what is wrong behind them ('': nothing, or a line a crash tore)."""
    entries: list[Entry] = []
    good = 0
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        end = good + len(line) + (number < len(lines))
        if not line and number == len(lines):
            break
        entry = _whole_entry(line)
        if entry is None:
            if any(lines[number:]):
                return entries, good, f"line {number} is damaged, and it is not the last one"
            if not _is_torn(line, ended=number < len(lines)):
                return entries, good, f"line {number} is damaged, and not as a crash leaves a line"
            break
        expected = entries[-1]["hash"] if entries else START
        if entry.get("prev") != expected or entry.get("seq") != len(entries) or entry["hash"] != _hash(entry):
            return entries, good, f"line {number} is not what was written: the chain of hashes breaks there"
        entries.append(entry)
        good = end
    return entries, good, ""


def _parse(data: bytes, path: Path) -> tuple[list[Entry], int]:
    """Entries, and how many bytes of `data` they take; what follows is a torn line."""
    entries, good, wrong = good_part(data)
    if wrong:
        raise IntegrityError(f"{path}: {wrong}")
    return entries, good


def _whole_entry(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("hash"), str) else None


def _is_torn(line: bytes, *, ended: bool) -> bool:
    """Whether a crash may have left this last line: otherwise it was acknowledged, and something changed it since."""
    if ended:
        # Zeros at either side, or several of them; a single one inside may be a flipped bit of a space.
        return line.startswith(b"\0") or line.endswith(b"\0") or b"\0\0" in line
    if line.endswith(b"\0"):
        return True
    # A whole entry with one byte too many: that byte was the newline.
    entry = _whole_entry(line[:-1])
    return entry is None or entry["hash"] != _hash(entry)


def _entry(fields: Entry, before: list[Entry]) -> Entry:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    entry = {"seq": len(before), "time": now, **fields, "prev": before[-1]["hash"] if before else START}
    entry = json.loads(json.dumps(entry))  # what is hashed is what will be read
    return {**entry, "hash": _hash(entry)}


def _hash(entry: Entry) -> str:
    body = {key: value for key, value in entry.items() if key != "hash"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _line(entry: Entry) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _whole(descriptor: int) -> bytes:
    size, pieces = os.fstat(descriptor).st_size, []
    while sum(map(len, pieces)) < size:
        piece = os.pread(descriptor, size, sum(map(len, pieces)))
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces)


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count
