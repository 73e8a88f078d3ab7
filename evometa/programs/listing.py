"""Programs as text that is read and written by hand: one instruction a line.

    setup:
      l = div(1.0, fan_in)      # numbers become constants, equal ones the same constant
    update:
      m = lerp(m, g, 0.1)
      step = mul(m, -0.01)

`setup:` may be left out, and so may `update:` where there is no `setup:`. Constants that must not be shared, or keep
their places, are named first: `c0 = 0.9`, one a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from evometa.errors import ConfigError, did_you_mean
from evometa.programs.code import Instruction, Program, tables
from evometa.programs.operations import OPERATIONS
from evometa.programs.vocabulary import TYPES, Vocabulary

_INSTRUCTION = re.compile(r"(\w+)\s*=\s*(\w+)\s*\(([^()]*)\)")
_CONSTANT = re.compile(r"(c\d+)\s*=\s*([^()\s]+)")
_SECTIONS = ("setup:", "update:")


class _Reader:
    """Reads line by line; holds what was read."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.registers = vocabulary.registers
        self.names = {register.name: i for i, register in enumerate(self.registers)}
        self.early = tables(vocabulary).early
        self.constants: list[float] = []
        self.sections: dict[str, list[Instruction]] = {name: [] for name in _SECTIONS}
        self.section = ""
        self.line = 0

    def wrong(self, message: str) -> ConfigError:
        return ConfigError(f"program: line {self.line}: {message}")

    def read(self, text: str) -> None:
        for self.line, raw in enumerate(text.splitlines(), 1):
            line = raw.partition("#")[0].strip()
            if not line:
                continue
            if line.endswith(":") and "=" not in line:
                self.start(line.replace(" ", ""))
            elif (constant := _CONSTANT.fullmatch(line)) and not self.section:
                self.name_constant(*constant.groups())
            else:
                self.section = self.section or "update:"
                self.instruction(line)

    def start(self, section: str) -> None:
        if section not in _SECTIONS:
            hint = did_you_mean(section, _SECTIONS)
            raise self.wrong(f"expected a section of setup: and update:, got {section!r}.{hint}")
        if section == self.section or self.section == "update:":
            raise self.wrong(f"expected each section once, setup: before update:, got another {section!r}")
        self.section = section

    def name_constant(self, name: str, text: str) -> None:
        number = self.names.get(name, -1) - self.vocabulary.first_constant
        if not 0 <= number < self.vocabulary.constants:
            raise self.wrong(f"{self._have_constants()}, got {name!r}")
        if number < len(self.constants):
            raise self.wrong(f"expected constants in the order c0, c1, ..., each once, got {name!r} again")
        self.constants += [0.0] * (number - len(self.constants)) + [self.value(text)]

    def instruction(self, line: str) -> None:
        found = _INSTRUCTION.fullmatch(line)
        if found is None:
            raise self.wrong(f"expected name = operation(a, b), got {line!r}")
        destination, operation, inside = found.groups()
        if operation not in self.vocabulary.operations[1:]:
            have = ", ".join(self.vocabulary.operations[1:])
            hint = did_you_mean(operation, self.vocabulary.operations[1:])
            raise self.wrong(f"expected an operation of {have}; got {operation!r}.{hint}")
        operands = [part.strip() for part in inside.split(",")] if inside.strip() else []
        arity = OPERATIONS[operation].arity
        if len(operands) != arity:
            raise self.wrong(f"{operation} takes {arity} operand{'s' * (arity > 1)}, got {len(operands)}")
        place = self.register(destination)
        if place < self.vocabulary.first_memory:
            kind = "an input" if place < self.vocabulary.first_constant else "a constant"
            writable = ", ".join(register.name for register in self.registers[self.vocabulary.first_memory :])
            raise self.wrong(f"{destination!r} is {kind}; expected a register that can be written: {writable}")
        numbers = tuple(self.operand(text) for text in operands)
        self.check_types(operation, place, numbers)
        rows = self.sections[self.section]
        most = self.vocabulary.setup if self.section == "setup:" else self.vocabulary.update
        if len(rows) >= most:
            where = f"{most} instructions in {self.section[:-1]}"
            raise self.wrong(f"vocabulary {self.vocabulary.name!r} has room for {where}; this is one more")
        rows.append(Instruction(self.vocabulary.operation(operation), place, numbers))

    def check_types(self, operation: str, place: int, operands: tuple[int, ...]) -> None:
        if self.section == "setup:":
            late = [self.registers[i].name for i in operands if not self.early[i]]
            if late:
                raise self.wrong(f"{late[0]!r} is not known yet in setup; read it in update")
        kind = OPERATIONS[operation].kind
        widest = max(operands, key=lambda i: TYPES.index(self.registers[i].type))
        result = {"all": "scalar", "layer": "layer", "list": "tensor"}.get(kind, self.registers[widest].type)
        target = self.registers[place]
        if TYPES.index(target.type) < TYPES.index(result):
            fit = [r.name for r in self.registers[self.vocabulary.first_memory :]
                   if TYPES.index(r.type) >= TYPES.index(result)]  # fmt: skip
            raise self.wrong(
                f"{operation} gives a {result} here and {target.name!r} is a {target.type}; write to {', '.join(fit)}"
            )

    def register(self, name: str) -> int:
        if name not in self.names:
            hint = did_you_mean(name, self.names)
            raise self.wrong(f"expected a register of {', '.join(self.names)}; got {name!r}.{hint}")
        return self.names[name]

    def operand(self, text: str) -> int:
        if text in self.names or re.fullmatch(r"[A-Za-z_]\w*", text):
            if text not in self.names and text.lower() in ("nan", "inf", "infinity"):
                self.value(text)
            number = self.register(text)
            if self.vocabulary.first_constant + len(self.constants) <= number < self.vocabulary.first_memory:
                raise self.wrong(f"{text!r} has no value; write `{text} = 0.1` (or another number) at the top")
            return number
        value = self.value(text)
        if value not in self.constants:
            if len(self.constants) >= self.vocabulary.constants:
                raise self.wrong(f"{self._have_constants()}; {text} is one more")
            self.constants.append(value)
        return self.vocabulary.first_constant + self.constants.index(value)

    def value(self, text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise self.wrong(f"expected a number or a register, got {text!r}") from None
        with np.errstate(over="ignore"):
            number = float(np.float32(number))
        if not np.isfinite(number):
            raise self.wrong(f"expected a finite number, got {text!r}")
        return number

    def _have_constants(self) -> str:
        count = self.vocabulary.constants
        return f"vocabulary {self.vocabulary.name!r} has {count} constants" + (f", c0 to c{count - 1}" if count else "")


def parse(vocabulary: Vocabulary, text: str) -> Program:
    """The program that a listing stands for. Raises `ConfigError`, which names the line, where it is none.

    Constants are rounded to float32. A text with neither an instruction nor a section is refused.
    """
    reader = _Reader(vocabulary)
    reader.read(text)
    if not reader.section:
        raise ConfigError("program: expected lines like `name = operation(a, b)` or a section `update:`, got none")
    setup, update = (tuple(reader.sections[name]) for name in _SECTIONS)
    return Program(vocabulary, setup, update, tuple(reader.constants))


def listing(program: Program) -> str:
    """A valid program as text; `parse` gives it back. Numbers stand where they are used unless that loses something."""
    short = "\n".join(_lines(program, [number(value) for value in program.constants]))
    try:
        if parse(program.vocabulary, short) == program:
            return short
    except ConfigError:
        pass
    named = [f"c{i} = {number(value)}" for i, value in enumerate(program.constants)]
    return "\n".join([*named, *_lines(program, None)])


def number(value: float) -> str:
    """A float32 in as few digits as give it back."""
    return str(np.float32(value))


def instruction_text(program: Program, instruction: Instruction, constants: list[str] | None = None) -> str:
    """`m = lerp(m, g, c0)`; with `constants`, what to write for each of them."""
    vocabulary = program.vocabulary
    names = [register.name for register in vocabulary.registers]
    for i, text in enumerate(constants or ()):
        names[vocabulary.first_constant + i] = text
    operands = ", ".join(names[i] for i in instruction.operands)
    return f"{names[instruction.destination]} = {vocabulary.operations[instruction.operation]}({operands})"


def _lines(program: Program, constants: list[str] | None) -> Iterable[str]:
    if program.setup:
        yield "setup:"
        yield from (instruction_text(program, row, constants) for row in program.setup)
    if program.setup or not program.update or constants is None:
        yield "update:"
    yield from (instruction_text(program, row, constants) for row in program.update)
