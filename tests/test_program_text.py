"""Programs as text: listings are read back, known rules are what they are called, simplifying changes nothing."""

from __future__ import annotations

import time
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evometa.errors import ConfigError, NotFound
from evometa.programs import interpret
from evometa.programs.code import Code, Instruction, Program, assemble, check, tables
from evometa.programs.difference import difference
from evometa.programs.formula import latex, structure, text, text_of
from evometa.programs.known import KNOWN, known
from evometa.programs.listing import listing, parse
from evometa.programs.operations import OPERATIONS
from evometa.programs.simplify import effective, is_noop, simplify
from evometa.programs.vocabularies import LOSS, OPTIMIZER, PLASTICITY, POPULATION, VOCABULARIES
from evometa.programs.vocabulary import Register, Vocabulary

LAYERS = (3, 3, 2)
STEPS = 4
ALL_KNOWN = [(vocabulary, name) for vocabulary in VOCABULARIES.values() for name in KNOWN[vocabulary.name]]
VALUES = st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0**-27, -0.25]) | st.floats(-150, 150, width=32, allow_subnormal=False)


@lru_cache
def choices(vocabulary):
    """Per section and operation: what it may read; per register its width."""
    table = tables(vocabulary)
    every = list(range(len(vocabulary.registers)))
    return [i for i in every if table.early[i]], every, table.width.tolist()


@st.composite
def programs(draw, vocabulary, most=10):
    """Valid programs; operands are often what was just written, so that much of a program has effect."""
    early, every, widths = choices(vocabulary)
    sections = []
    for readable, length in ((early, min(vocabulary.setup, 2)), (every, min(vocabulary.update, most))):
        rows, recent = [], []
        for _ in range(draw(st.integers(0, length))):
            number = draw(st.integers(1, len(vocabulary.operations) - 1))
            operation = OPERATIONS[vocabulary.operations[number]]
            source = st.sampled_from(readable) | st.sampled_from(recent) if recent else st.sampled_from(readable)
            operands = tuple(draw(source) for _ in range(operation.arity))
            width = {"all": 0, "layer": 1}.get(operation.kind, max(widths[i] for i in operands))
            places = [i for i in every[vocabulary.first_memory :] if widths[i] >= width]
            place = draw(st.sampled_from(places))
            rows.append(Instruction(number, place, operands))
            recent = [*recent[-2:], place]
        if rows and draw(st.booleans()) and len(rows) < length:
            copy = vocabulary.operation("copy")
            rows.append(Instruction(copy, len(every) - 1, (rows[-1].destination,)))
        sections.append(tuple(rows))
    constants = draw(st.lists(VALUES, min_size=vocabulary.constants, max_size=vocabulary.constants))
    return Program(vocabulary, sections[0], sections[1], tuple(constants))


any_program = st.sampled_from(list(VOCABULARIES.values())).flatmap(programs)


@lru_cache
def runner(vocabulary):
    """A function of tokens and constants that gives all outputs over a few steps of random inputs."""
    machine = interpret.Machine(vocabulary, LAYERS)
    random = np.random.default_rng(5)
    shapes = {"scalar": (STEPS,), "layer": (STEPS, len(LAYERS)), "tensor": (STEPS, sum(LAYERS))}
    inputs = {
        register.name: random.normal(size=shapes[register.type]).astype(np.float32) for register in vocabulary.inputs
    }

    @jax.jit
    def run(tokens, constants):
        ready = interpret.prepare(vocabulary, Code(tokens, constants))

        def step(memory, given):
            outputs, memory = machine.step(ready, memory, given)
            return memory, outputs

        memory = machine.start(ready, {name: values[0] for name, values in inputs.items()})
        return jax.lax.scan(step, memory, inputs)[1]

    return lambda program: np.stack([np.asarray(x) for x in run(*assemble(program)).values()])


@lru_cache
def one_update(vocabulary, size):
    machine = interpret.Machine(vocabulary, (size,))

    @jax.jit
    def update(code, inputs):
        ready = interpret.prepare(vocabulary, code)
        inputs = {register.name: 0.0 for register in vocabulary.inputs} | inputs
        return machine.step(ready, machine.start(ready, inputs), inputs)[0]

    return update


def apply(program, **inputs):
    """The first output of one update, by the machine."""
    size = max(np.size(value) for value in inputs.values())
    outputs = one_update(program.vocabulary, size)(assemble(program), inputs)
    return np.asarray(outputs[program.vocabulary.outputs[0].name])


