"""Genetic variation: parents are true, elites come back unchanged, every kind of column changes as it should."""

import numpy as np
import pytest

from evometa.column import PLAIN
from evometa.space import Space, categorical, integer, real
from evometa.strategies.genetic import genetic
from evometa.testing_bench import Bench, space_for

ALL = space_for(frozenset(PLAIN))
LINE = Space({"x": real(0, 1), "y": real(0, 1), "z": real(0, 1)})


def lineage(strategy, space, generations=6, **changes):
    b = Bench(strategy, space)
    return b.advance(b.start(), b.world(**changes), generations)


def test_elites_are_asked_again_unchanged():
    _, log = lineage(genetic(ALL, 16, elites=2), ALL)
    for generation in range(1, len(log.genomes)):
        order = np.argsort(log.fitness[generation - 1, :, 0], kind="stable")
        for slot in range(2):
            assert log.parents[generation, slot].tolist() == [[generation - 1, order[slot]], [-1, -1]]
            assert np.array_equal(log.genomes[generation, slot], log.genomes[generation - 1, order[slot]])


def test_without_mutation_a_child_lies_on_the_line_or_at_a_corner_of_its_parents():
    _, log = lineage(genetic(LINE, 32, sigma=1e-6, smallest=0.0, crossover=1.0, elites=0), LINE, 4)
    lines = corners = 0
    for generation in range(1, 4):
        for child, parents in zip(log.genomes[generation], log.parents[generation], strict=True):
            one, two = (log.genomes[tuple(parent)] for parent in parents)
            at_corner = np.all(np.minimum(abs(child - one), abs(child - two)) < 1e-4)
            gap = two - one
            along = np.dot(child - one, gap) / max(float(np.dot(gap, gap)), 1e-12)
            on_line = -0.26 <= along <= 1.26 and np.allclose(child, one + along * gap, atol=1e-3)
            folded = np.any((child < 0.02) | (child > 0.98))  # reflected at a bound: neither needs to hold
            assert at_corner or on_line or folded
            lines, corners = lines + (on_line and not at_corner), corners + at_corner
    assert lines > 10 and corners > 10


def test_failed_rows_never_breed_and_selection_is_truncation():
    failed = np.arange(16) % 4 == 0
    _, log = lineage(genetic(ALL, 16, parents=0.25), ALL, failed=failed)
    for generation in range(1, len(log.parents)):
        named = log.parents[generation].reshape(-1, 2)
        named = named[named[:, 0] >= 0]
        best = np.argsort(log.fitness[generation - 1, :, 0], kind="stable")[:4]
        assert set(named[:, 1]) <= set(best.tolist()) and not set(named[:, 1]) & set(np.flatnonzero(failed))


def test_two_parents_are_two_different_candidates():
    _, log = lineage(genetic(LINE, 32, crossover=1.0), LINE)
    pairs = log.parents[1:].reshape(-1, 2, 2)
    pairs = pairs[pairs[:, 1, 0] >= 0]
    assert len(pairs) > 100 and not np.any(np.all(pairs[:, 0] == pairs[:, 1], axis=-1))


@pytest.mark.parametrize("column", [integer(1, 12), categorical(tuple("abcdef"))])
def test_bins_change_however_small_the_step(column):
    """With a tiny step a discrete column still leaves its bin, at its own rate."""
    space = Space({"x": real(0, 1), "bin": column})
    strategy = genetic(space, 64, sigma=1e-6, smallest=0.0, crossover=0.0, rate=0.5)
    b = Bench(strategy, space)
    _, log = b.advance(b.start(), b.world(), 2)
    parents = log.genomes[0][log.parents[1, :, 0, 1]]
    changed = np.floor(log.genomes[1, :, 1] * column.bins) != np.floor(parents[:, 1] * column.bins)
    assert 0.1 < changed.mean() < 0.6
    assert np.allclose(log.genomes[1, :, 0], parents[:, 0], atol=1e-4)


def test_the_step_size_shrinks_where_that_pays():
    b = Bench(genetic(LINE, 32), LINE)
    state, _ = b.advance(b.start(), b.world(), 60)
    assert float(np.median(state.steps)) < 0.02


def test_one_survivor_is_enough_to_go_on():
    failed = np.arange(16) != 5
    state, log = lineage(genetic(ALL, 16), ALL, failed=failed)
    assert set(log.parents[3][log.parents[3][..., 0] >= 0][:, 1].tolist()) == {5}
    assert np.isfinite(np.asarray(genetic(ALL, 16).recommend(state))).all()
    assert np.ptp(log.genomes[-1], axis=0).max() > 0
