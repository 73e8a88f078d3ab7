"""Genomes of spaces with program columns as `linear_gp` sees them: their effective length, hashes, validity."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evometa.programs.behaviour import fingerprints
from evometa.programs.code import FIELDS, check, split
from evometa.programs.interpret import effective
from evometa.programs.vary import constants_used, unpack
from evometa.space import Space
from evometa.strategies.catalogue import NUMBERS
from evometa.types import Array, Genome, Genomes


class Layout:
    """Where the programs of a space lie in its genomes, where their constants, and where all other columns."""

    def __init__(self, space: Space) -> None:
        columns = list(zip(space.columns, space.slices, strict=True))
        self.programs = [(c.vocabulary, part) for c, part in columns if c.vocabulary is not None]
        others = [(c, part) for c, part in columns if c.vocabulary is None]
        self.columns = {c.name: c for c, _ in others}
        self.beside = _places([part for _, part in others])
        self.constants = _places([slice(part.start + FIELDS * v.length, part.stop) for v, part in self.programs])
        tunable = [(c, part) for c, part in others if c.kind in NUMBERS and not c.static]
        self.tunable = {c.name: c for c, _ in tunable}
        self.numbers = np.concatenate([self.constants, _places([part for _, part in tunable])])
        self.fixed = np.setdiff1d(self.beside, self.numbers)  # what else makes a structure: choices, static columns
        bins = [np.full(c.size, c.bins if c.kind in ("integer", "categorical") else 0) for c, _ in others]
        self._bins = np.concatenate([*bins, np.zeros(0, int)])
        self._odd = np.random.default_rng(7).integers(1, 2**31, size=(2, len(self.beside)), dtype=np.uint32) * 2 + 1

    def length(self, genome: Genome) -> Array:
        """Effective instructions of all programs of a genome."""
        total = jnp.int32(0)
        for vocabulary, part in self.programs:
            total = total + jnp.sum(self.effective(vocabulary, genome[part])[:, 0] > 0)
        return total.astype(jnp.int32)

    def effective(self, vocabulary: Any, numbers: Array) -> Array:
        """`[length, 5]`: the instructions that matter; none of a refused program."""
        tokens = split(vocabulary, numbers).tokens
        tokens = jnp.where(jnp.any(check(vocabulary, tokens, jnp) > 0), 0, tokens)
        return jnp.where(effective(vocabulary, tokens)[:, None], tokens, 0)

    def same_structure(self, one: Genome, two: Genome) -> Array:
        """Do two genomes agree in all that a tuner of numbers leaves as it is?"""
        same = [
            jnp.all(self.effective(vocabulary, one[part]) == self.effective(vocabulary, two[part]))
            for vocabulary, part in self.programs
        ]
        return jnp.all(jnp.stack([*same, jnp.all(one[self.fixed] == two[self.fixed])]))

    def valid(self, genomes: Genomes) -> Array:
        """`[N]` bool: do all programs of a genome run?"""
        good = jnp.ones(genomes.shape[0], bool)
        for vocabulary, part in self.programs:
            codes = jax.vmap(lambda row, v=vocabulary: split(v, row))(genomes[:, part])
            wrong = jax.vmap(lambda tokens, v=vocabulary: jnp.any(check(v, tokens, jnp) > 0))(codes.tokens)
            good = good & ~wrong & jnp.all(jnp.isfinite(codes.constants), axis=1)
        return good

    def sound(self, genomes: Genomes, fresh: Genomes) -> Genomes:
        """Rows fit to breed: packed, and random programs in the place of refused ones (a prior may be anything)."""
        good = self.valid(genomes)
        for vocabulary, part in self.programs:
            packed = jax.vmap(lambda row, v=vocabulary: jnp.concatenate([
                unpack(v, row)[0].astype(jnp.float32).reshape(-1), unpack(v, row)[1],
            ]))(genomes[:, part])  # fmt: skip
            genomes = genomes.at[:, part].set(jnp.where(good[:, None], packed, fresh[:, part]))
        return genomes

    def reads_constants(self, genome: Genome) -> Array:
        """Does an instruction that matters read a constant?"""
        reads = [jnp.any(constants_used(v, self.effective(v, genome[part]))) for v, part in self.programs]
        return jnp.any(jnp.stack([jnp.bool_(False), *reads]))

    def hashes(self, genomes: Genomes) -> Array:
        """`[N, 2]` uint32: what the programs do, and the other columns in bins or thousandths."""
        total = jnp.zeros((genomes.shape[0], 2), jnp.uint32)
        for number, (vocabulary, part) in enumerate(self.programs):
            total = (total + fingerprints(vocabulary, genomes[:, part])) * jnp.uint32(2 * number + 1)
        if len(self.beside):
            grid = jnp.where(jnp.asarray(self._bins) > 0, jnp.asarray(self._bins), 1000).astype(jnp.float32)
            beside = genomes[:, self.beside]
            near = jnp.where(
                jnp.asarray(self._bins)[None] > 0, jnp.floor(beside * grid[None]), jnp.round(beside * grid[None])
            )
            whole = near.astype(jnp.int32).astype(jnp.uint32)
            total = total ^ jnp.sum(whole[:, None] * jnp.asarray(self._odd)[None], axis=-1, dtype=jnp.uint32)
        return total


def _places(slices: list[slice]) -> np.ndarray:
    """Genome numbers of slices, one after another."""
    return np.concatenate([np.arange(0), *(np.arange(part.start, part.stop) for part in slices)]).astype(int)
