"""Spaces: columns of every kind, the map between genomes and candidates, and what is refused."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evometa import Space, categorical, integer, log, real, weights
from evometa.errors import ConfigError
from evometa.space import Column

EVERY = {
    "rate": log(1e-4, 1.0),
    "net": {"width": integer(8, 64), "act": categorical(["relu", "tanh", "gelu"]), "start": {"scale": real(-2, 3)}},
    "rule": weights((2, 3), scale=0.5),
    "bias": weights(4),
    "one": weights(()),
    "depth": integer(1, 4, static=True),
}
SPACE = Space(EVERY)
STATIC = {"depth": 2}


def unit(count: int):
    return st.lists(st.floats(0, 1, width=32), min_size=count, max_size=count).map(lambda u: np.array(u, np.float32))


def leaves(candidate, prefix=""):
    for name, value in candidate.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@st.composite
def spaces(draw):
    """One to five columns of any kind and range."""
    columns = {}
    for number in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["real", "log", "integer", "categorical", "weights"]))
        if kind == "real":
            low = draw(st.floats(-1e6, 1e6, width=32))
            columns[f"c{number}"] = real(low, low + draw(st.floats(1e-3, 1e6)))
        elif kind == "log":
            low = 10.0 ** draw(st.floats(-12, 6))
            columns[f"c{number}"] = log(low, low * 10.0 ** draw(st.floats(0.1, 12)))
        elif kind == "integer":
            low = draw(st.integers(-(10**5), 10**5))
            columns[f"c{number}"] = integer(low, low + draw(st.integers(1, 1000)))
        elif kind == "categorical":
            columns[f"c{number}"] = categorical(list(range(draw(st.integers(2, 9)))))
        else:
            columns[f"c{number}"] = weights(
                draw(st.lists(st.integers(1, 3), max_size=3)), scale=draw(st.floats(1e-3, 1e3))
            )
    return Space(columns)


# --- round trips -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(spaces(), st.data())
def test_a_candidate_comes_back_from_its_genome(space, data):
    """decode(encode(candidate)) is the candidate: choices, integers and weights exactly, numbers to rounding."""
    genome = data.draw(unit(space.dimension))
    candidate = space.decode_host(genome)
    again = space.decode_host(space.encode(candidate))
    columns = {column.name: column for column in space.columns}
    for name, value in leaves(candidate):
        column, back = columns[name], dict(leaves(again))[name]
        if column.kind in ("integer", "categorical"):
            assert back == value and type(back) is type(value)
        elif column.kind == "weights":
            assert np.array_equal(back, value)
        elif column.kind == "log":
            assert back == pytest.approx(value, rel=1e-6 * max(1, np.log(column.high / column.low)))
        else:
            assert back == pytest.approx(value, abs=1e-7 * (column.high - column.low) + 1e-9 * abs(column.low))


@settings(deadline=None, max_examples=200)
@given(spaces(), st.data())
def test_a_genome_comes_back_from_its_candidate_to_one_ulp(space, data):
    genome = data.draw(unit(space.dimension))
    again = space.encode(space.decode_host(genome))
    for column in space.columns:
        at = [i for i, c in enumerate(np.concatenate([[c.name] * c.size for c in space.columns])) if c == column.name]
        one, two = genome[at], again[at]
        if column.kind in ("integer", "categorical"):
            # Any point of a bin is entered at its middle, which is a fixed point.
            assert np.all(np.abs(one - two) <= 0.5 / column.bins + 1e-6)
            assert np.array_equal(space.encode(space.decode_host(again))[at], two)
        else:
            # 1 ulp, or what float64 loses of a small number beside a large bound.
            lost = 4e-16 * max(abs(column.low), abs(column.high)) / (column.high - column.low)
            lost = lost if column.kind == "real" else 1e-14
            assert np.all(np.abs(one - two) <= np.spacing(np.abs(one)) + lost)


@settings(deadline=None, max_examples=100)
@given(spaces(), st.data())
def test_decoding_twice_gives_the_same_bits_and_stays_inside(space, data):
    genome = data.draw(unit(space.dimension))
    numbers, choices = space.values(genome[None])
    for column in space.columns:
        if column.kind == "categorical":
            assert 0 <= choices[column.name][0] < column.bins
        elif column.kind != "weights":
            assert column.low <= numbers[column.name][0] <= column.high
    first, second = space.decode_host(genome), space.decode_host(genome.copy())
    assert repr(first) == repr(second)


def test_the_traceable_decoder_agrees_inside_and_outside_of_jit():
    """Exact columns are equal to the bit, in jit, in vmap and on the host; numbers to an ulp of their range."""
    genomes = np.asarray(SPACE.sample(jax.random.key(0), 64))
    decode = jax.jit(lambda genome: SPACE.decode(genome, STATIC))
    batch = jax.jit(jax.vmap(lambda genome: SPACE.decode(genome, STATIC)))(genomes)
    for i, genome in enumerate(genomes):
        inside, outside, host = decode(genome), SPACE.decode(jnp.asarray(genome), STATIC), SPACE.decode_host(genome)
        one, two, exact = dict(leaves(inside)), dict(leaves(outside)), dict(leaves(host))
        for name, row in leaves(batch):
            if name == "depth":
                continue
            if name in ("net.width", "net.act", "rule", "bias", "one"):
                assert np.array_equal(one[name], two[name]) and np.array_equal(one[name], row[i])
            assert np.allclose(one[name], two[name], rtol=3e-7, atol=3e-7)
            if name == "net.act":
                assert exact[name] == ["relu", "tanh", "gelu"][int(one[name])]
            else:
                assert np.allclose(one[name], exact[name], rtol=2e-6, atol=1e-6)
        assert one["rule"].shape == (2, 3) and one["bias"].shape == (4,) and one["one"].shape == ()
        assert one["net.width"].dtype == jnp.int32 and one["rate"].dtype == jnp.float32


@st.composite
def binned(draw):
    """How many bins, and genomes of one number: anywhere, at the edges of bins, an ulp beside them, outside."""
    bins = draw(st.integers(2, 2000))
    edges = (np.arange(bins + 1) / bins).astype(np.float32)
    anywhere = draw(st.lists(st.floats(-0.5, 1.5, width=32), max_size=50))
    beside = [np.nextafter(edges, np.float32(towards)) for towards in (-1, 2)]
    return bins, np.concatenate([edges, *beside, np.array([*anywhere, 0.7, np.inf, -np.inf], np.float32)])


@settings(deadline=None, max_examples=40)
@given(binned(), st.integers(-1000, 1000))
def test_the_archive_names_the_integers_and_choices_that_were_trained_with(drawn, low):
    """`values` and `decode_host` against `decode`, to the bit: integer(0, 9) at 0.7 is 7, although 10 * f32(0.7) < 7."""
    bins, genomes = drawn
    space = Space({"i": integer(low, low + bins - 1), "c": categorical([str(i) for i in range(bins)])})
    both = np.stack([genomes, genomes[::-1]], axis=1)
    numbers, choices = space.values(both)
    for decode in (jax.vmap(space.decode), jax.jit(jax.vmap(space.decode))):
        trained = decode(both)
        assert np.array_equal(numbers["i"], trained["i"]) and np.array_equal(choices["c"], trained["c"])
    for row in (0, len(both) // 3, -3, -1):
        assert space.decode_host(both[row]) == {"i": int(trained["i"][row]), "c": str(int(trained["c"][row]))}


def test_an_integer_at_the_edge_of_its_bin():
    genome = np.array([0.7], np.float32)
    space = Space({"i": integer(0, 9)})
    assert space.decode_host(genome) == {"i": 7} and int(space.decode(genome)["i"]) == 7


# --- what each kind means ------------------------------------------------------------------------------------------


def test_coordinates_are_alike_for_every_kind():
    """Bounded columns lie in [0, 1], log columns in the logarithm, weights in units of their scale."""
    assert SPACE.dimension == 4 + 6 + 4 + 1 + 1
    assert SPACE.bounded.tolist() == [True] * 4 + [False] * 11 + [True]
    ends = Space(
        {"a": real(-2, 6), "b": log(1e-4, 1), "c": integer(3, 6), "d": categorical("xyz"), "e": weights(1, scale=3)}
    )
    low, high = ends.decode_host(np.zeros(5, np.float32)), ends.decode_host(np.ones(5, np.float32))
    assert (low["a"], low["c"], low["d"], low["e"][0]) == (-2.0, 3, "x", 0.0)
    assert (high["a"], high["c"], high["d"], high["e"][0]) == (6.0, 6, "z", 3.0)
    assert low["b"] == pytest.approx(1e-4) and high["b"] == pytest.approx(1.0)
    middle = ends.decode_host(ends.center)
    assert middle["a"] == 2.0 and middle["b"] == pytest.approx(1e-2) and middle["e"][0] == 0.0
    bins = [
        ends.decode_host(np.array([0, 0, u, u, 0], np.float32)) for u in (0.0, 0.24, 0.26, 0.49, 0.51, 0.74, 0.76, 1.0)
    ]
    assert [row["c"] for row in bins] == [3, 3, 4, 4, 5, 5, 6, 6]


def test_candidates_are_plain_python_on_the_host():
    candidate = SPACE.decode_host(np.full(SPACE.dimension, 0.4, np.float32))
    assert list(candidate) == ["rate", "net", "rule", "bias", "one", "depth"]
    assert (
        type(candidate["rate"]) is float
        and type(candidate["net"]["width"]) is int
        and type(candidate["net"]["act"]) is str
    )
    assert candidate["rule"].dtype == np.float64 and candidate["rule"].shape == (2, 3)


def test_static_columns_need_their_value():
    assert [column.name for column in SPACE.static] == ["depth"]
    assert SPACE.static_values(np.full(SPACE.dimension, 0.99, np.float32)) == {"depth": 4}
    with pytest.raises(ConfigError, match="'depth' is static"):
        SPACE.decode(jnp.zeros(SPACE.dimension))
    assert SPACE.decode(jnp.zeros(SPACE.dimension), STATIC)["depth"] == 2


def test_samples_follow_their_key_and_fill_the_space():
    one, two = np.asarray(SPACE.sample(jax.random.key(1), 4000)), np.asarray(SPACE.sample(jax.random.key(1), 4000))
    assert np.array_equal(one, two) and one.shape == (4000, SPACE.dimension) and one.dtype == np.float32
    assert not np.array_equal(one, np.asarray(SPACE.sample(jax.random.key(2), 4000)))
    inside, free = one[:, SPACE.bounded], one[:, ~SPACE.bounded]
    assert inside.min() >= 0 and inside.max() <= 1
    assert np.allclose(inside.mean(0), 0.5, atol=0.03) and np.allclose(inside.std(0), 12**-0.5, atol=0.02)
    assert np.allclose(free.mean(0), 0, atol=0.08) and np.allclose(free.std(0), 1, atol=0.06)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-50, 50, width=32, allow_subnormal=False), min_size=16, max_size=16))
def test_projection_folds_back_and_leaves_what_is_inside(values):
    genome = np.array(values, np.float32)
    folded = np.asarray(SPACE.project(jnp.asarray(genome)))
    assert np.all((folded[SPACE.bounded] >= 0) & (folded[SPACE.bounded] <= 1))
    assert np.array_equal(folded[~SPACE.bounded], genome[~SPACE.bounded])
    assert np.array_equal(np.asarray(SPACE.project(jnp.asarray(folded))), folded)
    expected = 1 - np.abs(1 - np.mod(genome.astype(np.float64), 2))
    assert np.allclose(folded[SPACE.bounded], expected[SPACE.bounded], atol=1e-5)


def test_values_of_a_broken_genome_are_no_crash():
    numbers, choices = SPACE.values(np.full((1, SPACE.dimension), np.nan, np.float32))
    assert choices["net.act"][0] == 0 and np.isnan(numbers["rate"][0])


# --- for people and files ------------------------------------------------------------------------------------------


def test_the_description_names_every_column():
    text = SPACE.describe()
    assert text.splitlines()[0] == "16 numbers in 8 columns"
    for words in ("rate ", "log: 0.0001 .. 1", "net.width", "integer: 8 .. 64", "categorical: relu, tanh, gelu",
                  "real: -2 .. 3", "weights: [2, 3], initial scale 0.5", "integer, static: 1 .. 4"):  # fmt: skip
        assert words in text
    assert repr(Space({"x": real(0, 1)})) == "Space(x: real: 0 .. 1)"


@settings(deadline=None, max_examples=50)
@given(spaces())
def test_json_round_trip(space):
    again = Space.from_json(json.loads(json.dumps(space.to_json())))
    assert again.columns == space.columns and again.dimension == space.dimension


def test_nested_names_survive_json():
    again = Space.from_json(json.loads(json.dumps(SPACE.to_json())))
    genome = np.full(SPACE.dimension, 0.3, np.float32)
    assert repr(again.decode_host(genome)) == repr(SPACE.decode_host(genome))


# --- what is refused -----------------------------------------------------------------------------------------------

WRONG_SPACES = {
    "nothing": ({}, ["at least one column", "got none", "log(1e-4, 1.0)"]),
    "low above high": ({"x": real(2, 1)}, ["'x'", "low < high", "low=2, high=1"]),
    "low is high": ({"x": integer(3, 3)}, ["'x'", "low < high"]),
    "log from zero": ({"a": {"x": log(0, 1)}}, ["'a.x'", "low > 0", "low=0", "real"]),
    "log from below": ({"x": log(-1, 1)}, ["low > 0"]),
    "endless": ({"x": real(0, float("inf"))}, ["finite bounds", "inf"]),
    "not a number": ({"x": real(float("nan"), 1)}, ["finite bounds", "nan"]),
    "broken integers": ({"x": integer(0.5, 3)}, ["whole bounds", "0.5"]),  # type: ignore[arg-type]
    "one choice": ({"x": categorical(["a"])}, ["at least two choices", "got 1"]),
    "a choice twice": ({"x": categorical(["a", "b", "a"])}, ["twice"]),
    "no weights": ({"x": weights((0, 3))}, ["non-empty shape", "(0, 3)"]),
    "a negative shape": ({"x": weights((-1, -2))}, ["non-empty shape"]),
    "no scale": ({"x": weights(3, scale=0)}, ["scale > 0"]),
    "endless scale": ({"x": weights(3, scale=float("inf"))}, ["scale > 0"]),
    "a number": ({"x": 3}, ["'x'", "column", "int", "real, log, integer"]),
    "joined names": ({"a": {"b": real(0, 1)}, "a.b": real(0, 1)}, ["'a.b'", "unique"]),
    "a column and a group": ({"a": real(0, 1), "a.b": real(0, 1)}, ["'a'", "column and a group"]),
    "an unknown kind": ({"x": Column("cubic")}, ["cubic", "real, log, integer, categorical, weights"]),
}


@pytest.mark.parametrize("case", WRONG_SPACES)
def test_a_wrong_space_says_what_was_expected(case):
    columns, fragments = WRONG_SPACES[case]
    with pytest.raises(ConfigError) as caught:
        Space(columns)
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


GOOD = {"rate": 0.01, "net": {"width": 16, "act": "tanh", "start": {"scale": 0.5}}, "rule": np.zeros((2, 3)),
        "bias": np.zeros(4), "one": 0.0, "depth": 2}  # fmt: skip
WRONG_CANDIDATES = {
    "a missing name": ({"rate": None}, ["missing ['rate']"]),
    "an unknown name": ({"speed": 3}, ["unknown ['speed']"]),
    "too high": ({"rate": 2.0}, ["'rate'", "0.0001 .. 1", "got 2"]),
    "too low": ({"depth": 0}, ["'depth'", "1 .. 4", "got 0"]),
    "not a number": ({"rate": float("nan")}, ["'rate'", "nan"]),
    "no choice": ({"net": {**GOOD["net"], "act": "relo"}}, ["'net.act'", "'relu'", "'relo'"]),
    "another shape": ({"rule": np.zeros((3, 2))}, ["'rule'", "(2, 3)", "(3, 2)"]),
}


def test_a_whole_candidate_is_encoded():
    assert SPACE.encode(GOOD).shape == (SPACE.dimension,) and SPACE.encode(GOOD).dtype == np.float32


@pytest.mark.parametrize("case", WRONG_CANDIDATES)
def test_a_wrong_candidate_says_what_was_expected(case):
    change, fragments = WRONG_CANDIDATES[case]
    candidate = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        SPACE.encode(candidate)
    for fragment in fragments:
        assert fragment in str(caught.value)