def optimizer(update, setup=""):
    return parse(OPTIMIZER, f"setup:\n{setup}\nupdate:\n{update}")


# --- listings


@settings(max_examples=150, deadline=None, derandomize=True)
@given(any_program)
def test_a_listing_is_read_back(program):
    assert parse(program.vocabulary, listing(program)) == program


def test_listings_are_short_where_they_can_be():
    assert listing(known(OPTIMIZER, "momentum")) == "m = mul(m, 0.9)\nm = add(m, g)\nstep = mul(m, -0.01)"
    unused = known(OPTIMIZER, "sgd")._replace(constants=(0.5, float(np.float32(-0.01))))
    assert listing(unused).splitlines()[:3] == ["c0 = 0.5", "c1 = -0.01", "update:"]
    assert listing(Program(OPTIMIZER, (), (), ())) == "update:"


def test_what_a_listing_may_hold():
    program = parse(
        OPTIMIZER, "c0 = 1e-3 # rate\nsetup:\nl = div( 1 ,fan_in)\n\nupdate:\nx = mul(g, -2.5E-1)\nstep = mul(x, c0)\n"
    )
    assert program.constants == tuple(float(np.float32(x)) for x in (1e-3, 1.0, -0.25))
    assert (len(program.setup), len(program.update)) == (1, 2)
    shared = parse(OPTIMIZER, "x = mul(g, 0.5)\nstep = add(x, 0.5)")
    assert shared.constants == (0.5,)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("step = ad(g, w)", 'line 1: expected an operation of copy, .* got \'ad\'. Did you mean "add"'),
        ("step = nop()", "expected an operation of"),
        ("# none\nstep = add(g, mm)", 'line 2: expected a register of w, .* got \'mm\'. Did you mean "m"'),
        ("stepp = neg(g)", 'Did you mean "step"'),
        ("step = neg(g, w)", "line 1: neg takes 1 operand, got 2"),
        ("step = lerp(g)", "lerp takes 3 operands, got 1"),
        ("s = neg(g)", "neg gives a tensor here and 's' is a scalar; write to m, v, x, y, z, step"),
        ("s = layer_rms(g)", "layer_rms gives a layer here"),
        ("g = neg(w)", "'g' is an input; expected a register that can be written: m, "),
        ("c0 = 0.1\nupdate:\nc0 = neg(t)", "line 3: 'c0' is a constant"),
        ("setup:\nm = neg(g)", "line 2: 'g' is not known yet in setup"),
        ("step = neg(g)\n" * 17, "line 17: vocabulary 'optimizer' has room for 16 instructions in update"),
        ("setup:\n" + "m = neg(1.0)\n" * 3, "line 4: .* room for 2 instructions in setup"),
        ("\n".join(f"step = mul(g, {i}.5)" for i in range(7)), "line 7: .* has 6 constants, c0 to c5; 6.5 is one more"),
        ("c9 = 1\nstep = neg(g)", "has 6 constants, c0 to c5, got 'c9'"),
        ("c0 = 1\nc0 = 2\nstep = neg(g)", "each once, got 'c0' again"),
        ("step = mul(g, c1)", "'c1' has no value; write `c1 = 0.1`"),
        ("step = mul(g, nan)", "expected a finite number, got 'nan'"),
        ("step = mul(g, 1e99)", "expected a finite number"),
        ("step = mul(g, 0.1.2)", "expected a number or a register, got '0.1.2'"),
        ("step = mul(g, add(w, w))", r"expected name = operation\(a, b\), got"),
        ("step = g", r"expected name = operation\(a, b\), got 'step = g'"),
        ("step: g", r"expected name = operation\(a, b\)"),
        ("updat:\nstep = neg(g)", 'Did you mean "update:"'),
        ("update:\nsetup:\n", "setup: before update:"),
        ("  \n# nothing\n", "got none"),
    ],
)  # fmt: skip
def test_listings_that_are_refused(source, says):
    with pytest.raises(ConfigError, match=says) as error:
        parse(OPTIMIZER, source)
    assert "\n" not in str(error.value)


# --- known rules


