"""Where a run in an object store lies on this machine: `s3://bucket/prefix/RUN` and the folder that copies it.

The store is the truth. A bucket's copy in the user's cache folder has the same names, holds nothing that the store
lacks but scratch, and may be deleted at any time. Everything in evometa works on folders; only this module and those
that use it know which folders are copies.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from evometa.archives.store import Store, endpoint
from evometa.errors import StorageError, UsageError
from evometa.printable import CALLED

OWN = ".mirror"  # beside the copied names: locks, tags, half-made files; no name of an object begins with a dot
SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+@-]{0,127}")
DEEPEST = 12  # segments of a name
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)")
_COLLAPSED = re.compile(r"s3:/([^/].*)")  # what pathlib makes of a URL
_stores: dict[str, Store] = {}


class Place(NamedTuple):
    """A folder or a file of a copy, and what it copies."""

    store: Store
    root: Path  # the bucket's copy
    key: str  # the name in the bucket; '' for the bucket itself


def is_url(reference: str | Path) -> bool:
    """Whether this names something in a store, rather than a file or folder."""
    text = str(reference)
    return bool(_URL.fullmatch(text) or (_COLLAPSED.fullmatch(text) and not os.path.exists(text)))


def local(reference: str | Path) -> Path:
    """The folder that copies what a URL names; any other path as it is. Asks no store.

    Raises `UsageError` for a URL that is no `s3://BUCKET/PREFIX`.
    """
    if not is_url(reference):
        return Path(reference)
    text = _COLLAPSED.sub(r"s3://\1", str(reference))
    found = _URL.fullmatch(text)
    assert found is not None
    if found[1].lower() != "s3":
        raise UsageError(
            f"expected s3://BUCKET/PREFIX or a folder, got {text!r}. Other stores are spoken to by their S3 interface:"
            " set AWS_ENDPOINT_URL"
        )
    bucket, *segments = found[2].rstrip("/").split("/")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"expected s3://BUCKET/PREFIX, got {text!r}: {bucket!r} cannot be a bucket's name")
    for segment in segments:
        if not SEGMENT.fullmatch(segment):
            raise UsageError(f"expected s3://BUCKET/PREFIX of letters, digits and _ . = + @ -, got {text!r}")
    if len(segments) > DEEPEST - 4:
        raise UsageError(f"expected at most {DEEPEST - 4} segments in s3://BUCKET/PREFIX, got {len(segments)}")
    root = _home() / _folder(bucket)
    CALLED[str(root)] = f"s3://{bucket}"
    return root.joinpath(*segments)


def of(path: Path | str) -> Place | None:
    """What a path copies; None for an ordinary one."""
    try:
        home = str(_home())
    except StorageError:
        return None
    absolute = os.path.abspath(path)
    if not absolute.startswith(home + os.sep):
        return None
    name, _, key = absolute[len(home) + 1 :].partition(os.sep)
    bucket = name.partition("-")[2]
    if key.split(os.sep)[0] == OWN:
        return None
    if name != _folder(bucket):
        raise StorageError(
            f"{path} copies a store at another endpoint than AWS_ENDPOINT_URL says ({endpoint() or 'AWS'}). Set that,"
            " and type s3://BUCKET/... instead"
        )
    root = Path(home, name)
    CALLED[str(root)] = f"s3://{bucket}"
    store = _stores.setdefault(name, Store(bucket))
    return Place(store, root, key.replace(os.sep, "/"))


def is_relative(reference: str, path: Path) -> bool:
    """Whether a URL names something in the bucket that `path` is a copy of."""
    there, here = of(local(reference)), of(path)
    return there is not None and here is not None and there.root == here.root


def own(path: Path, kind: str, ending: str = "") -> Path:
    """A file of the copy's own for the folder or file `path` of it, such as its lock."""
    place = of(path)
    assert place is not None
    word = hashlib.sha256(place.key.encode()).hexdigest()[:32]
    return place.root / OWN / kind / f"{word}{ending}"


def called(path: Path | str) -> str:
    """How the user types a path: `s3://...` for a copy."""
    place = of(path)
    return str(path) if place is None else f"s3://{place.store.bucket}/{place.key}".rstrip("/")


def _home() -> Path:
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        raise StorageError(
            "runs in a store are copied to a cache folder, and there is no home: set XDG_CACHE_HOME"
        ) from None
    return Path(os.path.realpath(cache), "evometa", "stores")


def _folder(bucket: str) -> str:
    word = hashlib.sha256(f"{endpoint()}\n{bucket}".encode()).hexdigest()[:12]
    return f"{word}-{bucket}"
