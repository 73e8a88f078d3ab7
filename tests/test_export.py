"""Found rules taken home: the exported files stand alone and give the numbers that the run saw."""

import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import cli

import evometa
from evometa import champion, folder
from evometa.archives.read import Archive
from evometa.errors import ConfigError, UsageError
from evometa.export.module import optax_module, python_module
from evometa.export.rule import export, rule_of
from evometa.programs.code import assemble, disassemble, split
from evometa.programs.interpret import Machine, prepare
from evometa.programs.known import KNOWN, known
from evometa.programs.vary import random_programs
from evometa.programs.vocabularies import OPTIMIZER, VOCABULARIES
from evometa.space import Space

PARAMS = {"a": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "b": jnp.array([0.1, -0.2, 0.3, 0.5]), "c": jnp.ones((4, 2))}
LAYERS, FAN_IN, STEPS = (12, 4, 8), (3.0, 3.0, 4.0), 20


def load(source, folder, name):
    """The module of a source, imported from a file as its user would."""
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def samples(words, count=6):
    """Random programs that do something."""
    rows = random_programs(words, jax.random.key(7), 200)
    codes = jax.vmap(lambda row: split(words, row))(rows)
    busy = np.flatnonzero(jax.vmap(lambda code: prepare(words, code).counts.sum())(codes) >= 3)[:count]
    return [disassemble(words, split(words, np.asarray(rows[i]))) for i in busy]


def gradients(step):
    draw = np.random.default_rng(step)
    return jax.tree.map(lambda p: jnp.asarray(draw.normal(size=p.shape), jnp.float32), PARAMS)


def as_in_the_run(program, rate):
    """Weights after each step, by the interpreter on the flattened tree."""
    machine, ready = Machine(OPTIMIZER, LAYERS), prepare(OPTIMIZER, assemble(program))
    w, restore = jax.flatten_util.ravel_pytree(PARAMS)
    fan_in = jnp.asarray(FAN_IN)
    memory, out = machine.start(ready, {"fan_in": fan_in}), []
    step = jax.jit(lambda memory, w, g, t: machine.step(
        ready, memory, {"w": w, "g": g, "t": t, "progress": t / STEPS, "fan_in": fan_in}))  # fmt: skip
    for t in range(1, STEPS + 1):
        outputs, memory = step(memory, w, jax.flatten_util.ravel_pytree(gradients(t))[0], float(t))
        w = w + rate * outputs["step"]
        out.append(w)
    return np.stack(out)


def by_optax(module, **options):
    optimizer, params = module.found_rule(**options), PARAMS
    state, out = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for t in range(1, STEPS + 1):
        moves, state = update(gradients(t), state, params)
        params = optax.apply_updates(params, moves)
        out.append(jax.flatten_util.ravel_pytree(params)[0])
    return np.stack(out)


@pytest.mark.parametrize("name", sorted(KNOWN["optimizer"]))
def test_known_rules_as_optax(name, tmp_path):
    program = known(OPTIMIZER, name)
    module = load(optax_module(program, "a test", {"lr": 0.5}), tmp_path, name)
    options = {"steps": STEPS} if "steps" in module.found_rule.__code__.co_varnames else {}
    assert np.allclose(by_optax(module, **options), as_in_the_run(program, 0.5), rtol=1e-5, atol=1e-7)


def test_random_rules_as_optax(tmp_path):
    compared = 0
    for number, program in enumerate(samples(OPTIMIZER)):
        module = load(optax_module(program, "a test", {}), tmp_path, f"rule{number}")
        options = {"steps": STEPS} if "steps" in module.found_rule.__code__.co_varnames else {}
        mine, run = by_optax(module, **options), as_in_the_run(program, 1.0)
        # Chaos and overflow are the program's own: compared while numbers stay ordinary.
        fine = np.isfinite(run).all(axis=1) & (np.abs(run).max(axis=1) < 1e4)
        steps = int(np.argmin(fine)) if not fine.all() else STEPS
        assert np.allclose(mine[:steps], run[:steps], rtol=1e-3, atol=1e-4)
        compared += steps
    assert compared >= STEPS


@pytest.mark.parametrize("name", sorted(VOCABULARIES))
def test_every_vocabulary_as_numpy(name, tmp_path):
    words = VOCABULARIES[name]
    draw = np.random.default_rng(0)
    compared = 0
    for number, program in enumerate([known(words, rule) for rule in sorted(KNOWN[name])] + samples(words, 3)):
        module = load(python_module(program, "a test", {"lr": 0.1}), tmp_path, f"{name}{number}")
        machine, ready = Machine(words, LAYERS), prepare(words, assemble(program))
        inputs = {
            register.name: np.asarray(draw.random({"tensor": 24, "layer": 3, "scalar": ()}[register.type]), np.float32)
            for register in words.inputs
        }
        wide = {
            register.name: np.repeat(inputs[register.name], LAYERS)
            if register.type == "layer"
            else inputs[register.name]
            for register in words.inputs
        }

        def arguments(function, wide=wide):
            names = function.__code__.co_varnames[: function.__code__.co_argcount + function.__code__.co_kwonlyargcount]
            return {n: wide[n] for n in names if n in wide}

        memory, mine = machine.start(ready, inputs), module.start(layers=LAYERS, **arguments(module.start))
        for _ in range(3):
            outputs, memory = machine.step(ready, memory, inputs)
            theirs, mine = module.update(mine, layers=LAYERS, **arguments(module.update))
            for key, value in outputs.items():
                value = np.asarray(value)
                if not np.isfinite(value).all() or np.abs(value).max() > 1e6:
                    continue
                assert np.allclose(np.broadcast_to(theirs[key], value.shape), value, rtol=1e-4, atol=1e-6)
                assert np.asarray(theirs[key]).dtype == np.float32
                compared += 1
    assert compared > 6