@pytest.mark.parametrize(("vocabulary", "name"), ALL_KNOWN, ids=lambda x: getattr(x, "name", x))
def test_known_rules_are_programs(vocabulary, name):
    program = known(vocabulary, name)
    assert not check(vocabulary, assemble(program).tokens, np).any()
    assert all(effective(program)[1]), "an instruction without effect"
    simple = simplify(program)
    assert len(simple.update) == len(program.update), "a known rule that could be shorter"
    assert text(simple) == text(program)
    assert not is_noop(program)


def test_unknown_rules():
    with pytest.raises(NotFound, match="no known rule 'adm'. Did you mean \"adam\""):
        known(OPTIMIZER, "adm")
    other = Vocabulary("other", (Register("a"),), (Register("b"),), ("add",))
    with pytest.raises(NotFound, match="Known rules are there for optimizer, plasticity, loss, population"):
        known(other, "adam")
    with pytest.raises(ConfigError, match="line 1: expected an operation of add; got 'lerp'"):
        known(Vocabulary("optimizer", (Register("a"),), (Register("b"),), ("add",)), "adam")


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("sgd", optax.sgd(0.01)),
        ("momentum", optax.sgd(0.01, momentum=0.9)),
        ("nesterov", optax.sgd(0.01, momentum=0.9, nesterov=True)),
        ("sign_sgd", optax.sign_sgd(1e-3)),
        ("rmsprop", optax.rmsprop(1e-3, decay=0.9, eps_in_sqrt=False)),
        ("adam", optax.adam(1e-3)),
        ("adamw", optax.adamw(1e-3, weight_decay=1e-4)),
        ("lion", optax.lion(1e-4, weight_decay=1e-3)),
    ],
)
def test_known_optimizers_are_those_of_optax(name, reference):
    program = known(OPTIMIZER, name)
    machine = interpret.Machine(OPTIMIZER, LAYERS)
    ready = interpret.prepare(OPTIMIZER, assemble(program))
    random = np.random.default_rng(2)
    start = jnp.asarray(random.normal(size=sum(LAYERS)), jnp.float32)
    scales = 10.0 ** np.arange(-3, 5, dtype=np.float32)
    gradients = jnp.asarray(random.normal(size=(20, sum(LAYERS))) * scales, jnp.float32)

    @jax.jit
    def both():
        def step(held, given):
            w, memory, u, state = held
            t, gradient = given
            inputs = {"w": w, "g": gradient, "t": t, "progress": t / 20, "fan_in": jnp.ones(len(LAYERS))}
            outputs, memory = machine.step(ready, memory, inputs)
            wanted, state = reference.update(gradient, state, u)
            return (w + outputs["step"], memory, optax.apply_updates(u, wanted), state), (outputs["step"], wanted)

        held = (start, machine.start(ready, {"fan_in": jnp.ones(len(LAYERS))}), start, reference.init(start))
        return jax.lax.scan(step, held, (jnp.arange(1.0, 21.0), gradients))[1]

    found, wanted = both()
    # Optax rounds 1 - 0.999^t in single precision, which is where the 1e-4 comes from.
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-9)


def test_known_rules_of_the_other_vocabularies():
    draw = np.random.default_rng(3).normal(size=(9, 6)).astype(np.float32)
    w, pre, post, back = draw[:4]
    given = {"w": w, "pre": pre, "post": post, "back": back, "modulator": 0.5}
    near = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(apply(known(PLASTICITY, "hebb"), **given), 0.01 * pre * post, **near)
    np.testing.assert_allclose(apply(known(PLASTICITY, "oja"), **given), 0.01 * post * (pre - post * w), **near)
    np.testing.assert_allclose(apply(known(PLASTICITY, "subspace"), **given), 0.01 * post * (pre - back), **near)
    np.testing.assert_allclose(apply(known(PLASTICITY, "hebb_modulated"), **given), 0.005 * pre * post, **near)

    q, best, online, reward = draw[4:8]
    given = {"q": q, "next_max": best, "next_online": online, "reward": reward, "discount": np.full(6, 0.9, np.float32)}
    error = reward + 0.9 * best - q
    np.testing.assert_allclose(apply(known(LOSS, "td"), **given), error**2, **near)
    np.testing.assert_allclose(apply(known(LOSS, "double_td"), **given), (reward + 0.9 * online - q) ** 2, **near)
    np.testing.assert_allclose(apply(known(LOSS, "dqn_reg"), **given), error**2 + 0.1 * q, **near)
    huber = np.where(abs(error) > 1, abs(error) - 0.5, error**2 / 2)
    np.testing.assert_allclose(apply(known(LOSS, "huber_td"), **given), huber, **near)
    target = reward + 0.9 * best
    clipped = np.maximum(q, error**2 + target) + np.maximum(q - target, 0.9 * best**2)
    np.testing.assert_allclose(apply(known(LOSS, "dqn_clipped"), **given), clipped, **near)

    names = ("x", "own_best", "best", "other1", "other2", "other3", "normal")
    given = dict(zip(names, draw, strict=False)) | {"uniform": np.array([0.1, 0.95, 0.3, 0.91, 0.5, 0.7], np.float32)}
    x, own, top, one, two, three, normal = draw[:7]
    trial = np.where(given["uniform"] < 0.9, one + 0.5 * (two - three), own)
    np.testing.assert_allclose(apply(known(POPULATION, "de"), **given), trial, **near)
    share = given["uniform"]
    pull = 1.49618 * (share * (own - x) + (1 - share) * (top - x))
    np.testing.assert_allclose(apply(known(POPULATION, "pso"), **given), x + pull, **near)
    np.testing.assert_allclose(apply(known(POPULATION, "gaussian"), **given), own + 0.1 * normal, **near)


