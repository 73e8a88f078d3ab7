"""A bucket's copy brought to the state of the store: what is missing is fetched, what is gone is removed.

Names in a store are anybody's: only those that a run or a study has are fetched, and nothing leads out of the copy.
What a name holds is verified where it always is, on reading. A reader may pull while another machine writes; while a
process of this machine writes, the copy is at the store's state anyway, and is left alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from evometa.archives.lease import LOCK
from evometa.archives.place import DEEPEST, SEGMENT, Place, called, of, own
from evometa.archives.store import SMALL, Entry, Gone, Store, Unreachable
from evometa.errors import IntegrityError, StorageError

DIARY = "events.jsonl"
TRIES = 20  # times that a run which changes meanwhile is listed again
AT_ONCE = 8  # objects that are fetched at the same time
_FILES = frozenset({"run.json", DIARY, "study.json", "report.json", "report.md", "figure.svg"})
_BESIDE = ("study.json", "openings.jsonl")  # above a run: what tells whose ledger counts, and the ledger
_PARTS = re.compile(
    r"(lineage|timings|judgements)/part-\d{9,12}-[0-9a-f]{16}\.parquet"
    r"|checkpoints/ckpt-\d{9,12}-[0-9a-f]{16}\.(safetensors|json)"
    r"|index/part-\d{9,12}-[0-9a-f]{16}\.parquet\.(json|index)"
)
_FOLDERS = ("lineage", "timings", "judgements", "checkpoints", "index")
_NO_UNIT = _FILES | set(_FOLDERS) | {"openings.jsonl", LOCK, "cells", "quarantine"}
_NOTHING = hashlib.sha256(b"").hexdigest()
_lines: dict[Path, str] = {}  # chained file -> sha256 of what the copy holds, as of its tag
_known: dict[Path, dict[str, str]] = {}  # folder -> name -> tag of what the copy holds


class Moved(Exception):
    """What was listed is not what is there any more: list again."""


# --- names ------------------------------------------------------------------------------------------


def kept(name: str) -> bool:
    """Whether a file of this name in a run's or a study's folder is in the store, too."""
    return name in _FILES or _PARTS.fullmatch(name) is not None


def unit(path: Path) -> tuple[Path, str]:
    """The folder of a run or a study that a file belongs to, and its name there."""
    folder = path.parent.parent if path.parent.name in _FOLDERS else path.parent
    return folder, path.relative_to(folder).as_posix()


def _units(place: Place, listed: list[Entry]) -> dict[Path, dict[str, Entry]]:
    """What a listing holds of each run or study: names that could lead elsewhere, and all others, are left out."""
    found: dict[Path, dict[str, Entry]] = {}
    for entry in listed:
        segments = entry.key.split("/")
        deep = 2 if len(segments) > 1 and segments[-2] in _FOLDERS else 1
        above, name = segments[:-deep], "/".join(segments[-deep:])
        if not kept(name) or len(segments) > DEEPEST or not all(map(SEGMENT.fullmatch, above)):
            continue
        if not _NO_UNIT.isdisjoint(above):
            continue
        found.setdefault(place.root.joinpath(*above), {})[name] = entry
    return found


# --- pulling ----------------------------------------------------------------------------------------


def refresh(path: Path, light: bool = False) -> None:
    """Bring the copy of a folder, and of all runs below it, to the store's state; nothing for an ordinary folder.

    `light`: only what a list of runs needs, of each lineage the last part. Raises `StorageError` where the store cannot
    be asked, `IntegrityError` where a name in it leads elsewhere.
    """
    place = of(path)
    if place is None:
        return
    path = place.root / place.key
    with asking(path):
        if place.key:
            fetch(path.parent / "study.json")
        _again(lambda last: _refresh(place, path, light, last))


def _refresh(place: Place, path: Path, light: bool, last: bool) -> None:
    units = _units(place, place.store.list(place.key))
    for pattern in ("", "*/", "*/*/"):
        for record in [*path.glob(f"{pattern}run.json"), *path.glob(f"{pattern}study.json")]:
            units.setdefault(record.parent, {})
    for folder, entries in units.items():
        with alone_here(folder):
            if not _written_here(folder):
                sync(place.store, folder, entries, light=light, last=last)


def bring(path: Path) -> None:
    """The same for the run or study at `path` alone, by whoever holds it."""
    place = of(path)
    assert place is not None

    def once(last: bool) -> None:
        entries = _units(place, place.store.list(place.key)).get(path, {})
        sync(place.store, path, entries, last=last)

    with asking(path):
        _again(once)
        diary = path / DIARY
        with here(diary):
            _lines[diary] = hashlib.sha256(diary.read_bytes()).hexdigest() if diary.is_file() else _NOTHING


def _again(work: Callable[[bool], None]) -> None:
    """Do it until nothing moved meanwhile; `work` is told when it is asked for the last time."""
    for attempt in range(TRIES):
        with suppress(Gone, Moved):
            work(attempt == TRIES - 1)
            return
    raise Unreachable("objects of the run come and go faster than they can be read")


def sync(store: Store, folder: Path, entries: Mapping[str, Entry], *, light: bool = False, last: bool = False) -> None:
    """Make a folder of the copy what the entries say. Raises `Moved`, `Gone` where they are no longer true."""
    tags = _tags(folder)
    wanted = _light(entries) if light else dict(entries)
    missing = [name for name, entry in wanted.items() if not _has(folder / name, entry, tags.get(name))]
    _room(folder, sum(wanted[name].size for name in missing))
    if "run.json" in missing or "run.json" not in entries:
        shutil.rmtree(folder / "cells", ignore_errors=True)  # finished cells of another run of that name
    # The diary first: what it names was stored before it, so a listing that shows this diary shows that, too.
    if DIARY in missing:
        tags[DIARY] = _download(store, wanted[DIARY], folder / DIARY)
        if tags[DIARY] != wanted[DIARY].tag and not last:
            raise Moved
    others = [name for name in missing if name != DIARY]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        found = threads.map(lambda name: _download(store, wanted[name], folder / name), others)
        tags.update(zip(others, found, strict=True))
    for name in _copied(folder):
        if name not in entries and not store.has(_key(folder / name)):
            with suppress(FileNotFoundError):
                os.unlink(folder / name)
    _keep_tags(folder, {name: tags[name] for name in tags if name in entries})


def fetch(path: Path) -> None:
    """Bring one small file, such as a ledger that several runs write, to the store's state; nothing for no copy."""
    place = of(path)
    if place is None:
        return
    folder, name = unit(path)
    with asking(path):
        try:
            data, tag = place.store.get(place.key)
        except Gone:
            tags = _known.setdefault(folder, {})
            tags.pop(name, None)
            _lines.pop(path, None)
            with here(path), suppress(FileNotFoundError):
                path.unlink()
            return
        with here(path):
            if not path.is_file() or path.read_bytes() != data:
                _place(path, iter([data]), len(data))
    _known.setdefault(folder, {})[name] = tag
    _lines[path] = hashlib.sha256(data).hexdigest()


