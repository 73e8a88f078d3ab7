"""Look on at a run that another process carries: reads its files, touches nothing."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from evometa import champion, folder
from evometa.archives.pull import refresh
from evometa.archives.read import Archive
from evometa.printable import as_typed, printable

_SECONDS = 2.0
FINE = ("ok", "skipped")


def follow(path: Path, *, once: bool, as_json: bool) -> None:
    """Print the state of a run whenever it changed, until it has its champion (or once)."""
    archive, shown = Archive(path), None
    while True:
        refresh(path)  # of a run in an object store, its copy here
        now = state(path, archive)
        if now != shown:
            print(as_typed(json.dumps(now, allow_nan=False)) if as_json else printable(text(now)), flush=True)
            shown = now
        if once or now["champion"] is not None and now["generations"] >= now["of"]:
            return
        sys.stdout.flush()
        time.sleep(_SECONDS)


def state(path: Path, archive: Archive) -> dict[str, Any]:
    """How far the run is, and how the last generation did."""
    best, generations = champion.last(path), archive.generations()
    data: dict[str, Any] = {
        "run": path.name,
        "generations": generations,
        "of": folder.target(path),
        "best": None,
        "median": None,
        "failed": None,
        "champion": None
        if best is None
        else {"generation": best.generation, "index": best.index, "validation": best.validation},
    }
    if generations:
        newest = archive.parts()[-1].read(["generation", "fitness", "failure"])
        last = newest.filter(newest["generation"].to_numpy() == generations - 1)
        fitness = last["fitness"].to_numpy()
        finite = fitness[np.isfinite(fitness)]
        # Who stopped at a hurdle has no fitness, and did not fail.
        data["failed"] = sum(failure not in FINE for failure in last["failure"].to_pylist())
        if len(finite):
            data["best"], data["median"] = float(finite.min()), float(np.median(finite))
    return data


def text(data: dict[str, Any]) -> str:
    """One line."""
    words = [f"{data['run']}  generation {data['generations']}/{data['of']}"]
    if data["best"] is not None:
        words.append(f"fitness {data['best']:.4f} median {data['median']:.4f}")
    if data["failed"]:
        words.append(f"failed {data['failed']}")
    if data["champion"] is not None and data["champion"]["validation"] is not None:
        words.append(f"champion promises {data['champion']['validation']:.4f}")
    return "  ".join(words)