# --- simplify


@pytest.mark.parametrize("vocabulary", [OPTIMIZER, POPULATION], ids=lambda v: v.name)
def test_simplifying_changes_nothing(vocabulary):
    run = runner(vocabulary)

    @settings(max_examples=250, deadline=None, derandomize=True)
    @given(programs(vocabulary))
    def same(program):
        simple = simplify(program)
        assert not check(vocabulary, assemble(simple).tokens, np).any()
        before, after = run(program), run(simple)
        finite = np.isfinite(before)
        np.testing.assert_array_equal(finite, np.isfinite(after))
        np.testing.assert_allclose(after[finite], before[finite], rtol=1e-5, atol=1e-30)

    same()


@settings(max_examples=250, deadline=None, derandomize=True)
@given(any_program)
def test_simplified_programs_are_simple(program):
    simple = simplify(program)
    assert simplify(simple) == simple
    assert text(simple) == text(program)
    assert len(simple.setup) + len(simple.update) <= sum(map(sum, effective(program)))
    used = {i for row in (*simple.setup, *simple.update) for i in row.operands}
    first = program.vocabulary.first_constant
    assert {i - first for i in used if first <= i < program.vocabulary.first_memory} == set(
        range(len(simple.constants))
    )


def test_effect_is_what_the_machine_says():
    stripped = jax.jit(interpret.effective, static_argnums=0)
    seen = 0

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(programs(OPTIMIZER))
    def agree(program):
        nonlocal seen
        marks = np.asarray(stripped(OPTIMIZER, assemble(program).tokens))
        setup, update = effective(program)
        assert marks[: len(setup)].tolist() == setup
        assert marks[OPTIMIZER.setup :][: len(update)].tolist() == update
        seen += sum(update)

    agree()
    assert seen > 60


