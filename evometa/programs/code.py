"""Programs as data: a genome's numbers, the arrays that run, and why some arrays are no program.

In a genome a program is `5 * length` whole numbers (exact in float32) and then its constants. A constant's
coordinate is `asinh(value / 1e-4) / asinh(1e4)`: linear near zero, logarithmic beyond, -1 .. 1 for -1 .. 1.

Any array decodes: to a program, or to a `Refusal` that says what is wrong with which instruction.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from evometa.errors import ConfigError
from evometa.programs.operations import OPERATIONS
from evometa.programs.vocabulary import FIELDS, TYPES, Vocabulary

SMALL = 1e-4  # constants are linear in their coordinate below this
REACH = math.asinh(1.0 / SMALL)
FARTHEST = 1.5  # coordinates of constants are cut here: about 150
WRONG = (
    "", "unknown operation", "unknown register", "writes what cannot be written", "wrong type", "not known in setup",
    "not a number", "wrong shape", "not a whole number",
)  # fmt: skip


class Code(NamedTuple):
    """A program as arrays: what a candidate holds under a program column's name. NumPy or JAX."""

    tokens: Any  # [length, 5] int32: operation, destination, a, b, c; setup first
    constants: Any  # [constants] float32


class Refusal(NamedTuple):
    """Why a token array is no program of a vocabulary."""

    reason: str  # one of WRONG
    position: int  # which instruction; -1 where it is none, such as a constant or a shape

    def __str__(self) -> str:
        return f"refused: {self.reason}" + (f" (instruction {self.position})" if self.position >= 0 else "")


class Instruction(NamedTuple):
    """One instruction by numbers; `operands` holds as many as the operation takes."""

    operation: int
    destination: int
    operands: tuple[int, ...]


class Program(NamedTuple):
    """A valid program, `nop`s left out."""

    vocabulary: Vocabulary
    setup: tuple[Instruction, ...]
    update: tuple[Instruction, ...]
    constants: tuple[float, ...]


def split(vocabulary: Vocabulary, numbers: Any) -> Code:
    """Tokens and constants of genome numbers `[size]`; traceable. What is no whole number in reach becomes -1."""
    xp: Any = np
    if not isinstance(numbers, np.ndarray):
        import jax.numpy as jnp

        xp = jnp
    count = FIELDS * vocabulary.length
    numbers = xp.asarray(numbers, xp.float32)
    raw = numbers[:count]
    whole = xp.where(xp.isfinite(raw) & (xp.abs(raw) < 2.0**20), xp.round(xp.where(xp.isfinite(raw), raw, -1.0)), -1.0)
    held = xp.clip(numbers[count:], -FARTHEST, FARTHEST)
    constants = (SMALL * xp.sinh(held * np.float32(REACH))).astype(xp.float32)
    return Code(whole.astype(xp.int32).reshape(vocabulary.length, FIELDS), constants)


def join(vocabulary: Vocabulary, code: Code) -> np.ndarray:
    """Genome numbers `[size]` float32 of a code. Raises `ConfigError` for arrays of another shape."""
    tokens, constants = np.asarray(code.tokens), np.asarray(code.constants, np.float64)
    if tokens.shape != (vocabulary.length, FIELDS) or constants.shape != (vocabulary.constants,):
        raise ConfigError(
            f"program: vocabulary {vocabulary.name!r} expected tokens [{vocabulary.length}, {FIELDS}] and"
            f" [{vocabulary.constants}] constants, got {list(tokens.shape)} and {list(constants.shape)}"
        )
    coordinates = np.clip(np.arcsinh(constants / SMALL) / REACH, -FARTHEST, FARTHEST)
    return np.concatenate([tokens.astype(np.float32).ravel(), coordinates.astype(np.float32)])


def assemble(program: Program) -> Code:
    """A program as arrays, padded with `nop`. Raises `ConfigError` where it is too long."""
    vocabulary = program.vocabulary
    tokens = np.zeros((vocabulary.length, FIELDS), np.int32)
    for section, start, most in (
        (program.setup, 0, vocabulary.setup),
        (program.update, vocabulary.setup, vocabulary.update),
    ):
        if len(section) > most:
            raise ConfigError(
                f"program: vocabulary {vocabulary.name!r} expected at most {most} instructions in a section,"
                f" got {len(section)}"
            )
        for row, instruction in enumerate(section, start):
            operands = (*instruction.operands, 0, 0, 0)[:3]
            tokens[row] = (instruction.operation, instruction.destination, *operands)
    constants = np.zeros(vocabulary.constants, np.float32)
    constants[: len(program.constants)] = program.constants
    return Code(tokens, constants)


