"""Runs as the arms of a study or a comparison: what each is called, what it used, how its domains are related."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc

from evometa import folder
from evometa.archives.read import Archive
from evometa.errors import ConfigError, UsageError, did_you_mean
from evometa.spec import canonical

BASELINE = "baseline"


class Budget(NamedTuple):
    """What one run used."""

    run: str
    arm: str
    seed: int
    evaluations: int  # candidates scored by the search
    trainings: int  # inner trainings: candidates x train domains x replicates
    inner_steps: int | None  # of all trainings; None where the task does not count them
    told: dict[str, int]  # query -> scores that reached the search
    chosen: dict[str, int]  # query -> scores that chose the champion among the finalists
    seconds: float  # of wall time, as recorded block by block


def label(paths: Sequence[Path | str], names: Sequence[str | None] | None = None) -> list[str]:
    """The arm of each run: the name given, or the shortest difference between the specs. Opened or not."""
    given: list[str | None] = list(names) if names is not None else [None] * len(paths)
    if len(given) != len(paths):
        raise UsageError(f"expected one name per run ({len(paths)}), got {len(given)}")
    records = [folder.read_record(Path(path)) for path in paths]
    whole = [
        _flat(_what(record) | {"length": Archive(p).generations()}) for record, p in zip(records, paths, strict=True)
    ]
    open_ = [i for i, name in enumerate(given) if name is None]
    differing = [
        key for key in sorted({k for i in open_ for k in whole[i]}) if len({whole[i].get(key) for i in open_}) > 1
    ]
    words = {i: tuple(whole[i].get(key) for key in differing) for i in open_}
    chosen = _shortest(differing, list(dict.fromkeys(words.values())))
    for i in open_:
        shown = [(key, words[i][differing.index(key)]) for key in chosen]
        given[i] = ", ".join(_word(key, value) for key, value in shown) or records[i]["strategy"]["name"]
    labels = [str(name) for name in given]
    for i, name in enumerate(labels):
        if name == BASELINE or name.startswith(f"{BASELINE} of "):
            raise UsageError(f"an arm cannot be called {name!r}: that is the task's own. Choose another name")
        for j in range(i):
            if labels[j] == name and records[j]["seed"] == records[i]["seed"]:
                raise UsageError(
                    f"{Path(paths[j]).name} and {Path(paths[i]).name} are both search seed {records[i]['seed']} of"
                    f" {name!r}. Leave one out, or name them apart: NAME=RUN"
                )
    return labels


def budgets(paths: Sequence[Path | str], names: Sequence[str]) -> tuple[Budget, ...]:
    """What runs used, opened or not; `names` are their arms."""
    return tuple(_budget(Path(path), name) for path, name in zip(paths, names, strict=True))


def families(path: Path | str, tag: str) -> dict[str, str]:
    """Domain -> its tag's value, as run.json says; no task is imported. Raises `ConfigError`."""
    record = folder.read_record(Path(path))
    tags = _tags(record)
    found = {domain: str(values[tag]) for domain, values in tags.items() if tag in values}
    if not found:
        known = sorted({name for values in tags.values() for name in values})
        raise ConfigError(
            f"no domain of {record['task']['name']} has a tag {tag!r}.{did_you_mean(tag, known)}"
            f" Known: {', '.join(known) or 'none'}"
        )
    return found


def _tags(record: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Domain -> tag -> value. Records from before they held tags: those of evometa's own tasks are known."""
    from evometa.names import load_task
    from evometa.tasks import TASKS

    spec = record["spec"]
    if "tags" in record or not isinstance(spec["task"], str) or spec["task"] not in TASKS:
        return record.get("tags", {})
    return {domain.name: domain.tags for domain in load_task(spec["task"], spec["task_options"]).domains}


def _budget(path: Path, arm: str) -> Budget:
    record, archive = folder.read_record(path), Archive(path)
    objectives = {text.split(":")[0] for text in record["task"]["objectives"]}
    evaluations, steps, cells = 0, None, dict[str, int]()
    for part in archive.parts():
        table = part.read(["failure", "inner_steps", "scores"])
        scored = pc.call_function("not_equal", [table["failure"], "skipped"])
        evaluations += _sum(scored) or 0
        counted = _sum(table["inner_steps"])
        steps = steps if counted is None else counted + (steps or 0)
        flat = table["scores"].combine_chunks().flatten()
        queries = flat.field("query").filter(flat.field("loss").is_valid())
        for entry in pc.call_function("value_counts", [queries]).to_pylist():
            cells[entry["values"]] = cells.get(entry["values"], 0) + entry["counts"]
    trainings, total = max(cells.values(), default=0), sum(cells.values())
    judged = archive.judgements().filter((pc.field("phase") == "validation") & (pc.field("label") != BASELINE))
    asked = Counter(judged["query"].to_pylist())
    chosen = {query: asked[query] for query in sorted(objectives)}
    return Budget(
        path.name,
        arm,
        record["seed"],
        evaluations,
        trainings,
        # The steps of a training are stored with each of its queries.
        None if steps is None or not total else round(steps * trainings / total),
        {query: cells.get(query, 0) for query in sorted(objectives)},
        chosen,
        float(_sum(archive.timings()["seconds"]) or 0.0),
    )


def _sum(values: Any) -> Any:
    return pc.call_function("sum", [values]).as_py()


def _what(record: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two runs the same method: all but seed and plan."""
    spec = {key: value for key, value in record["spec"].items() if key not in ("seed", "plan")}
    code = {name: record[name].get("code") for name in ("task", "strategy")}
    if isinstance(spec["task"], str):  # where the file lies is no difference
        spec["task"] = record["task"]["name"]
    spec["objective"] = ", ".join(record["task"]["objectives"])
    return {**spec, "code": code, "from": record.get("from")}


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(value, Mapping):
        return {prefix: value if isinstance(value, str) else canonical(value)}
    out: dict[str, str] = {}
    for key, child in value.items():
        out |= _flat(child, f"{prefix}.{key}" if prefix else key)
    return out


def _shortest(keys: list[str], words: Sequence[tuple[str | None, ...]]) -> list[str]:
    """The fewest of the differing keys that tell all rows apart, the plain ones before the dotted."""
    ranked = sorted(keys, key=lambda key: (key.startswith("code"), key.count("."), len(key)))
    for size in range(1, min(len(ranked), 4) + 1):
        for some in combinations(ranked, size):
            if len({tuple(row[keys.index(key)] for key in some) for row in words}) == len(words):
                return list(some)
    return ranked


def _word(key: str, value: str | None) -> str:
    if key in ("strategy", "task"):
        return str(value)
    if key.startswith("code"):
        return f"{key.split('.')[-1]} code {str(value)[:6]}"
    return f"{key.split('.')[-1]}={'default' if value is None else value}"
