"""A rule of every built-in task taken home: trained with outside of the run, it has the loss that the archive holds.

Data, first weights and random numbers are the run's own, for the cell of one candidate and one domain. All that is done
at a step is the exported module's.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_export import load

import evometa
from evometa.archives.read import Archive
from evometa.export.rule import export, rule_of
from evometa.keys import Stream, cell_keys, fit_and_judge_keys, stream_key
from evometa.names import load_task


def recorded(out, name, options, candidate):
    """`(path, task, losses)` of a run whose one candidate is `candidate`; losses by domain."""
    task = load_task(name, options)
    run = evometa.run(
        name, strategy="static", population=1, generations=1, task_options=options, name=name, out=out,
        start=task.space.encode({**task.baseline, **candidate}).tolist(), champion={"observed": 0, "replicates": 1},
    )  # fmt: skip
    scores = Archive(run.path).row(0, 0)["scores"]
    return run.path, task, {s["domain"]: s["loss"] for s in scores if s["query"] == task.objectives[0].query}


def keys(domain, query):
    """The trainer's key and the judge's of a cell of generation 0."""
    cell = cell_keys(stream_key(0, 0, Stream.EVALUATE), (domain,), 1)[0, 0]
    fit, judge = fit_and_judge_keys(cell, (query,))
    return fit, judge[query]


def module_of(path, form, out):
    return load(export(path, form, (0, 0)), out, f"{path.name}_{form}".replace("-", "_"))


MEMORY = """m = lerp(m, g, 0.2)
x = mul(m, progress)
l = layer_rms(g)
x = div(x, l)
x = sub(m, x)
step = mul(x, -0.01)"""


@pytest.mark.parametrize(("rule", "lr", "mup"), [(MEMORY, 40.0, True)])
def test_learned_opt(rule, lr, mup, tmp_path):
    from evometa.tasks.parts import mlp

    domain = "iris-16-tanh"  # its last layer reads 16 hidden units, so that the pace matters
    options = {"steps": 8, "mup": mup, "train": [domain], "validation": ["cancer-48-gelu"], "test": []}
    path, task, losses = recorded(tmp_path, "learned_opt", options, {"rule": rule, "lr": lr})
    support, query = (
        jax.tree.map(jnp.asarray, part()) for part in (task.domain(domain).support, task.domain(domain).queries["home"])
    )
    net, (key, _) = mlp.network(support), keys(domain, "home")
    first, ordering = jax.random.split(key)
    order = jax.random.randint(ordering, (8, 32), 0, support["x"].shape[0])
    begin = net.start(first, support["scales"])

    def loss_of(flat, rows):
        return mlp.loss(
            net.outputs(flat, support["x"][rows], support["activation"]), support["y"][rows], support["classes"]
        )

    gradient = jax.jit(jax.grad(loss_of))

    @jax.jit
    def loss(flat):
        found = mlp.loss(net.outputs(flat, query["x"], query["activation"]), query["y"], query["classes"])
        return mlp.score(found, query["trivial"])

    module = module_of(path, "optax", tmp_path)
    steps = {"steps": 8} if "steps" in module.found_rule.__code__.co_varnames else {}
    optimizer, params = module.found_rule(**steps), net.arrays(begin)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for rows in order:
        slopes = net.arrays(gradient(np.concatenate([np.ravel(p) for p in params]), rows))
        moves, state = update(slopes, state, params)
        params = [np.asarray(p) + np.asarray(move) for p, move in zip(params, moves, strict=True)]
    by_optax = loss(np.concatenate([np.ravel(p) for p in params]))

    module, weights = module_of(path, "python", tmp_path), np.asarray(begin)
    memory = module.start(layers=net.layers)
    pace = module.mup_pace(net.layers, net.fan_in) if mup else 1.0
    names = module.update.__code__.co_varnames[: module.update.__code__.co_kwonlyargcount + 1]
    for t, rows in enumerate(order, 1):
        given = {"g": np.asarray(gradient(weights, rows)), "t": np.float32(t), "progress": np.float32(t / 8)}
        given = {key: value for key, value in given.items() if key in names}
        weights, memory = module.learn(weights, memory, layers=net.layers, pace=pace, **given)
    assert [float(by_optax), float(loss(weights))] == pytest.approx([losses[domain]] * 2, abs=2e-4)
    assert abs(losses[domain] - float(loss(begin))) > 0.01  # it was trained


@pytest.mark.parametrize(
    "rule",
    ["trace = lerp(trace, post, 0.3)\nx = sub(pre, back)\nx = mul(x, trace)\nl = layer_mean(x)\nx = sub(x, l)\n"
     "x = mul(x, modulator)\nchange = div(x, fan_in)"],
)  # fmt: skip
def test_local_rule(rule, tmp_path):
    from evometa.tasks import local_rule

    options = {"steps": 15, "batch": 2}
    candidate = {"rule": rule, "rate": 3.0, "homeostasis": 0.4}
    path, task, losses = recorded(tmp_path, "local_rule", options, candidate)
    module = module_of(path, "python", tmp_path)
    for domain in ("digits_low", "wine"):
        support, query = task.domain(domain).support(), task.domain(domain).queries["probe"]()
        first, ordering = jax.random.split(keys(domain, "probe")[0])
        x = np.asarray(support["x"])
        weights = np.asarray(jax.random.normal(jax.random.fold_in(first, 0), (16, x.shape[1])) / x.shape[1] ** 0.5)
        order = np.asarray(jax.random.randint(ordering, (15, 2), 0, len(x)))
        kept = module.start_layer(weights)
        for step, rows in enumerate(order):
            post = np.tanh(x[rows] @ weights.T)
            weights, kept = module.learn(weights, kept, x[rows], post, 1.0 - step / 15)
        learned = {"weights": (jnp.asarray(weights),), "nonlinearity": 0, "inner_steps": 15.0, "refused": False}
        found = float(local_rule.judge(None, learned, jax.tree.map(jnp.asarray, query))["loss"])
        assert found == pytest.approx(losses[domain], abs=2e-4)


@pytest.mark.parametrize("select", ["greedy", "always"])
def test_sym_bbo(select, tmp_path):
    from evometa.tasks import sym_bbo
    from evometa.tasks.functions import value
    from evometa.tasks.parts import swarm

    size = {"dimension": 3, "population": 9, "iterations": 10, "instances": 1}
    rule = ("y = sub(other1, other2)\ny = mul(y, 0.6)\nx_ = add(best, y)").replace("x_", "z") + (
        "\ny = sub(spread, uniform)\nz = where(y, z, mean)\ny = lerp(rank, progress, 0.5)\ny = mul(y, normal)\n"
        "y = mul(y, 0.1)\ny = add(z, y)\nnext = lerp(own_best, y, 0.9)"
    )
    path, task, losses = recorded(tmp_path, "sym_bbo", size, {"rule": rule, "select": select})
    module = module_of(path, "python", tmp_path)
    assert select == module.SELECT
    for domain in ("sphere", "rastrigin"):
        query = task.domain(domain).queries["run"]()
        draw_key, run_key = jax.random.split(keys(domain, "run")[1])
        land = swarm.instances(draw_key, jax.tree.map(jnp.asarray, query), 1)
        one = {**land, "optimum": land["optimum"][0], "rotation": land["rotation"][0]}
        heights = jax.jit(jax.vmap(lambda x, one=one: value(x, one)))
        start_key, run_key = jax.random.split(run_key)
        x = np.asarray(jax.random.uniform(start_key, (1, 9, 3), minval=-5.0, maxval=5.0))[0]
        state = module.start_swarm(heights, x)
        for number in range(1, 10):
            each = jax.random.split(jax.random.fold_in(run_key, number), 3)
            luck = {
                "uniform": np.asarray(jax.random.uniform(each[0], (9, 3))),
                "normal": np.asarray(jax.random.normal(each[1], (9, 3))),
                "others": np.asarray(swarm.three_others(each[2], jnp.arange(9))),
            }
            state = module.advance(state, heights, luck, query["progress"][number])
        regret = np.log10(1e-8 + state["best"].min())
        found = (regret + sym_bbo.DECADES) / (float(query["random"]) + sym_bbo.DECADES)
        assert found == pytest.approx(losses[domain], abs=2e-4)
    place, height = module.minimize(lambda x: ((x - 2.0) ** 2).sum(axis=1), 3, iterations=100, low=-1.0, high=4.0)
    assert place.shape == (3,) and height == pytest.approx(((place - 2.0) ** 2).sum(), rel=1e-3) and height < 0.5


@pytest.mark.parametrize(
    "rule",
    ["x = sub(reward, q)\ny = mul(discount, next_online)\nx = add(x, y)\nx = abs(x)\ny = max(q, q_max)\n"
     "z = exp(y)\nz = div(x, z)\ny = min(x, 0.5)\ny = add(y, z)\nz = square(x)\nz = sqrt(z)\nloss = add(y, z)"],
)  # fmt: skip
def test_rl_loss_graph(rule, tmp_path):
    from evometa.tasks.parts import qtable

    options = {"instances": 2, "steps": 12, "actors": 4}
    path, task, losses = recorded(tmp_path, "rl_loss_graph", options, {"rule": rule, "lr": 0.4})
    module = module_of(path, "python", tmp_path)
    domain = "ring"
    support = jax.tree.map(jnp.asarray, task.domain(domain).support())
    query = jax.tree.map(jnp.asarray, task.domain(domain).queries["greedy"]())
    code = module.slope.__code__
    names = set(code.co_varnames[: code.co_kwonlyargcount]) - {"layers"}

    def slope(inputs):
        given, size = {name: value for name, value in inputs.items() if name in names}, inputs["q"].size
        wanted = jax.ShapeDtypeStruct((size,), jnp.float32)
        return jax.pure_callback(
            lambda given: module.slope(layers=(size,), **jax.tree.map(np.asarray, given)), wanted, given
        )

    tables = jax.jit(lambda key: qtable.learn(key, slope, module.LR, support, 4, 3.0))(keys(domain, "greedy")[0])
    found = float(qtable.shortfall(tables[-1], query).mean())
    assert found == pytest.approx(losses[domain], abs=2e-4)
    given = {name: np.array([0.5, -1.0], np.float32) for name in names}
    moved = module.learn(layers=(2,), **given)
    assert np.allclose(moved, given["q"] - np.float32(0.4) * module.slope(layers=(2,), **given), rtol=1e-6)


def test_what_is_not_applied_is_said(tmp_path):
    from evometa.export.latex import latex_source
    from evometa.export.module import optax_module, python_module
    from evometa.programs.known import known
    from evometa.programs.vocabularies import OPTIMIZER

    program = known(OPTIMIZER, "sgd")
    for form in (python_module, optax_module):
        source = form(program, "a test", {"noise": 0.5, "kind": "flat"})
        assert "NOISE, KIND are beside the rule and not applied here: what they do is the task's." in source
        assert "NOISE = 0.5  #" in source and "KIND = 'flat'  #" in source
    assert "% kind = flat" in latex_source(program, "a test", {"kind": "flat"})


def test_an_array_beside_a_rule_is_named_as_left_behind(tmp_path):
    from test_export import small_run

    space = {"rule": evometa.program("optimizer"), "lr": evometa.log(1e-3, 1.0), "bias": evometa.weights(2)}
    path = small_run(tmp_path, "arrays", space, "random_search", {"bias": [0.0, 0.0]})
    assert rule_of(path, (0, 0)).lost == ("bias",)
    assert "(without bias, which stood beside it)" in export(path, "python", (0, 0))
