"""What is handed in as a program and is none: arrays of any shape and type, genomes, listings, vocabularies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evometa.errors import ConfigError, NotFound
from evometa.programs.code import WRONG, Code, Program, Refusal, disassemble
from evometa.programs.formula import text, text_of
from evometa.programs.interpret import prepare
from evometa.programs.vocabulary import Register, Vocabulary
from evometa.space import Space, log, program

WORDS = Vocabulary(
    "tiny",
    inputs=(Register("a"), Register("b", "scalar", setup=True)),
    memory=(Register("m"),),
    outputs=(Register("y"),),
    operations=("add", "mul", "lerp"),
    constants=2,
    setup=1,
    update=4,
)

ODD = st.one_of(
    st.none(), st.text(max_size=3), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.complex_numbers()
)
TYPES = ("int8", "uint64", "int64", "float16", "float64", "bool", "complex64", "U3", "object")


@st.composite
def arrays(draw, right):
    """Any array, or any lists within lists; now and then of the `right` shape."""
    shape = draw(st.one_of(st.just(right), st.lists(st.integers(0, 4), max_size=3).map(tuple)))
    if draw(st.booleans()):
        return draw(st.recursive(ODD, lambda inner: st.lists(inner, max_size=4), max_leaves=12))
    values = [draw(ODD) for _ in range(3)]
    made = np.empty(shape, object)
    made.flat = [values[i % 3] for i in range(made.size)] if made.size else 0
    for kind in (draw(st.sampled_from(TYPES)), "object"):
        try:
            with np.errstate(all="ignore"):
                return made.astype(kind)
        except (TypeError, ValueError, OverflowError):
            continue


@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(arrays((5, 5)), arrays((2,)))
def test_any_array_whatever_is_a_program_or_a_typed_refusal(tokens, constants):
    odd = Code(tokens, constants)
    found = disassemble(WORDS, odd)
    assert isinstance(found, Program) or (found.reason in WRONG[1:] and -1 <= found.position < WORDS.length)
    assert text_of(WORDS, odd) == (str(found) if isinstance(found, Refusal) else text(found))
    assert bool(prepare(WORDS, odd).refused) == isinstance(found, Refusal)
    if isinstance(found, Refusal):
        with pytest.raises(ConfigError, match="'rule' expected a program of vocabulary 'tiny'"):
            Space({"rule": program(WORDS)}).encode({"rule": odd})


@pytest.mark.parametrize(
    ("tokens", "constants", "said"),
    [
        (np.zeros((2, 5)), (0, 0), "wrong shape"), (np.zeros((0, 5)), (0, 0), "wrong shape"),
        (np.zeros(25), (0, 0), "wrong shape"), (np.zeros((5, 3)), (0, 0), "wrong shape"),
        ([[1], [2, 3]], (0, 0), "wrong shape"), (None, (0, 0), "wrong shape"), ("x", (0, 0), "wrong shape"),
        (np.zeros((5, 5)), np.zeros(6), "wrong shape"), (np.zeros((5, 5)), None, "wrong shape"),
        (np.full((5, 5), np.nan), (0, 0), "not a number (instruction 0)"),
        (np.full((5, 5), 0.5), (0, 0), "not a whole number (instruction 0)"),
        (np.zeros((5, 5), complex), (0, 0), "not a number"), ([["a"] * 5] * 5, (0, 0), "not a number"),
        (np.full((5, 5), 2**62), (0, 0), "unknown operation (instruction 0)"),
        (np.zeros((5, 5)), (1e300, 0), "not a number"), (np.zeros((5, 5)), (1j, 0), "not a number"),
    ],
)  # fmt: skip
def test_arrays_of_no_program_are_refused_for_what_is_wrong(tokens, constants, said):
    odd = Code(tokens, constants)
    assert str(disassemble(WORDS, odd)) == text_of(WORDS, odd) == f"refused: {said}"
    assert bool(prepare(WORDS, odd).refused)


def test_arrays_of_jax_are_looked_at_in_the_same_way():
    for value, refused in ((0.0, False), (0.5, True), (np.nan, True), (3e9, True)):
        odd = Code(jnp.full((5, 5), value), jnp.zeros(2))
        assert bool(prepare(WORDS, odd).refused) == refused == isinstance(disassemble(WORDS, odd), Refusal)
    with pytest.raises(ConfigError, match=r"expected tokens \(5, 5\) and constants \(2,\), got \(2, 5\) and \(2,\)"):
        jax.jit(lambda odd: prepare(WORDS, odd).refused)(Code(jnp.zeros((2, 5)), jnp.zeros(2)))


def test_what_is_no_program_is_no_value_of_a_column():
    space = Space({"rule": program("optimizer"), "lr": log(1e-4, 1.0)})
    unknown = Code(np.full((18, 5), 99), np.zeros(6))
    for odd, said in (
        (unknown, "unknown operation .instruction 0."), (Code(np.zeros((18, 5)), np.full(6, np.nan)), "not a number")
    ):  # fmt: skip
        with pytest.raises(
            ConfigError, match=f"candidate: 'rule' expected a program .* got arrays that are refused: {said}"
        ):
            space.encode({"rule": odd, "lr": 0.1})
        with pytest.raises(ConfigError, match=f"^fixed.rule: expected a program .* refused: {said}"):
            space.hold({"rule": odd})
    with pytest.raises(ConfigError, match=r"^fixed.rule: program: line 2: expected an operation .*; got 'ad'. Did you"):
        space.hold({"rule": "x = copy(g)\nstep = ad(x)"})
    with pytest.raises(NotFound, match=r"^candidate: 'rule': vocabulary 'optimizer' has no known rule 'adma'. Did you"):
        space.encode({"rule": "adma", "lr": 0.1})


def test_a_genome_that_is_given_is_looked_at():
    space = Space({"rule": program("optimizer"), "lr": log(1e-4, 1.0)})
    assert np.array_equal(
        space.check(space.encode({"rule": "adam", "lr": 0.1}).tolist()), space.encode({"rule": "adam", "lr": 0.1})
    )
    for given_, said in (
        ([99.0] * space.dimension, "^start: expected a program of .* in 'rule', got numbers that are refused: unknown"),
        ([0.0] * (space.dimension - 1) + [2.0], "^start: number 96, of 'lr': expected numbers in 0 .. 1, got 2"),
        ([np.nan] * space.dimension, "^start: number 0, of 'rule': expected finite numbers, got nan"),
        ([0.0], "^start: expected a genome of 97 numbers for this space, got 1"),
        (["a"], "^start: expected a list of 97 numbers"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            space.check(given_, "start")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"update": "6"}, "expected update as a whole number, got '6'"),
        ({"setup": True}, "expected setup as a whole number, got True"),
        ({"constants": 10**9}, "at most 256 instructions and 256 registers, got 16 and 1000000002"),
        ({"inputs": "abc"}, "expected inputs as a list, got 'abc'"),
        ({"memory": None}, "expected memory as a list, got None"),
        ({"outputs": ("b",)}, r"expected outputs of Register\(...\), got 'b'"),
        ({"outputs": (Register("b", setup="no"),)}, "register 'b': expected setup as true or false, got 'no'"),
        ({"operations": (1,)}, "expected operations of names of operations, got 1"),
        ({"name": 3}, "expected a name, got int"),
        ({"slope": 3}, "expected the name of a slope, got int"),
        ({"slope": "aa"}, r"expected slope as an input \(a\), got 'aa'. Did you mean \"a\""),
        (
            {"slope": "a", "setup": 1},
            "with a slope, expected one output, no setup .* got 1 outputs, setup of 1, no other",
        ),
        ({"slope": "a", "operations": ("add", "mean")}, "operations that work element by element; .* setup of 0, mean"),
        (
            {"slope": "a", "outputs": (Register("b"), Register("c"))},
            "with a slope, expected one output, .* got 2 outputs",
        ),
    ],
)
def test_vocabularies_of_the_wrong_types_are_told(fields, said):
    right = {"name": "v", "inputs": (Register("a"),), "outputs": (Register("b"),), "operations": ("add",)}
    assert Vocabulary(**right).size == 5 * 16 + 6
    with pytest.raises(ConfigError, match=said):
        Vocabulary(**{**right, **fields})
