"""Open-ended search as a whole: true parents, ablations, a full repertoire, islands, luck, and the diary of a run."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import cli, columns, one_line
from test_open_ended_parts import MIXED, OPERATOR

from evometa import testing
from evometa.archives import events
from evometa.errors import ConfigError, UsageError
from evometa.space import Space, program, real
from evometa.strategies.open_ended import open_ended
from evometa.testing_bench import scores_of, through_disk, world
from evometa.types import Failure

pytest_plugins = ["shared"]

PLANE = Space({"x": real(0, 1), "y": real(0, 1)})
P = 8


@cache
def made(**options):
    strategy = open_ended(PLANE, P, **dict(options))
    return strategy, jax.jit(strategy.ask), jax.jit(strategy.tell)


def scored(loss):
    """Scores of a generation with these losses; infinite ones failed."""
    loss = jnp.asarray(loss, jnp.float32)[:, None]
    return scores_of(world(PLANE, P)._replace(failed=~jnp.isfinite(loss[:, 0])), loss, jnp.int32(0))


def bowl(genomes, generation):
    return np.sum((np.asarray(genomes) - 0.8) ** 2, axis=1)


def searched(generations, loss=bowl, **options):
    """States, genomes, parents and losses, generation by generation."""
    strategy, ask, tell = made(**options)
    state, log = strategy.init(jax.random.key(0), None), []
    for generation in range(generations):
        genomes, parents, state = ask(jax.random.key(generation), state)
        losses = loss(genomes, generation)
        asked, state = state, tell(jax.random.key(9), state, genomes, scored(losses))
        log.append((asked, state, np.asarray(genomes), np.asarray(parents), np.asarray(losses)))
    return strategy, log


def notes(strategy, state):
    assert strategy.notes is not None
    return strategy.notes(state)


SMALL = {"capacity": 32, "rejudge": 0.25}


def mean(members):
    """Losses by slot, as the repertoire sees them."""
    total, looks = np.asarray(members.total), np.asarray(members.looks)
    return np.where(members.held, total / np.maximum(looks - 1, 1), np.inf)


def test_parents_are_members_found_at_any_time_and_rows_asked_again_are_the_best():
    _, log = searched(12, **SMALL)
    asked = [genomes for _, _, genomes, _, _ in log]
    born = set()
    for number, (before, _, genomes, parents, _) in enumerate(log[1:], 1):
        ids = np.asarray(before.members.ids)[np.asarray(before.members.held)].tolist()
        named = [pair for row in parents.tolist() for pair in row if pair[0] >= 0]
        assert named and all(pair in ids for pair in named)
        born |= {number - pair[0] for pair in named}
        # Two rows of eight: themselves, unchanged, their own and only parent.
        best = np.argsort(mean(before.members), kind="stable")[:2]
        assert parents[:2].tolist() == [[np.asarray(before.members.ids)[at].tolist(), [-1, -1]] for at in best]
        for row, at in enumerate(best):
            generation, index = np.asarray(before.members.ids)[at]
            assert np.array_equal(genomes[row], asked[generation][index])
    assert len(born) > 3  # stepping stones of long ago are parents too


def test_children_count_for_their_parents():
    _, log = searched(5, **SMALL)
    counts = {}
    for _, _, _, parents, _ in log[1:]:
        for row in parents[2:].tolist():
            for pair in row:
                counts[tuple(pair)] = counts.get(tuple(pair), 0) + 1
    members = log[-1][1].members
    held = np.asarray(members.held)
    assert int(held.sum()) == 8 + 4 * 6
    for name, count in zip(np.asarray(members.ids)[held], np.asarray(members.children)[held], strict=True):
        assert counts.get(tuple(name.tolist()), 0) == count


def test_the_ablations_breed_the_best_alone_and_at_fixed_rates():
    _, log = searched(6, parents="best-only", self_modification=False, **SMALL)
    for before, _, _, parents, _ in log[1:]:
        best = np.argmin(mean(before.members))
        assert (parents[2:, 0] == np.asarray(before.members.ids)[best]).all() and (parents[2:, 1] == -1).all()
    assert np.ptp(np.asarray(log[-1][1].members.genes), axis=0).max() == 0
    _, log = searched(6, **SMALL)
    members = log[-1][1].members
    assert len({tuple(row[0]) for row in log[-1][3].tolist()}) > 2
    assert np.ptp(np.asarray(members.genes)[np.asarray(members.held)], axis=0).min() > 0


def test_a_full_repertoire_says_so_once_and_keeps_its_champion():
    strategy, log = searched(12, **SMALL)
    full = next(i for i, (_, state, *_) in enumerate(log) if int(state.counts[:2].sum()))
    assert int(log[full - 1][1].members.held.sum()) <= 32 and int(log[-1][1].members.held.sum()) == 32
    said = [notes(strategy, state) for _, state, *_ in log]
    assert not said[full - 1] and len(said[full]) == 1 and said[full] == said[-1]
    assert said[-1][0].startswith(f"generation {full}: full: the repertoire's 32 places")
    viable = 8 + 11 * 6
    assert int(log[-1][1].counts[0] + log[-1][1].counts[1]) == viable - 32
    best = min(float(losses.min()) for *_, losses in log[:-1])
    assert float(bowl(np.asarray(strategy.recommend(log[-1][1]))[None], 0)[0]) == pytest.approx(best, rel=1e-5)


def test_a_lucky_discovery_is_not_recommended():
    """Two rows of the first generation are lucky, one is better than all and has no luck."""
    truth = {}

    def lucky(genomes, generation):
        rows = [row.tobytes() for row in np.asarray(genomes)]
        truth.update({row: 1.0 for row in rows if row not in truth})
        if generation == 0:
            truth[rows[5]] = 0.5
        return np.array([truth[row] for row in rows]) - (generation == 0) * np.array([0, 1, 0.8, 0, 0, 0, 0, 0])

    strategy, log = searched(4, lucky, **SMALL)
    said = [strategy.recommend(state).tolist() for _, state, *_ in log]
    first = log[0][2].tolist()
    # The luckiest for want of others; one of the two that were asked again; then the one that held what it promised.
    assert said[0] == first[1] and said[1] in first[1:3] and said[2] == said[3] == first[5]


def test_a_member_that_fails_when_asked_again_pays_for_it():
    def breaks(genomes, generation):
        loss = bowl(genomes, generation) + 1
        return np.where(np.arange(P) < 2, np.inf, loss) if generation == 1 else loss

    _, log = searched(2, breaks, **SMALL)
    slot = int(log[1][0].asked.again[1])  # of row 0 the bench says that it was skipped
    assert float(mean(log[1][1].members)[slot]) == pytest.approx(log[1][4][2:].max(), rel=1e-5)


STRICT = {"criterion": 0.1, **SMALL}


def test_the_minimal_criterion_keeps_what_is_worse_out():
    strategy, log = searched(8, lambda genomes, generation: bowl(genomes, 0) + (generation < 2), **STRICT)
    # Nobody at first: the search begins anew, with other random rows.
    state = log[1][1]
    assert not state.members.held.any() and (log[1][3] == -1).all() and not np.array_equal(log[0][2], log[1][2])
    assert notes(strategy, state) == ["generation 0: no candidate met the minimal criterion (loss at most 0.1)"]
    assert np.array_equal(strategy.recommend(state), PLANE.center)
    members = log[-1][1].members
    new = [np.where(np.asarray(asked.asked.again) < 0, losses, -1) for _, asked, _, _, losses in log]
    assert members.held.any() and (mean(members)[np.asarray(members.held)] <= 0.1).all()
    assert int(log[-1][1].counts[2]) == sum(int((losses > 0.1).sum()) for losses in new)


@pytest.mark.parametrize(("criterion", "expected"), [("finite", np.inf), ("start", 4 + 0.5), ("median", 3 + 0.5)])
def test_the_criterion_is_set_by_the_first_generation(criterion, expected):
    strategy = open_ended(PLANE, P, criterion=criterion, slack=0.5)
    loss = [4.0, 1.0, 2.0, 3.0, 3.0, 4.0, 9.0, np.inf]  # median 3, median deviation 1
    search = strategy.init.__self__
    assert float(search._bound(jnp.asarray(loss), jnp.isfinite(jnp.asarray(loss)))) == expected


ISLANDS = {
    "islands": 2, "migration_interval": 3, "capacity": 64, "rejudge": 0.0, "parents": "clade", "when_full": "oldest",
}  # fmt: skip


def test_islands_keep_to_themselves_until_migrants_come():
    _, log = searched(7, **ISLANDS)
    home = {(0, index): index % 2 for index in range(P)}
    mixed = []
    for number, (*_, parents, _) in enumerate(log[1:], 1):
        rows = [[home[tuple(pair)] for pair in row if pair[0] >= 0] for row in parents.tolist()]
        mixed.append(any(island != index % 2 for index, row in enumerate(rows) for island in row))
        home |= {(number, index): index % 2 for index in range(P)}
    assert not any(mixed[:2]) and any(mixed[2:])  # the first migrants came with generation 2
    ids = np.asarray(log[2][1].members.ids).reshape(2, 32, 2)
    held = np.asarray(log[2][1].members.held).reshape(2, 32)
    assert held.sum(axis=1).tolist() == [13, 13]
    assert [[tuple(name) for name in ids[i][held[i]] if home[tuple(name)] != i] != [] for i in (0, 1)] == [True, True]


def test_an_island_without_members_borrows_parents_and_says_so():
    def odd_fail(genomes, generation):
        return np.where((np.arange(P) % 2 == 1) & (generation < 2), np.inf, bowl(genomes, generation))

    strategy, log = searched(4, odd_fail, **ISLANDS)
    parents = log[1][3]
    assert (parents[1::2, 0, 0] == 0).all() and (parents[1::2, 0, 1] % 2 == 0).all()
    state = log[-1][1]
    assert notes(strategy, state) == ["generation 1: island 1 has no members; its parents come from the others"]
    assert int(state.counts[3]) == 4 + 4 and np.asarray(state.members.held).reshape(2, 32)[1].any()


def test_every_island_that_is_empty_leaves_its_own_trace():
    """Islands 1 and 3 of four fail at first, island 3 for longer; 30 places are not divided by four."""
    options = {"islands": 4, "capacity": 30, "rejudge": 0.0, "migrants": 0, "crossover": 0.0}

    def some_fail(genomes, generation):
        home = np.arange(P) % 4
        fails = ((home == 1) & (generation < 1)) | ((home == 3) & (generation < 3))
        return np.where(fails, np.inf, bowl(genomes, generation))

    strategy, log = searched(5, some_fail, **options)
    assert [state.empty.tolist() for _, state, *_ in log] == [[-1] * 4, *[[-1, 1, -1, 1]] * 4]
    # Two rows each: island 1 borrows parents once, island 3 three times.
    assert int(log[-1][1].counts[3]) == 2 + 3 * 2
    borrowed = "island {} has no members; its parents come from the others"
    assert notes(strategy, log[-1][1]) == [
        "generation 0: 28 of the 30 places are used: 7 on each of 4 islands",
        *(f"generation 1: {borrowed.format(island)}" for island in (1, 3)),
        "generation 3: full: the repertoire's 28 places on 4 islands do not hold every viable candidate; from now on"
        " the worse of the two most alike makes room",
    ]


@pytest.mark.parametrize("options", [SMALL, ISLANDS])
def test_a_stopped_search_goes_on_with_the_same_bits(options):
    strategy, ask, tell = made(**options)
    whole = searched(12, **options)[1]
    state = through_disk(whole[4][1])
    for generation in range(5, 12):
        genomes, parents, state = ask(jax.random.key(generation), state)
        assert np.array_equal(genomes, whole[generation][2]) and np.array_equal(parents, whole[generation][3])
        state = through_disk(tell(jax.random.key(9), state, genomes, scored(bowl(genomes, generation))))
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(whole[-1][1]), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()


def test_skipped_rows_are_nobodys_fault():
    _, ask, tell = made(**SMALL)
    before = searched(2, **SMALL)[1][-1][1]
    genomes, _, state = ask(jax.random.key(2), before)
    scores = scored(bowl(genomes, 2))
    left_out = jnp.arange(P) < 5
    scores = scores._replace(
        failure=jnp.where(left_out, jnp.int8(Failure.SKIPPED), scores.failure),
        fitness=jnp.where(left_out[:, None], jnp.inf, scores.fitness),
        evaluated=scores.evaluated & ~left_out[:, None],
    )
    after = tell(jax.random.key(9), state, genomes, scores)
    assert int(after.members.looks.sum()) == int(before.members.looks.sum()) + 3
    assert np.array_equal(after.members.gone, before.members.gone)
    # Stopped at a hurdle, with some cells judged, is another thing: the two asked again pay, three children count.
    stopped = tell(jax.random.key(9), state, genomes, scores._replace(evaluated=jnp.ones_like(scores.evaluated)))
    assert int(stopped.members.looks.sum()) == int(before.members.looks.sum()) + 3 + 2
    assert int(stopped.counts[2]) == int(before.counts[2]) + 3


# --- programs --------------------------------------------------------------------------------------------


def test_exam_with_a_program_that_is_the_operator():
    space = Space({"mutation": program(OPERATOR), "x": real(0, 1)})
    strategy = open_ended(space, P, capacity=16, tries=2, rejudge=0.125)
    testing.check_parents(strategy, space)
    testing.check_resume(strategy, space)


# --- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"parents": "dgn"}, ConfigError, "parents to be one of dgm, .*, got 'dgn'. Did you mean \"dgm\""),
        ({"when_full": "worse"}, ConfigError, 'Did you mean "worst"'),
        ({"criterion": "finit"}, ConfigError, 'or a number, got .* Did you mean "finite"'),
        ({"criterion": float("nan")}, ConfigError, "criterion in -inf .. inf"),
        ({"capacity": 4}, ConfigError, "capacity of at least 8 .*, got 4. Try capacity=512"),
        ({"capacity": 8, "islands": 3}, ConfigError, "capacity of at least 9"),
        ({"islands": 9}, ConfigError, "at most 8 islands .* never have members. Try islands=8"),
        ({"self_modification": "yes"}, ConfigError, "true or false"),
        ({"sigma": -1.0}, ConfigError, "sigma in"),
        ({"capcity": 4}, UsageError, 'Did you mean "capacity"'),
    ],
)
def test_nonsense_is_refused_with_words(options, error, words):
    with pytest.raises(error, match=words):
        open_ended(MIXED, P, **options)


def test_a_hurdle_that_nobody_passes_changes_nobody():
    """All rows of a generation failed: members, their looks and children stay, and the search asks on."""
    _, log = searched(6, lambda genomes, n: bowl(genomes, n) + (np.inf if n == 4 else 0.0), **SMALL)
    before, after = log[3][1], log[4][1]
    for left, right in zip(jax.tree.leaves(before.members), jax.tree.leaves(after.members), strict=True):
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()
    assert np.array_equal(before.counts, after.counts)
    assert np.asarray(log[5][1].members.held).sum() > np.asarray(after.members.held).sum()


# --- runs ------------------------------------------------------------------------------------------------


def test_a_run_writes_what_happened_into_its_diary_once(folder):
    options = ("--strategy", "open_ended", "--population", 8, "--set", "strategy_options.capacity=8")
    assert cli("run", "ridge.py", *options, "--generations", 4, "--set", "plan.block=2", "--name", "one").code == 0
    assert cli("resume", "runs/one", "--generations", 8).code == 0
    notes = [entry["text"] for entry in events.read(folder / "runs" / "one") if entry["kind"] == "note"]
    assert len(notes) == 1 and notes[0].startswith("generation 1: full: the repertoire's 8 places")
    assert cli("archive", "check", "runs/one").code == 0


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("parents=best_only", ('Did you mean "best-only"',)),
        ("capacity=4", ("capacity of at least 8", "Try capacity=512")),
        ("islands=9", ("at most 8 islands", "Try islands=8")),
    ],
)
def test_what_cannot_be_is_refused_before_a_run_exists(folder, option, words):
    options = ("--strategy", "open_ended", "--population", 8, "--generations", 1, "--name", "never")
    one_line(cli("run", "ridge.py", *options, "--set", f"strategy_options.{option}"), 4, *words)
    assert not (folder / "runs" / "never").exists()


def test_a_run_may_record_at_what_rates_children_were_made(folder):
    """The same search, with the rates of every child beside it; shown with the candidate and from parent to child."""
    run = (
        "run",
        "ridge.py",
        "--strategy",
        "open_ended",
        "--population",
        8,
        "--generations",
        4,
        "--set",
        "plan.block=2",
    )
    options = ("strategy_options.capacity=32", "strategy_options.sigma=0.2")
    settings = [word for option in options for word in ("--set", option)]
    assert cli(*run, *settings, "--name", "plain").code == 0
    assert cli(*run, *settings, "--set", "strategy_options.record_rates=true", "--name", "told").code == 0
    names = ("generation", "index", "parents", "genome", "fitness", "operator")
    plain, told = (columns(folder / "runs" / name, *names, "extras") for name in ("plain", "told"))
    assert told.select(names).equals(plain.select(names)) and plain["extras"].null_count == 32

    rows = told.to_pylist()
    made = {(r["generation"], r["index"]): json.loads(r["extras"])["rates"] for r in rows if r["extras"]}
    genomes = {(r["generation"], r["index"]): r["genome"] for r in rows}
    asked_again = {
        key
        for key, g in genomes.items()
        for row in rows
        if (row["generation"], row["index"]) < key and row["genome"] == g
    }
    # The start, random rows of the first generation and members asked again were not made at any rates.
    assert set(made) == {(0, 1), (0, 2), (0, 3)} | {key for key in genomes if key[0] > 0 and key not in asked_again}
    assert all(set(rates) == {"step", "crossover"} for rates in made.values())
    # Mutants of the start are made at rates a step of self-adaptation away from the hyperparameters'.
    assert all(0.02 < rates["step"] < 1.0 and 0.05 < rates["crossover"] < 0.9 for rates in made.values())
    assert len({rates["step"] for rates in made.values()}) == len(made)

    child = next(
        r
        for r in rows[::-1]
        if r["extras"] and r["parents"] and (p := r["parents"][0]) and (p["generation"], p["index"]) in made
    )
    who, mother = (
        (child["generation"], child["index"]),
        (child["parents"][0]["generation"], child["parents"][0]["index"]),
    )
    said = cli("archive", "show", "told", "{}:{}".format(*who))
    assert "made with crossover {crossover:.3g}, step {step:.3g}".format(**made[who]) in said.out
    said = cli("archive", "diff", "told", "{}:{}".format(*who), "--depth", 1)
    assert f"made with step {made[mother]['step']:.3g} -> {made[who]['step']:.3g}" in said.out
    assert "made with" not in cli("archive", "show", "plain", "{}:{}".format(*who)).out
    assert cli("resume", "told", "--generations", 6).code == 0 and cli("archive", "check", "told").code == 0


def test_a_run_with_empty_islands_says_which(folder):
    """Eight islands of one row; whoever is worse than the median of the first generation leaves its island empty."""
    options = {
        "islands": 8,
        "migrants": 0,
        "criterion": "median",
        "slack": 0.0,
        "rejudge": 0.0,
        "warm": 0.0,
        "capacity": 60,
    }
    settings = [word for name, value in options.items() for word in ("--set", f"strategy_options.{name}={value}")]
    run = ("run", "ridge.py", "--strategy", "open_ended", "--population", 8, "--generations", 3, *settings)
    assert cli(*run, "--name", "isles").code == 0
    path = folder / "runs" / "isles"
    first = columns(path, "generation", "index", "fitness").slice(0, 8)
    fitness = np.array(first["fitness"].to_pylist(), np.float32)
    said = [entry["text"] for entry in events.read(path) if entry["kind"] == "note"]
    assert said[0] == "generation 0: 56 of the 60 places are used: 7 on each of 8 islands"
    empty = np.flatnonzero(~(fitness <= np.median(fitness)))
    assert len(empty) == 4
    assert said[1:] == [
        f"generation 1: island {island} has no members; its parents come from the others" for island in empty
    ]
    assert cli("archive", "check", "runs/isles").code == 0
