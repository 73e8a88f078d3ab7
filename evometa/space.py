"""What can be searched: named columns, and the map between a genome and a candidate.

A genome is one float32 vector `[D]` in coordinates that are alike for every strategy, so a step size
means the same thing everywhere:

* bounded columns lie in [0, 1]: `real` linearly, `log` in the logarithm, `integer` and `categorical`
  as equal bins of the unit interval;
* `weights` are unbounded, in units of their initial scale;
* a `program` is its tokens, whole numbers that float32 holds exactly, and then its constants (programs/code.py).
  So a genome of any space is one vector, and only strategies that know programs may vary it.

A candidate is the nested dict that the task's functions receive. Two decoders make it: `decode` is
traceable and gives float32 scalars (what JAX tasks see); `decode_host` is NumPy in float64 and gives
Python numbers and the choices themselves (what plain-Python tasks and the archive see). Their numbers
differ by rounding only; their integers and choices are the same, for both find the bin in float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np

from evometa.column import (
    KINDS,
    Column,
    categorical,
    coded,
    encode_value,
    held_array,
    integer,
    is_array,
    log,
    program,
    real,
    validate,
    weights,
)
from evometa.errors import ConfigError, did_you_mean
from evometa.programs.code import Refusal, disassemble, split
from evometa.programs.vocabulary import Vocabulary

__all__ = [
    "KINDS", "Candidate", "Column", "Space", "categorical", "flatten", "integer", "log", "program", "real", "unflatten",
    "weights",
]  # fmt: skip

Candidate: TypeAlias = dict[str, Any]


class Space:
    """Named columns, possibly nested: `Space({"lr": log(1e-4, 1), "net": {"width": integer(8, 64)}})`.

    Raises `ConfigError` where a column is ill-formed (low >= high, a log range that touches zero ...).
    """

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self.held: tuple[tuple[Column, Any], ...] = ()  # columns out of the search, with their values; see `hold`
        self.columns: tuple[Column, ...] = tuple(_flatten(columns, ""))
        if not self.columns:
            raise ConfigError("space: expected at least one column, got none. Try Space({'lr': log(1e-4, 1.0)})")
        names = [column.name for column in self.columns]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(
                f"space: two columns are called {twice!r}; names must be unique once nested names are joined"
            )
        for column in self.columns:
            validate(column)
            if any(name.startswith(f"{column.name}.") for name in names):
                raise ConfigError(f"space: {column.name!r} is a column and a group of columns; rename one of them")
        ends = np.cumsum([column.size for column in self.columns])
        self._slices = [slice(int(end) - c.size, int(end)) for c, end in zip(self.columns, ends, strict=True)]
        self.dimension = int(ends[-1])
        bounded = np.concatenate([np.full(c.size, c.kind not in ("weights", "program")) for c in self.columns])
        self.bounded: np.ndarray = bounded  # [D] bool: lies in [0, 1]

    def hold(self, values: Mapping[str, Any]) -> Space:
        """The space without the columns named in `values`: every candidate has these values there.

        Names are the full ones (`"net.width"`); values are those of a candidate, or traced ones (set by a level above).
        Raises `ConfigError` for an unknown name, a value out of range, and where nothing would be left to search.
        """
        known = {column.name: column for column in self.columns}
        for name, value in values.items():
            if name not in known:
                raise ConfigError(f"fixed: the space has no column {name!r}.{did_you_mean(name, known)}")
            if not is_array(value):
                encode_value(known[name], value, f"fixed.{name}:")
        values = {n: coded(known[n], v) if known[n].kind == "program" else v for n, v in values.items()}
        kept = {column.name: column for column in self.columns if column.name not in values}
        if not kept:
            raise ConfigError(f"fixed: expected at least one column left to search, got all {len(known)} fixed")
        left = Space(kept)
        left.held = (*self.held, *((known[name], value) for name, value in values.items()))
        return left

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where each column lies in a genome."""
        return tuple(self._slices)

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of column present: what a strategy must be able to search."""
        return frozenset(column.kind for column in self.columns)

    @property
    def static(self) -> tuple[Column, ...]:
        """The columns that set array shapes."""
        return tuple(column for column in self.columns if column.static)

    @property
    def center(self) -> np.ndarray:
        """The middle of every bounded range, zero for weights, empty programs: `[D]` float32."""
        return np.where(self.bounded, 0.5, 0.0).astype(np.float32)

    # --- genome to candidate ---------------------------------------------------------------------

    def decode(self, genome: Any, static: Mapping[str, Any] | None = None) -> Candidate:
        """Candidate of one genome `[D]`, traceable. `static` gives the values of the static columns."""
        import jax.numpy as jnp

        flat: dict[str, Any] = {}
        for column, part in zip(self.columns, self._slices, strict=True):
            u = genome[part]
            if column.static:
                if static is None:
                    raise ConfigError(f"space: column {column.name!r} is static, so decode needs its value")
                flat[column.name] = static[column.name]
            elif column.kind == "weights":
                flat[column.name] = (u * np.float32(column.scale)).reshape(column.shape)
            elif column.vocabulary is not None:
                flat[column.name] = split(column.vocabulary, u)
            elif column.kind == "real":
                flat[column.name] = np.float32(column.low) + u[0] * np.float32(column.high - column.low)
            elif column.kind == "log":
                low, high = math.log(column.low), math.log(column.high)
                flat[column.name] = jnp.exp(np.float32(low) + u[0] * np.float32(high - low))
            else:
                flat[column.name] = jnp.clip(jnp.floor(u[0] * column.bins), 0, column.bins - 1).astype(jnp.int32)
                if column.kind == "integer":
                    flat[column.name] = flat[column.name] + int(column.low)
        flat |= {column.name: held_array(column, value) for column, value in self.held}
        return unflatten(flat)

    def decode_host(self, genome: np.ndarray) -> Candidate:
        """Candidate of one genome `[D]` as Python numbers, choices and float64 arrays."""
        numbers, choices = self.values(np.asarray(genome)[None])
        flat: dict[str, Any] = {}
        for column, part in zip(self.columns, self._slices, strict=True):
            if column.kind == "weights":
                flat[column.name] = (np.asarray(genome[part], np.float64) * column.scale).reshape(column.shape)
            elif column.vocabulary is not None:
                flat[column.name] = split(column.vocabulary, np.asarray(genome[part], np.float32))
            elif column.kind == "categorical":
                flat[column.name] = column.choices[int(choices[column.name][0])]
            else:
                value = float(numbers[column.name][0])
                flat[column.name] = int(value) if column.kind == "integer" else value
        flat |= {column.name: value for column, value in self.held}
        return unflatten(flat)

    def static_values(self, genome: np.ndarray) -> dict[str, Any]:
        """Values of the static columns of one genome."""
        numbers, choices = self.values(np.asarray(genome)[None])
        return {
            c.name: c.choices[int(choices[c.name][0])] if c.kind == "categorical" else int(numbers[c.name][0])
            for c in self.static
        }

    def values(self, genomes: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Named values of genomes `[N, D]`: numbers `{name: [N] float64}` and choices `{name: [N] index}`.

        Weight arrays and programs are left out: their numbers are the genome itself.
        """
        numbers: dict[str, np.ndarray] = {}
        choices: dict[str, np.ndarray] = {}
        wide, narrow = np.asarray(genomes, np.float64), np.asarray(genomes, np.float32)
        for column, part in zip(self.columns, self._slices, strict=True):
            u = wide[:, part.start]
            if column.kind == "real":
                numbers[column.name] = np.clip(column.low + u * (column.high - column.low), column.low, column.high)
            elif column.kind == "log":
                # The logarithm's rounding may lead out of the range by an ulp, and `encode` would refuse that.
                inside = np.exp(math.log(column.low) + u * math.log(column.high / column.low))
                numbers[column.name] = np.clip(inside, column.low, column.high)
            elif column.kind in ("integer", "categorical"):
                # A NaN genome (a broken strategy) reads as the first bin here; its fitness fails anyway.
                # In float32, as `decode` does it: at the edges of bins, float64 would name another value.
                inside = np.clip(np.nan_to_num(narrow[:, part.start]), 0, 1) * np.float32(column.bins)
                index = np.clip(np.floor(inside), 0, np.float32(column.bins - 1)).astype(np.float64)
                if column.kind == "integer":
                    numbers[column.name] = index + column.low
                else:
                    choices[column.name] = index.astype(np.int64)
        return numbers, choices

    # --- candidate to genome ---------------------------------------------------------------------

    def encode(self, candidate: Mapping[str, Any]) -> np.ndarray:
        """Genome `[D]` float32 of a candidate; bins are entered at their middle.

        Raises `ConfigError` for a missing or unknown name and for a value outside its range.
        """
        held = {column.name for column, _ in self.held}
        named = flatten(candidate, {c.name for c in self.columns} | held)
        flat = {name: value for name, value in named.items() if name not in held}
        missing = [c.name for c in self.columns if c.name not in flat]
        unknown = [name for name in flat if name not in {c.name for c in self.columns}]
        if missing or unknown:
            raise ConfigError(f"candidate: expected the names of the space, got missing {missing}, unknown {unknown}")
        genome = np.empty(self.dimension, np.float32)
        for column, part in zip(self.columns, self._slices, strict=True):
            genome[part] = encode_value(column, flat[column.name])
        return genome

    def check(self, genome: Any, at: str = "genome") -> np.ndarray:
        """A genome `[D]` that people gave, as float32; `at`: what messages call it.

        Raises `ConfigError` for another shape, numbers that are not finite or, in bounded columns, not in 0 .. 1, and
        programs that are none.
        """
        try:
            numbers = np.asarray(genome, np.float32)
        except (TypeError, ValueError):
            raise ConfigError(f"{at}: expected a list of {self.dimension} numbers, got {genome!r:.60}") from None
        if numbers.shape != (self.dimension,):
            got = len(numbers) if numbers.ndim == 1 else list(numbers.shape)
            raise ConfigError(f"{at}: expected a genome of {self.dimension} numbers for this space, got {got}")
        for column, part in zip(self.columns, self._slices, strict=True):
            own = numbers[part]
            bad = ~np.isfinite(own)
            want = "finite numbers"
            if column.kind not in ("weights", "program"):
                bad, want = bad | (own < 0) | (own > 1), "numbers in 0 .. 1"
            if bad.any():
                where = f"{at}: number {part.start + int(np.argmax(bad))}, of {column.name!r}"
                raise ConfigError(f"{where}: expected {want}, got {own[np.argmax(bad)]:g}")
            if column.vocabulary is not None:
                found = disassemble(column.vocabulary, split(column.vocabulary, own))
                if isinstance(found, Refusal):
                    raise ConfigError(
                        f"{at}: expected a program of vocabulary {column.vocabulary.name!r} in {column.name!r},"
                        f" got numbers that are {found}"
                    )
        return numbers

    def project(self, genomes: Any) -> Any:
        """Fold genomes `[..., D]` back into bounds by reflection at 0 and 1; traceable.

        Reflection, not clipping: clipped samples pile up on the boundary and shrink a distribution there.
        """
        import jax.numpy as jnp

        folded = jnp.mod(genomes, 2.0)
        folded = jnp.where(folded > 1.0, 2.0 - folded, folded)
        bounded = np.broadcast_to(self.bounded, jnp.shape(genomes))
        inside = ~bounded | ((genomes >= 0.0) & (genomes <= 1.0))
        return jnp.where(inside, genomes, folded).astype(jnp.float32)

    def sample(self, key: Any, count: int) -> Any:
        """`count` genomes `[count, D]`; traceable.

        Uniform in bounded columns, standard normal in weights, random programs (programs/vary.py).
        """
        import jax

        uniform_key, normal_key = jax.random.split(key)
        shape = (count, self.dimension)
        uniform, normal = jax.random.uniform(uniform_key, shape), jax.random.normal(normal_key, shape)
        genomes = jax.numpy.where(np.broadcast_to(self.bounded, shape), uniform, normal)
        for number, (column, part) in enumerate(zip(self.columns, self._slices, strict=True)):
            if column.vocabulary is not None:
                from evometa.programs.vary import random_programs

                drawn = random_programs(column.vocabulary, jax.random.fold_in(key, number), count)
                genomes = genomes.at[:, part].set(drawn)
        return genomes

    # --- for people and files --------------------------------------------------------------------

    def describe(self) -> str:
        """Say what is searched, a line per column."""
        width = max(len(column.name) for column in self.columns)
        lines = [f"{column.name:<{width}}  {column.text()}" for column in self.columns]
        lines += [
            f"{column.name}  held" + ("" if column.kind == "program" else f" at {value}") for column, value in self.held
        ]
        return "\n".join([f"{self.dimension} numbers in {len(self.columns)} columns", *lines])

    def to_json(self) -> list[dict[str, Any]]:
        """The columns as plain data; `from_json` gives the space back."""

        def row(column: Column) -> dict[str, Any]:
            data = {**asdict(column), "choices": list(column.choices), "shape": list(column.shape)}
            vocabulary = data.pop("vocabulary")
            return data if vocabulary is None else {**data, "vocabulary": vocabulary}

        def plain(column: Column, value: Any) -> Any:
            if column.kind == "program":
                return {name: np.asarray(part).tolist() for name, part in value._asdict().items()}
            return np.asarray(value).tolist() if column.kind == "weights" else value

        held = ({**row(column), "held": plain(column, value)} for column, value in self.held)
        return [*map(row, self.columns), *held]

    @staticmethod
    def from_json(columns: Sequence[Mapping[str, Any]]) -> Space:
        """The space that `to_json` wrote down."""
        made: dict[str, Column] = {}
        held: dict[str, Any] = {}
        for row in columns:
            fields = {**row, "choices": tuple(row["choices"]), "shape": tuple(row["shape"])}
            if "vocabulary" in fields:
                fields["vocabulary"] = Vocabulary.from_json(row["vocabulary"])
            if "held" in fields:
                held[row["name"]] = fields.pop("held")
            made[row["name"]] = Column(**fields)
        return Space(made).hold(held) if held else Space(made)

    def __repr__(self) -> str:
        return f"Space({', '.join(f'{c.name}: {c.text()}' for c in self.columns)})"


