"""`difference(one, two)`: what changed between two programs, in words, for `archive diff`."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from evometa.programs.code import Instruction, Program
from evometa.programs.formula import text
from evometa.programs.listing import instruction_text, number
from evometa.programs.simplify import effective

_SECTIONS = ("setup", "update")


def difference(one: Program, two: Program) -> list[str]:
    """What to do to `one` to get `two`, a line each; an empty list for equal programs.

    First whether the formula changed, then instructions added, removed or changed (with their line within the
    section, from 1: of `two`, of `one` where removed), marked where they have no effect; then the constants
    that an instruction of either reads. Both must be valid programs.
    """
    if one == two:
        return []
    if one.vocabulary != two.vocabulary:
        return [f"vocabulary: {one.vocabulary.name} -> {two.vocabulary.name}", *_formula(one, two)]
    lines = _formula(one, two)
    marks_one, marks_two = effective(one), effective(two)
    rows = ((one.setup, two.setup), (one.update, two.update))
    for section, (before, after), *marks in zip(_SECTIONS, rows, marks_one, marks_two, strict=True):
        lines += [f"{section}: {line}" for line in _section(one, two, before, after, *marks)]
    return lines + _constants(one, two)


def _formula(one: Program, two: Program) -> list[str]:
    before, after = text(one), text(two)
    return [f"same formula: {before}"] if before == after else [f"formula before: {before}", f"formula after: {after}"]


def _section(
    one: Program,
    two: Program,
    before: Sequence[Instruction],
    after: Sequence[Instruction],
    marks_before: Sequence[bool],
    marks_after: Sequence[bool],
) -> list[str]:
    lines = []

    def removed(i: int) -> None:
        note = "" if marks_before[i] else " (had no effect)"
        lines.append(f"removed line {i + 1}, {instruction_text(one, before[i])}{note}")

    def added(j: int) -> None:
        note = "" if marks_after[j] else " (no effect)"
        lines.append(f"added line {j + 1}, {instruction_text(two, after[j])}{note}")

    for what, i, i_end, j, j_end in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if what == "equal":
            continue
        # Within a stretch that differs, lines that share something are one line changed; the others come and go.
        while i < i_end and j < j_end:
            if i_end - i > j_end - j and not _akin(before[i], after[j]):
                removed(i)
                i += 1
            elif i_end - i < j_end - j and not _akin(before[i], after[j]):
                added(j)
                j += 1
            else:
                note = "" if marks_before[i] or marks_after[j] else " (no effect)"
                was, is_now = instruction_text(one, before[i]), instruction_text(two, after[j])
                lines.append(f"changed line {j + 1}, {was} -> {is_now}{note}")
                i, j = i + 1, j + 1
        for k in range(i, i_end):
            removed(k)
        for k in range(j, j_end):
            added(k)
    return lines


def _akin(one: Instruction, two: Instruction) -> bool:
    """Are two instructions alike in at least two of operation, destination and operands?"""
    return sum(a == b for a, b in zip(one, two, strict=True)) >= 2


def _constants(one: Program, two: Program) -> list[str]:
    first = one.vocabulary.first_constant
    read = {i - first for p in (one, two) for row in (*p.setup, *p.update) for i in row.operands}
    lines = []
    for i in sorted(read & set(range(one.vocabulary.constants))):
        before, after = (p.constants[i] if i < len(p.constants) else None for p in (one, two))
        if before == after:
            continue
        if before is None:
            lines.append(f"constant c{i}: new, {number(after or 0.0)}")
        elif after is None:
            lines.append(f"constant c{i}: gone, was {number(before)}")
        else:
            lines.append(f"constant c{i}: {number(before)} -> {number(after)}")
    return lines
