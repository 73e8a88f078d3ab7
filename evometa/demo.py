"""The demonstration: four searches of the language ladder at equal evaluations, then one look at sealed languages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from evometa import api, folder
from evometa.archives import events
from evometa.archives.read import Archive
from evometa.driver import Watch
from evometa.names import profile as find_profile
from evometa.spec import build
from evometa.statistics import over_domains
from evometa.unseal import unseal_together

SEEDS = 10
# arm -> (how the table calls it, what its spec adds): everything else is equal.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "away": ("searched on away words", {"objective": "away"}),
    "home": ("searched on home words", {"objective": "home"}),
    "random": ("random search on away words", {"objective": "away", "strategy": "random_search"}),
    "regularizer": (
        "two-number regularizer, tuned on away words",
        {"objective": "away", "task_options": {"genome": "regularizer"}},
    ),
}


def demonstrate(out: Path, profile: str, seed: int, watch: Callable[[str], Watch]) -> dict[str, Any]:
    """Run, resume or just read the four searches, open the sealed languages once, and return the table's rows.

    Can be called again after any interruption; what is finished is not repeated, and neither is the look.
    """
    paths = {}
    for arm in ARMS:
        paths[arm] = _search(out, arm, profile, seed, watch(arm))
    if not all(any(e["kind"] == "opened" for e in events.diary(path)) for path in paths.values()):
        watch("opening").note("opening the sealed languages")
        with ExitStack() as stack:
            for path in paths.values():
                stack.enter_context(folder.locked(path))
            unseal_together([(path, api.reopen(path)) for path in paths.values()], SEEDS)
    return _result(paths)


def _search(out: Path, arm: str, profile: str, seed: int, watch: Watch) -> Path:
    name = f"demo-{profile}-s{seed}-{arm}"
    path = out / name
    if folder.exists(path):
        done = Archive(path).generations() >= folder.target(path) and api.open(path).champion is not None
        return path if done else api.resume(path, watch=watch).path
    options = find_profile("ladder", profile)
    task_options = options.pop("task", {})
    added = ARMS[arm][1]
    values = {"task": "ladder", **options, "seed": seed, "name": name, **added}
    values["task_options"] = {**task_options, **added.get("task_options", {})}
    return api.begin(build(values), out, watch=watch).path


def _result(paths: dict[str, Path]) -> dict[str, Any]:
    """The table, from the judgements on disk."""
    losses = {arm: _losses(path) for arm, path in paths.items()}
    domains, baseline = losses["away"]["domains"], losses["away"]["baseline"]
    rows: list[dict[str, Any]] = [
        {
            "arm": "baseline recipe",
            "home": float(baseline["home"].mean()),
            "away": float(baseline["away"].mean()),
            "difference": None,
            "low": None,
            "high": None,
        }
    ]
    interval = None
    for arm, (title, _) in ARMS.items():
        champion = losses[arm]["champion"]
        interval = over_domains(champion["away"] - losses[arm]["baseline"]["away"])
        rows.append(
            {
                "arm": title,
                "home": float(champion["home"].mean()),
                "away": float(champion["away"].mean()),
                "difference": interval.difference,
                "low": interval.low,
                "high": interval.high,
            }
        )
    assert interval is not None
    record, best = folder.read_record(paths["away"]), api.open(paths["away"]).champion
    assert best is not None
    opened = [event for event in events.diary(paths["away"]) if event["kind"] == "opened"]
    who = f"{best.generation}:{best.index or 0}"
    return {
        "rows": rows,
        "domains": list(domains),
        "seeds": SEEDS,
        "looks": opened[0]["looks"],
        "evaluations": Archive(paths["away"]).generations() * record["strategy"]["population"],
        "estimand": interval.estimand,
        "unit": interval.unit,
        "next": [
            f"evometa report {paths['away']}",
            f"evometa archive top {paths['away']}",
            f"evometa archive show {paths['away']} {who} --replay",
            "evometa new task mine",
        ],
    }


def _losses(path: Path) -> dict[str, Any]:
    """`{label: {query: [domains, seeds]}}` of the run's first opening."""
    opening = next(event["opening"] for event in events.diary(path) if event["kind"] == "opened")
    table = Archive(path).judgements()
    table = table.filter((pc.field("phase") == "test") & (pc.field("opening") == opening))
    domains = list(dict.fromkeys(table["domain"].to_pylist()))
    rows = table.select(["label", "query", "domain", "replicate", "loss"]).to_pylist()
    out: dict[str, Any] = {"domains": domains}
    for label in ("champion", "baseline"):
        out[label] = {}
        for query in ("home", "away"):
            grid = np.full((len(domains), SEEDS), np.nan)
            for row in rows:
                if row["label"] == label and row["query"] == query:
                    grid[domains.index(row["domain"]), row["replicate"]] = row["loss"]
            out[label][query] = grid
    return out
