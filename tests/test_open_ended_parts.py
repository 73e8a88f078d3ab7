"""Parts of open-ended search: who becomes a parent, who keeps a place, who inherits, and how children are made."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evometa.programs.code import assemble, join
from evometa.programs.listing import parse
from evometa.programs.vocabulary import Register, Vocabulary
from evometa.space import Space, categorical, log, program, real
from evometa.strategies import open_ended_parents as kin
from evometa.strategies import open_ended_repertoire as repertoire
from evometa.strategies import open_ended_variation as variation
from evometa.strategies.catalogue import CATALOGUE

# Six slots, the fifth is empty. Slot 1 is a child of 0, 2 of 1, 3 of 0.
LOSS = np.array([4.0, 2.0, 1.0, 2.0, np.inf, 8.0])
HELD = np.isfinite(LOSS)
CHILDREN = np.array([2, 1, 0, 0, 0, 5])
MOTHER = np.array([-1, 0, 1, 0, -1, -1])
PLACES = np.array([[0.0], [1.0], [1.5], [5.0], [9.0], [6.0]])
draw = jax.jit(kin.draw, static_argnames=("rule", "islands", "neighbours"))
admitted = jax.jit(repertoire.admitted, static_argnums=(2, 3))
SHARE = np.array([1.5, 3.0, 4.5, 3.0, 0, 0.5]) / 5  # better than that part of the five


def view(**changes):
    gone = np.array([[0, 512], [0, 0], [0, 0], [256, 0], [0, 0], [0, 0]])
    fields = {"held": HELD, "loss": LOSS, "children": CHILDREN, "mother": MOTHER, "gone": gone, "behaviour": PLACES}
    dtypes = (bool, np.float32, np.int32, np.int32, np.int32, np.float32)
    values = {**fields, **changes}
    return kin.View(*(jnp.asarray(values[name], kind) for name, kind in zip(kin.View._fields, dtypes, strict=True)))


def drawn(rule, **changes):
    """How often each slot was drawn out of 20,000."""
    found = draw(rule, jax.random.key(3), view(**changes), jnp.zeros(20_000, jnp.int32), neighbours=2)
    return np.bincount(np.asarray(found), minlength=6) / 20_000


def near(got, weights):
    expected = np.asarray(weights, float) / np.sum(weights)
    assert np.all(np.abs(got - expected) < 4 * np.sqrt(expected * (1 - expected) / 20_000) + 1e-9), (got, expected)
    assert (got[expected == 0] == 0).all()


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x)))


# --- parent rules ----------------------------------------------------------------------------------------


def test_a_share_counts_those_that_are_worse_and_half_of_the_equal_ones():
    twice, most = kin.shares(jnp.asarray(HELD), jnp.asarray(LOSS))
    np.testing.assert_allclose(np.asarray(twice) / int(most), SHARE, atol=1e-6)


def test_dgm():
    near(drawn("dgm"), HELD * sigmoid(10 * (SHARE / 2 - 0.5)) / (1 + CHILDREN))


def test_shinka():
    # The median of 4 2 1 2 8 is 2, the absolute deviations 2 0 1 0 6, their median 1.
    near(drawn("shinka"), HELD * sigmoid(10 * (2.0 - np.where(HELD, LOSS, 40.0))) / (1 + CHILDREN))


def test_shinka_where_all_losses_are_equal_looks_at_children_alone():
    near(drawn("shinka", loss=np.where(HELD, 3.0, np.inf)), HELD / (1 + CHILDREN))


def test_novelty():
    # Mean distance to the two nearest: slots 0 1 2 3 5 lie at 0 1 1.5 5 6.
    near(drawn("novelty"), [1.25, 0.75, 1.0, 2.25, 0, 2.75])


def test_uniform_and_best_only():
    near(drawn("uniform"), HELD)
    near(drawn("best-only"), [0, 0, 1, 0, 0, 0])


def test_clade_pools_over_descendants_and_those_that_are_gone():
    shares = np.floor(SHARE * 256) / 256
    own = np.where(HELD[:, None], np.stack([shares, 1 - shares], axis=1), 0) + np.asarray(view().gone) / 256
    pooled = own.copy()
    pooled[1] += own[2]
    pooled[0] += own[1] + own[2] + own[3]
    np.testing.assert_allclose(np.asarray(kin.clades(view())) / 256, pooled, atol=1e-6)
    # Thompson sampling, by NumPy's Beta.
    draw = np.random.default_rng(0)
    theta = np.where(HELD, draw.beta(1 + pooled[:, 0], 1 + pooled[:, 1], size=(20_000, 6)), -1)
    expected = np.bincount(theta.argmax(axis=1), minlength=6) / 20_000
    assert np.abs(drawn("clade") - expected).max() < 0.02


def test_a_long_line_of_descent_is_pooled_to_its_end():
    size = 40
    line = view(
        held=np.ones(size), loss=np.ones(size), children=np.ones(size), mother=np.arange(size) - 1,
        gone=np.zeros((size, 2)), behaviour=np.zeros((size, 1)),
    )  # fmt: skip
    assert np.asarray(kin.clades(line))[:, 0].tolist() == [128 * (size - i) for i in range(size)]


@pytest.mark.parametrize("rule", kin.RULES)
def test_parents_come_from_their_own_island(rule):
    homes = jnp.asarray([0, 1] * 500, jnp.int32)
    found = np.asarray(draw(rule, jax.random.key(1), view(), homes, islands=2, neighbours=2))
    assert set(found[::2]) <= {0, 1, 2} and set(found[1::2]) <= {3, 5}
    part = view(held=HELD & (np.arange(6) < 3))
    empty = np.asarray(draw(rule, jax.random.key(1), part, homes, islands=2, neighbours=2))
    assert (empty[1::2] == -1).all() and (empty[::2] >= 0).all()


# --- places ----------------------------------------------------------------------------------------------


def stays(rule, places, there=HELD, member=(1, 1, 1, 1, 0, 0), safe=(0,) * 6):
    born = jnp.asarray([5, 0, 3, 1, 9, 9])
    arrays = (jnp.asarray(there), jnp.asarray(LOSS), born, jnp.asarray(member, bool), jnp.asarray(safe, bool))
    return np.flatnonzero(repertoire.stay(rule, places, *arrays, jnp.asarray(PLACES))).tolist()


def test_where_there_is_room_everyone_stays():
    assert all(stays(rule, 5) == [0, 1, 2, 3, 5] for rule in repertoire.WHEN_FULL)


def test_the_worst_or_the_oldest_or_the_newcomer_leaves():
    assert stays("worst", 3) == [1, 2, 3]
    assert stays("oldest", 3) == [0, 2, 5]
    assert stays("reject", 4) == [0, 1, 2, 3]
    assert stays("oldest", 3, safe=(0, 1, 0, 0, 0, 0)) == [0, 1, 5]
    assert stays("worst", 1, safe=(1, 0, 0, 0, 0, 0)) == [0]


def test_of_the_two_most_alike_the_worse_leaves():
    # 1 and 2 are nearest (2 is better), then 3 and 5 (3 is), then 0 and 2 (2 is).
    assert stays("crowded", 4) == [0, 2, 3, 5]
    assert stays("crowded", 3) == [0, 2, 3]
    assert stays("crowded", 2) == [2, 3]
    assert stays("crowded", 2, safe=(0, 0, 0, 0, 0, 1)) == [2, 5]


def test_heirs_are_the_nearest_ancestors_that_stay():
    mother, held = jnp.asarray([-1, 0, 1, 2, 0, -1]), jnp.ones(6, bool)
    assert repertoire.heirs(mother, held, jnp.zeros(6, bool)).tolist() == mother.tolist()
    left = jnp.asarray([False, True, True, False, False, True])
    assert repertoire.heirs(mother, held, left).tolist() == [-1, 0, 0, 0, 0, -1]
    assert repertoire.heirs(mother, held, left.at[0].set(True)).tolist() == [-1] * 6


def members(loss, mother=None, ids=None, places=None):
    count = len(loss)
    held = np.isfinite(loss)
    return repertoire.Members(
        jnp.asarray(held), jnp.arange(count, dtype=jnp.float32)[:, None], jnp.zeros((count, 5)),
        jnp.asarray(ids if ids is not None else [[0, i] for i in range(count)], jnp.int32),
        jnp.asarray(np.where(held, loss, 0), jnp.float32), jnp.asarray(held, jnp.int32), jnp.zeros(count, jnp.int32),
        jnp.asarray(mother if mother is not None else [-1] * count, jnp.int32), jnp.zeros((count, 2), jnp.int32),
        jnp.asarray(places if places is not None else np.arange(count) * 3.0, jnp.float32)[:, None],
        jnp.zeros((count, 2), jnp.uint32),
    )  # fmt: skip


def test_who_leaves_hands_on_children_and_evidence():
    """Slots 0 <- 1 <- 2; slot 1 is the worst and gives way to a child of its own child."""
    before = members([2.0, 9.0, 3.0], mother=[-1, 0, 1])
    new = jax.tree.map(lambda leaf: leaf[None], members([1.0, np.inf], mother=[2, -1], ids=[[7, 0], [7, 1]]))
    after, left, refused = admitted(before, new, 1, "worst")
    assert (int(left), int(refused)) == (1, 0)
    assert after.held.all() and after.ids.tolist() == [[0, 0], [7, 0], [0, 2]]
    assert after.mother.tolist() == [-1, 2, 0] and after.total.tolist() == [2.0, 1.0, 3.0]
    # It was the last of four: a share of 1/8 for and 7/8 against the clade of slot 0.
    assert after.gone.tolist() == [[32, 224], [0, 0], [0, 0]]


def test_a_record_beside_the_champion_gets_a_place():
    """The best newcomer is most like the best member: both stay, and of the next pair the worse leaves."""
    before = members([1.0, 5.0, 9.0], places=[0.0, 4.0, 9.0])
    new = jax.tree.map(lambda leaf: leaf[None], members([0.5], ids=[[7, 0]], places=[0.1]))
    after, left, refused = admitted(before, new, 1, "crowded")
    assert (int(left), int(refused)) == (1, 0) and after.ids.tolist() == [[0, 0], [7, 0], [0, 2]]


def test_refused_newcomers_are_evidence_too():
    before = members([2.0, 1.0])
    new = jax.tree.map(lambda leaf: leaf[None], members([3.0], mother=[1], ids=[[7, 0]]))
    after, left, refused = admitted(before, new, 1, "reject")
    assert (int(left), int(refused)) == (0, 1) and after.ids.tolist() == before.ids.tolist()
    assert after.gone.tolist() == [[0, 0], [42, 214]]


def test_migrants_are_the_best_of_the_island_before_and_arrive_once():
    before = members([5.0, 4.0, 7.0, 6.0, 9.0, 8.0])
    travel = repertoire.migrants(before, 3, 1, jnp.bool_(True))
    assert travel.ids[:, 0].tolist() == [[0, 5], [0, 1], [0, 3]] and travel.held.all()
    assert not repertoire.migrants(before, 3, 1, jnp.bool_(False)).held.any()
    known = before._replace(ids=before.ids.at[2].set(jnp.asarray([0, 1])))
    assert repertoire.migrants(known, 3, 1, jnp.bool_(True)).held[:, 0].tolist() == [True, False, True]


# --- variation -------------------------------------------------------------------------------------------

RULE = Vocabulary(
    "rule", inputs=(Register("a"), Register("b")), outputs=(Register("y"),), operations=("add", "mul", "sub"),
    constants=2, update=4,
)  # fmt: skip
OPERATOR = Vocabulary(
    "operator", inputs=(Register("share", "scalar", "unit"), Register("luck", "scalar")),
    outputs=(Register("step", "scalar"), Register("changes", "scalar")), operations=("add", "mul", "sub", "copy"),
    constants=1, update=4,
)  # fmt: skip
MIXED = Space({"rule": program(RULE), "rate": log(1e-3, 1), "kind": categorical(("a", "b", "c"))})
AGENT = Space({"rule": program(RULE), "mutation": program(OPERATOR)})


def breeding(space, **changes):
    return variation.Breeding(space, {**CATALOGUE["open_ended"].defaults, **changes})


def code(vocabulary, text):
    return join(vocabulary, assemble(parse(vocabulary, text)))


def test_genes_begin_where_the_hyperparameters_say():
    made = breeding(MIXED, sigma=0.25, crossover=0.3, changes=2.0, rate=0.2)
    rates = made.rates(made.first_genes(3))
    np.testing.assert_allclose([np.asarray(r)[0] for r in rates], [0.25, 0.3, 2.0, 0.33, 0.2], rtol=1e-5)


def test_genes_move_with_self_modification_alone():
    one, two = jnp.zeros((6, 5)).at[:, 0].set(-2.0), jnp.ones((6, 5)).at[:, 0].set(-4.0)
    paired = jnp.arange(6) < 3
    fixed = breeding(MIXED, self_modification=False).inherited(jax.random.key(0), one, two, paired)
    assert np.array_equal(fixed, one)
    moved = np.asarray(breeding(MIXED).inherited(jax.random.key(0), one, two, paired))
    assert (
        (moved != np.asarray(one)).all() and np.abs(moved[:3, 0] + 3).max() < 1 and np.abs(moved[3:, 0] + 2).max() < 1
    )


def test_the_step_gene_scales_changes_to_numbers():
    space = Space({name: real(0, 1) for name in "abcdefgh"})
    made, start = breeding(space), jnp.full((200, 8), 0.5)
    for step in (0.01, 0.1):
        rates = made.rates(jnp.zeros((200, 5)).at[:, 0].set(np.log(step)))
        children = jax.jit(made.children)(jax.random.key(1), start, start, rates, jnp.zeros(200, bool))
        assert float(jnp.std(children - 0.5)) == pytest.approx(step, rel=0.1)


def test_children_change_programs_or_what_stands_beside_them():
    made, key = breeding(MIXED), jax.random.key(2)
    parent = MIXED.project(MIXED.sample(key, 1)).at[0, : RULE.size].set(code(RULE, "y = mul(a, b)\ny = sub(y, 0.5)"))
    parents = jnp.broadcast_to(parent, (400, MIXED.dimension))
    rates = made.rates(made.first_genes(400))
    children = np.asarray(jax.jit(made.children)(key, parents, parents, rates, jnp.zeros(400, bool)))
    words = (children[:, : RULE.size] != np.asarray(parent)[:, : RULE.size]).any(axis=1)
    beside = (children[:, RULE.size :] != np.asarray(parent)[:, RULE.size :]).any(axis=1)
    assert not (words & beside).any() and abs(beside.mean() - 0.33) < 0.08 and (words | beside).mean() > 0.9


def agent(mutation):
    return jnp.asarray(np.concatenate([code(RULE, "y = mul(a, b)"), code(OPERATOR, mutation)]))[None]


def test_a_program_of_the_genome_sets_the_rates():
    made = breeding(AGENT)
    facts = {name: jnp.full((1,), 0.25) for name in ("share", "children", "age", "looks")}
    said = jax.jit(made.said)(jax.random.key(0), agent("step = add(share, share)\nchanges = sub(share, luck)"), facts)
    # step: 2 x 0.25; changes: 0.25 less an input that nobody knows, which is 0.
    np.testing.assert_allclose(np.asarray(said), [[0.5, 0, 0.25, 0, 0]])
    fixed = breeding(AGENT, self_modification=False)
    assert fixed.said(jax.random.key(0), agent("step = add(share, share)"), facts) == 0.0
    assert breeding(MIXED).operator is None


BOTH = dataclasses.replace(
    OPERATOR, inputs=(*OPERATOR.inputs, Register("seen", "scalar")),
    outputs=(Register("weight", "scalar"), *OPERATOR.outputs),
)  # fmt: skip


def test_a_program_may_serve_the_task_and_the_strategy():
    """Outputs that are no genes are the task's affair; inputs that are no facts are 0 here."""
    space = Space({"mutation": program(BOTH), "x": real(0, 1)})
    made = breeding(space)
    facts = {name: jnp.full((1,), 0.25) for name in ("share", "children", "age", "looks")}
    words = code(BOTH, "weight = add(seen, share)\nstep = add(weight, share)\nchanges = sub(share, seen)")
    said = jax.jit(made.said)(jax.random.key(0), jnp.append(jnp.asarray(words), 0.5)[None], facts)
    np.testing.assert_allclose(np.asarray(said), [[0.5, 0, 0.25, 0, 0]])
    alone = dataclasses.replace(OPERATOR, outputs=(Register("weight", "scalar"),))
    assert breeding(Space({"mutation": program(alone)})).operator is None


def test_behaviour_is_what_a_program_answers():
    made = breeding(AGENT)
    rows = [agent("step = copy(share)"), agent("step = add(share, share)"), agent("changes = copy(share)")]
    rows.append(rows[0].at[0, : RULE.size].set(code(RULE, "y = mul(b, a)")))
    lies = np.asarray(jax.jit(made.behaviour)(jnp.concatenate(rows)))
    assert np.isfinite(lies).all() and np.array_equal(lies[0], lies[3])
    assert np.linalg.norm(lies[0] - lies[1]) > 0.1 and np.linalg.norm(lies[0] - lies[2]) > 0.1


def test_a_profile_over_cells_knows_no_units():
    loss = np.array([[1.0, 40.0], [2.0, 20.0], [3.0, 30.0], [9.0, 90.0]])
    ok = jnp.asarray([True, True, True, False])
    one = np.asarray(variation.profile(jnp.asarray(loss), ok, 8))
    two = np.asarray(variation.profile(jnp.asarray(loss * [10.0, 0.1]), ok, 8))
    np.testing.assert_allclose(one, two, atol=1e-5)
    assert (one[3] == 0).all() and np.linalg.norm(one[0] - one[1]) > 1
