"""Care of a run's archive: merge its parts, move aside what is broken (both take its lock), fetch it from a store."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from evometa import folder
from evometa.archives import compact as compacting
from evometa.archives import ledger, mirror
from evometa.archives import repair as repairing
from evometa.archives.place import called, local, of
from evometa.archives.pull import fetch
from evometa.archives.write import copy_new, ensure_folder, storage, sync_folder
from evometa.errors import NotFound, UsageError


def compact(
    path: str | Path, *, rows: int = compacting.ROWS, grace: float = 10.0, dry_run: bool = False
) -> dict[str, Any]:
    """Merge many small parts of a run into files of up to `rows` rows; see `archives.compact.compact`.

    The parts that were superseded stay aside for `grace` seconds, for readers that were listing them; 0 removes them at
    once. Returns `{parts, files, rows, bytes_before, bytes_after, aside, merged}`. Raises `EvometaError` where another
    process has the run.
    """
    if rows < 1:
        raise UsageError(f"compact: expected --rows of at least 1, got {rows}")
    path = folder.find(path)
    if not dry_run:
        mirror.refuse(path, "archive compact")
    with folder.locked(path):
        done = compacting.compact(path, rows=rows, dry_run=dry_run)
        if not dry_run and done.aside:
            time.sleep(max(0.0, grace))
            compacting.clear(path, 0.0)
    return {**done._asdict(), "merged": done.parts != done.files and not dry_run}


def repair(path: str | Path, *, dry_run: bool = False) -> dict[str, Any]:
    """Move what is broken in a run into its quarantine; see `archives.repair.repair`.

    Returns `{moves, quarantine, gaps, checkpoint, stored, lost, resumable, advice}`; `advice` says in words what can be
    gone on with, and from where. Raises `EvometaError` where another process has the run.
    """
    path = _any_run(path)
    if not dry_run:
        mirror.refuse(path, "archive repair")
    with folder.locked(path):
        found = repairing.repair(path, dry_run=dry_run)
    moves = [move._asdict() for move in found.moves]
    gaps = [list(gap) for gap in found.gaps]
    return {**found._asdict(), "moves": moves, "gaps": gaps, "advice": _advice(path, found)}


def pull(path: str | Path, to: Path) -> dict[str, Any]:
    """Copy a run of an object store to a new folder, an ordinary run from then on, and the ledger beside it.

    Returns `{run, to, files, bytes, ledger}`; `ledger`: whether the folder above has the store's ledger of openings now
    (one that is there already stays). Raises `UsageError` where `to` exists.
    """
    path = _any_run(path)
    if of(path) is None:
        raise UsageError(f"archive pull: expected a run in a store as s3://BUCKET/PREFIX/RUN, got {path}")
    if to.exists():
        raise UsageError(f"archive pull: {to} exists. Give a new folder")
    half, found, beside = to.with_name(f"{to.name}.partial"), path.parent / ledger.FILE, to.parent / ledger.FILE
    with storage(to, f"evometa archive pull {called(path)} {to}"):
        ensure_folder(to.parent)
        if half.exists():  # of one that was killed
            shutil.rmtree(half)
        try:
            _copy(path, half)
            fetch(found)
            if found.is_file() and not beside.exists():
                copy_new(found, half / ledger.FILE)
                os.rename(half / ledger.FILE, beside)
                sync_folder(to.parent)
                sync_folder(half)
            _appear(half, to)
        except BaseException:
            shutil.rmtree(half, ignore_errors=True)
            raise
        same = found.is_file() and found.read_bytes() == beside.read_bytes()
    files = [file for file in to.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    return {"run": called(path), "to": str(to), "files": len(files), "bytes": size, "ledger": same}


def _copy(source: Path, target: Path) -> None:
    """Copy a folder without its scratch, durably but for its name. The record comes last: half a run is no run."""
    os.mkdir(target)
    for name in sorted(os.listdir(source), key=lambda name: (name == folder.RECORD, name)):
        if name in (mirror.LOCK, "cells") or name.startswith("."):
            continue
        if (source / name).is_dir():
            _copy(source / name, target / name)
        else:
            copy_new(source / name, target / name)
    sync_folder(target)


def _appear(half: Path, to: Path) -> None:
    """Give a whole folder its name, durably or not at all."""
    os.rename(half, to)
    try:
        sync_folder(to.parent)
    except OSError:
        os.rename(to, half)
        raise


def _any_run(path: str | Path) -> Path:
    """The run, also where its record is what is broken."""
    try:
        return folder.find(path)
    except NotFound:
        if (local(path) / "lineage").is_dir():
            return local(path)
        raise


def _advice(path: Path, found: repairing.Repaired) -> str:
    if not found.resumable:
        return (
            f"{path.name} cannot be resumed: its record (run.json) is broken or missing. Its {found.stored} stored"
            f" generations can be read: evometa archive top {path}"
        )
    start = "the beginning" if found.checkpoint is None else f"the checkpoint of generation {found.checkpoint}"
    words = f"evometa resume {path} goes on from {start}"
    if not found.gaps:
        return f"{words}; {found.stored} generations are stored, and none is missing"
    missing = ", ".join(f"{first} to {last}" if first < last else str(first) for first, last in found.gaps)
    return (
        f"{words}, passes over what is stored, and computes generations {missing} again: the same rows, as far as the"
        " task is a function of its key"
    )