def _download(store: Store, entry: Entry, target: Path) -> str:
    """Fetch an object; twice where its bytes are not those of its name, as a transfer may stumble. Returns its tag."""
    digest = target.name[-24:-8] if target.suffix == ".parquet" else None
    for attempt in (0, 1):
        pieces, tag = store.stream(entry.key)
        found = _place(target, pieces, max(entry.size, SMALL if target.name == DIARY else 0))
        if attempt or digest in (None, found[:16]):
            break
    return tag  # damaged bytes stay what they are: whoever reads them says so


def _place(target: Path, pieces: Iterator[bytes], most: int) -> str:
    """Write a file of the copy at once; returns its sha256. Raises `Moved` where there is more than was listed."""
    place = of(target)
    assert place is not None
    digest, size = hashlib.sha256(), 0
    with here(target):
        half = own(target, "half", f".{os.getpid()}")
        half.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(half, "wb") as file:
                for piece in pieces:
                    size += len(piece)
                    if size > most:
                        raise Moved
                    digest.update(piece)
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(half, target)
        except (NotADirectoryError, IsADirectoryError, FileExistsError):
            raise IntegrityError(
                f"{target}: the store has one name for an object and for a folder. Remove one of them"
            ) from None
        finally:
            half.unlink(missing_ok=True)
    return digest.hexdigest()


