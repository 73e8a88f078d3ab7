"""A program's instructions as lines of Python, and those of its derivative."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evometa.errors import ConfigError
from evometa.programs.code import Instruction, Program
from evometa.programs.operations import OPERATIONS

# The parts of an operation's derivative, one for each operand (da, db); where it has a kink, as JAX has it.
_SLOPES = {
    "copy": ("{da}",),
    "add": ("{da}", "{db}"),
    "sub": ("{da}", "-{db}"),
    "mul": ("{da} * {b}", "{a} * {db}"),
    "div": ("_div({da}, {b})", "-_div(_div({a}, {b}) * xp.where(xp.abs({b}) < _F(1e-12), _F(0.0), {db}), {b})"),
    "neg": ("-{da}",),
    "abs": ("xp.sign({a}) * {da}",),
    "square": ("_F(2.0) * {a} * {da}",),
    "sqrt": ("xp.sign({a}) * {da} * _F(0.5) / xp.sqrt(xp.abs({a}) + _F(1e-24))",),
    "exp": ("xp.exp(xp.clip({a}, _F(-20.0), _F(20.0))) * _larger(_F(20.0), xp.abs({a})) * {da}",),
    "log": ("xp.sign({a}) * {da} / (xp.abs({a}) + _F(1e-12))",),
    "tanh": ("(_F(1.0) - xp.square(xp.tanh({a}))) * {da}",),
    "max": ("_larger({a}, {b}) * {da}", "_larger({b}, {a}) * {db}"),
    "min": ("_larger({b}, {a}) * {da}", "_larger({a}, {b}) * {db}"),
}


def names_of(program: Program) -> list[str]:
    """What each register is called: its name, or the number that a constant is."""
    words = program.vocabulary
    names = [register.name for register in words.registers]
    for i, value in enumerate(program.constants):
        names[words.first_constant + i] = f"_F({np.float32(value)!s})"  # the shortest text that gives the same bits
    return names


def slope_lines(program: Program, wrt: str) -> tuple[list[str], list[str], str]:
    """The derivative of a program's first output by the input `wrt`, forward, from empty memory.

    Returns what registers begin with, a line for each instruction that gives its value and its derivative, and the name
    of what is asked for. Raises `ConfigError` for a program with an operation that has no rule here, or with a setup.
    """
    words, names = program.vocabulary, names_of(program)
    lines = []
    missing = {words.operations[row.operation] for row in program.update} - set(_SLOPES)
    if missing or program.setup:
        what = f"the operation {', '.join(sorted(missing))}" if missing else "a setup"
        raise ConfigError(f"export: a derivative by {wrt!r} of a program with {what} cannot be written")
    flat = {names.index(wrt)}  # registers that have a derivative
    for row in program.update:
        operation = words.operations[row.operation]
        parts = {letter: names[o] for letter, o in zip("abc", row.operands, strict=False)}
        parts |= {f"d{letter}": f"d_{name}" for letter, name in tuple(parts.items())}
        slopes = [one for one, o in zip(_SLOPES[operation], row.operands, strict=True) if o in flat]
        target, value = names[row.destination], OPERATIONS[operation].python.format(**parts)
        if slopes:
            flat.add(row.destination)
            lines.append(f"    {target}, d_{target} = {value}, {' + '.join(slopes).format(**parts)}")
        else:
            flat.discard(row.destination)
            lines.append(f"    {target} = {value}")
    read = {names[o] for row in program.update for o in row.operands}
    output = names[words.first_output]
    begin = [f"    {name} = _F(0.0)" for name in names[words.first_memory :] if name in unwritten(program) & read]
    if wrt in read:
        begin.append(f"    d_{wrt} = _F(1.0)")
    return begin, lines, f"d_{output}" if words.first_output in flat else "_F(0.0)"


def unwritten(program: Program) -> set[str]:
    """Registers that `update` reads before it writes them, or never writes."""
    names = [register.name for register in program.vocabulary.registers]
    written: set[str] = set()
    unset = set(names) - {names[row.destination] for row in program.update}
    for row in program.update:
        unset |= {names[operand] for operand in row.operands} - written
        written.add(names[row.destination])
    return unset


def kept_memory(program: Program) -> list[str]:
    """The memory registers whose value at the end of a step is read at the next: the rule's state."""
    unset = unwritten(program)
    read = {program.vocabulary.registers[operand].name for row in program.update for operand in row.operands}
    return [register.name for register in program.vocabulary.memory if register.name in unset & read]


def late_inputs(program: Program, setup: bool = False) -> list[str]:
    """The inputs that `update` reads, or those of `setup`, in the vocabulary's order."""
    section = program.setup if setup else program.update
    numbers = {operand for row in section for operand in row.operands}
    return [register.name for i, register in enumerate(program.vocabulary.inputs) if i in numbers]


def lines_of(program: Program, section: Sequence[Instruction]) -> list[str]:
    """A section as assignments, one instruction a line."""
    words, names = program.vocabulary, names_of(program)
    lines = []
    for row in section:
        operation = OPERATIONS[words.operations[row.operation]]
        operands = dict(zip("abc", (names[o] for o in row.operands), strict=False))
        right = operation.python.format(**operands)
        if operation.kind != "map":
            right = right[:-1] + ", layers)"
        lines.append(f"    {names[row.destination]} = {right}")
    return lines
