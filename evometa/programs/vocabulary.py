"""A vocabulary: what the programs of one domain may read, write and do.

A program is a list of instructions over typed registers:

    register = operation(a, b, c)

in two sections: `setup` runs once, `update` at every step. Registers are numbered inputs first, then constants,
memory and outputs. Memory is zero before `setup` and keeps its values between steps; outputs are zero at the
start of every step. Inputs and constants cannot be written.

Types, from narrow to wide: `scalar` (one number), `layer` (one number per layer, or per individual of a
population), `tensor` (one number per element). A narrow value may be used wherever a wide one is expected, never
the other way round: a `map` operation needs a register at least as wide as its operands, a reduction to layers
at least `layer`. Constants are scalars whose values are searched with the program.

Vocabularies are plain data: they are written into a run's folder, and reading them runs no code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evometa.errors import ConfigError, did_you_mean
from evometa.programs.operations import OPERATIONS

TYPES = ("scalar", "layer", "tensor")
PROBES = ("normal", "positive", "unit", "sign", "count")  # how probe values of an input are drawn; see behaviour.py
FIELDS = 5  # numbers per instruction: operation, destination, a, b, c
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}")
MOST = 256  # instructions, registers


@dataclass(frozen=True)
class Register:
    """A typed place for values.

    `probe` says what an input's values are like; `setup`: an input that is known to `setup` already.
    """

    name: str
    type: str = "tensor"
    probe: str = "normal"
    setup: bool = False
    text: str = ""

    def check(self, where: str) -> None:
        """Raise `ConfigError` where a field is of another type than it should be."""
        for field, value in asdict(self).items():
            kind = bool if field == "setup" else str
            if not isinstance(value, kind):
                raise ConfigError(
                    f"{where}: register {self.name!r}: expected {field} as"
                    f" {'true or false' if kind is bool else 'text'}, got {value!r}"
                )


_KINDS = {Register: "Register(...)", str: "names of operations"}


@dataclass(frozen=True)
class Vocabulary:
    """What programs of one domain may read, write and do. Raises `ConfigError` where it is ill-formed.

    `operations` are names of `operations.TABLE`; number 0 is always `nop`. `constants` is how many constants a program
    has; `setup` and `update` are the most instructions of each section. `slope`: the input by which those who use the
    programs differentiate the one output (a loss); what a program does is then that derivative. Such programs have
    no `setup`, keep no memory between steps and work element by element.
    """

    name: str
    inputs: tuple[Register, ...]
    outputs: tuple[Register, ...]
    operations: tuple[str, ...]
    memory: tuple[Register, ...] = ()
    constants: int = 6
    setup: int = 0
    update: int = 16
    slope: str = ""

    def __post_init__(self) -> None:
        where = f"vocabulary {self.name!r}"
        self._check_types(where)
        object.__setattr__(self, "operations", ("nop", *(name for name in self.operations if name != "nop")))
        for name in self.operations:
            if name not in OPERATIONS:
                known = ", ".join(list(OPERATIONS)[1:])
                raise ConfigError(
                    f"{where}: expected operations out of {known}; got {name!r}.{did_you_mean(name, OPERATIONS)}"
                )
        if len(set(self.operations)) < len(self.operations) or len(self.operations) < 2:
            raise ConfigError(f"{where}: expected at least one operation, each once, got {list(self.operations[1:])}")
        if not self.inputs or not self.outputs:
            raise ConfigError(f"{where}: expected at least one input and one output")
        if not (self.constants >= 0 and self.setup >= 0 and self.update >= 1):
            raise ConfigError(f"{where}: expected constants >= 0, setup >= 0 and update >= 1")
        count = len(self.inputs) + self.constants + len(self.memory) + len(self.outputs)
        if self.length > MOST or count > MOST:
            raise ConfigError(
                f"{where}: expected at most {MOST} instructions and {MOST} registers, got {self.length} and {count}"
            )
        self._check_slope(where)
        names = [register.name for register in self.registers]
        for register in self.registers:
            if not NAME.fullmatch(register.name) or names.count(register.name) > 1:
                raise ConfigError(f"{where}: expected every register to have a name of its own, got {register.name!r}")
            if register.type not in TYPES or register.probe not in PROBES:
                raise ConfigError(
                    f"{where}: register {register.name!r}: expected a type of {', '.join(TYPES)} and a probe of"
                    f" {', '.join(PROBES)}, got {register.type!r} and {register.probe!r}"
                )

    def _check_types(self, where: str) -> None:
        """Raise `ConfigError` where a field holds another kind of thing than it should."""
        for what, text in (("a name", self.name), ("the name of a slope", self.slope)):
            if not isinstance(text, str):
                raise ConfigError(f"{where}: expected {what}, got {type(text).__name__}")
        for field, kind in (("inputs", Register), ("outputs", Register), ("memory", Register), ("operations", str)):
            given: Any = getattr(self, field)
            if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
                raise ConfigError(f"{where}: expected {field} as a list, got {given!r}")
            rows = tuple(given)
            object.__setattr__(self, field, rows)  # a generator is read once
            for row in rows:
                if not isinstance(row, kind):
                    raise ConfigError(f"{where}: expected {field} of {_KINDS[kind]}, got {row!r}")
                if isinstance(row, Register):
                    row.check(where)
        for field in ("constants", "setup", "update"):
            number: Any = getattr(self, field)
            if isinstance(number, bool) or not isinstance(number, int):
                raise ConfigError(f"{where}: expected {field} as a whole number, got {number!r}")

    def _check_slope(self, where: str) -> None:
        """Raise `ConfigError` where programs are to be differentiated that cannot be."""
        if not self.slope:
            return
        names = [register.name for register in self.inputs]
        if self.slope not in names:
            raise ConfigError(
                f"{where}: expected slope as an input ({', '.join(names)}), got {self.slope!r}."
                f"{did_you_mean(self.slope, names)}"
            )
        reductions = [name for name in self.operations if OPERATIONS[name].kind != "map"]
        if len(self.outputs) > 1 or self.setup or reductions:
            raise ConfigError(
                f"{where}: with a slope, expected one output, no setup and operations that work element by element;"
                f" got {len(self.outputs)} outputs, setup of {self.setup}, {', '.join(reductions) or 'no other ones'}"
            )

    @property
    def registers(self) -> tuple[Register, ...]:
        """All registers in the order of their numbers: inputs, constants, memory, outputs."""
        constants = tuple(Register(f"c{i}", "scalar", setup=True) for i in range(self.constants))
        return (*self.inputs, *constants, *self.memory, *self.outputs)

    @property
    def first_constant(self) -> int:
        """Number of the first constant."""
        return len(self.inputs)

    @property
    def first_memory(self) -> int:
        """Number of the first register that can be written."""
        return len(self.inputs) + self.constants

    @property
    def first_output(self) -> int:
        """Number of the first output."""
        return self.first_memory + len(self.memory)

    @property
    def length(self) -> int:
        """Instructions of both sections."""
        return self.setup + self.update

    @property
    def size(self) -> int:
        """How many genome numbers a program takes: five per instruction, one per constant."""
        return FIELDS * self.length + self.constants

    def number(self, name: str) -> int:
        """The number of a register. Raises `ConfigError` for an unknown name."""
        names = [register.name for register in self.registers]
        if name not in names:
            raise ConfigError(
                f"vocabulary {self.name!r}: expected a register out of {', '.join(names)}; got {name!r}."
                f"{did_you_mean(name, names)}"
            )
        return names.index(name)

    def operation(self, name: str) -> int:
        """The number of an operation. Raises `ConfigError` for one that this vocabulary does not have."""
        if name not in self.operations:
            raise ConfigError(
                f"vocabulary {self.name!r}: expected an operation out of {', '.join(self.operations[1:])};"
                f" got {name!r}.{did_you_mean(name, self.operations)}"
            )
        return self.operations.index(name)

    def require(self, who: str, gives: Sequence[str], reads: Sequence[str]) -> None:
        """Raise `ConfigError` where programs would read what the task `who` does not give, or lack what it reads."""
        missing = [register.name for register in self.inputs if register.name not in gives]
        if missing:
            raise ConfigError(
                f"{who}: vocabulary {self.name!r} reads {', '.join(missing)}, which this task does not give;"
                f" it gives {', '.join(gives)}"
            )
        lacking = [name for name in reads if name not in {register.name for register in self.outputs}]
        if lacking:
            raise ConfigError(f"{who}: vocabulary {self.name!r} lacks the output {', '.join(lacking)}")

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` gives the vocabulary back."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Vocabulary:
        """The vocabulary that `to_json` wrote down. Raises `ConfigError` where the data are something else."""
        try:
            registers = {key: tuple(Register(**row) for row in data[key]) for key in ("inputs", "outputs", "memory")}
            return Vocabulary(**{**data, **registers, "operations": tuple(data["operations"])})
        except (TypeError, KeyError) as error:
            raise ConfigError(f"vocabulary: expected what `to_json` writes, got {error}") from None
