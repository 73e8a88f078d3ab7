"""`simplify(program)`: a program that computes the same with no instruction, constant or register too many.

A program is written anew from its graph (`meaning.py`): what was found equal is worked out once. Where that needs
more registers, constants or instructions than there are, the program keeps its instructions and loses only those
without effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from evometa.programs.code import Instruction, Program
from evometa.programs.graph import CONSTANT, INPUT, MEMORY, REDUCES, Node
from evometa.programs.meaning import Meaning, Statement, Target, layout, meaning, statements


def simplify(program: Program) -> Program:
    """The same rule in canonical form: shorter or as long, never different.

    Instructions without effect, copies, repetitions and unused constants are gone; constants are folded and numbered by
    their first use; memory registers are taken in the order in which the outputs need them, within their type.
    What is computed stays the same to the bit, but for the exceptions that `graph.py` names. `program` must be valid.
    """
    kept = effective_part(program)
    written = write(meaning(kept))
    if written is None or len(written.setup) + len(written.update) > len(kept.setup) + len(kept.update):
        return kept
    return written


def effective(program: Program) -> tuple[list[bool], list[bool]]:
    """Which instructions of `setup` and of `update` bear on an output at some step."""
    where = layout(program.vocabulary)
    memory = set(range(where.first_memory, where.first_output))
    live_end = set(range(where.first_output, len(where.names)))
    while True:
        live, used = _backwards(program.update, live_end)
        # What is live when an update starts is live when the one before ends: memory is kept.
        if live & memory <= live_end:
            break
        live_end |= live & memory
    return _backwards(program.setup, live & memory)[1], used


def _backwards(section: Sequence[Instruction], live: set[int]) -> tuple[set[int], list[bool]]:
    live, used = set(live), []
    for _, destination, operands in reversed(section):
        used.append(destination in live)
        if used[-1]:
            live.discard(destination)
            live.update(operands)
    return live, used[::-1]


def effective_part(program: Program) -> Program:
    """The program without instructions that have no effect; constants and memory numbered by their first use."""
    where, marks = layout(program.vocabulary), effective(program)
    sections = [
        [row for row, used in zip(section, mark, strict=True) if used]
        for section, mark in zip((program.setup, program.update), marks, strict=True)
    ]
    rows = [row for section in sections for row in section]
    constants: dict[int, int] = {}
    memory: dict[int, int] = {}
    free = _by_width(where.widths, range(where.first_memory, where.first_output))
    for row in rows:
        for i in (row.destination, *row.operands):
            if where.first_constant <= i < where.first_memory:
                constants.setdefault(i, where.first_constant + len(constants))
            elif where.first_memory <= i < where.first_output and i not in memory:
                memory[i] = free[where.widths[i]].pop(0)
    renamed = {**constants, **memory}
    setup, update = (
        tuple(
            Instruction(row.operation, renamed.get(row.destination, row.destination),
                        tuple(renamed.get(i, i) for i in row.operands))
            for row in section
        )
        for section in sections
    )  # fmt: skip
    values = (*program.constants, *([0.0] * program.vocabulary.constants))
    return Program(program.vocabulary, setup, update, tuple(values[i - where.first_constant] for i in constants))


def _by_width(widths: Sequence[int], registers: Sequence[int]) -> dict[int, list[int]]:
    return {width: [r for r in registers if widths[r] == width] for width in range(3)}


def canonical_registers(what: Meaning) -> dict[int, int]:
    """Memory registers that matter -> what stands for them: the first of their type, in canonical order."""
    where = layout(what.vocabulary)
    free = _by_width(where.widths, range(where.first_memory, where.first_output))
    return {r: free[where.widths[r]].pop(0) for r in what.memory}


class _Job(NamedTuple):
    """One instruction before registers are given out: `key` is the value that it makes."""

    operation: str
    key: Node | Target
    reads: tuple[Node | Target, ...]
    target: Target | None


def write(what: Meaning) -> Program | None:
    """A program of a graph, or None where the vocabulary has not enough of something."""
    vocabulary = what.vocabulary
    places = canonical_registers(what)
    constants: dict[float, int] = {}
    setup = _section(what, what.setup, (), places, constants)
    update = _section(what, what.update, what.outputs, places, constants)
    if setup is None or update is None or len(setup) > vocabulary.setup or len(update) > vocabulary.update:
        return None
    return Program(vocabulary, setup, update, tuple(constants)) if len(constants) <= vocabulary.constants else None


def _section(
    what: Meaning,
    memory: Mapping[int, Node],
    outputs: Sequence[Node],
    places: Mapping[int, int],
    constants: dict[float, int],
) -> tuple[Instruction, ...] | None:
    ordered, holders = statements(what, memory, outputs)
    # Outputs are zero before an update; nothing needs to be written there.
    ordered = [s for s in ordered if not (s.target.kind == "output" and s.node.kind == CONSTANT and s.node.value == 0)]
    jobs = _jobs(what, ordered, holders)
    last = {read: i for i, job in enumerate(jobs) for read in job.reads}
    where = layout(what.vocabulary)
    taken = set(places.values())
    spare = [r for r in range(where.first_memory, where.first_output) if r not in taken]
    spare.sort(key=lambda r: where.widths[r])
    closing = {s.target: where.first_output + s.target.number for s in ordered if s.target.kind == "output"}
    # Until an output is written its register is free; setup leaves no trace in any of them.
    spare += closing.values() if outputs else range(where.first_output, len(where.names))
    closing |= {Target("memory", r): place for r, place in places.items()}
    at: dict[Node | Target, int] = {}
    rows: list[Instruction] = []
    for i, job in enumerate(jobs):
        if job.operation not in what.vocabulary.operations:
            return None
        operands = tuple(_find(read, at, places, constants, where.first_constant) for read in job.reads)
        # Registers of values that are read here for the last time can take the result.
        held = {at[key] for key in at if last.get(key, -1) > i}
        # A register is as wide as its type says, however narrow the value that it holds.
        width = REDUCES.get(job.operation, max(where.widths[r] for r in operands))
        if job.target is not None and job.target in closing:
            choices = [closing[job.target]]
            spare = [r for r in spare if r != choices[0]]
        else:
            choices = spare
        place = next((r for r in choices if r not in held and where.widths[r] >= width), -1)
        if place < 0:
            return None
        at[job.key] = place
        if job.target is not None:
            at[job.target] = place
        rows.append(Instruction(what.vocabulary.operation(job.operation), place, operands))
    return tuple(rows)


def _jobs(what: Meaning, ordered: Sequence[Statement], holders: Mapping[Node, Target]) -> list[_Job]:
    """The instructions of statements in their order, every value made once."""
    jobs: list[_Job] = []
    made: set[Node] = set()
    for statement in ordered:
        node, target = statement.node, statement.target
        if statement.via is not None or not node.args:
            jobs.append(_Job("copy", target, (statement.via or node,), target))
            continue
        pending = [(node, False)]
        while pending:
            inner, ready = pending.pop()
            if not inner.args or inner in made:
                continue
            args = what.order[inner]
            if ready:
                made.add(inner)
                reads = tuple(holders.get(arg, arg) for arg in args)
                key = holders.get(inner, inner)
                jobs.append(_Job(inner.kind, key, reads, target if inner is node else None))
            else:
                pending.append((inner, True))
                pending.extend((arg, False) for arg in reversed(args))
    return jobs


def _find(
    read: Node | Target,
    at: Mapping[Node | Target, int],
    places: Mapping[int, int],
    constants: dict[float, int],
    first_constant: int,
) -> int:
    """The register that holds a value."""
    if isinstance(read, Node) and read.kind == CONSTANT:
        return first_constant + constants.setdefault(read.value, len(constants))
    if isinstance(read, Node) and read.kind == INPUT:
        return int(read.value)
    if isinstance(read, Node) and read.kind == MEMORY:
        return places[int(read.value)]
    return at[read]


def is_noop(program: Program) -> bool:
    """Are all outputs zero, whatever comes in?"""
    return all(node.kind == CONSTANT and node.value == 0 for node in meaning(program).outputs)
