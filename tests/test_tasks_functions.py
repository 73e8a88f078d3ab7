"""Test functions: their values by hand, least value 0 where it should be, and noise that `truth` never has."""

import math
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evometa.errors import ConfigError
from evometa.tasks import functions as module
from evometa.tasks.functions import FAMILIES, functions, landscape, value

SIZE = 5
NAMES = [f"{family}_1" for family in FAMILIES]


@cache
def stacked(size=SIZE):
    return jax.tree.map(lambda *x: np.stack(x), *[landscape(name, size) for name in NAMES])


@jax.jit
def everywhere(genome):
    """f and z of a genome on the first instance of every family: `[F]`, `[F, D]`."""
    x = module.fit(None, functions(dimension=SIZE).space.decode(genome), {})
    data = jax.tree.map(jnp.asarray, stacked())
    z = jnp.einsum("fij,fj->fi", data["rotation"], x[None] - data["optimum"])
    return jax.vmap(value, (None, 0))(x, data), z


# family, z, f by hand; t is 0, 1/2, 1 in three dimensions.
BY_HAND = [
    ("sphere", (1, 2, 2), 9.0),
    ("ellipsoid", (1, 1, 1), 1_001_001.0),
    ("rotated_ellipsoid", (0, 2, 0), 4_000.0),
    ("discus", (1, 2, 2), 1_000_008.0),
    ("bent_cigar", (3, 1, 1), 2_000_009.0),
    ("different_powers", (1, -2, 0), math.sqrt(17.0)),
    ("different_powers", (0, 0, 2), 8.0),
    ("rosenbrock", (-1, -1, -1), 2.0),  # the usual start: at 0 of the usual coordinates
    ("rosenbrock", (1, 0, 0), 100 * 3**2 + 1 + 0.0),  # (2, 1, 1)
    ("rastrigin", (1, 1, 0), 2.0),
    ("rastrigin", (0.5, 0, 0), 20.25),
    ("ackley", (1, 1, 1), 20.0 * (1 - math.exp(-0.2))),
    ("ackley", (0.5, 0.5, 0.5), 20.0 * (1 - math.exp(-0.1)) + math.e - math.exp(-1)),
    ("griewank", (math.pi / 120, 0, 0), math.pi**2 / 4000 + 2.0),
    ("sharp_ridge", (3, 3, 4), 509.0),
    ("attractive_sector", (1, 0, 0), 1e4**0.9),
    ("attractive_sector", (-1, 0, 0), 1.0),
    ("step_ellipsoid", (0.6, 0, 0), 0.1),
    ("step_ellipsoid", (0.22, 0, 0), 0.004),
    ("step_ellipsoid", (0, 0, 0.6), 0.1 * 100 * 2**2),  # stretched to 1.9, which rounds to 2
    ("step_ellipsoid", (0.01, 0, 0), 1e-7),  # on the middle plateau
    ("schaffer", (1, 0, 0), ((1 + math.sin(50) ** 2) / 2) ** 2),
]


@pytest.mark.parametrize(("family", "z", "f"), BY_HAND)
def test_values_by_hand(family, z, f):
    data = landscape(f"{family}_1", 3)
    still = {**data, "rotation": np.eye(3, dtype=np.float32), "optimum": np.zeros(3, np.float32)}
    assert float(value(jnp.float32(z), still)) == pytest.approx(f, rel=2e-5)
    # The same distance from the optimum along the function's own axes.
    x = data["optimum"] + data["rotation"].T @ np.float32(z)
    if family not in ("griewank", "schaffer", "step_ellipsoid"):  # these jump or wave within float32's rounding
        assert float(value(jnp.asarray(x, jnp.float32), data)) == pytest.approx(f, rel=1e-4)


def test_every_family_has_a_value_by_hand():
    assert {family for family, _, _ in BY_HAND} == set(FAMILIES)


