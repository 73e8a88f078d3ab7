"""The columns of a space: one named thing to search each.

Made by `real`, `log`, `integer`, `categorical`, `weights` or `program`; `space.py` puts them together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evometa.errors import ConfigError, NotFound, did_you_mean
from evometa.programs.code import Code, Program, Refusal, assemble, disassemble, join, normalize
from evometa.programs.vocabulary import FIELDS, Vocabulary

PLAIN = ("real", "log", "integer", "categorical", "weights")
KINDS = (*PLAIN, "program")


@dataclass(frozen=True)
class Column:
    """One named thing to search; made by `real`, `log`, `integer`, `categorical`, `weights` or `program`."""

    kind: str
    low: float = 0.0
    high: float = 1.0
    choices: tuple[str | float | int | bool, ...] = ()
    shape: tuple[int, ...] = ()
    scale: float = 1.0
    static: bool = False
    name: str = ""
    vocabulary: Vocabulary | None = None  # of a program

    @property
    def size(self) -> int:
        """How many genome numbers the column takes."""
        if self.vocabulary is not None:
            return self.vocabulary.size
        return math.prod(self.shape) if self.kind == "weights" else 1

    @property
    def bins(self) -> int:
        """How many values an integer or categorical column has."""
        return len(self.choices) if self.kind == "categorical" else int(self.high - self.low) + 1

    def text(self) -> str:
        """Describe the column's range in one phrase."""
        kind = f"{self.kind}, static" if self.static else self.kind
        if self.kind == "categorical":
            return f"{kind}: {', '.join(map(str, self.choices))}"
        if self.kind == "weights":
            return f"{kind}: {list(self.shape)}, initial scale {self.scale:g}"
        if self.vocabulary is not None:
            words = self.vocabulary
            return f"{kind}: {words.name}, at most {words.length} instructions and {words.constants} constants"
        return f"{kind}: {self.low:g} .. {self.high:g}"


def real(low: float, high: float) -> Column:
    """A number in [low, high], searched linearly."""
    return Column("real", float(low), float(high))


def log(low: float, high: float) -> Column:
    """A positive number in [low, high], searched in its logarithm."""
    return Column("log", float(low), float(high))


def integer(low: int, high: int, *, static: bool = False) -> Column:
    """A whole number in [low, high], both included. `static` where it sets array shapes (width, depth)."""
    return Column("integer", low, high, static=static)


def categorical(choices: Sequence[Any], *, static: bool = False) -> Column:
    """One of `choices`. A JAX task receives its index (int32), a Python task the choice itself."""
    return Column("categorical", choices=tuple(choices), static=static)


def weights(shape: int | Sequence[int], *, scale: float = 1.0) -> Column:
    """An unbounded float array of that shape; a genome number of 1 is `scale`."""
    return Column("weights", shape=(shape,) if isinstance(shape, int) else tuple(shape), scale=float(scale))


def program(vocabulary: str | Vocabulary) -> Column:
    """An update rule: a program of that vocabulary, given or one of `evometa.programs.vocabularies` by name.

    A candidate holds it as a `Code`; see `evometa.programs.interpret.Machine` for how it runs.
    """
    if isinstance(vocabulary, str):
        from evometa.programs.vocabularies import VOCABULARIES

        if vocabulary not in VOCABULARIES:
            raise ConfigError(
                f"program: expected a vocabulary out of {', '.join(VOCABULARIES)}, got {vocabulary!r}."
                f"{did_you_mean(vocabulary, VOCABULARIES)}"
            )
        vocabulary = VOCABULARIES[vocabulary]
    return Column("program", vocabulary=vocabulary)


def validate(column: Column) -> None:
    """Raise `ConfigError` where a column is ill-formed."""
    where = f"space: column {column.name!r}"
    if column.kind not in KINDS:
        raise ConfigError(f"{where} has unknown kind {column.kind!r}; expected one of {', '.join(KINDS)}")
    if column.kind in ("real", "log", "integer"):
        if not (math.isfinite(column.low) and math.isfinite(column.high)):
            raise ConfigError(f"{where} expected finite bounds, got {column.low} .. {column.high}")
        if not column.low < column.high:
            raise ConfigError(f"{where} expected low < high, got low={column.low:g}, high={column.high:g}")
    if column.kind == "log" and column.low <= 0:
        raise ConfigError(f"{where} expected low > 0 for a log range, got low={column.low:g}. Use real(...) instead")
    if column.kind == "integer" and not (float(column.low).is_integer() and float(column.high).is_integer()):
        raise ConfigError(f"{where} expected whole bounds, got {column.low:g} .. {column.high:g}")
    if column.kind == "categorical" and len(column.choices) < 2:
        raise ConfigError(f"{where} expected at least two choices, got {len(column.choices)}")
    if column.kind == "categorical" and len(set(map(repr, column.choices))) < len(column.choices):
        raise ConfigError(f"{where} has a choice twice: {list(column.choices)}")
    if (column.kind == "program") != (column.vocabulary is not None):
        raise ConfigError(f"{where} expected a vocabulary for a program, and for nothing else. Use program(...)")
    if column.kind == "weights" and (min(column.shape, default=1) < 1 or not 0 < column.scale < math.inf):
        raise ConfigError(f"{where} expected a non-empty shape and scale > 0, got {column.shape}, {column.scale}")


