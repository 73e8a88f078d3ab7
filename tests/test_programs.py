"""Programs as arrays: every array decodes, types hold, one compiled call runs different programs, nothing escapes."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import evometa
from evometa.errors import ConfigError
from evometa.programs.code import (
    WRONG,
    Code,
    Instruction,
    Program,
    Refusal,
    assemble,
    check,
    disassemble,
    join,
    split,
)
from evometa.programs.interpret import Machine, effective, prepare
from evometa.programs.operations import OPERATIONS
from evometa.programs.vocabularies import LOSS, OPTIMIZER, VOCABULARIES
from evometa.programs.vocabulary import Register, Vocabulary
from evometa.space import Space, log, program

SMALL = Vocabulary(
    "small",
    inputs=(Register("g"), Register("f", "layer", setup=True), Register("t", "scalar", "count")),
    memory=(Register("m"), Register("x"), Register("l", "layer"), Register("s", "scalar")),
    outputs=(Register("step"),),
    operations=("copy", "add", "mul", "div", "lerp", "where", "exp", "layer_mean", "rms"),
    constants=2,
    setup=2,
    update=6,
)


def code(*lines, setup=(), constants=(0.5, 2.0), words=SMALL):
    """A code from `(operation, destination, operands...)` rows by name."""

    def instruction(row):
        name, place, *operands = row
        return Instruction(words.operation(name), words.number(place), tuple(words.number(o) for o in operands))

    return assemble(Program(words, tuple(map(instruction, setup)), tuple(map(instruction, lines)), constants))


@partial(jax.jit, static_argnames=("steps", "layers", "words"))
def _outputs(one, inputs, steps, layers, words):
    machine, ready = Machine(words, layers), prepare(words, one)

    def step(memory, t):
        out, memory = machine.step(ready, memory, {**inputs, "t": t})
        return memory, out["step"]

    return jax.lax.scan(step, machine.start(ready, inputs), 1.0 + jnp.arange(steps))[1]


def run(one, steps=3, layers=(2, 3), words=SMALL, **inputs):
    """Outputs `[steps, 5]`, from the same gradient and layer input at every step."""
    given = {"g": jnp.arange(1.0, 6.0), "f": jnp.array([10.0, 20.0]), **inputs}
    return np.asarray(_outputs(one, given, steps, layers, words))


def test_memory_is_kept_and_outputs_are_cleared():
    out = run(code(("lerp", "m", "m", "g", "c0"), ("copy", "step", "m")))
    assert np.allclose(out[:, 0], [0.5, 0.75, 0.875])
    once = run(code(("where", "step", "m", "m", "g"), ("copy", "m", "c1")))  # writes g at first, then 2
    assert np.allclose(once[:, 1], [2.0, 2.0, 2.0]) and np.allclose(once[:, 0], [1.0, 2.0, 2.0])


def test_setup_runs_once_and_layers_are_layers():
    out = run(code(("add", "l", "l", "f"), ("copy", "step", "l"), setup=[("mul", "l", "f", "c1")]))
    assert np.allclose(out, [[30] * 2 + [60] * 3, [40] * 2 + [80] * 3, [50] * 2 + [100] * 3])
    means = run(code(("layer_mean", "l", "g"), ("copy", "step", "l")), 1)
    assert np.allclose(means, [[1.5, 1.5, 4, 4, 4]])
    whole = run(code(("rms", "s", "g"), ("copy", "step", "s")), 1)
    assert np.allclose(whole, np.sqrt(np.mean(np.arange(1.0, 6.0) ** 2)))
    assert np.allclose(run(code(("layer_mean", "l", "g"), ("copy", "step", "l")), 1, (5,), f=jnp.ones(1)), 3.0)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ((99, 5, 0, 0, 0), "unknown operation"), ((-1, 5, 0, 0, 0), "unknown operation"),
        ((1, 50, 0, 0, 0), "unknown register"), ((2, 9, 0, 77, 0), "unknown register"),
        ((1, 0, 0, 0, 0), "writes what cannot be written"), ((1, 3, 0, 0, 0), "writes what cannot be written"),
        ((1, 7, 0, 0, 0), "wrong type"),  # a tensor into a layer
        ((8, 8, 0, 0, 0), "wrong type"),  # a reduction to layers into a scalar
    ],
)  # fmt: skip
def test_what_is_no_program_is_refused_with_its_place(row, reason):
    one = code(("copy", "step", "g"))
    one.tokens[4] = row
    assert disassemble(SMALL, one) == Refusal(reason, 4)
    assert str(disassemble(SMALL, one)) == f"refused: {reason} (instruction 4)"
    assert np.isnan(run(one)).all()


def test_setup_knows_only_what_is_known_before_the_first_step():
    assert disassemble(SMALL, code(setup=[("copy", "m", "g")])) == Refusal("not known in setup", 0)
    assert isinstance(disassemble(SMALL, code(setup=[("copy", "m", "f")])), Program)
    bad = code(("copy", "step", "c0"), constants=(np.nan, 0.0))
    assert disassemble(SMALL, bad) == Refusal("not a number", -1) and np.isnan(run(bad)).all()


def test_operands_that_an_operation_does_not_take_do_not_matter():
    one = code(("copy", "step", "g"))
    one.tokens[2, 3:] = (-9, 1_000_000)
    assert isinstance(disassemble(SMALL, one), Program)
    assert np.allclose(run(one), np.arange(1.0, 6.0))


def test_a_program_survives_the_genome_and_json():
    for words in VOCABULARIES.values():
        assert Vocabulary.from_json(json.loads(json.dumps(words.to_json()))) == words
    one = code(("lerp", "m", "m", "g", "c0"), ("mul", "step", "m", "c1"), constants=(0.001, -12.5))
    again = split(SMALL, join(SMALL, one))
    assert np.array_equal(again.tokens, one.tokens)
    assert np.allclose(again.constants, one.constants, rtol=3e-6)
    traced = jax.jit(lambda numbers: split(SMALL, numbers))(join(SMALL, one))
    assert np.array_equal(traced.tokens, one.tokens) and np.allclose(traced.constants, again.constants, rtol=1e-6)
    assert disassemble(SMALL, assemble(disassemble(SMALL, again))) == disassemble(SMALL, again)


def test_one_compiled_call_runs_different_programs_as_each_runs_alone():
    programs = [
        code(("copy", "step", "g")),
        code(("lerp", "m", "m", "g", "c0"), ("div", "step", "m", "f")),
        code(("layer_mean", "l", "g"), ("exp", "x", "l"), ("mul", "step", "x", "t")),
        code(),
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *programs)
    machine = Machine(SMALL, (2, 3))

    def two_steps(one, shift):
        ready, inputs = prepare(SMALL, one), {"g": jnp.arange(1.0, 6.0) + shift, "f": jnp.array([10.0, 20.0])}
        memory = machine.start(ready, inputs)
        _, memory = machine.step(ready, memory, {**inputs, "t": 1.0})
        return machine.step(ready, memory, {**inputs, "t": 2.0})[0]["step"]

    shifts = jnp.array([0.0, 3.0])
    many = jax.jit(jax.vmap(jax.vmap(two_steps, (None, 0)), (0, None)))(stacked, shifts)
    for row, one in enumerate(programs):
        for column, shift in enumerate([0.0, 3.0]):
            alone = run(one, 2, g=jnp.arange(1.0, 6.0) + shift)[-1]
            assert np.array_equal(many[row, column], alone)


def test_instructions_without_effect_are_stripped():
    one = code(
        ("exp", "x", "g"),
        ("copy", "x", "g"),
        ("mul", "s", "s", "s"),
        ("lerp", "m", "m", "x", "c0"),
        ("copy", "step", "m"),
    )
    live = effective(SMALL, jnp.asarray(one.tokens))
    assert live.tolist() == [False, False, False, True, False, True, True, False]
    assert prepare(SMALL, one).counts.tolist() == [0, 3]
    # Memory that is read at the next step is alive although nothing reads it later in this one.
    late = code(("copy", "step", "x"), ("copy", "x", "m"), ("copy", "m", "l"), ("add", "l", "l", "t"))
    assert prepare(SMALL, late).counts.tolist() == [0, 4]
    assert np.allclose(run(late, 6)[:, 0], [0, 0, 0, 1, 3, 6])


def test_the_derivative_of_a_loss_is_its_derivative():
    # (q - reward - discount * next_max)^2, against autodiff of the same expression
    words = LOSS
    one = code(
        ("mul", "x", "discount", "next_max"), ("add", "x", "x", "reward"), ("sub", "x", "q", "x"), ("square", "loss", "x"),
        constants=(), words=words,
    )  # fmt: skip
    machine = Machine(words, (4,))
    inputs = {r.name: jax.random.normal(jax.random.key(i), (4,)) for i, r in enumerate(words.inputs)}

    def loss(q):
        return jnp.sum((q - inputs["reward"] - inputs["discount"] * inputs["next_max"]) ** 2)

    value, slope = jax.jit(lambda one: machine.derivative(prepare(words, one), inputs, "q"))(one)
    assert np.allclose(jnp.sum(value), loss(inputs["q"]), rtol=1e-5)
    assert np.allclose(slope, jax.grad(loss)(inputs["q"]), rtol=1e-5)


CORNERS = np.array([0.0, -0.0, 1e-38, -1e-20, 1e-12, 0.5, -1.0, 3.0, 88.0, -1e10, 1e19, -1e19], np.float32)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_operations_are_total(name):
    """Of finite numbers comes a number: never NaN."""
    from evometa.programs.operations import arithmetic

    a, b, c = (grid.ravel() for grid in np.meshgrid(CORNERS, CORNERS, CORNERS))
    layers = (1, 2, len(a) - 3)
    out = jax.jit(lambda a, b, c: arithmetic(name)(a, b, c, layers))(a, b, c)
    assert out.shape == a.shape and out.dtype == jnp.float32 and not np.isnan(out).any()


COMPILED = {
    name: jax.jit(lambda tokens, words=words: check(words, tokens, jnp)) for name, words in VOCABULARIES.items()
}


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(VOCABULARIES)))
def test_host_and_compiled_check_agree(seed, name):
    words = VOCABULARIES[name]
    draw = np.random.default_rng(seed)
    tokens = draw.integers(-1, len(words.registers) + 1, (words.length, 5)).astype(np.int32)
    tokens[draw.random(words.length) < 0.8] = 0
    assert np.array_equal(check(words, tokens, np), COMPILED[name](tokens))
    decoded = disassemble(words, Code(tokens, np.zeros(words.constants, np.float32)))
    assert isinstance(decoded, Program) or decoded.reason in WRONG


# --- in a space ---------------------------------------------------------------------------------------


def test_a_program_is_a_column_like_others():
    space = Space({"rule": program("optimizer"), "lr": log(1e-4, 1.0)})
    assert space.dimension == OPTIMIZER.size + 1 and space.kinds == {"program", "log"}
    assert Space.from_json(json.loads(json.dumps(space.to_json()))).columns == space.columns
    genome = space.encode({"rule": "adam", "lr": 0.01})
    candidate, host = space.decode(jnp.asarray(genome)), space.decode_host(genome)
    assert np.array_equal(candidate["rule"].tokens, host["rule"].tokens)
    assert np.array_equal(space.encode(host)[: OPTIMIZER.size - 6], genome[: OPTIMIZER.size - 6])
    assert np.array_equal(space.project(genome[None] * 1.0)[0], genome)
    drawn = space.sample(jax.random.key(0), 64)
    assert not jax.vmap(lambda g: prepare(OPTIMIZER, space.decode(g)["rule"]).refused)(drawn).any()
    assert "at most 18 instructions" in space.describe()


def test_held_programs_are_held():
    space = Space({"rule": program("optimizer"), "lr": log(1e-4, 1.0)}).hold({"rule": "sgd"})
    assert space.dimension == 1
    again = Space.from_json(json.loads(json.dumps(space.to_json())))
    for one in (space, again):
        assert isinstance(disassemble(OPTIMIZER, one.decode(jnp.array([0.5]))["rule"]), Program)
    assert np.array_equal(
        space.decode_host(np.array([0.5]))["rule"].tokens, again.decode_host(np.array([0.5]))["rule"].tokens
    )


def test_mistakes_are_told():
    with pytest.raises(ConfigError, match="expected a vocabulary out of optimizer, .* got 'optimiser'. Did you mean"):
        program("optimiser")
    space = Space({"rule": program("optimizer")})
    with pytest.raises(ConfigError, match=r"'rule' expected a program: the name of a known rule, .* got int"):
        space.encode({"rule": 3})
    with pytest.raises(ConfigError, match=r"tokens \[18, 5\] and \[6\] constants, got \[2, 5\]"):
        space.encode({"rule": Code(np.zeros((2, 5), np.int32), np.zeros(6))})
    with pytest.raises(ConfigError, match="expected a program of vocabulary 'optimizer', got one of 'small'"):
        space.encode({"rule": disassemble(SMALL, code(("copy", "step", "g")))})
    with pytest.raises(ConfigError, match="at most 6 instructions in a section, got 7"):
        code(*[("copy", "step", "g")] * 7)
    with pytest.raises(ConfigError, match="expected operations out of .*; got 'addd'. Did you mean .add."):
        Vocabulary("v", (Register("a"),), (Register("b"),), ("addd",))
    with pytest.raises(ConfigError, match="reads t, which this task does not give; it gives g, f"):
        SMALL.require("task", ("g", "f"), ("step",))
    with pytest.raises(ConfigError, match="machine: vocabulary 'small' reads t, which this task does not give"):
        Machine(SMALL, (3,)).step(prepare(SMALL, code()), jnp.zeros((4, 3)), {"g": 0.0, "f": 0.0})
    with pytest.raises(ConfigError, match=r"input 'g' is a tensor and expected shape \(3,\) or \(\), got \(4,\)"):
        Machine(SMALL, (3,)).step(prepare(SMALL, code()), jnp.zeros((4, 3)), {"g": jnp.ones(4), "f": 0.0, "t": 1.0})
    with pytest.raises(ConfigError, match="vocabulary 'small' has no output 'stop'; it has step. Did you mean .step."):
        Machine(SMALL, (3,)).step(prepare(SMALL, code()), jnp.zeros((4, 3)), {"g": 0.0, "f": 0.0, "t": 1.0})[0]["stop"]
    with pytest.raises(ConfigError, match="lacks the output change"):
        SMALL.require("task", ("g", "f", "t"), ("change",))
    with pytest.raises(ConfigError, match=r"genetic: searches .* got program \(rule\). Use "):
        evometa.strategy("genetic", space)
