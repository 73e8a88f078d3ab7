"""What there is: the tasks and strategies that come with evometa and those that other packages add.

The lists import no task and no library, so they answer at once: a strategy's line is its row in the
catalogue, a task's is the first line of its module's docstring, read from the source without running it.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import inspect
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evometa.contract import Task
from evometa.errors import NotFound, did_you_mean
from evometa.names import known, load_task
from evometa.reports.values import readable
from evometa.strategies import CATALOGUE, describe
from evometa.tasks import TASKS

WIDTH = 100
Rows = list[dict[str, Any]]


# --- tasks ---------------------------------------------------------------------------------------------


def tasks_rows() -> Rows:
    """One row per task: its name, what it is, where it comes from. Imports no task."""
    return [
        {"task": name, "what": _first_line(target), "from": _origin(target, name in TASKS)}
        for name, target in known("tasks").items()
    ]


def tasks_table(rows: Rows) -> str:
    """The tasks, and what to type next."""
    return f"{_list(rows, 'task')}\n\nMore on one: evometa tasks {rows[0]['task']}. Your own: evometa new task NAME"


def task_data(name: str) -> dict[str, Any]:
    """One task as plain data: its space, domains and split, objective, baseline, options, profiles.

    Builds the task and so imports what it needs; loads no domain. Raises `NotFound` for an unknown name.
    """
    task = load_task(name)
    target = known("tasks").get(name, name)
    made_by = _factory(target) if name in known("tasks") else None
    return {
        "task": name,
        "what": _first_line(target),
        "source": target,
        "runs": task.runs,
        "objective": [str(objective) for objective in task.objectives],
        "queries": list(task.query_names),
        "split": {role: list(getattr(task.split, role)) for role in ("train", "validation", "test")},
        "tags": {domain.name: dict(domain.tags) for domain in task.domains if domain.tags},
        "space": _space(task),
        "marks": list(task.marks),
        "replicates": task.replicates,
        "black_box": task.black_box,
        "controls": sorted(task.controls),
        "options": _options(made_by) if made_by is not None else {},
        "profiles": _profiles(target) if made_by is not None else {},
    }


def task_text(data: Mapping[str, Any]) -> str:
    """`task_data` for people."""
    facts: dict[str, str] = {
        "runs as": {"jax": "JAX, compiled", "python": "plain Python", "command": "commands"}[data["runs"]],
        "objective": ", ".join(data["objective"]),
        "judged on": ", ".join(data["queries"]),
    }
    for role, meaning in (("train", "drive the search"), ("validation", "choose the champion"), ("test", "sealed")):
        if data["split"][role]:
            facts[role] = f"{', '.join(data['split'][role])} ({meaning})"
    if data["black_box"]:
        facts["note"] = "one function: nothing held out by construction"
    if data["controls"]:
        facts["controls"] = ", ".join(data["controls"])
    if data["options"]:
        facts["options"] = ", ".join(f"{key}={value!r}" for key, value in data["options"].items())
    columns = [f"{c['name']}  {c['range']}" for c in _aligned(data["space"])]
    blocks = [
        _title(data["task"], data["what"]),
        _facts(facts),
        "searched (baseline):",
        textwrap.indent("\n".join(columns), "  "),
    ]
    if data["profiles"]:
        lines = {name: _settings(profile) for name, profile in data["profiles"].items()}
        blocks += ["profiles:", textwrap.indent(_facts(lines), "  ")]
    return "\n".join([*blocks, f"Run it: evometa run {data['task']}"])


# --- strategies ----------------------------------------------------------------------------------------


def strategies_rows() -> Rows:
    """One row per strategy: its name, what it is, the columns it searches. Imports no library."""
    rows: Rows = []
    for name, target in known("strategies").items():
        if name in CATALOGUE:
            entry = describe(name)
            rows.append({"strategy": name, "what": entry["summary"], "searches": entry["searches"], "from": "evometa"})
        else:
            rows.append({"strategy": name, "what": _first_line(target), "searches": [], "from": _origin(target, False)})
    return rows


def strategies_table(rows: Rows) -> str:
    """The strategies, those that search every kind of column marked."""
    shown = [
        {"strategy": row["strategy"] + (" *" if "categorical" in row["searches"] else ""), "what": row["what"]}
        for row in rows
    ]
    return (
        f"{_list(shown, 'strategy')}\n\n* searches categorical columns too.\n"
        "More on one: evometa strategies cma_es. Your own: evometa new strategy NAME"
    )


def strategy_data(name: str) -> dict[str, Any]:
    """One strategy as plain data: what it searches, its options with their defaults, its source.

    Raises `NotFound` for an unknown name; only a strategy of another package is imported.
    """
    if name in CATALOGUE:
        data = describe(name)
        data["defaults"] = {"population": 32, **data["defaults"]}
        return data
    table = known("strategies")
    if name not in table:
        raise NotFound(f"no strategy is called {name!r}.{did_you_mean(name, table)} Type: evometa strategies")
    return {
        "name": name,
        "summary": _first_line(table[name]),
        "source": _origin(table[name], False),
        "factory": table[name],
        "defaults": _options(_factory(table[name])),
    }


def strategy_text(data: Mapping[str, Any]) -> str:
    """`strategy_data` for people."""
    facts = {"source": str(data["source"]), "code": str(data["factory"])}
    if "searches" in data:
        even = ", even" if data["even_population"] else ""
        facts["searches"] = f"{', '.join(data['searches'])} columns"
        facts["population"] = f"at least {data['minimum_population']}{even}"
        facts["parents"] = str(data["parents"])
        facts["compiled"] = "yes, with JAX tasks" if data["traceable"] else "no, runs step by step"
        if data["objectives"] > 1:
            facts["objectives"] = f"up to {data['objectives']}"
    facts["options"] = ", ".join(f"{key}={value!r}" for key, value in data["defaults"].items()) or "none"
    example = next(
        (
            f" --set strategy_options.{key}={value}"
            for key, value in data["defaults"].items()
            if key != "population" and value is not None
        ),
        "",
    )
    command = f"evometa run ladder --strategy {data['name']}{example}"
    return f"{_title(data['name'], data['summary'])}\n{_facts(facts)}\nRun it: {command}"


# --- shared --------------------------------------------------------------------------------------------


def _first_line(target: str) -> str:
    """First line of the docstring behind `module:attribute` or a file, read without running it."""
    module, _, attribute = target.partition(":")
    path = Path(module) if module.endswith(".py") else _source(module)
    if path is None:
        return "(not installed)"
    try:
        tree = ast.parse(path.read_text())
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        return f"(cannot be read: {type(error).__name__})"
    made = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == attribute]
    # A module of evometa holds one task, and says so at its top; elsewhere the function knows better.
    nodes: list[Any] = [tree, *made] if module.startswith("evometa.") else [*made, tree]
    text = next((doc for node in nodes if (doc := ast.get_docstring(node))), "(no description)")
    return text.splitlines()[0].strip()


def _source(module: str) -> Path | None:
    """A module's file. Parents are looked up, not run, so that a list never executes anybody's package."""
    first, *rest = module.split(".")
    try:
        found = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return None
    if found is None:
        return None
    if not rest:
        return Path(found.origin) if found.origin else None
    for folder in found.submodule_search_locations or ():
        base = Path(folder, *rest)
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def _origin(target: str, own: bool) -> str:
    if own:
        return "evometa"
    package = target.partition(":")[0].partition(".")[0]
    owners = importlib.metadata.packages_distributions().get(package)
    return owners[0] if owners else package


def _factory(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _options(factory: Any) -> dict[str, Any]:
    """A factory's options with their defaults; an object that is no function has none."""
    if not callable(factory):
        return {}
    parameters = inspect.signature(factory).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and _plain(p.default)}


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | type(None))


