"""What a built-in task does with a rule, as a part of an exported module: the numbers and choices beside it applied.

A program says what comes out of one step; how large the step is, which of two places is kept, how long a neuron's
weights are, is the task's. `task_part` writes that as NumPy functions on top of the module's `start` and `update`, in
float32 and in the run's order. What a module does not apply is said in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from evometa.errors import ConfigError
from evometa.export.lines import late_inputs, slope_lines
from evometa.programs.code import Program

Values = Mapping[str, float | str]  # numbers and choices of a candidate, by the names of their columns


class Part(NamedTuple):
    """The functions of a task, which of the values they apply, and what else to say."""

    code: str = ""
    applied: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def task_part(program: Program, values: Values, task: str, options: Mapping[str, Any]) -> Part:
    """The part of `task`, a module such as `evometa.tasks.sym_bbo`; empty for tasks that are not built in."""
    made = _PARTS.get(task)
    return made(program, values, options) if made else Part()


def constant(name: str) -> str:
    """The name of a column as the name of a constant."""
    return "".join(c if c.isalnum() else "_" for c in name).upper()


def left_out(values: Values, applied: tuple[str, ...]) -> list[str]:
    """A sentence for what a module holds beside the rule and does not apply."""
    idle = [constant(name) for name in values if name not in applied]
    if not idle:
        return []
    one = len(idle) == 1
    is_beside, does = ("is", "it does") if one else ("are", "they do")
    return [f"{', '.join(idle)} {is_beside} beside the rule and not applied here: what {does} is the task's."]


def _read(program: Program, given: Mapping[str, str]) -> list[str]:
    """Of the arguments that a task gives to `update`, by input, those that the program reads."""
    reads = late_inputs(program)
    return [argument for name, argument in given.items() if name in reads]


def mup_remark() -> str:
    """What an exported rule of a run with maximal update parametrization leaves to its user."""
    return (
        "The run had maximal update parametrization: the steps of arrays are multiplied by their pace. It also began"
        " with smaller weights in the last layer, sqrt(32 / its inputs) times as large as usual; that is left to you."
    )


def _learned_opt(program: Program, values: Values, options: Mapping[str, Any]) -> Part:
    mup = options.get("mup") is True
    weights = "w=weights, " if "w" in late_inputs(program) else ""
    code = f'''
def learn(weights, memory, *, layers, rate={"LR" if "lr" in values else "1.0"}, pace=1.0, **inputs):
    """Weights [n] after a step, and the memory; `inputs` are those of `update`, without the weights.

    `pace`: a factor of the step, for each number or for all{"; see `mup_pace`" if mup else ""}.
    """
    outputs, memory = update(memory, layers=layers, {weights}**inputs)
    size = xp.asarray(rate, xp.float32) * xp.asarray(pace, xp.float32)
    return weights + size * outputs["step"], memory
'''
    if mup:
        code += _MUP_PACE.format(base=_base_width())
    return Part(code, ("lr",), (mup_remark(),) if mup else ())


def _base_width() -> float:
    from evometa.tasks.parts.mlp import BASE_WIDTH

    return float(BASE_WIDTH)


_MUP_PACE = '''

def mup_pace(layers, fan_in):
    """The pace [n] of arrays that are weights, biases, weights, biases ..., the inputs' first, as in the run.

    `fan_in`: the inputs of each array's units.
    """
    behind = [number > 0 and number % 2 == 0 for number in range(len(layers))]
    pace = [{base} / fan if hidden else 1.0 for fan, hidden in zip(fan_in, behind)]
    return xp.repeat(xp.asarray(pace, xp.float32), layers)
'''


def mup_pace_of_leaves() -> str:
    """The same for an Optax module, whose layers are the leaves of a tree."""
    return _MUP_LEAVES.format(base=_base_width())


_MUP_LEAVES = """
def _pace(tree, hidden):
    leaves = jax.tree.leaves(tree)
    matrices = [i for i, leaf in enumerate(leaves) if leaf.ndim > 1]
    behind = matrices[1:] if hidden is None else [i for i in matrices if jax.tree.leaves(hidden)[i]]
    pace = [{base} / (leaf.size // leaf.shape[-1]) if i in behind else 1.0 for i, leaf in enumerate(leaves)]
    return xp.concatenate([xp.full(leaf.size, each, xp.float32) for each, leaf in zip(pace, leaves)])
"""


def _local_rule(program: Program, values: Values, options: Mapping[str, Any]) -> Part:
    del options
    given = {
        "w": "w=wide(weights[None])",
        "pre": "pre=wide(pre[:, None, :])",
        "post": "post=wide(post[:, :, None])",
        "back": "back=wide((post @ weights)[:, None, :])",
        "modulator": "modulator=_F(modulator)",
        "fan_in": "fan_in=_F(weights.shape[1])",
    }
    inputs = "".join(f", {one}" for one in _read(program, given))
    early = ", fan_in=_F(weights.shape[1])" if "fan_in" in late_inputs(program, setup=True) else ""
    code = f'''
def start_layer(weights):
    """What a layer of weights [outputs, inputs] keeps beside them: the rule's memory and its neurons' first lengths."""
    memory = start(layers=(weights.shape[1],) * weights.shape[0]{early})
    return {{name: a.reshape(weights.shape) for name, a in memory.items()}}, _length(weights)


def learn(weights, kept, pre, post, modulator, *, rate=RATE, homeostasis=HOMEOSTASIS):
    """The weights [outputs, inputs] of a layer after a step, and what it keeps.

    `pre` [batch, inputs] and `post` [batch, outputs] are the activities at both ends, before the step; all layers
    learn from the same pass. `modulator`: in the run the share of the training that is left, 1 - step / steps, from 1.
    """
    memory, lengths = kept
    full = (len(pre), *weights.shape)

    def wide(a):
        return xp.broadcast_to(a, full).reshape(-1).astype(xp.float32)

    def narrow(a):
        return xp.mean(xp.broadcast_to(a, (full[0] * full[1] * full[2],)).reshape(full), axis=0)

    memory = {{name: wide(a[None]) for name, a in memory.items()}}
    outputs, memory = update(memory, layers=(full[2],) * (full[0] * full[1]){inputs})
    weights = weights + _F(rate) * narrow(outputs["change"])
    weights = weights * (lengths / _length(weights)) ** _F(homeostasis)
    return weights, ({{name: narrow(a) for name, a in memory.items()}}, lengths)


def _length(weights):
    return xp.sqrt(xp.sum(weights * weights, axis=1, keepdims=True) + _F(1e-12))
'''
    missing = [name for name in ("rate", "homeostasis") if name not in values]
    if missing:
        raise ConfigError(f"export: expected {', '.join(missing)} beside a rule of local_rule, got {', '.join(values)}")
    return Part(code, ("rate", "homeostasis"))


def _sym_bbo(program: Program, values: Values, options: Mapping[str, Any]) -> Part:
    del options
    given = {
        "x": "x=x.reshape(-1)",
        "own_best": 'own_best=swarm["own"].reshape(-1)',
        "best": 'best=for_all(swarm["own"][xp.argmin(swarm["best"])])',
        "worst": "worst=for_all(x[xp.argmax(f)])",
        "mean": "mean=for_all(xp.mean(x, axis=0))",
        **{f"other{i + 1}": f'other{i + 1}=x[luck["others"][{i}]].reshape(-1)' for i in range(3)},
        "uniform": 'uniform=luck["uniform"].reshape(-1)',
        "normal": 'normal=luck["normal"].reshape(-1)',
        "spread": "spread=for_all(xp.std(x, axis=0))",
        "rank": "rank=xp.repeat((f[None] < f[:, None]).sum(axis=1).astype(xp.float32) / _F(len(f) - 1), x.shape[1])",
        "progress": "progress=_F(progress)",
    }
    inputs = "".join(f"        {one},\n" for one in _read(program, given))
    if values.get("select") not in ("greedy", "always"):
        raise ConfigError(f"export: expected select, greedy or always, beside a rule of sym_bbo, got {dict(values)}")
    return Part(_SWARM.replace("<inputs>\n", inputs), ("select",))


_SWARM = '''
BOUND = 5.0  # the rule's box is [-5, 5] in every coordinate, as in the run


def start_swarm(function, x):
    """A swarm at places x [population, dimension]; `function` gives the heights [population] of such places."""
    f = xp.asarray(function(x), xp.float32)
    return {"x": x, "f": f, "own": x, "best": f, "memory": start(layers=(x.shape[1],) * len(x))}


def advance(swarm, function, luck, progress):
    """The swarm after an iteration, in which every individual is evaluated once.

    `luck`: `uniform` and `normal`, random numbers [population, dimension], and `others` [3, population], for each
    individual the numbers of three different others. `progress`: the share of the budget that is spent.
    """
    x, f = swarm["x"], swarm["f"]

    def for_all(one):
        return xp.broadcast_to(one[None], x.shape).reshape(-1)

    outputs, memory = update(
        swarm["memory"],
        layers=(x.shape[1],) * len(x),
<inputs>
    )
    place = _into_box(xp.broadcast_to(outputs["next"], (x.size,)).reshape(x.shape), x)
    height = xp.asarray(function(place), xp.float32)
    better = height < swarm["best"]
    own, best = xp.where(better[:, None], place, swarm["own"]), xp.where(better, height, swarm["best"])
    moves = (height < f) | (SELECT == "always")
    x, f = xp.where(moves[:, None], place, x), xp.where(moves, height, f)
    return {"x": x, "f": f, "own": own, "best": best, "memory": memory}


def minimize(function, dimension, population=30, iterations=50, low=-BOUND, high=BOUND, seed=0):
    """The best place [dimension] found, and its height, in population x iterations evaluations of `function`."""
    draw = xp.random.default_rng(seed)

    def heights(x):
        return function(low + (x + BOUND) * (high - low) / (2 * BOUND))

    def others(i):
        chosen = draw.choice(population - 1, 3, replace=False)
        return chosen + (chosen >= i)

    swarm = start_swarm(heights, draw.uniform(-BOUND, BOUND, (population, dimension)).astype(xp.float32))
    for number in range(1, iterations):
        luck = {
            "uniform": draw.random((population, dimension)).astype(xp.float32),
            "normal": draw.normal(size=(population, dimension)).astype(xp.float32),
            "others": xp.stack([others(i) for i in range(population)], axis=1),
        }
        swarm = advance(swarm, heights, luck, number / iterations)
    least = xp.argmin(swarm["best"])
    return low + (swarm["own"][least] + BOUND) * (high - low) / (2 * BOUND), swarm["best"][least]


def _into_box(x, before):
    # Reflected at the walls; a coordinate that is not finite stays where it was.
    turned = xp.mod(x + _F(BOUND), _F(4 * BOUND))
    folded = xp.where(turned > 2 * BOUND, _F(4 * BOUND) - turned, turned) - _F(BOUND)
    folded = xp.where(xp.abs(x) <= BOUND, x, folded)
    return xp.where(xp.isfinite(folded), folded, before)
'''


def _rl_loss(program: Program, values: Values, options: Mapping[str, Any]) -> Part:
    del options
    reads = late_inputs(program)
    begin, lines, slope = slope_lines(program, "q")
    helpers = _LARGER if any("_larger(" in line for line in lines) else ""
    passed = ", ".join(f"{name}={name}" for name in reads)
    arguments = ", ".join(reads)
    code = "\n".join(
        [
            helpers,
            f"def slope(*, layers{', ' + arguments if reads else ''}):",
            '    """The loss\'s derivative by `q`, one number per transition; all else it reads is held fixed."""',
            *begin,
            *lines,
            f"    return xp.broadcast_to(xp.asarray({slope}, xp.float32), (sum(layers),))",
            "",
            "",
            f"def learn(q, *, layers, rate={'LR' if 'lr' in values else '1.0'}"
            f"{''.join(', ' + name for name in reads if name != 'q')}):",
            '    """Values after a step, q - rate * slope.',
            "",
            "    In the run an entry of a table moves by its mean over trials, and the rate falls linearly to zero;",
            '    a network gets the slopes through Adam with this rate."""',
            f"    return q - _F(rate) * slope(layers=layers{', ' + passed if reads else ''})",
            "",
        ]
    )
    return Part(code, ("lr",))


_LARGER = """
def _larger(a, b):
    return xp.where(a > b, _F(1.0), xp.where(a == b, _F(0.5), _F(0.0)))

"""
_PARTS: dict[str, Callable[[Program, Values, Mapping[str, Any]], Part]] = {
    "evometa.tasks.learned_opt": _learned_opt,
    "evometa.tasks.local_rule": _local_rule,
    "evometa.tasks.sym_bbo": _sym_bbo,
    "evometa.tasks.rl_loss": _rl_loss,
}
