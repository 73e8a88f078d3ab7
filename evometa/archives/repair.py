"""What is broken in an archive is moved into `quarantine/`, never deleted, so that what is whole can be gone on with.

Rows that were lost with a part come back where the run can still be computed: checkpoints behind a gap are set aside,
so a resume starts before it, passes over what is stored, and computes the missing generations again, to the same rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from evometa.archives import events, index
from evometa.archives.check import Lineage, begins, read_part, run_json_problems, wrong_rows
from evometa.archives.part import PART, Part, list_parts
from evometa.archives.regular import read_file
from evometa.archives.schema import TABLES
from evometa.archives.sealed import NAME, Found, scan
from evometa.archives.stored import standing
from evometa.archives.write import ASIDE, NO_LINKS, STAGING, ensure_folder, publish, storage, sync_folder

QUARANTINE = "quarantine"


class Move(NamedTuple):
    """A file (or a folder of leftovers) that does not belong where it is."""

    path: str  # in the run's folder
    reason: str
    lost: bool  # it held something that was acknowledged, and is nowhere else


class Repaired(NamedTuple):
    """What `repair` did, or would do."""

    moves: list[Move]
    quarantine: str | None  # the folder that they are in
    gaps: list[tuple[int, int]]  # generations that are in no part, first and last
    checkpoint: int | None  # the generation of the newest checkpoint that is left
    stored: int  # generations that are stored
    lost: list[str]  # what was acknowledged and is not readable, one line each
    resumable: bool


def repair(run: Path, *, dry_run: bool = False) -> Repaired:
    """Move everything that is broken into `RUN/quarantine/<number>/` and say what is left.

    The caller holds the run's lock. What is moved is recorded as an event before it is. A diary whose chain is broken
    is cut behind its last good line; the whole of it is in the quarantine. Raises `StorageError`.
    """
    run = Path(run)
    with storage(run):
        return _repair(run, dry_run)


def _repair(run: Path, dry_run: bool) -> Repaired:
    diary = _diary(run)
    entries, moves = diary.entries, [*diary.moves, *_leftovers(run), *_others(run)]
    whole, broken, gaps = _lineage(run)
    moves += broken
    left, aside = _checkpoints(run, whole, gaps, entries)
    moves += aside
    record = run_json_problems(run)
    moved = {move.path for move in moves}
    missing = [line for line in _missing(run, gaps, entries) if line.split(": ")[0] not in moved]
    lost = [*(f"{move.path}: {move.reason}" for move in moves if move.lost), *record, *missing]
    quarantine = None
    if moves and not dry_run:
        quarantine = _free(run)
        _cut_diary(run, quarantine, diary)
        listed = [move._asdict() for move in moves]
        # Before the moves: a repair that is killed has said what it was about to do, and the next one does the rest.
        events.append(run, "quarantined", folder=str(quarantine.relative_to(run)), files=listed, gaps=gaps)
        for move in moves:
            if move.path != events.FILE:
                _move(run, move.path, quarantine)
    if not dry_run:
        _index(run)
    stored = sum(int(np.unique(rows.generation).size) for rows in whole)
    return Repaired(moves, None if quarantine is None else str(quarantine), gaps, left, stored, lost, not record)


# --- what is broken -------------------------------------------------------------------------------


class _Diary(NamedTuple):
    entries: list[events.Entry]
    moves: list[Move]
    cut: int | None  # bytes that are good, where the chain is broken behind them
    torn: bytes  # what a crash tore off


def _diary(run: Path) -> _Diary:
    try:
        data = read_file(run / events.FILE)
    except FileNotFoundError:
        return _Diary([], [], None, b"")
    entries, size, wrong = events.good_part(data)
    if wrong:
        return _Diary(
            entries, [Move(events.FILE, f"{wrong}; {len(entries)} lines before it are good", True)], size, b""
        )
    if size < len(data):
        torn = Move(events.FILE, f"a crash tore its last line: {len(data) - size} bytes", False)
        return _Diary(entries, [torn], None, data[size:])
    return _Diary(entries, [], None, b"")


def _leftovers(run: Path) -> Iterator[Move]:
    """What a writer that died left behind: nobody ever counted on it."""
    staging = run / STAGING
    for name in sorted(os.listdir(staging)) if staging.is_dir() else []:
        yield Move(f"{STAGING}/{name}", "left by a writer that died", False)
    for path in sorted(run.glob(f"{ASIDE}*")):
        yield Move(path.name, "parts that were being merged, or that merged ones superseded", False)


def _others(run: Path) -> Iterator[Move]:
    """Foreign files among the parts, and broken parts of the timings and judgements."""
    for folder in TABLES:
        for name in sorted(os.listdir(run / folder)) if (run / folder).is_dir() else []:
            path = run / folder / name
            if not PART.fullmatch(name) or not path.is_file() or path.is_symlink():
                yield Move(f"{folder}/{name}", "a foreign file", False)
    for folder in ("timings", "judgements"):
        for part in list_parts(run / folder):
            if part.path.is_file() and isinstance(found := _examine(part), str):
                yield Move(f"{folder}/{part.name}", _reason(found), True)


def _lineage(run: Path) -> tuple[list[Lineage], list[Move], list[tuple[int, int]]]:
    """Parts that are whole, those that are not, and the generations that are missing between."""
    whole: list[Lineage] = []
    moves: list[Move] = []
    gaps: list[tuple[int, int]] = []
    doubled: list[Lineage] = []
    following, population = begins(run), 0
    for part in list_parts(run / "lineage"):
        if not part.path.is_file():
            continue
        found = _examine(part)
        if isinstance(found, Lineage):
            population = population or int(np.sum(found.generation == found.generation[0]))
            wrong = wrong_rows(found, population)
            if not wrong and part.first < following:
                doubled.append(found)
                continue
            found = f"{part.path}: {wrong}" if wrong else found
        if isinstance(found, str):
            moves.append(Move(f"lineage/{part.name}", _reason(found), True))
            continue
        if part.first > following:
            gaps.append((following, part.first - 1))
        following = int(found.generation.max()) + 1
        whole.append(found)
    there = np.unique(np.concatenate([rows.generation for rows in whole])) if whole else np.zeros(0)
    for rows in doubled:
        reason = f"its generations from {rows.part.first} on are in the part before it, too"
        moves.append(Move(f"lineage/{rows.part.name}", reason, not np.isin(rows.generation, there).all()))
    reached = max((found.generation for found in _scan(run) if found.record), default=0)
    return whole, moves, [*gaps, *([(following, reached - 1)] if following < reached else [])]


def _checkpoints(
    run: Path, whole: list[Lineage], gaps: list[tuple[int, int]], entries: list[events.Entry]
) -> tuple[int | None, list[Move]]:
    """The newest checkpoint that a resume may start from, and those that it may not."""
    moves: list[Move] = []
    usable: list[int] = []
    kept: set[str] = set()
    there = {rows.part.name for rows in whole}
    for found in _scan(run):
        name = found.path.stem
        if found.record is None:
            moves += _files(run, name, _reason(found.problem))
            continue
        last = str(found.record["meta"].get("last_part") or "")
        stands = not last or standing(run, last, entries) in there
        if stands and not any(first < found.generation for first, _ in gaps):
            usable.append(found.generation)
            kept.add(name)
        else:
            moves += _files(
                run, name, "whole, but generations before it are missing: a resume has to start before them"
            )
    folder = run / "checkpoints"
    for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
        path = f"checkpoints/{name}"
        if name.rsplit(".", 1)[0] in kept or any(move.path == path for move in moves):
            continue
        match = NAME.fullmatch(name)
        moves.append(Move(path, "arrays whose description never came" if match else "a foreign file", False))
    return max(usable, default=None), moves


def _examine(part: Part) -> Lineage | str:
    """What a part holds or what is wrong with it; read twice before it is called broken, as a disk may stumble."""
    found = read_part(part, with_index=False)
    return read_part(part, with_index=False) if isinstance(found, str) else found


def _scan(run: Path) -> list[Found]:
    found = scan(run)
    return scan(run) if any(checkpoint.record is None for checkpoint in found) else found


def _files(run: Path, stem: str, reason: str) -> Iterator[Move]:
    for ending in (".json", ".safetensors"):  # the description first: without it, arrays are nobody's checkpoint
        if (run / "checkpoints" / f"{stem}{ending}").exists():
            yield Move(f"checkpoints/{stem}{ending}", reason, False)


def _missing(run: Path, gaps: list[tuple[int, int]], entries: list[events.Entry]) -> Iterator[str]:
    for first, last in gaps:
        yield f"lineage: generations {first} to {last} are in no part"
    for entry in entries:
        name = str(entry.get("judgements") or "")
        if name and PART.fullmatch(name) and not (run / "judgements" / name).exists():
            yield f"judgements/{name}: missing; the event {entry['seq']} ({entry['kind']}) names it"


def _reason(problem: str) -> str:
    """What `check` says of a file, without its name."""
    return problem.split(": ", 1)[-1]


# --- moving ---------------------------------------------------------------------------------------


def _free(run: Path) -> Path:
    """A new folder in the quarantine."""
    ensure_folder(run / QUARANTINE)
    number = 0
    while True:
        folder = run / QUARANTINE / f"{number:03d}"
        try:
            os.mkdir(folder)
        except FileExistsError:
            number += 1
            continue
        sync_folder(folder.parent)
        return folder


def _cut_diary(run: Path, quarantine: Path, diary: _Diary) -> None:
    path, staging = run / events.FILE, run / STAGING
    if diary.torn:  # the next line that is added takes its place
        publish(quarantine / f"{events.FILE}.torn", diary.torn, staging)
    if diary.cut is not None:
        data = read_file(path)
        publish(quarantine / events.FILE, data, staging)
        publish(path, data[: diary.cut], staging, clobber=True)


def _move(run: Path, name: str, quarantine: Path) -> None:
    source, target = run / name, quarantine / name
    if not os.path.lexists(source):
        return
    ensure_folder(target.parent)
    linked = False
    if source.is_file() and not source.is_symlink():
        # Two names for a moment rather than none after a power cut.
        try:
            os.link(source, target)
            linked = True
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
    if not linked:
        os.rename(source, target)
    sync_folder(target.parent)
    if linked:
        os.unlink(source)
    sync_folder(source.parent)


def _index(run: Path) -> None:
    """Indexes are derived: what is wrong with one is mended by making it anew."""
    for orphan in index.orphans(run):
        os.unlink(orphan)
    for part in list_parts(run / "lineage"):
        if index.problem(part.path):
            data = index.build(pa.py_buffer(read_file(part.path)), part.name)
            publish(index.path_of(part.path), data, run / STAGING, clobber=True)