def _light(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    parts = sorted(name for name in entries if name.startswith("lineage/"))
    return {name: entry for name, entry in entries.items() if name in _FILES or name in parts[-1:]}


def _has(path: Path, entry: Entry, tag: str | None) -> bool:
    try:
        return bool(tag) and tag == entry.tag and path.stat().st_size == entry.size
    except OSError:
        return False


def _copied(folder: Path) -> Iterator[str]:
    for name in ("", *_FOLDERS):
        if (folder / name).is_dir():
            found = [f"{name}/{file}".lstrip("/") for file in os.listdir(folder / name)]
            yield from (file for file in found if kept(file))


def _room(folder: Path, size: int) -> None:
    there = folder
    while not there.is_dir():
        there = there.parent
    free = shutil.disk_usage(there).free
    if size > free:
        raise StorageError(
            f"{called(folder)}: {size / 1e9:.3g} GB are to be fetched, and {free / 1e9:.3g} GB are free in the cache."
            " Free some space, or set XDG_CACHE_HOME to a larger disk"
        )


def _key(path: Path) -> str:
    place = of(path)
    assert place is not None
    return place.key


# --- what the copy holds ----------------------------------------------------------------------------


def _tags(folder: Path) -> dict[str, str]:
    """Name -> the tag that an object had when it was copied; a name that is missing is fetched anew."""
    found: dict[str, str] = {}
    with suppress(OSError, UnicodeDecodeError):
        for line in own(folder, "tags").read_text().splitlines():
            with suppress(ValueError):  # a line that a crash tore
                name, tag = json.loads(line)
                found[str(name)] = str(tag)
    return found


def _keep_tags(folder: Path, tags: dict[str, str]) -> None:
    file = own(folder, "tags")
    text = "".join(json.dumps(pair) + "\n" for pair in tags.items())
    with here(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.is_file() or file.read_text() != text:
            half = file.with_suffix(".half")
            half.write_text(text)
            os.replace(half, file)
    _known[folder] = tags


def tag_of(path: Path, data: bytes) -> str | None:
    """The tag of a chained file as this process last read or wrote it; None where there was none.

    `data` is what the copy holds of it now. Raises `StorageError` where that is something else: a cache that is emptied
    under a run must not empty its diary.
    """
    folder, name = unit(path)
    if hashlib.sha256(data).hexdigest() != _lines.get(path, _NOTHING):
        raise StorageError(
            f"{path}: the cache's copy of it was removed or changed meanwhile. Go on with: evometa resume"
            f" {called(folder)}"
        )
    return _known.get(folder, {}).get(name)


def remember(path: Path, tag: str, lines: bytes | None = None) -> None:
    """Keep the tag of what was stored under a name; of a chained file, what it holds."""
    folder, name = unit(path)
    if lines is not None:
        _lines[path] = hashlib.sha256(lines).hexdigest()
    _known.setdefault(folder, {})[name] = tag
    file = own(folder, "tags")
    with here(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a") as tags:
            tags.write(json.dumps([name, tag]) + "\n")


# --- whose turn it is -------------------------------------------------------------------------------


@contextmanager
def alone_here(folder: Path) -> Iterator[None]:
    """One process of this machine at a time brings a folder of the copy up to date, or becomes its writer."""
    file = own(folder, "locks")
    with here(file):
        file.parents[3].mkdir(parents=True, exist_ok=True, mode=0o700)  # what is copied may be nobody else's business
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _written_here(folder: Path) -> bool:
    """Whether a process of this machine (this one, too) holds the run for writing."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def here(path: Path) -> Iterator[None]:
    """Turn what the cache's disk refuses into one line."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the copy of {called(path)} in the cache cannot be written ({error.strerror}). Free some space, or set"
            " XDG_CACHE_HOME to another folder"
        ) from error


@contextmanager
def asking(path: Path, then: str = "type it again") -> Iterator[None]:
    """Add to an answer that did not come what to do when the store is mended."""
    try:
        yield
    except Unreachable as error:
        raise StorageError(f"{error}. When it is mended: {then}") from None