@pytest.mark.parametrize("size", [2, 10, 40])
def test_the_optimum_is_zero_and_inside(size):
    """It is an exact float32 genome, so nothing but the search keeps a search from it."""
    task = functions(dimension=size, instances=2)
    for domain in task.domains:
        query = domain.queries["truth"]()
        assert np.abs(query["optimum"]).max() <= 4.0
        named = {"x": {str(i): float(x) for i, x in enumerate(query["optimum"])}}
        x = module.fit(None, task.space.decode(task.space.encode(named)), domain.support())
        assert float(value(x, query)) == 0.0, domain.name
        assert float(task.judge(None, x, query)["loss"]) == pytest.approx(-8.0)


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float32, SIZE, elements=st.floats(0, 1, width=32)))
def test_elsewhere_it_is_positive(genome):
    f, z = map(np.asarray, everywhere(genome))
    assert np.isfinite(f).all() and (f >= 0).all()
    # Sixth powers of less than a thousandth are zero in float32; one plateau of the steps slopes along z_1 alone.
    away = np.where(np.array(NAMES) == "step_ellipsoid_1", np.abs(z[:, 0]), np.abs(z).max(axis=1)) > 1e-3
    assert (f[away] > 0).all(), dict(zip(NAMES, f, strict=True))


def test_rotations_are_orthogonal_and_where_they_should_be():
    for name in NAMES:
        rotation = landscape(name, 20)["rotation"]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(20), atol=1e-5)
        turned = np.abs(rotation - np.eye(20)).max() > 0.1
        assert turned == FAMILIES[name.removesuffix("_1")].rotated, name


def test_a_name_is_a_function():
    """Same name, same bits; another name or dimension is another function."""
    one, again = (landscape("ackley_1", SIZE) for _ in range(2))
    assert all(np.array_equal(one[k], again[k]) for k in one)
    names = [*NAMES, "ackley_2", "ackley_10"]
    optima = {landscape(name, SIZE)["optimum"].tobytes() for name in names}
    assert len(optima) == len(names)
    assert not np.array_equal(one["rotation"], landscape("ackley_2", SIZE)["rotation"])
    assert not np.array_equal(one["optimum"][:4], landscape("ackley_1", 4)["optimum"])


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_shapes_are_equal_and_families_have_one_role(noise):
    task = functions(dimension=SIZE, instances=3, noise=noise)
    data = [(d.support(), {q: load() for q, load in d.queries.items()}) for d in task.domains]
    assert len({str(jax.tree.map(lambda x: (x.shape, x.dtype), one)) for one in data}) == 1
    assert len(task.domains) == 3 * len(FAMILIES)
    roles = {
        role: {task.domain(n).tags["family"] for n in getattr(task.split, role)}
        for role in ("train", "validation", "test")
    }
    assert (
        not roles["train"] & roles["validation"]
        and not roles["train"] & roles["test"]
        and not roles["validation"] & roles["test"]
    )
    assert set.union(*roles.values()) == set(FAMILIES)
    assert task.domain("discus_3").tags == {"family": "discus", "instance": "3"}


def test_the_support_tells_nothing_of_the_function():
    """S0-2: nothing from which a fit could read the optimum."""
    supports = [domain.support() for domain in functions(dimension=SIZE).domains]
    assert all(one == {"dimension": SIZE} for one in supports)


def test_mapped_and_compiled_it_is_the_same():
    points = np.random.default_rng(0).uniform(-5, 5, (16, SIZE)).astype(np.float32)
    mapped = jax.jit(jax.vmap(jax.vmap(value, (None, 0)), (0, None)))(points, stacked())
    single = [[float(value(jnp.asarray(x), landscape(name, SIZE))) for name in NAMES] for x in points[:3]]
    np.testing.assert_allclose(np.asarray(mapped)[:3], single, rtol=1e-4)
    assert len(np.unique(np.asarray(mapped), axis=0)) == 16


def test_the_loss_ranks_as_the_function_does():
    task = functions(dimension=SIZE)
    query = landscape("bent_cigar_1", SIZE)
    points = query["optimum"] + np.geomspace(1e-4, 1.0, 9, dtype=np.float32)[:, None]
    f = [float(value(jnp.asarray(x), query)) for x in points]
    loss = [float(task.judge(None, jnp.asarray(x), query)["loss"]) for x in points]
    np.testing.assert_allclose(loss, np.log10(np.array(f) + 1e-8), atol=1e-5)
    assert loss == sorted(loss)


