"""Who looked at which sealed data, `openings.jsonl` beside the runs: a second look is a second look in any run.

The file is chained like a run's events, and several processes may add to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evometa.archives.events import Entry, append_line, read_lines

FILE = "openings.jsonl"


def append(root: Path, entry: Mapping[str, Any]) -> Entry:
    """Record an opening in the folder of the runs; `entry` holds a `data_digest`. Returns the line as written.

    Raises `StorageError` where the disk refuses, `IntegrityError` where the ledger was changed.
    """
    return append_line(Path(root) / FILE, {"kind": "opened", **entry})


def read(root: Path) -> list[Entry]:
    """All openings in order. Raises `IntegrityError` that names the line that was changed."""
    return read_lines(Path(root) / FILE)


def count(root: Path, data_digest: str) -> int:
    """How often the data of that digest were opened, in whatever run."""
    return sum(entry.get("data_digest") == data_digest for entry in read(root))