def encode_value(column: Column, value: Any, at: str = "") -> Any:
    """The genome numbers of one column's value. Raises `ConfigError` for a value outside its range.

    `at`: what messages call the place, by default the candidate's column.
    """
    where = at or f"candidate: {column.name!r}"
    if column.kind == "weights":
        array = np.asarray(value, np.float64)
        if array.shape != column.shape:
            raise ConfigError(f"{where} expected shape {column.shape}, got {array.shape}")
        return array.ravel() / column.scale
    if column.vocabulary is not None:
        return join(column.vocabulary, coded(column, value, at))
    if column.kind == "categorical":
        if value not in column.choices:
            raise ConfigError(f"{where} expected one of {list(column.choices)}, got {value!r}")
        return (column.choices.index(value) + 0.5) / column.bins
    number = float(value)
    if not column.low <= number <= column.high:
        raise ConfigError(f"{where} expected a value in {column.low:g} .. {column.high:g}, got {number:g}")
    if column.kind == "integer":
        return (number - column.low + 0.5) / column.bins
    if column.kind == "log":
        return math.log(number / column.low) / math.log(column.high / column.low)
    return (number - column.low) / (column.high - column.low)


def coded(column: Column, value: Any, at: str = "") -> Code:
    """The `Code` that a program column is given as: a `Code`, a `Program`, `{"tokens", "constants"}`, or text.

    Text is the name of a known rule (`"adam"`) or a listing (programs/listing.py). Raises `ConfigError` for
    anything else and for arrays that are no program, `NotFound` for a name that no rule has; `at` as in `encode_value`.
    """
    where, vocabulary = at or f"candidate: {column.name!r}", column.vocabulary
    assert vocabulary is not None
    if isinstance(value, str):
        from evometa.programs.known import known
        from evometa.programs.listing import parse

        try:
            value = parse(vocabulary, value) if "=" in value else known(vocabulary, value)
        except (ConfigError, NotFound) as error:
            raise type(error)(f"{where.removesuffix(':')}: {error}") from None
    if isinstance(value, Program):
        if value.vocabulary != vocabulary:
            raise ConfigError(
                f"{where} expected a program of vocabulary {vocabulary.name!r}, got one of {value.vocabulary.name!r}"
            )
        value = assemble(value)
    if isinstance(value, Mapping) and set(value) == {"tokens", "constants"}:
        value = Code(value["tokens"], value["constants"])
    if not isinstance(value, Code):
        raise ConfigError(
            f"{where} expected a program: the name of a known rule, a listing, a Program or a Code,"
            f" got {type(value).__name__}"
        )
    made, found = normalize(vocabulary, value), disassemble(vocabulary, value)
    if isinstance(made, Refusal) or isinstance(found, Refusal):
        what = f"a program of vocabulary {vocabulary.name!r}"
        if found == Refusal("wrong shape", -1):
            what += f": tokens [{vocabulary.length}, {FIELDS}] and [{vocabulary.constants}] constants"
            raise ConfigError(f"{where} expected {what}, got {_shape(value.tokens)} and {_shape(value.constants)}")
        raise ConfigError(f"{where} expected {what}, got arrays that are {found}")
    return made


def _shape(array: Any) -> str:
    try:
        return str(list(np.shape(array)))
    except ValueError:
        return "rows of unequal lengths"


def is_array(value: Any) -> bool:
    """A JAX array, perhaps traced: its value is not to be looked at."""
    return hasattr(value, "aval")


def held_array(column: Column, value: Any) -> Any:
    """A held value as `decode` would give it."""
    if is_array(value) or column.static:
        return value
    if column.kind == "program":
        return Code(np.asarray(value.tokens, np.int32), np.asarray(value.constants, np.float32))
    if column.kind == "categorical":
        value = column.choices.index(value)
    if column.kind == "weights":
        return np.asarray(value, np.float32)
    return np.int32(value) if column.kind in ("integer", "categorical") else np.float32(value)
