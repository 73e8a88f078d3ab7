"""How `open_ended` makes children: by operators whose rates are genes, or put out by a program of the genome.

Every member carries rate genes (`GENES`). With `self_modification` a child's genes are its parents' (their mean, for
two), moved a little, and it is made with its *own* genes: rates that make good children spread with them (Schwefel
1995, "Evolution and Optimum Seeking"; for operator probabilities Spears 1995). They belong to the strategy's state,
beside the genome, for a genome holds what the task declares and nothing else; a run that is told again has the same.

A task may declare more: a program column named `mutation` (`COLUMN`) with outputs named after `GENES` *is* the
operator. It runs once for every child of its owner, and what these outputs say is added to the genes before the child
is made. (What others say is the task's affair: the same program may serve there too.) It reads scalars by the names in
`FACTS`; other inputs of its vocabulary are 0, and it begins with empty memory. As part of the genome it is stored in
the lineage, varied like every program, and changed by itself: improving the improver. Without `self_modification` it
is carried along and never run here.

To make children in another way, add to `OPERATORS`: functions applied in this order, each `(breeding, key, made) ->
genomes [P, D]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa.programs.behaviour import REFUSED, answers
from evometa.programs.code import split
from evometa.programs.interpret import Machine, prepare
from evometa.programs.vary import crossover, mutate
from evometa.programs.vocabulary import Vocabulary
from evometa.space import Space
from evometa.strategies.linear_gp_layout import Layout
from evometa.types import Array, Genomes

GENES = ("step", "crossover", "changes", "beside", "flip")
FACTS = ("share", "children", "age", "looks", "uniform", "normal")
COLUMN = "mutation"
MOST_CHANGES = 6  # to one program, in one child
_SPEED = (0.0, 0.3, 0.3, 0.3, 0.3)  # how far a gene moves per child; of `step`: Schwefel's rate
_FARTHEST = 6.0  # a probability of 0.0025 or 0.9975
_NUMBERS = 16  # more numbers than this are projected for a behaviour
_WORDS = 4  # projections of each output of a program


class Rates(NamedTuple):
    """What genes mean. Each `[P]` float32."""

    step: Array  # standard deviation of changes to numbers, in genome coordinates; of constants likewise
    crossover: Array  # probability of a second parent
    changes: Array  # mean number of changes to the programs of a child, 1 .. MOST_CHANGES
    beside: Array  # probability that a child of one parent keeps its programs and changes what stands beside them
    flip: Array  # probability that an integer or categorical column is drawn or moved


class Made(NamedTuple):
    """Children while they are made; leading axis P."""

    child: Genomes
    one: Genomes
    two: Genomes
    rates: Rates
    paired: Array  # [P] bool: two parents?
    alone: Array  # [P] bool: programs are left as they are


Operator = Callable[["Breeding", Any, Made], Genomes]


class Breeding:
    """Children of the genomes of one space."""

    def __init__(self, space: Space, given: dict[str, Any]) -> None:
        self.space, self.given, self.layout = space, given, Layout(space)
        columns = [column for column in space.columns if column.vocabulary is None]
        sizes = [column.size for column in columns]
        kinds = np.repeat([column.kind for column in columns], sizes) if columns else np.zeros(0, "U8")
        self.choice, self.whole = kinds == "categorical", kinds == "integer"
        bins = [column.bins if column.kind in ("integer", "categorical") else 1 for column in columns]
        self.bins = np.repeat(bins, sizes).astype(np.float32) if columns else np.zeros(0, np.float32)
        discrete = int((self.choice | self.whole).sum())
        self.rate = given["rate"] if given["rate"] is not None else max(0.1, 1.0 / max(1, discrete))
        programs, beside = bool(self.layout.programs), len(columns) > 0
        shown = (True, True, programs, programs and beside, discrete > 0)
        self.matters = frozenset(gene for gene, shows in zip(GENES, shown, strict=True) if shows)
        own = [c.vocabulary for c in space.columns if c.name == COLUMN and c.vocabulary is not None]
        self.operator: Vocabulary | None = None
        if own and {register.name for register in own[0].outputs} & set(GENES):
            self.operator = own[0]
            self._operator_part = next(p for c, p in zip(space.columns, space.slices, strict=True) if c.name == COLUMN)

    # --- genes ------------------------------------------------------------------------------------

    def first_genes(self, count: int) -> Array:
        """`[count, R]`: the genes that say what the hyperparameters say."""
        shares = jnp.stack([jnp.asarray(value, jnp.float32) for value in (
            self.given["crossover"], (self.given["changes"] - 1.0) / (MOST_CHANGES - 1.0), 0.33, self.rate,
        )])  # fmt: skip
        logits = jax.scipy.special.logit(jnp.clip(shares, 0.0025, 0.9975))
        step = jnp.log(jnp.asarray(self.given["sigma"], jnp.float32))
        return jnp.broadcast_to(jnp.concatenate([step[None], logits])[None], (count, len(GENES)))

    def inherited(self, key: Any, one: Array, two: Array, paired: Array) -> Array:
        """`[P, R]` genes of children: those of `one` (the mean of both for two parents), moved a little."""
        if not self.given["self_modification"]:
            return one
        genes = jnp.where(paired[:, None], 0.5 * (one + two), one)
        speed = jnp.asarray(_SPEED).at[0].set(1.0 / np.sqrt(2.0 * max(1, self.space.dimension)) + 0.1)
        moved = genes + jax.lax.optimization_barrier(speed[None] * jax.random.normal(key, genes.shape))
        return self.bounded(moved)

    def bounded(self, genes: Array) -> Array:
        """Genes within what their rates allow."""
        floor = jnp.log(jnp.maximum(jnp.asarray(self.given["smallest"], jnp.float32), 1e-30))
        return jnp.clip(genes, -_FARTHEST, _FARTHEST).at[:, 0].set(jnp.clip(genes[:, 0], floor, 0.0))

    def rates(self, genes: Array) -> Rates:
        """What genes `[P, R]` mean."""
        share = jax.nn.sigmoid(genes)
        changes = 1.0 + (MOST_CHANGES - 1.0) * share[:, 2]
        crossed = jnp.where(jnp.asarray(self.given["crossover"]) > 0, share[:, 1], 0.0)
        return Rates(jnp.exp(genes[:, 0]), crossed, changes, share[:, 3], share[:, 4])

    def said(self, key: Any, owners: Genomes, facts: dict[str, Array]) -> Array | float:
        """What the owners' own mutation programs add to genes `[P, R]`; 0 where there are none, or may not act.

        `facts`: `[P]` each, by the names in `FACTS` but the random ones, which are drawn here.
        """
        vocabulary = self.operator
        if vocabulary is None or not self.given["self_modification"]:
            return 0.0
        machine = Machine(vocabulary, (1,))
        keys = jax.random.split(key)
        count = (owners.shape[0],)
        known = {**facts, "uniform": jax.random.uniform(keys[0], count), "normal": jax.random.normal(keys[1], count)}
        nothing = jnp.zeros(count, jnp.float32)
        inputs = {register.name: known.get(register.name, nothing) for register in vocabulary.inputs}
        early = {register.name for register in vocabulary.inputs if register.setup}

        def run(numbers: Array, values: dict[str, Array]) -> Array:
            ready = prepare(vocabulary, split(vocabulary, numbers))
            memory = machine.start(ready, {name: value for name, value in values.items() if name in early})
            outputs, _ = machine.step(ready, memory, values)
            return jnp.stack([outputs[gene][0] if gene in outputs else jnp.float32(0.0) for gene in GENES])

        words = jax.vmap(run)(owners[:, self._operator_part], inputs)
        return jnp.clip(jnp.where(jnp.isfinite(words), words, 0.0), -_FARTHEST, _FARTHEST)

    # --- children ---------------------------------------------------------------------------------

    def children(self, key: Any, one: Genomes, two: Genomes, rates: Rates, paired: Array) -> Genomes:
        """`[P, D]` children: `OPERATORS` one after another."""
        keys = jax.random.split(key, 1 + len(OPERATORS))
        both = bool(self.layout.programs) and len(self.layout.beside) > 0
        alone = (jax.random.uniform(keys[0], paired.shape) < rates.beside) & ~paired & both
        made = Made(one, one, two, rates, paired, alone)
        for own, operator in zip(keys[1:], OPERATORS.values(), strict=True):
            made = made._replace(child=operator(self, own, made))
        return self.space.project(made.child)

    def unlike(self, key: Any, children: Genomes, rates: Rates, varied: Array, known: Array) -> tuple[Genomes, Array]:
        """`([P, D], [P, 2])`: children and the hashes of what they do. `varied` ones that do what a member does
        (`known` `[N, 2]`) get further changes, one by one, up to `tries` variants in all."""
        if not self.layout.programs:
            return children, jnp.full((children.shape[0], 2), REFUSED[0], jnp.uint32)

        def once(carry: tuple[Genomes, Array], own: Any) -> tuple[tuple[Genomes, Array], None]:
            held, hashes = carry
            old = varied & jnp.any(jnp.all(hashes[:, None] == known[None], axis=-1), axis=1)
            held = jnp.where(old[:, None], _change(self, own, held, rates.step, old), held)
            return (held, self.layout.hashes(held)), None

        keys = jax.random.split(key, int(self.given["tries"]))[1:]
        return jax.lax.scan(once, (children, self.layout.hashes(children)), keys)[0]

    # --- behaviour --------------------------------------------------------------------------------

    def behaviour(self, genomes: Genomes) -> Array:
        """`[P, B]` float32: where genomes lie in behaviour.

        Programs: what they put out on the probe inputs of programs/behaviour.py, projected. Numbers: their
        coordinates, projected on 16 random directions where there are more. No evaluation is needed.
        """
        parts = [
            jax.vmap(lambda row, v=vocabulary: _answers(v, row))(genomes[:, part])
            for vocabulary, part in self.layout.programs
        ]
        if len(self.layout.beside):
            numbers = genomes[:, self.layout.beside]
            if numbers.shape[1] > _NUMBERS:
                numbers = jnp.clip(numbers, -1e3, 1e3) @ jnp.asarray(_signs(numbers.shape[1], _NUMBERS))
            parts.append(numbers)
        return jnp.concatenate(parts, axis=1).astype(jnp.float32)


def profile(loss: Array, ok: Array, size: int) -> Array:
    """`[P, size]`: how rows differ over cells, from losses `[P, C]`: in each cell the gap to the generation's median in
    median absolute deviations, cut at 3, projected on fixed random directions; 0 for rows that failed."""
    held = jnp.where(ok[:, None], loss, jnp.nan)
    gap = held - jnp.nanmedian(held, axis=0)[None]
    spread = jnp.nanmedian(jnp.abs(gap), axis=0)[None]
    scaled = jnp.clip(jnp.where(spread > 0, gap / jnp.where(spread > 0, spread, 1.0), jnp.sign(gap)), -3.0, 3.0)
    return jnp.nan_to_num(scaled) @ jnp.asarray(_signs(loss.shape[1], size)) / np.sqrt(loss.shape[1])


# --- the operators ---------------------------------------------------------------------------------------


def _numbers(breeding: Breeding, key: Any, made: Made) -> Genomes:
    """What stands beside programs: recombined as in `genetic` (a line, or a coin per column), then moved by `step`."""
    beside = breeding.layout.beside
    if not len(beside):
        return made.child
    one, two = made.one[:, beside], made.two[:, beside]
    keys = jax.random.split(key, 6)
    row = (one.shape[0], 1)
    choice, whole = jnp.asarray(breeding.choice)[None], jnp.asarray(breeding.whole)[None]
    along = jax.random.uniform(keys[0], row, minval=-0.25, maxval=1.25)
    line = (jax.random.uniform(keys[1], row) < 0.5) & ~choice & ~whole
    swapped = jnp.where(jax.random.uniform(keys[2], one.shape) < 0.5, one, two)
    mixed = jnp.where(line, one + jax.lax.optimization_barrier(along * (two - one)), swapped)
    child = jnp.where(made.paired[:, None], mixed, one)
    flip = jax.random.uniform(keys[3], one.shape) < made.rates.flip[:, None]
    # An integer must be able to leave its bin however small the step has become.
    reach = jnp.where(whole, jnp.maximum(made.rates.step[:, None], 1.0 / breeding.bins[None]), made.rates.step[:, None])
    noise = jax.lax.optimization_barrier(reach * jax.random.normal(keys[4], one.shape))
    moved = jnp.where(~whole | flip, child + noise, child)
    moved = jnp.where(choice, jnp.where(flip, jax.random.uniform(keys[5], one.shape), child), moved)
    moves = made.paired | made.alone if breeding.layout.programs else jnp.ones_like(made.paired)
    return made.child.at[:, beside].set(jnp.where(moves[:, None], moved, one))


def _crossover(breeding: Breeding, key: Any, made: Made) -> Genomes:
    """Programs of two parents: a segment of the second in the place of one of the first."""
    child = made.child
    for number, (vocabulary, part) in enumerate(breeding.layout.programs):
        keys = jax.random.split(jax.random.fold_in(key, number), child.shape[0])
        crossed = jax.vmap(lambda k, a, b, v=vocabulary: crossover(v, k, a, b))(
            keys, made.one[:, part], made.two[:, part]
        )
        child = child.at[:, part].set(jnp.where(made.paired[:, None], crossed, child[:, part]))
    return child


def _changes(breeding: Breeding, key: Any, made: Made) -> Genomes:
    """Programs: a random number of changes around `changes`, each to one of them; half of the crossed get none."""
    programs = breeding.layout.programs
    if not programs:
        return made.child
    keys = jax.random.split(key, 3)
    luck = jax.random.uniform(keys[0], (2, *made.paired.shape), minval=1e-6)
    # Geometric from 1 on, with that mean.
    more = jnp.floor(jnp.log(luck[0]) / jnp.log1p(-1.0 / jnp.maximum(made.rates.changes, 1.0 + 1e-3)))
    times = jnp.clip(1 + more, 1, MOST_CHANGES).astype(jnp.int32)
    times = jnp.where(made.alone | (made.paired & (luck[1] < 0.5)), 0, times)

    def change(turn: Any, held: Genomes) -> Genomes:
        return _change(breeding, jax.random.fold_in(keys[1], turn), held, made.rates.step, turn < times)

    return jax.lax.fori_loop(0, MOST_CHANGES, change, made.child)


def _change(breeding: Breeding, key: Any, held: Genomes, step: Array, due: Array) -> Genomes:
    """One change to one program of each row that is `due`."""
    programs = breeding.layout.programs
    which = jax.random.randint(key, due.shape, 0, len(programs))
    for number, (vocabulary, part) in enumerate(programs):
        rows = jax.random.split(jax.random.fold_in(key, number + 1), held.shape[0])
        other = jax.vmap(lambda k, n, s, v=vocabulary: mutate(v, k, n, s)[0])(rows, held[:, part], step)
        held = held.at[:, part].set(jnp.where((due & (which == number))[:, None], other, held[:, part]))
    return held


OPERATORS: dict[str, Operator] = {"numbers": _numbers, "crossover": _crossover, "changes": _changes}


# --- behaviour of programs -------------------------------------------------------------------------------


def _answers(vocabulary: Vocabulary, numbers: Array) -> Array:
    """`[outputs * (_WORDS + 1)]`: per output projections of what it says on the probes, in units of its scale, and the
    logarithm of that scale; what is not finite counts as 0. Refused programs: 0."""
    values, refused = answers(vocabulary, split(vocabulary, numbers))
    rows = jnp.swapaxes(values, 0, 1).reshape(len(vocabulary.outputs), -1)
    rows = jnp.where(jnp.isfinite(rows), jnp.clip(rows, -1e18, 1e18), 0.0)
    scale = jnp.mean(jnp.abs(rows), axis=1)
    pressed = jnp.arcsinh(rows / jnp.maximum(scale, 1e-12)[:, None])
    words = pressed @ jnp.asarray(_signs(rows.shape[1], _WORDS)) / np.sqrt(rows.shape[1])
    size = jnp.log10(jnp.maximum(scale, 1e-12))
    return jnp.where(refused, 0.0, jnp.concatenate([words, size[:, None]], axis=1).reshape(-1))


def _signs(rows: int, columns: int) -> np.ndarray:
    """`[rows, columns]` fixed random signs, so scaled that a projection keeps lengths."""
    return (np.random.default_rng(31).choice([-1.0, 1.0], size=(rows, columns)) / np.sqrt(columns)).astype(np.float32)