@pytest.mark.parametrize(
    ("update", "wanted"),
    [
        ("x = mul(g, 1.0)\ny = add(x, 0.0)\nstep = neg(y)", "step = -g"),
        ("x = neg(g)\nstep = neg(x)", "step = g"),
        ("x = neg(g)\nstep = add(w, x)", "step = w - g"),
        ("x = sub(g, g)\nstep = add(w, x)", "step = w"),
        ("x = sub(g, w)\nx = neg(x)\nstep = mul(x, -0.5)", "step = -0.5 * (w - g)"),
        ("x = mul(g, 0.5)\nstep = neg(x)", "step = -0.5 * g"),
        ("x = mul(g, g)\nx = abs(x)\nstep = sqrt(x)", "step = sqrt(g^2)"),
        ("x = sign(g)\nx = sign(x)\nstep = max(x, x)", "step = sign(g)"),
        ("x = sign(g)\nstep = clip(x, 1.5)", "step = sign(g)"),
        ("x = tanh(g)\nx = clip(x, -0.5)\nstep = clip(x, 0.5)", "step = clip(tanh(g), 0.5)"),
        ("step = lerp(g, w, 0.0)", "step = g"),
        ("step = lerp(y, w, 0.3)", "step = 0.3 * w"),
        ("step = lerp(g, g, 0.3)", "step = g"),
        ("x = add(0.5, 0.25)\nstep = mul(g, x)", "step = 0.75 * g"),
        ("x = div(1.0, 0.0)\nstep = mul(g, x)", "step = 1e+12 * g"),
        ("step = where(g, w, w)", "step = w"),
        ("x = sub(g, w)\nstep = where(x, g, w)", "step = where(g > w, g, w)"),
        ("x = mean(g)\nx = mean(x)\nstep = copy(x)", "step = mean(g)"),
        ("m = mul(m, 0.9)\nstep = add(g, m)", "step = g"),  # memory that stays zero
        ("m = copy(g)\nx = sub(m, m)\nstep = add(w, x)\nv = add(v, step)", "step = w"),
        ("x = add(g, w)\ny = add(w, g)\nstep = mul(x, y)", "step = (w + g)^2"),
        ("m = add(m, g)", "step = 0"),
        ("step = neg(0.0)", "step = 0"),
        ("step = copy(0.5)", "step = 0.5"),
        # What must stay: protected division, memory that may be infinite, a share of one.
        ("step = div(g, g)", "step = g / g"),
        ("m = add(m, g)\nx = sub(m, m)\nstep = add(w, x)", "m = m + g; step = w + m - m"),
        ("step = lerp(g, w, 1.0)", "step = lerp(g, w, 1)"),
        # Old and new memory; a memory that is only handed on; two that change places.
        ("x = lerp(m, g, 0.1)\nstep = sub(x, m)\nm = copy(x)", "v = lerp(m, g, 0.1); step = v - m; m = v"),
        ("step = sub(g, m)\nm = copy(g)", "step = g - m; m = g"),
        ("step = copy(v)\nv = copy(m)\nm = copy(g)", "step = m; m = v; v = g"),
        ("x = copy(m)\nm = add(v, g)\nv = copy(x)\nstep = copy(v)", "step = m; x = v + g; v = m; m = x"),
    ],
)  # fmt: skip
def test_formulas(update, wanted):
    program = optimizer(update)
    assert text(program) == wanted
    np.testing.assert_allclose(runner(OPTIMIZER)(simplify(program)), runner(OPTIMIZER)(program), rtol=1e-6)


def test_a_setup_stays_and_constant_memory_goes():
    assert (
        text(optimizer("step = mul(g, l)", "l = div(0.1, fan_in)")) == "setup: l = 0.1 / fan_in; update: step = l * g"
    )
    assert text(optimizer("step = mul(g, s)", "s = add(0.25, 0.25)")) == "step = 0.5 * g"
    assert text(optimizer("s = mul(s, 0.5)\nstep = mul(g, s)", "s = add(0.5, 0.5)")) == (
        "setup: s = 1; update: s = 0.5 * s; step = g * s"
    )


def test_what_does_not_fit_is_left_as_it_was():
    small = Vocabulary("small", (Register("a"),), (Register("out"),), ("add", "neg", "mul"), constants=1, update=4)
    program = parse(small, "c0 = 0.5\nout = mul(a, c0)\nout = neg(out)\nout = mul(out, c0)\nout = mul(out, a)")
    # Folding the sign would take a second constant.
    assert simplify(program) == program


# --- formulas


@settings(max_examples=150, deadline=None, derandomize=True)
@given(any_program, st.randoms(use_true_random=False))
def test_names_and_order_do_not_matter(program, random):
    vocabulary = program.vocabulary
    renamed = {}
    for kind in ("scalar", "layer", "tensor"):
        group = [i for i, r in enumerate(vocabulary.memory, vocabulary.first_memory) if r.type == kind]
        renamed.update(zip(group, random.sample(group, len(group)), strict=True))

    def other(row):
        operands = [renamed.get(i, i) for i in row.operands]
        if OPERATIONS[vocabulary.operations[row.operation]].commutes and random.random() < 0.5:
            operands.reverse()
        return Instruction(row.operation, renamed.get(row.destination, row.destination), tuple(operands))

    twin = program._replace(setup=tuple(map(other, program.setup)), update=tuple(map(other, program.update)))
    assert text(twin) == text(program)
    assert structure(twin) == structure(program)


def test_structure_is_without_constants():
    one = optimizer("x = mul(w, 0.1)\nx = sub(g, x)\nstep = mul(x, -0.01)")
    two = optimizer("x = mul(w, -0.4)\nx = add(g, x)\nstep = mul(x, -0.4)")
    assert text(one) == "step = -0.01 * (g - 0.1 * w)"
    assert structure(one) == structure(two) == "step = c0 * (g + c1 * w)"
    assert structure(optimizer("step = mul(w, 0.1)")) != structure(one)


