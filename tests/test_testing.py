"""The exam has teeth: a strategy with one fault fails at the check made for it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evometa import testing
from evometa.errors import ConfigError
from evometa.strategies import parts
from evometa.strategies.evosax_adapter import adapt
from evometa.strategies.quasi import random_search
from evometa.testing_bench import space_for

SPACE = space_for(frozenset({"real", "log", "integer", "weights"}))
SNES = functools.partial(adapt, "snes")


def fails(check, strategy, words, *more):
    with pytest.raises(AssertionError, match=words):
        check(strategy, SPACE, *more)


def changed_ask(strategy, change):
    def ask(key, state):
        return change(*strategy.ask(key, state))

    return strategy._replace(ask=ask)


def test_genomes_outside_the_bounds():
    broken = changed_ask(SNES(SPACE, 8), lambda g, p, s: (g + 0.5, p, s))
    fails(
        testing.check_bounds, broken, r"snes: expected genomes in \[0, 1\] in a plain run \(use space.project in ask\)"
    )


def test_genomes_of_another_type():
    broken = changed_ask(SNES(SPACE, 8), lambda g, p, s: (g.astype(jnp.float16), p, s))
    fails(testing.check_shapes, broken, "expected float32 genomes, got float16")


def test_parents_from_the_future():
    broken = changed_ask(SNES(SPACE, 8), lambda g, p, s: (g, p + 1, s))
    fails(testing.check_parents, broken, r"expected parents \(earlier generation, index < 8\)")


def test_a_key_in_the_state():
    strategy = SNES(SPACE, 8)
    broken = strategy._replace(init=lambda key, prior: (strategy.init(key, prior), key))
    fails(testing.check_shapes, broken, "expected a state of plain arrays, got a leaf")


def test_a_state_that_changes_its_form():
    strategy = SNES(SPACE, 8)
    broken = strategy._replace(
        tell=lambda key, state, g, s: strategy.tell(key, state, g, s)._replace(told=jnp.float32(1)), traceable=True
    )
    with pytest.raises((AssertionError, TypeError)):
        testing.check_shapes(broken, SPACE)


def test_something_remembered_outside_the_state():
    def forgetful(space, population):
        strategy, asked = SNES(space, population), []

        def ask(key, state):
            asked.append(1)
            return strategy.ask(jax.random.fold_in(key, len(asked)), state)

        return strategy._replace(ask=ask, traceable=False)

    fails(testing.check_resume, forgetful(SPACE, 8), "the same bits after a resume", forgetful(SPACE, 8))


def test_infinite_fitness_swallowed():
    strategy = SNES(SPACE, 8)

    def tell(key, state, genomes, scores):
        weights = scores.fitness[:, 0] / jnp.sum(scores.fitness[:, 0])
        told = strategy.tell(key, state, genomes, scores)
        mean = jnp.sum(weights[:, None] * genomes, axis=0)
        return told._replace(library=told.library.replace(mean=mean))

    broken = strategy._replace(tell=tell)
    fails(testing.check_failures, broken, "finite .* where a quarter of the rows failed")


def test_a_dead_generation_that_moves_the_recommendation():
    strategy = random_search(SPACE, 8)
    broken = strategy._replace(
        tell=lambda key, state, g, s: state._replace(champion=g[jnp.argmin(s.fitness[:, 0])])  # forgets to look
    )
    fails(testing.check_none_finite, broken, "recommended still after a generation without a finite row")


def test_a_population_of_copies():
    broken = changed_ask(SNES(SPACE, 8), lambda g, p, s: (jnp.broadcast_to(g[:1], g.shape), p, s))
    fails(testing.check_ties, broken, "expected different genomes on a plateau, got 8 copies of one")


def test_a_prior_ignored():
    strategy = SNES(SPACE, 8)
    broken = strategy._replace(init=lambda key, prior: strategy.init(key, None))
    fails(testing.check_prior, broken, "expected the prior .* recommended at first")


def test_bits_that_depend_on_how_it_was_compiled():
    strategy = SNES(SPACE, 8)

    broken = strategy._replace(name="fused")
    b = testing.bench(broken, SPACE)
    b.ask = jax.jit(changed_ask(strategy, lambda g, p, s: (jnp.nextafter(g, g + 1), p, s)).ask)  # one bit further
    fails(testing.check_block, broken, "the same bits from ask and tell compiled apart as from one block")


def test_blind_search_does_not_beat_random_search():
    fails(testing.check_beats_random, random_search(SPACE, 16), "random_search: expected to beat random search")


def test_silent_acceptance():
    def careless(space, population=32, **ignored):
        return SNES(space, max(population, 4))

    with pytest.raises(AssertionError, match="expected EvometaError for population=0, got a strategy"):
        testing.check_refusals(careless, SPACE)


def test_a_factory_that_refuses_everything():
    def never(space, population=32):
        raise ConfigError("no")

    with pytest.raises(AssertionError, match="accepts a space of one kind of column, got: no"):
        testing.exam(never)


def test_a_strategy_of_few_kinds_gets_a_space_of_them():
    def only_real(space, population=32, **more):
        parts.require("only_real", space, frozenset({"real"}))
        return SNES(space, population, **more)._replace(name="only_real", searches=frozenset({"real"}))

    report = testing.exam(only_real, thorough=False)
    assert report.strategy == "only_real" and len(report.checks) == 11
    assert report.quality < report.random_quality and "11 checks passed" in str(report)
    assert np.isfinite(report.seconds)
