"""The contracts of evometa on one page: what a strategy is, and what it is told.

Shapes: P candidates per generation, D genome numbers, C cells (domain x query x replicate),
M objectives, K parent slots, B behaviour numbers. Lower loss and lower fitness are better, everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:  # jax is slow to import and `evometa --help` must not wait for it
    import jax

    Array: TypeAlias = jax.Array
else:
    Array = Any

Key: TypeAlias = Array  # a typed jax.random key
Genome: TypeAlias = Array  # [D] float32, in the coordinates of space.py
Genomes: TypeAlias = Array  # [P, D] float32
Parents: TypeAlias = Array  # [P, K, 2] int32: (generation, index), -1 = no parent in this slot
Prior: TypeAlias = Array  # [D] float32: a genome to start from
State: TypeAlias = Any  # any pytree of arrays, nothing else: it is what a checkpoint holds


class Failure(IntEnum):
    """Why a candidate has no fitness. Stored by name (lower case) in the archive."""

    OK = 0
    SKIPPED = 1  # not evaluated (a racing block, a row that was never asked)
    NONFINITE = 2  # NaN or infinity came back, or a number that float32 cannot hold
    ERROR = 3  # the task raised, or returned something that is not its declared metrics
    TIMEOUT = 4
    OUT_OF_MEMORY = 5
    WORKER_LOST = 6


class Scores(NamedTuple):
    """What one generation came to. Leading axis P."""

    loss: Array  # [P, C] float32, NaN where not evaluated
    evaluated: Array  # [P, C] bool
    fitness: Array  # [P, M] float32, lower is better, +inf where the candidate failed
    descriptor: Array  # [P, B] float32 behaviour; B may be 0
    failure: Array  # [P] int8, a `Failure`
    metrics: dict[str, Array]  # each [P, C]: support_loss, inner_steps, the task's own


class Strategy(NamedTuple):
    """A search method: pure functions over arrays, built by a factory such as `cma_es(space, population=32)`.

    `ask` and `tell` never see a task. Keys come from outside, so a state holds no random generator
    and the same (seed, generation) always gives the same bits.
    """

    name: str
    population: int  # P, fixed for the life of a run
    init: Callable[[Key, Prior | None], State]
    ask: Callable[[Key, State], tuple[Genomes, Parents, State]]
    tell: Callable[[Key, State, Genomes, Scores], State]  # rows with failure SKIPPED were not evaluated
    recommend: Callable[[State], Genome]  # what to deploy: a mean or a likely-best, not the luckiest
    traceable: bool  # may ask/tell run inside jit?
    searches: frozenset[str]  # kinds of column it can search: real, log, integer, categorical, weights
    # What made a child, by how many parents its row names: none, one, two or more.
    operators: tuple[str, str, str] = ("initial", "mutation", "crossover")
    objectives: int = 1  # how many objectives it can weigh against each other
    # What happened in a search that a person should know: sentences that stay the same, for the run's diary.
    notes: Callable[[State], list[str]] | None = None
    # At what rates the rows just asked were made, from the state after `ask`: name -> [P] float32, NaN for none.
    rates: Callable[[State], dict[str, Array]] | None = None


class Cell(NamedTuple):
    """One thing a learner is judged on: a column of `Scores.loss`."""

    domain: str
    query: str  # `away`, or `away@50` for a mark that is not the last
    role: str  # train, validation or test
    replicate: int


class Block(NamedTuple):
    """Consecutive generations as they come out of the loop: what the archive is handed.

    Every array is NumPy and starts with [G, P].
    """

    first: int  # number of the first generation
    genomes: Any  # [G, P, D] float32
    parents: Any  # [G, P, K, 2] int32
    scores: Scores  # each array with a leading G
    messages: dict[tuple[int, int], str]  # (generation, index) -> why it failed, where there is something to say
    rates: dict[str, Any] | None = None  # name -> [G, P] float32, NaN for none; only where the strategy tells them

    @property
    def generations(self) -> int:
        """How many generations the block holds."""
        return int(self.genomes.shape[0])