def _flatten(tree: Mapping[str, Any], prefix: str) -> list[Column]:
    columns: list[Column] = []
    for name, value in tree.items():
        full = f"{prefix}{name}"
        if isinstance(value, Mapping):
            columns += _flatten(value, f"{full}.")
        elif isinstance(value, Column):
            columns.append(Column(**{**value.__dict__, "name": full}))
        else:
            raise ConfigError(
                f"space: {full!r} expected a column or a nested dict of columns, got {type(value).__name__}."
                " Use real, log, integer, categorical, weights or program"
            )
    return columns


def unflatten(flat: Mapping[str, Any]) -> Candidate:
    """A candidate from its values by full name."""
    tree: Candidate = {}
    for name, value in flat.items():
        *path, leaf = name.split(".")
        node = tree
        for step in path:
            node = node.setdefault(step, {})
        node[leaf] = value
    return tree


def flatten(candidate: Mapping[str, Any], names: set[str], prefix: str = "") -> dict[str, Any]:
    """A candidate's values by full name; what is in `names` is a value, even where it is a mapping."""
    flat: dict[str, Any] = {}
    for name, value in candidate.items():
        full = f"{prefix}{name}"
        inside = isinstance(value, Mapping) and full not in names
        flat |= flatten(value, names, f"{full}.") if inside else {full: value}
    return flat
