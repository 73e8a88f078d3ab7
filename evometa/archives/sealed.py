"""JSON records that notice a flipped bit, and the checkpoints that are described by them.

The last field of a record is the hash of all others. Which checkpoints are whole is known here, below
`checkpoint.py`, because `check` asks too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evometa.archives import shapes
from evometa.archives.regular import read_file
from evometa.archives.write import storage
from evometa.errors import IntegrityError

FORMAT = "1.0"
FOLDER = "checkpoints"
NAME = re.compile(r"ckpt-(\d{9,})-([0-9a-f]{16})\.(safetensors|json)")


class Found(NamedTuple):
    """A checkpoint on disk: `record` is its JSON, or None where `problem` says what is wrong with it."""

    generation: int
    path: Path  # the .json
    record: dict[str, Any] | None
    problem: str


def seal(record: Mapping[str, Any]) -> bytes:
    """The record as JSON text with its hash in `seal`; the same record gives the same bytes."""
    return json.dumps({**record, "seal": _hash(record)}, sort_keys=True, indent=1).encode() + b"\n"


def unseal(data: bytes, path: Path) -> dict[str, Any]:
    """The record that `seal` wrote. Raises `IntegrityError` that names `path`."""
    try:
        record = json.loads(data)
        given = record.pop("seal")
        # Compared as bytes: JSON that means the same but is not the same was edited.
        whole = given == _hash(record) and data == seal(record)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        whole, record = False, {}
    if not whole:
        raise IntegrityError(f"{path}: its bytes are not those that were written")
    return record


def scan(run_path: Path | str) -> list[Found]:
    """Every checkpoint of a run, oldest first, each verified byte for byte. Raises `StorageError`."""
    folder = Path(run_path) / FOLDER
    with storage(folder):
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
    matches = [(name, match) for name in names if (match := NAME.fullmatch(name)) and match[3] == "json"]
    found = [_verified(folder / name, int(match[1]), match[2]) for name, match in matches]
    return sorted(found, key=lambda checkpoint: checkpoint.generation)


def _verified(path: Path, generation: int, digest: str) -> Found:
    arrays = path.with_suffix(".safetensors")
    try:
        record = unseal(read_file(path), path)
        shapes.require(record, {"format": str}, path)
        if not record["format"].startswith("1."):
            raise IntegrityError(f"{path}: expected checkpoint format 1.x, got {record.get('format')}. Update evometa")
        shapes.require(record, shapes.CHECKPOINT, path)
        if record["generation"] != generation or not record["sha256"].startswith(digest):
            raise IntegrityError(f"{path}: this file was renamed")
        if hashlib.sha256(read_file(arrays)).hexdigest() != record["sha256"]:
            raise IntegrityError(f"{arrays}: its bytes are not those that were written")
    except IntegrityError as error:
        return Found(generation, path, None, str(error))
    except OSError as error:
        return Found(generation, path, None, f"{error.filename or path}: cannot be read ({error.strerror})")
    return Found(generation, path, record, "")


def _hash(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
