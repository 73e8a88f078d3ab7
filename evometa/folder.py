"""A run's folder: its name, its record (run.json), its lock, its place among other runs."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evometa.archives import events, mirror, sealed, shapes
from evometa.archives.place import called, is_relative, is_url, local
from evometa.archives.pull import refresh
from evometa.archives.regular import no_links, open_file, read_file
from evometa.archives.schema import FORMAT, digest
from evometa.archives.write import ensure_folder, storage, write_once
from evometa.contract import NAME
from evometa.errors import EvometaError, IntegrityError, NotFound, ResumeMismatch, UsageError, did_you_mean
from evometa.trust import RECORD, remember


def create(out: Path, name: str | None, default: str, record: dict[str, Any]) -> Path:
    """Make a run's folder and write its record; returns the folder.

    Without a name, `default` is used, with a number behind it where that is taken. Raises `UsageError` for a
    name that is taken or that is more than a name.
    """
    if name is not None and not NAME.fullmatch(name):
        raise UsageError(
            f"expected a run name of letters, digits, '_', '-', '.', got {name!r}. Say where with --out DIR"
        )
    with storage(out):
        ensure_folder(out)
        number = 1
        while True:
            path = out / (name or (default if number == 1 else f"{default}-{number}"))
            with mirror.claim(path) as free:
                if free and _claim(path) and _write(path, record):
                    return path
            if name is not None:
                raise UsageError(
                    f"run {name!r} exists in {called(out)}. Go on with: evometa resume {called(path)},"
                    " or choose another --name"
                )
            number += 1


def _write(path: Path, record: dict[str, Any]) -> bool:
    """Write the record; False where another start claimed the same empty folder and was faster."""
    text = sealed.seal({"format": FORMAT, "schema_digest": digest(), "run": path.name, **record})
    remember(text, path)  # before it can be killed: to resume it must need nobody's word
    try:
        write_once(path / RECORD, text)
    except IntegrityError:
        return False
    return True


def _claim(path: Path) -> bool:
    try:
        os.mkdir(path)
    except FileExistsError:
        # A start that died before it wrote the record left an empty folder: nobody's run.
        return path.is_dir() and not [p for p in path.iterdir() if p.name != ".staging"]
    return True


def find(reference: str | Path, out: Path = Path("runs")) -> Path:
    """The folder of a run given as a path, as a name in `out`, or as `s3://...`. Raises `NotFound`.

    Of a run in an object store it is the copy on this machine, brought up to date.
    """
    for path in (local(reference),) if is_url(reference) else (Path(reference), out / reference):
        if exists(path):
            return path
    names = [path.parent.name for path in out.glob(f"*/{RECORD}")]
    near = did_you_mean(Path(reference).name, names)
    where = f" --out {called(local(reference).parent)}" if is_url(reference) else ""
    raise NotFound(f"no run is called {str(reference)!r}.{near} Type: evometa runs{where}")


def exists(path: Path) -> bool:
    """Whether a run is there; one in an object store is brought up to date."""
    refresh(path)
    return (path / RECORD).is_file()


def parent(path: Path, origin: dict[str, Any]) -> Path:
    """The run that the fork at `path` came from, as its record's `from` says. Raises `NotFound`."""
    # Beside the fork first: a folder of runs may have been moved as a whole.
    beside = path.parent / origin["run"]
    if exists(beside):
        return beside
    if is_url(origin["path"]) and not is_relative(origin["path"], path):
        raise NotFound(
            f"{path} is a fork of {origin['path']}, in another store: an archive does not send anybody there. Put that"
            f" run beside it, as {beside}"
        )
    return find(origin["path"])


def list_runs(out: Path) -> list[Path]:
    """The folders in `out` that hold a run; of those in an object store, what a list needs is brought up to date."""
    refresh(out, light=True)
    return sorted(path.parent for path in out.glob(f"*/{RECORD}"))


def read_record(path: Path) -> dict[str, Any]:
    """What run.json says. Raises `IntegrityError` where it was changed or belongs to a newer format."""
    file = path / RECORD
    try:
        record = sealed.unseal(read_file(file), file)
    except FileNotFoundError:
        raise NotFound(f"no run at {path}. Type: evometa runs") from None
    shapes.require(record, {"format": str}, file)
    if record["format"].split(".")[0] != FORMAT.split(".")[0]:
        raise IntegrityError(f"{file}: expected format {FORMAT}, got {record['format']}. Use the evometa that wrote it")
    shapes.require(record, shapes.RECORD, file)
    return record


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a run for writing. Raises `EvometaError` where another process has it; death releases it.

    In an object store that takes a while, where the last writer was on another machine and did not say that it ended.
    """
    with storage(path):
        no_links(path)
        descriptor = open_file(path / "run.lock", os.O_RDWR | os.O_CREAT)
    try:
        with mirror.alone(path, lambda: _take(descriptor, path)):
            yield  # outside `storage`: what goes wrong in the run is not the disk's refusal
        with storage(path):
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: Path) -> None:
    with storage(path):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 4096, 0).decode(errors="replace").strip()
            raise EvometaError(
                f"another process is running {path.name} ({holder or 'unknown'})."
                f" Look on with: evometa watch {called(path)}"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)


def target(path: Path) -> int:
    """How many generations the run is to have: the last that was asked for."""
    asked = [e["generations"] for e in events.diary(path) if e["kind"] in ("started", "extended")]
    return int(asked[-1] if asked else read_record(path)["generations"])


def compare(recorded: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `ResumeMismatch` naming the first thing that differs between two identities, and the cure."""
    words = {
        "spec": "the spec",
        "plan": "the plan",
        "strategy": "the strategy",
        "task": "the task",
        "data": "the data of the train domains",
        "versions": "a library's version",
        "machine": "the machine or a setting of JAX",
        "seed": "the seed",
    }
    for part, text in words.items():
        was, is_ = recorded.get(part), now.get(part)
        if part == "versions":
            was, is_ = ({k: v for k, v in (x or {}).items() if k != "python"} for x in (was, is_))
        if was != is_:
            where, a, b = first_difference(part, was, is_)
            what = "its code" if where in ("task.code", "strategy.code") else f"{where}: was {a}, is {b}"
            raise ResumeMismatch(
                f"{text} changed since the run started ({what}). Put it back, or start a fork with:"
                " evometa run ... --from RUN@GENERATION"
            )


def first_difference(path: str, was: Any, is_: Any) -> tuple[str, str, str]:
    """The first place, below `path`, where two records differ, with both values as text."""
    if isinstance(was, dict) and isinstance(is_, dict):
        for key in sorted({*was, *is_}):
            if was.get(key) != is_.get(key):
                return first_difference(f"{path}.{key}", was.get(key), is_.get(key))
    return path, json.dumps(was)[:60], json.dumps(is_)[:60]