def _profiles(target: str) -> dict[str, Any]:
    return dict(getattr(importlib.import_module(target.partition(":")[0]), "PROFILES", {}))


def _settings(profile: Mapping[str, Any]) -> str:
    flat = {k: v for k, v in profile.items() if k != "task"} | dict(profile.get("task", {}))
    return ", ".join(f"{key} {value}" for key, value in flat.items())


def _space(task: Task) -> list[dict[str, Any]]:
    """Columns with their range and the baseline's value."""
    genome = task.space.encode(task.baseline)
    numbers, choices = task.space.values(genome[None])
    rows = []
    for column in task.space.columns:
        value: Any = None
        if column.kind == "categorical":
            value = column.choices[int(choices[column.name][0])]
        elif column.kind == "program":
            value = readable(task.space, genome)[column.name]
        elif column.kind != "weights":
            value = float(f"{float(numbers[column.name][0]):.6g}")
        rows.append({"name": column.name, "range": column.text(), "baseline": value})
    return rows


def _aligned(space: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    rows = list(space)
    width = max(len(row["name"]) for row in rows)
    return [
        {
            "name": row["name"].ljust(width),
            "range": _within(
                row["range"], "" if row["baseline"] is None else _short(row["baseline"]), WIDTH - width - 4
            ),
        }
        for row in rows
    ]


def _within(text: str, baseline: str, width: int) -> str:
    """`text  (baseline)`, a formula too long for the line cut short."""
    room = max(12, width - len(text) - 4)
    shown = baseline if len(baseline) <= room else f"{baseline[: room - 4]} ..."
    return f"{text}  ({shown})" if baseline else text


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _list(rows: Rows, key: str) -> str:
    """Name and description side by side, the description wrapped to the width."""
    return _facts({str(row[key]): row["what"] + _by(row) for row in rows})


def _title(name: str, text: str) -> str:
    """`name: text`, where the text does not begin with the name itself."""
    return textwrap.fill(text if text.lower().startswith(f"{Path(name).stem}:") else f"{name}: {text}", WIDTH)


def _by(row: Mapping[str, Any]) -> str:
    return f" [{row['from']}]" if row.get("from", "evometa") != "evometa" else ""


def _facts(facts: Mapping[str, str]) -> str:
    """`name  text` lines, texts wrapped and aligned."""
    width = max(len(name) for name in facts)
    lines = []
    for name, text in facts.items():
        wrapped = textwrap.wrap(text, WIDTH - width - 4, break_on_hyphens=False) or [""]
        lines += [f"{name:<{width}}  {wrapped[0]}", *[f"{'':<{width}}  {more}" for more in wrapped[1:]]]
    return "\n".join(lines)
