"""A study's folder: its record (study.json), written once, and the runs beside it that belong to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evometa import folder
from evometa.archives import sealed, shapes
from evometa.archives.ledger import STUDY
from evometa.archives.regular import read_file
from evometa.archives.write import ensure_folder, storage, write_once
from evometa.contract import NAME
from evometa.errors import IntegrityError, NotFound, ResumeMismatch

FORMAT = "1.0"
SEARCHED = "searched"  # in the diary of a run that is no study's: it searches on sealed data (see unseal.py)


def is_study(path: Path) -> bool:
    """Whether the folder is a study's."""
    return (Path(path) / STUDY).is_file()


def read(path: Path) -> dict[str, Any]:
    """What study.json says. Raises `NotFound`, or `IntegrityError` where it was changed."""
    file = Path(path) / STUDY
    try:
        record = sealed.unseal(read_file(file), file)
    except FileNotFoundError:
        raise NotFound(f"no study at {path}. Start one with: evometa study FILE.toml") from None
    run = {"name": str, "judged": str, "label": str, "oracle?": bool}
    shapes.require(record, {"study": dict, "runs": [run]}, file)
    return record


def keep(path: Path, record: Mapping[str, Any]) -> bool:
    """Write the record of a new study, or check that the study on disk is the same; True for a new one.

    Raises `ResumeMismatch` naming the first thing that differs and the cure.
    """
    now = json.loads(json.dumps({"format": FORMAT, **record}))
    if is_study(path):
        was = read(path)
        if was["study"] != now["study"]:
            where, a, b = folder.first_difference("", was["study"], now["study"])
            raise ResumeMismatch(
                f"the study in {path} was another one ({where.lstrip('.')}: was {a}, is {b}). Put it back, or give"
                ' the new one a name of its own: name = "..."'
            )
        return False
    with storage(path):
        ensure_folder(path)
    write_once(path / STUDY, sealed.seal(now))
    return True


def arms_of(path: Path) -> tuple[list[Path], list[str]]:
    """The runs of a study that its comparison is about, and the arm of each; for `evometa compare STUDY`."""
    runs = read(path)["runs"]
    for run in runs:
        if not NAME.fullmatch(str(run["judged"])):
            raise IntegrityError(f"{Path(path) / STUDY}: expected the names of runs, got {run['judged']!r}")
    return [Path(path) / run["judged"] for run in runs], [str(run["label"]) for run in runs]
