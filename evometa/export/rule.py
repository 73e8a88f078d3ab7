"""Which rule of a run is exported: the program of its champion, or of any candidate, with the numbers beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evometa import champion, folder
from evometa.archives.read import Archive
from evometa.errors import ConfigError, EvometaError, NotFound, UsageError, did_you_mean
from evometa.export.latex import latex_source
from evometa.export.module import optax_module, python_module
from evometa.programs.code import Program, Refusal, disassemble
from evometa.space import Space, flatten

FORMS = {"optax": "py", "python": "py", "latex": "tex"}


class Rule(NamedTuple):
    """A program and where it comes from."""

    program: Program
    run: str
    candidate: str  # "12:3", or "champion, after generation 40"
    beside: dict[str, float | str]  # the other columns of the candidate: numbers such as `lr`, and choices
    task: str  # the module of the task that was searched
    options: dict[str, Any]  # and its options
    lost: tuple[str, ...]  # columns that no module holds: arrays, other programs


def rule_of(path: Path, candidate: tuple[int, int] | None = None, column: str | None = None) -> Rule:
    """The rule of a run's champion, or of `candidate`. `column`: which program, where the space has several.

    Raises `ConfigError` where the run searches no program, `UsageError` where it must be said which, `EvometaError`
    for a run without a champion and for a candidate that is no program.
    """
    record = folder.read_record(path)
    space = Space.from_json(record["task"]["space"])
    programs = [one.name for one in (*space.columns, *(held for held, _ in space.held)) if one.kind == "program"]
    if not programs:
        names = ", ".join(one.name for one in space.columns[:6])
        raise ConfigError(f"export: expected a run that searches a program, got {path.name}, which searches {names}")
    if column is None and len(programs) > 1:
        raise UsageError(f"export: {path.name} has several programs: {', '.join(programs)}. Say which with --column")
    column = column or programs[0]
    if column not in programs:
        hint = did_you_mean(column, programs)
        raise NotFound(f"export: expected a program of {', '.join(programs)}, got {column!r}.{hint}")
    if candidate is None:
        best = champion.last(path)
        if best is None:
            raise EvometaError(f"{path.name} has no champion yet. Finish it first with: evometa resume {path}")
        genome, index = best.genome, best.index
        who = f"the champion, {best.generation}:{index}" if index is not None else "the champion"
    else:
        genome = np.asarray(Archive(path).row(*candidate)["genome"], np.float32)
        who = "{}:{}".format(*candidate)
    found = space.decode_host(np.asarray(genome, np.float32))
    every = [*space.columns, *(held for held, _ in space.held)]
    values = flatten(found, {one.name for one in every})
    vocabulary = next(one.vocabulary for one in every if one.name == column)
    assert vocabulary is not None
    program = disassemble(vocabulary, values[column])
    if isinstance(program, Refusal):
        raise EvometaError(f"export: {who} of {path.name} is no program: {program}")
    beside: dict[str, float | str] = {}
    for name, value in values.items():
        if isinstance(value, str):
            beside[name] = value
        elif isinstance(value, int | float):
            beside[name] = float(value)
    lost = tuple(name for name in values if name != column and name not in beside)
    options = record["spec"].get("task_options")
    options = options if isinstance(options, dict) else {}
    return Rule(program, path.name, who, beside, str(record["task"].get("source")), options, lost)


def export(path: Path, form: str, candidate: tuple[int, int] | None = None, column: str | None = None) -> str:
    """The text of the exported file. `form`: optax, python or latex; raises `UsageError` for another."""
    if form not in FORMS:
        hint = did_you_mean(form, FORMS)
        raise UsageError(f"export: expected --as {', '.join(FORMS)}, got {form!r}.{hint}")
    rule = rule_of(path, candidate, column)
    made: Any = {"optax": optax_module, "python": python_module, "latex": latex_source}[form]
    origin = f"{rule.candidate} of run {rule.run}"
    if rule.lost:
        origin += f" (without {', '.join(rule.lost)}, which stood beside it)"
    return made(rule.program, origin, rule.beside, rule.task, rule.options)