def test_an_exported_module_needs_nothing_of_evometa(tmp_path):
    source = optax_module(known(OPTIMIZER, "adam"), "a test", {})
    assert "import evometa" not in source and "from evometa" not in source
    file = tmp_path / "rule.py"
    file.write_text(python_module(known(OPTIMIZER, "adam"), "a test", {}))
    code = "import sys, rule; assert not any(m.startswith(('evometa', 'jax')) for m in sys.modules); print(sorted(dir(rule)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "update" in done.stdout, done.stderr


def test_mistakes(tmp_path):
    numbers = small_run(tmp_path, name="numbers", space={"rate": evometa.log(1e-3, 1.0)}, strategy="random_search")
    with pytest.raises(ConfigError, match="expected a run that searches a program, got numbers, which searches rate"):
        rule_of(numbers)
    with pytest.raises(ConfigError, match="--as optax needs an optimizer rule .*'loss'. Try --as python"):
        optax_module(known(VOCABULARIES["loss"], "td"), "a test", {})
    with pytest.raises(UsageError, match="expected --as optax, python, latex, got 'optx'. Did you mean"):
        export(tmp_path, "optx")


# --- from a run ---------------------------------------------------------------------------------------


def small_run(out, name, space, strategy, more=None):
    """A run of four generations whose loss is what a rule's steps come to on a fixed gradient; its folder."""
    machine = Machine(OPTIMIZER, (3,))

    def fit(key, candidate, support):
        if "rule" not in candidate:
            return candidate["rate"]
        ready = prepare(OPTIMIZER, candidate["rule"])
        given = {"w": 1.0, "g": jnp.array([0.5, -1.0, 2.0]), "t": 1.0, "progress": 0.5, "fan_in": 1.0}
        outputs, _ = machine.step(ready, machine.start(ready, given), given)
        return jnp.mean((outputs["step"] * candidate.get("lr", 1.0) + given["g"]) ** 2)

    baseline = {"rule": "sgd", "lr": 0.1, **(more or {})} if "rule" in space else {"rate": 0.1}
    task = evometa.task(
        name=name, space=space, baseline=baseline,
        domains={f"d{i}": {"support": np.float32(0), "away": np.float32(i)} for i in range(4)},
    )  # fmt: skip
    task.fit(fit)
    task.judge(lambda key, learned, query: {"loss": learned + 0 * query})
    return evometa.run(task, strategy=strategy, population=16, generations=4, out=out, name=name).path


def test_what_a_run_found_is_shown_compared_and_exported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = small_run(
        tmp_path, "found", {"rule": evometa.program("optimizer"), "lr": evometa.log(1e-3, 1.0)}, "linear_gp"
    )
    rule = rule_of(path)
    best = champion.last(path)
    space = Space.from_json(folder.read_record(path)["task"]["space"])
    assert rule.program == disassemble(OPTIMIZER, space.decode_host(best.genome)["rule"]) and set(rule.beside) == {"lr"}
    shown = cli("archive", "show", str(path), f"{best.generation}:{best.index or 0}")
    assert "formula   " in shown.out and "step = " in shown.out
    rows = json.loads(cli("archive", "query", str(path), "SELECT program, text FROM lineage", "--json").out)
    assert len(rows) == 64 and all(len(row["program"]) == 90 and row["text"] for row in rows)
    steps = json.loads(cli("archive", "diff", str(path), "3:0", "--json").out)
    assert {"run", "steps", "unchanged"} == set(steps)
    pair = cli("archive", "diff", str(path), "3:9", "0:0")
    assert pair.out.startswith("0:0 -> 3:9") and "rule: " in pair.out
    report = cli("report", str(path))
    assert "  rule = " in report.out and "  lr = " in report.out
    for form, word in (("optax", "GradientTransformation"), ("python", "import numpy"), ("latex", "aligned")):
        assert word in cli("export", str(path), "--as", form).out
    assert cli("export", str(path), "--as", "optax", "--to", "rule.py").code == 0
    assert cli("export", str(path), "--as", "optax", "--to", "rule.py").code == 2  # never over a file
    # Inside the run and outside: the same step from the same gradient.
    module = load((tmp_path / "rule.py").read_text(), tmp_path, "again")
    options = {"steps": 2} if "steps" in module.found_rule.__code__.co_varnames else {}
    optimizer, w, g = module.found_rule(**options), jnp.ones(3), jnp.array([0.5, -1.0, 2.0])
    moved, _ = optimizer.update(g, optimizer.init(w), w)
    loss = float(jnp.mean((moved + g) ** 2))
    # The champion's own judgements; all its domains have the same loss.
    name = (best.label, best.generation, best.index)
    judged = [r for r in Archive(path).judgements().to_pylist() if (r["label"], r["generation"], r["index"]) == name]
    assert judged and all(np.isclose(row["loss"], loss, rtol=1e-4, atol=1e-5) for row in judged)