def normalize(vocabulary: Vocabulary, code: Code) -> Code | Refusal:
    """The arrays of a code as a vocabulary's programs have them, or why they are none; raises for no array.

    `tokens` as `[length, 5]` int32, whole numbers beyond it as -1, which is no operation and no register; `constants`
    as `[constants]` float32. Anything else is refused: other shapes, what is not real numbers, fractions in tokens.
    """
    parts = []
    shapes = ((vocabulary.length, FIELDS), (vocabulary.constants,))
    for given, shape in zip((code.tokens, code.constants), shapes, strict=True):
        try:
            array = np.asarray(given)
        except (ValueError, OverflowError):  # lists of unequal lengths
            return Refusal(WRONG[7], -1)
        if array.shape != shape:
            return Refusal(WRONG[7], -1)
        if array.dtype.kind not in "biuf" and array.size:
            return Refusal(WRONG[6], -1)
        parts.append(array)
    tokens, constants = parts
    if tokens.dtype.kind == "f":
        with np.errstate(over="ignore"):
            tokens = tokens.astype(np.float64)  # whose range holds that of whole numbers, unlike float16's
        for reason, wrong in ((6, ~np.isfinite(tokens)), (8, tokens != np.round(tokens))):
            rows = np.flatnonzero(wrong.any(axis=1))
            if rows.size:
                return Refusal(WRONG[reason], int(rows[0]))
    most = np.iinfo(np.int32).max
    inside = (tokens >= -most) & (tokens <= most)
    with np.errstate(over="ignore"):
        return Code(np.where(inside, tokens, -1).astype(np.int32), constants.astype(np.float32))


def disassemble(vocabulary: Vocabulary, code: Code) -> Program | Refusal:
    """The program that arrays stand for, or why they are none. Raises for no array, whatever its shape and type."""
    found = normalize(vocabulary, code)
    if isinstance(found, Refusal):
        return found
    tokens, constants = found
    reasons = check(vocabulary, tokens, np)
    bad = np.flatnonzero(reasons)
    if bad.size:
        return Refusal(WRONG[int(reasons[bad[0]])], int(bad[0]))
    if not np.all(np.isfinite(constants)):
        return Refusal(WRONG[6], -1)
    sections: list[list[Instruction]] = [[], []]
    for row, (operation, destination, *operands) in enumerate(tokens.tolist()):
        if operation:
            arity = OPERATIONS[vocabulary.operations[operation]].arity
            sections[row >= vocabulary.setup].append(Instruction(operation, destination, tuple(operands[:arity])))
    return Program(vocabulary, tuple(sections[0]), tuple(sections[1]), tuple(float(c) for c in constants))


def check(vocabulary: Vocabulary, tokens: Any, xp: Any) -> Any:
    """`[length]` int32: what is wrong with each instruction, a number of `WRONG`, 0 for nothing.

    `xp`: NumPy or jax.numpy; `tokens` `[length, 5]` of it.
    """
    table = tables(vocabulary)
    count, last = len(vocabulary.operations), len(vocabulary.registers) - 1
    operation, destination, operands = tokens[:, 0], tokens[:, 1], tokens[:, 2:]
    unknown = (operation < 0) | (operation >= count)
    known = xp.clip(operation, 0, count - 1)
    takes = xp.arange(3)[None, :] < xp.asarray(table.arity)[known][:, None]
    outside = (takes & ((operands < 0) | (operands > last))).any(axis=1) | (destination < 0) | (destination > last)
    place, sources = xp.clip(destination, 0, last), xp.clip(operands, 0, last)
    fixed = place < vocabulary.first_memory
    width = xp.asarray(table.width)
    widest = xp.where(takes, width[sources], 0).max(axis=1)
    # A reduction is as wide as what it reduces to, a map as wide as its widest operand.
    result = xp.where(xp.asarray(table.reduces)[known] >= 0, xp.asarray(table.reduces)[known], widest)
    mistyped = width[place] < result
    early = (xp.arange(vocabulary.length) < vocabulary.setup) & (takes & ~xp.asarray(table.early)[sources]).any(axis=1)
    wrong = xp.where(early, 5, 0)
    for flag, number in ((mistyped, 4), (fixed, 3), (outside, 2)):
        wrong = xp.where(flag, number, wrong)
    return xp.where(unknown, 1, xp.where(operation == 0, 0, wrong)).astype(xp.int32)


class Tables(NamedTuple):
    """A vocabulary as NumPy arrays, for code that works on token arrays."""

    arity: np.ndarray  # [operations] int32
    reduces: np.ndarray  # [operations] int32: the type that a reduction or a list operation gives, -1 for a map
    width: np.ndarray  # [registers] int32: 0 scalar, 1 layer, 2 tensor
    early: np.ndarray  # [registers] bool: may setup read it?


def tables(vocabulary: Vocabulary) -> Tables:
    """The vocabulary's types and arities as arrays."""
    operations = [OPERATIONS[name] for name in vocabulary.operations]
    written = vocabulary.first_memory
    return Tables(
        np.array([operation.arity for operation in operations], np.int32),
        np.array([{"map": -1, "all": 0, "layer": 1, "list": 2}[operation.kind] for operation in operations], np.int32),
        np.array([TYPES.index(register.type) for register in vocabulary.registers], np.int32),
        np.array([register.setup or i >= written for i, register in enumerate(vocabulary.registers)], bool),
    )