def test_long_programs_get_names_on_the_way():
    deep = Vocabulary(
        "deep", (Register("a"),), (Register("out"),), ("tanh", "copy"), memory=(Register("x"),), update=200
    )
    update = "x = tanh(a)\n" + "x = tanh(x)\n" * 190 + "out = copy(x)"
    shown = text(parse(deep, update))
    assert shown.count("tanh") == 191 and shown.count("; ") >= 15 and "u1 = tanh(" in shown
    assert latex(parse(deep, update)).count(r"\tanh") == 191


def test_latex():
    assert latex(known(OPTIMIZER, "adam")).splitlines()[1:-1] == [
        r"m &\leftarrow 0.9 m + 0.1 \, g \\",
        r"s &\leftarrow 0.9 s + 0.1 \cdot 1 \\",
        r"v &\leftarrow 0.999 v + 0.001 \, g^2 \\",
        r"l &\leftarrow 0.999 l + 0.001 \cdot 1 \\",
        r"\mathrm{step} &\leftarrow -0.001 \, \frac{\frac{m}{s}}{\sqrt{\left|\frac{v}{l}\right|} + 10^{-8}}",
    ]
    assert r"\mathrm{own\_best}" in latex(known(POPULATION, "gaussian"))
    assert r"\left[0.9 > \mathrm{uniform}\right]" in latex(known(POPULATION, "de"))
    assert r"&& \text{(setup)}" in latex(optimizer("step = mul(g, l)", "l = div(0.1, fan_in)"))


def test_text_of_arrays():
    code = assemble(known(OPTIMIZER, "lion"))
    wanted = "step = -0.0001 * (0.001 * w + sign(lerp(m, g, 0.1))); m = lerp(m, g, 0.01)"
    assert text_of(OPTIMIZER, code) == wanted
    assert text_of(OPTIMIZER, Code(code.tokens.tolist(), code.constants.tolist())) == wanted
    broken = code.tokens.copy()
    broken[3, 1] = 0
    assert text_of(OPTIMIZER, Code(broken, code.constants)) == "refused: writes what cannot be written (instruction 3)"
    assert text_of(OPTIMIZER, Code(code.tokens, code.constants * np.nan)) == "refused: not a number"


def test_formulas_are_fast():
    program = known(OPTIMIZER, "adamw")
    taken = []
    for _ in range(30):
        start = time.perf_counter()
        text(program)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 1e-3


# --- difference


def test_difference():
    one = known(OPTIMIZER, "momentum")
    assert difference(one, one) == []
    two = parse(OPTIMIZER, "m = mul(m, 0.8)\nm = add(m, g)\nstep = mul(m, -0.01)")
    assert difference(one, two) == [
        "formula before: m = g + 0.9 * m; step = -0.01 * m",
        "formula after: m = g + 0.8 * m; step = -0.01 * m",
        "constant c0: 0.9 -> 0.8",
    ]
    three = parse(OPTIMIZER, "m = mul(m, 0.9)\nx = sign(g)\nm = add(m, x)\nstep = mul(m, -0.01)\ny = neg(w)")
    assert difference(one, three)[2:] == [
        "update: added line 2, x = sign(g)",
        "update: changed line 3, m = add(m, g) -> m = add(m, x)",
        "update: added line 5, y = neg(w) (no effect)",
    ]
    assert difference(three, one)[2:] == [
        "update: removed line 2, x = sign(g)",
        "update: changed line 2, m = add(m, x) -> m = add(m, g)",
        "update: removed line 5, y = neg(w) (had no effect)",
    ]
    noise = one._replace(update=(*one.update, one.update[0]._replace(destination=OPTIMIZER.number("z"))))
    assert difference(one, noise)[0] == "same formula: m = g + 0.9 * m; step = -0.01 * m"
    assert difference(one, known(LOSS, "td"))[0] == "vocabulary: optimizer -> loss"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(programs(OPTIMIZER), programs(OPTIMIZER))
def test_different_programs_have_a_difference(one, two):
    assert bool(difference(one, two)) == (one != two)
    before, after = len(one.update), len(two.update)
    lines = difference(one, two)
    added, removed = (sum(line.startswith(f"update: {what}") for line in lines) for what in ("added", "removed"))
    assert added - removed == after - before
