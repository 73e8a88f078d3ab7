"""Writing a run that lies in an object store: the store first, then this machine's copy, so the copy never knows more.

Each of these does nothing for an ordinary folder. A commit is a put on the condition that nothing has the name; the
diary is put as a whole, on the condition that it is still the one that was read; a run is written by whoever holds its
lease (lease.py). A killed run leaves whole objects or none, and goes on from them on any machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from evometa.archives.lease import LOCK, Lease
from evometa.archives.place import called, of, own
from evometa.archives.pull import alone_here, asking, bring, fetch, kept, remember, tag_of, unit
from evometa.archives.store import Gone, Refused
from evometa.errors import EvometaError, IntegrityError, StorageError, UsageError

_leases: dict[Path, Lease] = {}  # of this process, by the run's folder


class Overtaken(EvometaError):
    """Another process wrote the file since it was read (exit code 1)."""


def put(path: Path, data: Any, *, clobber: bool = False) -> None:
    """Store what is about to get the name `path`. The same bytes there already are a success.

    Raises `IntegrityError` where the name holds other bytes (and `clobber` is false), `StorageError` where the store
    refuses, `EvometaError` where another process took the run over.
    """
    place = of(path)
    if place is None or not kept(unit(path)[1]):
        return
    with asking(path, _resume(path)):
        _confirm(path)
        try:
            tag = place.store.put(place.key, data, new=not clobber)
        except Refused:
            found, tag = _there(path, len(data))
            if found != bytes(data):
                raise IntegrityError(
                    f"{path}: this name holds other bytes than those to be written. Run: evometa archive check"
                    f" {unit(path)[0]}"
                ) from None
    remember(path, tag)


def put_lines(path: Path, before: bytes, data: bytes) -> None:
    """Store a chained file as a whole, in the place of `before`. Raises `Overtaken` where another is there now."""
    place = of(path)
    if place is None:
        return
    with asking(path, _resume(path)):
        _confirm(path)
        known = tag_of(path, before)
        try:
            tag = place.store.put(place.key, data, new=known is None, tag=known)
        except Refused:
            found, tag = _there(path, len(data))
            if found != data:  # or it was heard, and only the answer lost
                raise Overtaken(
                    f"{path}: another process wrote it since it was read. Nothing was added. Look who does:"
                    f" evometa watch {unit(path)[0]}"
                ) from None
    remember(path, tag, data)


def fetch_lines(path: Path) -> None:
    """Read a chained file anew that processes of several machines write."""
    fetch(path)


def remove(path: Path) -> None:
    """Remove an object whose copy is about to be removed."""
    place = of(path)
    if place is None or not kept(unit(path)[1]):
        return
    with asking(path, _resume(path)):
        _confirm(path)
        place.store.delete(place.key)


@contextmanager
def alone(path: Path, take: Callable[[], None]) -> Iterator[None]:
    """Hold a run for writing: `take` gets this machine's lock of it, then its lease in the store, then its state."""
    place = of(path)
    if place is None:
        take()
        yield
        return
    path = place.root / place.key
    with alone_here(path):
        take()
        lease = Lease(place.store, place.key, own(path, "leases"))
        with asking(path):
            mine = lease.take()
        try:
            bring(path)
            if not mine:  # cells that were finished here are of a past that did not come
                shutil.rmtree(path / "cells", ignore_errors=True)
        except BaseException:
            lease.release()
            raise
    _leases[path] = lease
    try:
        yield
    finally:
        del _leases[path]
        lease.release()


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Whether nothing in the store has a run's name; nobody on this machine claims it meanwhile.

    What a removed run left in the copy goes.
    """
    place = of(path)
    if place is None:
        yield True
        return
    with alone_here(path):
        with asking(path):
            free = not place.store.list(place.key, most=1)
        if free:
            shutil.rmtree(path, ignore_errors=True)
        yield free


def complete(path: Path) -> None:
    """Fetch what a run's copy lacks, before its writer reads all of it: caches are emptied at any time."""
    if of(path) is not None:
        bring(path)


def reach(path: Path) -> None:
    """Raise `StorageError` where the store of a folder cannot be asked: before anything is computed."""
    place = of(path)
    if place is not None:
        with asking(path):
            place.store.list(place.key, most=1)


def refuse(path: Path, what: str) -> None:
    """Raise `UsageError` where a run is in a store, for what is only done on a disk."""
    if of(path) is not None:
        name = called(path)
        raise UsageError(
            f"{what} works on a disk alone. Fetch the run with: evometa archive pull {name} DIR, and give it DIR"
        )


def _confirm(path: Path) -> None:
    for folder, lease in _leases.items():
        if folder in path.parents:
            lease.confirm()


def _there(path: Path, size: int) -> tuple[bytes | None, str]:
    """What has the name, to be compared with `size` bytes; None where it has more."""
    place = of(path)
    assert place is not None
    with suppress(Gone):
        try:
            return place.store.get(place.key, size)
        except IntegrityError:
            return None, ""
    raise StorageError(f"{path}: an object comes and goes there. Type it again when nobody else writes the run")


def _resume(path: Path) -> str:
    return f"evometa resume {called(unit(path)[0])}"


__all__ = [
    "LOCK",
    "Overtaken",
    "alone",
    "claim",
    "complete",
    "fetch_lines",
    "put",
    "put_lines",
    "reach",
    "refuse",
    "remove",
]
