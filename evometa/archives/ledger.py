"""Who looked at which sealed data, `openings.jsonl` beside the runs: a second look is a second look in any run.

The file is chained like a run's events, and several processes may add to it. A line holds `domains`, the digest of
each domain's data, and `sources`, where a task says what they are made of. Where runs that are opened together hold
different data under one domain's name, the further digests come in lines of the same look, under `variants`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evometa.archives import mirror, shapes
from evometa.archives.events import Entry, append_line, read_lines

FILE = "openings.jsonl"
STUDY = "study.json"  # a folder that holds this is a study: its runs have the ledger beside the study


def root(run_path: Path) -> Path:
    """The folder that holds the ledger of a run: where the run lies, or where its study lies."""
    folder = Path(run_path).absolute().parent
    return root(folder) if (folder / STUDY).is_file() else Path(run_path).parent


def append(root: Path, entry: Mapping[str, Any]) -> Entry:
    """Record an opening in the folder of the runs; `entry` holds a `data_digest`. Returns the line as written.

    Raises `StorageError` where the disk refuses, `IntegrityError` where the ledger was changed.
    """
    return append_line(Path(root) / FILE, {"kind": "opened", **entry}, shared=True)


def read(root: Path) -> list[Entry]:
    """All openings in order. Raises `IntegrityError` that names the line that was changed."""
    path = Path(root) / FILE
    mirror.fetch_lines(path)
    entries = read_lines(path)
    for entry in entries:
        shapes.require(entry, shapes.LEDGER, path, f"line {entry['seq'] + 1}")
    return entries


def count(root: Path, data_digest: str) -> int:
    """How often the data of that digest were opened, in whatever run."""
    return sum(entry.get("data_digest") == data_digest for entry in read(root))


def data(entry: Mapping[str, Any]) -> dict[str, str]:
    """Domain -> digest of what a line says was opened."""
    return entry.get("domains") or entry.get("variants") or {}


def words(entry: Mapping[str, Any]) -> set[str]:
    """Everything that tells what a line opened: digests of arrays, and the sources that tasks name (`tags["data"]`)."""
    return set(data(entry).values()) | set(entry.get("sources", {}).values())


def look(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells one look from another: several lines may be of one look."""
    return tuple(entry.get("announced") or (entry["hash"],))


def before(root: Path, announced: Sequence[str]) -> dict[str, int] | None:
    """Domain -> how many looks at its data came before the one whose diary lines are `announced`.

    Domains whose data nobody had seen are left out. None where the ledger does not know of that look: it was removed,
    and nothing can be said.
    """
    entries, own = read(root), tuple(announced)
    mine = [entry for entry in entries if look(entry) == own]
    if not mine:
        return None
    earlier = entries[: entries.index(mine[0])]
    out: dict[str, int] = {}
    for name in dict.fromkeys(name for entry in mine for name in data(entry)):
        own_words = {data(entry)[name] for entry in mine if name in data(entry)}
        own_words |= {entry["sources"][name] for entry in mine if name in entry.get("sources", {})}
        looks = {look(entry) for entry in earlier if own_words & words(entry)}
        if looks:
            out[name] = len(looks)
    return out