def test_noise_is_in_search_and_never_in_truth():
    task = functions(dimension=SIZE, noise=0.3)
    queries = {name: load() for name, load in task.domain("griewank_1").queries.items()}
    assert "noise" not in queries["truth"]
    points = np.random.default_rng(1).uniform(-5, 5, (2000, SIZE)).astype(np.float32)
    judged = jax.jit(jax.vmap(lambda k, x, q: task.judge(k, x, q)["loss"], (None, 0, None)))
    keys = jax.random.key(0), jax.random.key(1)
    truth = np.asarray(judged(keys[0], points, queries["truth"]))
    np.testing.assert_array_equal(truth, judged(keys[1], points, queries["truth"]))
    seen = np.asarray(judged(keys[0], points, queries["search"]))
    np.testing.assert_array_equal(seen, judged(keys[0], points, queries["search"]))
    # Under one key, as the candidates of a generation are: a normal number of its own for each.
    luck = (seen - truth) * math.log(10.0) / 0.3
    assert abs(luck.mean()) < 0.1 and 0.93 < luck.std() < 1.07 and len(np.unique(luck)) > 1900
    other = (np.asarray(judged(keys[1], points, queries["search"])) - truth) * math.log(10.0) / 0.3
    assert abs(np.corrcoef(luck, other)[0, 1]) < 0.1
    # Neighbours, one coordinate one step apart, are no more alike than others.
    near = np.nextafter(points, np.float32(9)).astype(np.float32)
    near = np.concatenate([near[:, :1], points[:, 1:]], axis=1)
    close = (np.asarray(judged(keys[0], near, queries["search"])) - truth) * math.log(10.0) / 0.3
    assert abs(np.corrcoef(luck, close)[0, 1]) < 0.1


def test_without_noise_search_is_truth():
    task = functions(dimension=SIZE)
    search, truth = (task.domain("schaffer_2").queries[q]() for q in ("search", "truth"))
    assert search.keys() == truth.keys() and all(np.array_equal(search[k], truth[k]) for k in truth)
    assert not any(np.shares_memory(search[k], truth[k]) for k in truth)


def test_every_column_matters():
    base = np.asarray(functions(dimension=SIZE).space.encode(functions(dimension=SIZE).baseline))
    for i in range(SIZE):
        moved = base.copy()
        moved[i] += 0.171
        assert (np.asarray(everywhere(moved)[0]) != np.asarray(everywhere(base)[0])).all()


def test_columns_keep_their_order_beyond_ten():
    task = functions(dimension=12)
    genome = np.linspace(0.0, 1.0, 12, dtype=np.float32)
    x = module.fit(None, task.space.decode(jnp.asarray(genome)), {})
    np.testing.assert_allclose(x, genome * 10 - 5, atol=1e-6)
    held = task.space.hold({"x.3": 2.5})
    x = module.fit(None, held.decode(jnp.asarray(genome[:11])), {})
    np.testing.assert_allclose(x, np.insert(genome[:11] * 10 - 5, 3, 2.5), atol=1e-6)


def test_construction_draws_nothing(monkeypatch):
    """SYS-2: a sealed function exists when it is opened and not before."""
    monkeypatch.setattr(module, "landscape", lambda *a: pytest.fail("made at construction"))
    assert len(functions().domains) == 4 * len(FAMILIES)


def test_every_family_is_in_the_documentation():
    page = (Path(__file__).parent.parent / "docs" / "functions.md").read_text()
    rows = [line.split("|")[1:4] for line in page.splitlines() if line.startswith("| `")]
    roles = {"train": module.TRAIN, "validation": module.VALIDATION, "test": module.TEST}
    documented = {name.strip(" `"): (role.strip(), text.strip(" `")) for name, role, text in rows}
    assert documented == {name: (role, FAMILIES[name].text) for role, families in roles.items() for name in families}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dimension": 1}, "dimension as a whole number >= 2, got 1"),
        ({"dimension": 2.5}, "dimension as a whole number"),
        ({"instances": 0}, "instances as a whole number >= 1"),
        ({"noise": -0.1}, "noise in 0 .. 10"),
        ({"noise": math.nan}, "noise in 0 .. 10"),
        ({"train": ["sphere", "elipsoid"]}, 'Did you mean "ellipsoid"'),
        ({"train": "sphere"}, r"Try \['sphere'\]"),
        ({"train": ["sphere"], "test": ["sphere"]}, "a domain has one role"),
        ({"train": []}, "at least one train domain"),
    ],
)
def test_bad_options_say_what_was_expected(options, said):
    with pytest.raises(ConfigError, match=said):
        functions(**options)
