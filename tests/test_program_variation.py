"""Variation of programs keeps them valid and does what its kind says; the hash is of what a program does."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evometa.programs import vary
from evometa.programs.behaviour import REFUSED, STEPS, fingerprints, probes
from evometa.programs.code import FARTHEST, FIELDS, Program, assemble, check, disassemble, join, split, tables
from evometa.programs.grow import grow
from evometa.programs.interpret import effective
from evometa.programs.listing import parse
from evometa.programs.simplify import simplify
from evometa.programs.vocabularies import LOSS, OPTIMIZER
from evometa.programs.vocabulary import Register, Vocabulary

SMALL = Vocabulary(
    "small", inputs=(Register("a"), Register("b"), Register("t", "scalar", "count"),
                     Register("fan", "layer", "positive", setup=True)),
    memory=(Register("m"), Register("s", "scalar")), outputs=(Register("y"),),
    operations=("add", "sub", "mul", "div", "exp", "sqrt", "lerp", "layer_mean", "mean"),
    constants=3, setup=2, update=6,
)  # fmt: skip
BARE = Vocabulary(
    "bare", (Register("a", "scalar"),), (Register("y", "scalar"),), ("add", "mean"), constants=0, update=1
)
COUNT = 1000


@cache
def compiled(vocabulary):
    """`random_programs`, `mutate`, `crossover` of COUNT programs, their `check` and `effective`."""
    kit = (
        lambda key: vary.random_programs(vocabulary, key, COUNT),
        lambda key, rows: jax.vmap(lambda k, row: vary.mutate(vocabulary, k, row, 0.1))(
            jax.random.split(key, COUNT), rows
        ),
        lambda key, one, two: jax.vmap(lambda k, x, y: vary.crossover(vocabulary, k, x, y))(
            jax.random.split(key, COUNT), one, two
        ),
        lambda rows: jax.vmap(lambda row: check(vocabulary, split(vocabulary, row).tokens, jnp))(rows),
        lambda rows: jax.vmap(lambda row: effective(vocabulary, split(vocabulary, row).tokens))(rows),
        lambda rows: fingerprints(vocabulary, rows),
    )
    return tuple(map(jax.jit, kit))


def tokens_of(vocabulary, rows):
    rows = np.asarray(rows)
    return rows[:, : FIELDS * vocabulary.length].reshape(len(rows), vocabulary.length, FIELDS).astype(int)


def lengths(vocabulary, rows):
    return (tokens_of(vocabulary, rows)[:, :, 0] > 0).sum(axis=1)


def valid(vocabulary, rows):
    return not np.any(compiled(vocabulary)[3](rows)) and np.isfinite(np.asarray(rows)).all()


def hashes(vocabulary, *texts):
    rows = [join(vocabulary, assemble(parse(vocabulary, text))) for text in texts]
    padded = np.stack(rows + [rows[0]] * (COUNT - len(rows)))
    return [tuple(row) for row in np.asarray(compiled(vocabulary)[5](jnp.asarray(padded)))[: len(texts)].tolist()]


# --- validity ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [SMALL, BARE, OPTIMIZER], ids=lambda v: v.name)
def test_random_programs_are_valid_varied_and_mostly_alive(vocabulary):
    make, _, _, _, live, _ = compiled(vocabulary)
    rows = make(jax.random.key(0))
    assert rows.shape == (COUNT, vocabulary.size) and rows.dtype == jnp.float32 and valid(vocabulary, rows)
    # `disassemble` is the host's own judgement, instruction by instruction.
    assert all(isinstance(disassemble(vocabulary, split(vocabulary, row)), Program) for row in np.asarray(rows)[:200])
    held = lengths(vocabulary, rows)
    assert held.min() >= 1 and held.max() <= vocabulary.length
    if vocabulary is not BARE:
        assert len(set(held.tolist())) >= vocabulary.update
        alive = np.asarray(live(rows))
        assert alive.sum() > 0.4 * held.sum() and (alive.sum(axis=1) > 0).mean() > 0.95
        numbers = tokens_of(vocabulary, rows)
        takes = np.arange(3) < tables(vocabulary).arity[numbers[..., 0]][..., None]
        reads = alive[..., None] & takes & (numbers[..., 2:] < vocabulary.first_constant)
        assert reads.any(axis=(1, 2)).mean() > 0.8


def test_constants_are_round_or_spread_over_magnitudes():
    rows = np.asarray(compiled(SMALL)[0](jax.random.key(1)))
    values = np.concatenate([split(SMALL, row).constants for row in rows])
    size = np.abs(values)
    assert size.min() > 5e-5 and size.max() < 20 and 0.1 < (values < 0).mean() < 0.3
    assert all((np.abs(size - value) < 1e-3 * value).mean() > 0.03 for value in (1.0, 0.1, 0.9, 0.99))
    assert min(np.mean((size > low) & (size < 10 * low)) for low in (1e-4, 1e-3, 1e-2, 0.1)) > 0.05


@pytest.mark.parametrize("vocabulary", [SMALL, BARE], ids=lambda v: v.name)
def test_variation_of_valid_programs_gives_valid_programs_for_ever(vocabulary):
    make, change, cross, *_ = compiled(vocabulary)
    rows, others = make(jax.random.key(2)), make(jax.random.key(3))
    seen = np.zeros(len(vary.KINDS), int)
    for step in range(30):
        rows, kinds = change(jax.random.key(10 + step), rows)
        assert valid(vocabulary, rows)
        seen += np.bincount(np.asarray(kinds), minlength=len(seen))
        rows = cross(jax.random.key(100 + step), rows, jnp.roll(others if step % 2 else rows, 1, axis=0))
        assert valid(vocabulary, rows)
    possible = (
        np.ones(len(seen), bool) if vocabulary is SMALL else np.isin(vary.KINDS, ("replace", "operation", "operand"))
    )
    assert (seen[possible] > 0).all()
    assert len(np.unique(np.asarray(rows), axis=0)) > (COUNT // 2 if vocabulary is SMALL else 1)


def test_empty_programs_grow():
    rows, kinds = compiled(SMALL)[1](jax.random.key(0), jnp.zeros((COUNT, SMALL.size)))
    assert set(np.asarray(kinds).tolist()) == {vary.KINDS.index("insert")} and (lengths(SMALL, rows) == 1).all()


# --- kinds -------------------------------------------------------------------------------------------


def test_every_kind_of_mutation_does_what_it_says():
    make, change, _, _, live, fingerprint = compiled(SMALL)
    rows = make(jax.random.key(4))
    after, kinds = change(jax.random.key(5), rows)
    kinds, start = np.asarray(kinds), FIELDS * SMALL.length
    of = {name: kinds == number for number, name in enumerate(vary.KINDS)}
    grown = lengths(SMALL, after) - lengths(SMALL, rows)
    assert (grown[of["insert"]] == 1).all() and (grown[of["delete"]] == -1).all()
    assert (grown[of["replace"] | of["operation"] | of["operand"] | of["swap"] | of["constant"]] == 0).all()
    before, behind = tokens_of(SMALL, rows), tokens_of(SMALL, after)
    changed = (before != behind).any(axis=2).sum(axis=1)
    assert (changed[of["operation"] | of["operand"]] <= 1).all() and changed[of["operand"]].mean() > 0.9
    assert (changed[of["swap"]] <= 2).all() and (changed[of["constant"]] == 0).all()
    moved = (np.asarray(after)[:, start:] != np.asarray(rows)[:, start:]).sum(axis=1)
    assert (moved[of["constant"]] == 1).all() and (moved[~of["constant"]] == 0).all()
    gaps = (np.asarray(after) - np.asarray(rows))[of["constant"]][:, start:]
    assert 0.07 < gaps[gaps != 0].std() < 0.13 and abs(gaps[gaps != 0].mean()) < 0.04
    stripped = of["strip"]
    assert grown[stripped].max() < 0 and (np.asarray(live(after)).sum(axis=1) == lengths(SMALL, after))[stripped].all()
    assert np.array_equal(np.asarray(fingerprint(after))[stripped], np.asarray(fingerprint(rows))[stripped])


def test_a_crossing_takes_instructions_of_both_and_the_constants_come_along():
    make, _, cross, *_ = compiled(SMALL)
    one, two = make(jax.random.key(6)), make(jax.random.key(7))
    child = cross(jax.random.key(8), one, two)
    first, last = SMALL.first_constant, SMALL.first_memory

    def lines(row):
        """Instructions with the constants they read by value."""
        held = split(SMALL, row)
        arity = tables(SMALL).arity
        return [
            (op, place, *(round(float(held.constants[r - first]), 5) if first <= r < last else f"r{r}" for r in ops[: arity[op]]))
            for op, place, *ops in held.tokens.tolist() if op
        ]  # fmt: skip

    whole, mixed = [], 0
    for a, b, c in zip(*(np.asarray(part)[:300] for part in (one, two, child)), strict=True):
        ours, theirs, got = lines(a), lines(b), lines(c)
        whole += [line in ours or line in theirs for line in got]
        mixed += any(line in theirs and line not in ours for line in got) and any(
            line in ours and line not in theirs for line in got
        )
    # Where no place was free, a coin decided whose value an instruction reads.
    assert np.mean(whole) > 0.9 and mixed > 100


# --- behaviour ---------------------------------------------------------------------------------------


def test_what_is_written_otherwise_hashes_equal():
    plain = "update:\nm = lerp(m, a, 0.1)\ny = mul(m, b)"
    dead = "update:\nm = lerp(m, a, 0.1)\nm = add(m, 0.0)\ny = exp(a)\ny = mul(m, b)"
    commuted = "update:\nm = lerp(m, a, 0.1)\ny = mul(b, m)"
    other = "update:\nm = lerp(m, a, 0.2)\ny = mul(m, b)"
    fifth = "update:\nm = lerp(m, a, 0.1000001)\ny = mul(m, b)"
    one, two, three, four, five = hashes(SMALL, plain, dead, commuted, other, fifth)
    assert one == two == three == five != four


def test_renamed_registers_hash_equal_and_functions_that_differ_do_not():
    two = Vocabulary(
        "two", inputs=SMALL.inputs, memory=(Register("m"), Register("n")), outputs=SMALL.outputs,
        operations=SMALL.operations, constants=3, setup=2, update=6,
    )  # fmt: skip
    one, other = hashes(two, "m = add(m, a)\ny = mul(m, b)", "n = add(n, a)\ny = mul(n, b)")
    assert one == other
    texts = [
        "y = add(a, 0.0)", "y = sub(a, b)", "y = sub(b, a)", "y = mul(a, b)", "y = mul(a, 0.1)", "y = mul(a, 0.101)",
        "y = lerp(a, b, 0.5)", "y = add(a, b)", "m = add(m, a)\ny = add(m, b)", "y = mul(a, t)", "y = mul(a, fan)",
        "y = layer_mean(a)", "y = mean(a)", "y = div(a, b)", "y = sqrt(a)",
    ]  # fmt: skip
    assert len(set(hashes(SMALL, *texts))) == len(texts)


def test_simplifying_changes_no_hash():
    make, *_, fingerprint = compiled(SMALL)
    rows = np.asarray(make(jax.random.key(9)))
    shorter = rows.copy()
    for number in range(200):
        shorter[number] = join(SMALL, assemble(simplify(disassemble(SMALL, split(SMALL, rows[number])))))
    same = np.all(np.asarray(fingerprint(jnp.asarray(rows))) == np.asarray(fingerprint(jnp.asarray(shorter))), axis=1)[
        :200
    ]
    assert lengths(SMALL, shorter)[:200].sum() < lengths(SMALL, rows)[:200].sum()
    assert same.mean() > 0.97, np.flatnonzero(~same)  # float noise now and then leads over an edge


def test_refused_and_overflowing_programs_have_hashes_of_their_own():
    rows = np.zeros((COUNT, SMALL.size), np.float32)
    rows[0, :5] = (1, 0, 0, 0, 0)  # writes an input
    rows[1] = np.nan
    # exp(20) seven times multiplied leaves float32.
    big = join(
        SMALL,
        assemble(
            parse(SMALL, "m = mul(a, 100.0)\nm = exp(m)\nm = mul(m, m)\nm = mul(m, m)\nm = mul(m, m)\ny = mul(m, 1.0)")
        ),
    )
    rows[2] = big
    found = [tuple(row) for row in np.asarray(compiled(SMALL)[5](jnp.asarray(rows)))[:4].tolist()]
    assert found[0] == found[1] == REFUSED and len({*found[1:]}) == 3


def test_most_random_programs_behave_differently_and_alone_as_in_a_crowd():
    make, *_, fingerprint = compiled(SMALL)
    rows = make(jax.random.key(11))
    found = np.asarray(fingerprint(rows))
    assert len(np.unique(found, axis=0)) > COUNT // 2
    alone = jax.jit(lambda row: fingerprints(SMALL, row[None])[0])
    assert all(np.array_equal(alone(rows[number]), found[number]) for number in range(40))


def test_what_a_loss_does_is_its_derivative():
    """A constant, a value of the next state, memory that nobody wrote: they change the loss and not what is learned."""
    texts = (
        "x = sub(q, reward)\nloss = square(x)",
        "x = sub(reward, q)\nx = square(x)\nloss = add(x, next_max)",
        "x = sub(q, reward)\nx = square(x)\nloss = sub(x, 3.5)",
        "y = sub(q, reward)\nz = square(y)\nloss = add(z, x)\nx = add(x, q)",
        "x = sub(q, reward)\nx = square(x)\nloss = add(x, x)",
        "x = sub(q, reward)\nloss = abs(x)",
    )
    found = hashes(LOSS, *texts)
    assert len({*found[:4]}) == 1 and len({*found}) == 3
    # The same programs in a vocabulary whose outputs are used as they are differ.
    assert len({*hashes(replace(LOSS, slope=""), *texts)}) == 6


def test_probes_are_what_registers_say():
    first, steps = probes(SMALL)
    assert set(first) == {"fan"} and (steps["fan"] > 0).all() and (steps["fan"] == first["fan"]).all()
    assert steps["t"].tolist() == [float(step) for step in range(1, STEPS + 1)] and steps["a"].shape == (STEPS, 12)
    assert not np.array_equal(steps["a"], steps["b"])


# --- growth ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [SMALL, BARE, OPTIMIZER], ids=lambda v: v.name)
def test_growth_puts_one_instruction_between_a_reader_and_what_it_read(vocabulary):
    make, _, _, _, live, _ = compiled(vocabulary)
    rows = make(jax.random.key(4))
    grown = jax.jit(jax.vmap(lambda key, row: grow(vocabulary, key, row)))(
        jax.random.split(jax.random.key(5), COUNT), rows
    )
    assert valid(vocabulary, grown)
    before, after = lengths(vocabulary, rows), lengths(vocabulary, grown)
    assert set((after - before).tolist()) <= {0, 1}
    if vocabulary is BARE:
        assert (after == before).all()  # no memory, no room
        return
    more = after - before == 1
    assert more.mean() > 0.3
    # What is new is read; only where no memory is free may it cost another value.
    assert (np.asarray(live(grown)).sum(axis=1) > np.asarray(live(rows)).sum(axis=1))[more].mean() > 0.9
    # Constants stay as they are.
    numbers = FIELDS * vocabulary.length
    assert np.array_equal(np.asarray(grown)[:, numbers:], np.clip(np.asarray(rows)[:, numbers:], -FARTHEST, FARTHEST))


def test_growth_comes_from_undiscounted_to_discounted_td_in_one_step():
    """The step that `mutate` needs two or three for."""
    from evometa.programs.vocabularies import LOSS
    from evometa.tasks.rl_loss import is_td

    start = join(LOSS, assemble(parse(LOSS, "x = add(reward, next_max)\nx = sub(x, q)\nloss = square(x)")))
    count = 20_000
    grown = jax.jit(jax.vmap(lambda key: grow(LOSS, key, jnp.asarray(start))))(
        jax.random.split(jax.random.key(0), count)
    )
    different = np.unique(np.asarray(grown), axis=0)
    found = [row for row in different if is_td(split(LOSS, row))]
    assert found and len(different) > 100
    share = np.mean([any(np.array_equal(row, td) for td in found) for row in np.asarray(grown)])
    assert 1e-4 < share < 1e-2
