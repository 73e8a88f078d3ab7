"""A found rule as a Python module that needs nothing of evometa: NumPy, or JAX and Optax.

The module is straight-line arithmetic, one line per instruction, in float32 and in the order in which the run did it.
It is text made from a checked program over a fixed table of operations; nothing of the archive gets into it but
numbers and the run's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap
from typing import Any

from evometa.errors import ConfigError
from evometa.export.beside import Values, constant, left_out, mup_pace_of_leaves, mup_remark, task_part
from evometa.export.lines import kept_memory, late_inputs, lines_of, unwritten
from evometa.printable import docstring
from evometa.programs.code import Program
from evometa.programs.formula import text
from evometa.programs.simplify import simplify

_HELPERS = {
    "_div": """
def _div(a, b):
    return a / xp.where(xp.abs(b) < _F(1e-12), xp.where(b < 0, _F(-1e-12), _F(1e-12)), b)
""",
    "_clip": """
def _clip(a, b):
    return xp.clip(a, -xp.abs(b), xp.abs(b))
""",
    "_mod": """
def _mod(a, b):
    rest = a - b * xp.floor(a / xp.where(b == 0, _F(1.0), b))
    return xp.where((b == 0) | ~xp.isfinite(rest), _F(0.0), rest)
""",
    **{
        f"_{name}": f"""
def _{name}(a, layers):
    return xp.concatenate([{row} for part in _parts(a, layers)])
"""
        for name, row in {
            "layer_sum": "xp.broadcast_to(xp.sum(part), part.shape)",
            "layer_max": "xp.broadcast_to(xp.max(part), part.shape)",
            "layer_min": "xp.broadcast_to(xp.min(part), part.shape)",
            "layer_first": "xp.broadcast_to(part[:1], part.shape)",
            "reverse": "part[::-1]",
            "sort": "xp.sort(part)",
            "descend": "xp.sort(part)[::-1]",
            "cumsum": "xp.cumsum(part)",
            "cummax": "xp.maximum.accumulate(part)",
            "shift": "xp.concatenate([xp.zeros(1, xp.float32), part[:-1]])",
            "rotate": "xp.roll(part, -1)",
            "delta": "part - xp.concatenate([xp.zeros(1, xp.float32), part[:-1]])",
        }.items()
    },
    "_layer_mean": """
def _layer_mean(a, layers):
    return xp.concatenate([xp.broadcast_to(xp.mean(part), part.shape) for part in _parts(a, layers)])
""",
    "_layer_rms": """
def _layer_rms(a, layers):
    means = [xp.sqrt(xp.mean(part * part)) for part in _parts(a, layers)]
    return xp.concatenate([xp.full(n, mean, xp.float32) for n, mean in zip(layers, means)])
""",
    "_mean": """
def _mean(a, layers):
    return xp.mean(xp.broadcast_to(a, (sum(layers),)))
""",
    "_rms": """
def _rms(a, layers):
    a = xp.broadcast_to(a, (sum(layers),))
    return xp.sqrt(xp.mean(a * a))
""",
}
_FAN_IN = """
def _fan_in(tree):
    # Inputs of each unit. A matrix's last axis are its units; a vector of biases belongs to the nearest matrix
    # (one before it where two are as near) with as many units, and stands alone where there is none.
    leaves = jax.tree.leaves(tree)
    known = {i: leaf.size // leaf.shape[-1] for i, leaf in enumerate(leaves) if leaf.ndim > 1}

    def of(i):
        if i in known or not leaves[i].ndim:
            return known.get(i, 1)
        same = [j for j in known if leaves[j].shape[-1] == leaves[i].shape[0]]
        return known[min(same, key=lambda j: (abs(i - j), j > i))] if same else 1

    return xp.concatenate([xp.full(leaf.size, of(i), xp.float32) for i, leaf in enumerate(leaves)])
"""
_PARTS = """
def _parts(a, layers):
    a, ends = xp.broadcast_to(a, (sum(layers),)), [0]
    for n in layers:
        ends.append(ends[-1] + n)
    return [a[i:j] for i, j in zip(ends[:-1], ends[1:])]
"""


def python_module(
    program: Program, origin: str, beside: Values, task: str = "", options: Mapping[str, Any] | None = None
) -> str:
    """A NumPy module: `start(...) -> memory` and `update(memory, ...) -> (outputs, memory)` on arrays of one size.

    `beside`: numbers and choices that were searched with the rule. For a built-in `task`, the name of its module, and
    its `options`, functions follow that apply them as the run did (beside.py).
    """
    program = simplify(program)
    inputs = late_inputs(program)
    words = program.vocabulary
    part = task_part(program, beside, task, options or {})
    what = [
        f"    {r.name}: {r.type}{', ' + docstring(r.text) if r.text else ''}" for r in words.inputs if r.name in inputs
    ]
    remarks = [line for text in (*part.remarks, *left_out(beside, part.applied)) for line in ("", *wrap(text, 110))]
    return "\n".join(
        [
            _head(program, origin),
            "",
            "Inputs of `update`, float32: tensors are flat arrays [n], one number per element; a layer input holds the",
            "number of its layer once for each element; scalars are numbers; `layers` are the layers' sizes.",
            "",
            *(what or ["    none"]),
            *remarks,
            '"""',
            "",
            "import numpy as xp",
            "",
            "_F = xp.float32",
            *_constants(beside),
            _core(program),
            *([part.code] if part.code else []),
        ]
    )


def _constants(beside: Values) -> list[str]:
    return [f"{constant(name)} = {value!r}  # searched beside the rule" for name, value in beside.items()]


def optax_module(
    program: Program, origin: str, beside: Values, task: str = "", options: Mapping[str, Any] | None = None
) -> str:
    """A module whose function `found_rule(...)` gives an Optax `GradientTransformation`; arguments as above.

    `lr` is applied as `learned_opt` does it: a factor of the step. So is that task's option `mup`.
    Raises `ConfigError` for programs of a vocabulary that is not made of optimizer inputs.
    """
    words, known = program.vocabulary, {"w", "g", "t", "progress", "fan_in"}
    unknown = [register.name for register in words.inputs if register.name not in known]
    if unknown or [register.name for register in words.outputs] != ["step"]:
        raise ConfigError(
            f"export: --as optax needs an optimizer rule (inputs of {', '.join(sorted(known))}; output step),"
            f" got one of vocabulary {words.name!r}. Try --as python"
        )
    program = simplify(program)
    inputs = late_inputs(program)
    steps = "steps, " if "progress" in inputs else ""
    rate = beside.get("lr", 1.0)
    mup = task == "evometa.tasks.learned_opt" and (options or {}).get("mup") is True
    others = {name: value for name, value in beside.items() if name != "lr"}
    given = {
        "w": "w=ravel_pytree(params)[0].astype(xp.float32)",
        "g": "g=flat.astype(xp.float32)",
        "t": "t=count.astype(xp.float32)",
        "progress": "progress=count.astype(xp.float32) / _F(steps)",
        "fan_in": "fan_in=_fan_in(updates)",
    }
    early = ", fan_in=_fan_in(params)" if "fan_in" in late_inputs(program, setup=True) else ""
    arguments = ", ".join(given[name] for name in given if name in inputs)
    needs_params = (
        ["        if params is None:", '            raise ValueError("this rule reads the weights: pass params")']
        if "w" in inputs
        else []
    )
    lines = [
        _head(program, origin),
        "",
        "    optimizer = found_rule()" if not steps else "    optimizer = found_rule(steps=1000)",
        "    state = optimizer.init(params)",
        "    updates, state = optimizer.update(gradients, state, params)",
        "    params = optax.apply_updates(params, updates)",
        "",
        "`learning_rate` multiplies the rule's step; its default is the run's. It may be a schedule (step -> number).",
        *(["`steps` is how many steps the training will take: the rule knows how far it has come."] if steps else []),
        *[line for text in ([mup_remark()] if mup else []) + left_out(others, ()) for line in ("", *wrap(text, 110))],
        *(
            [
                "",
                "`hidden`: which matrices read hidden units, a tree of booleans like the parameters; by default all",
                "but the first.",
            ]
            if mup
            else []
        ),
        '"""',
        "",
        "from typing import Any, NamedTuple",
        "",
        "import jax",
        "import jax.numpy as xp",
        "import optax",
        "from jax.flatten_util import ravel_pytree",
        "",
        "_F = xp.float32",
        f"LEARNING_RATE = {rate!r}",
        *_constants(others),
        "",
        "",
        "class State(NamedTuple):",
        "    count: Any  # [] int32: steps taken",
        "    memory: Any  # dict of arrays [numbers of all weights]",
        "",
        "",
        "def _layers(tree):",
        "    return tuple(leaf.size for leaf in jax.tree.leaves(tree))",
        "",
        *([_FAN_IN] if "fan_in" in inputs or early else []),
        *([mup_pace_of_leaves()] if mup else []),
        _core(program),
        "",
        f"def found_rule({steps}learning_rate=LEARNING_RATE{', hidden=None' if mup else ''}):",
        '    """The rule as an `optax.GradientTransformation`; weights of any tree, a leaf is a layer."""',
        "",
        "    def init(params):",
        f"        return State(xp.zeros([], xp.int32), start(layers=_layers(params){early}))",
        "",
        "    def update(updates, state, params=None):",
        *needs_params,
        "        count = state.count + 1",
        "        flat, restore = ravel_pytree(updates)",
        f"        outputs, memory = _update(state.memory, layers=_layers(updates), {arguments})".replace(", )", ")"),
        "        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate",
        f"        step = xp.broadcast_to(outputs['step'] * _F(1.0) * rate{' * _pace(updates, hidden)' if mup else ''},"
        " flat.shape).astype(flat.dtype)",
        "        return restore(step), State(count, memory)",
        "",
        "    return optax.GradientTransformation(init, update)",
        "",
    ]
    return (
        "\n".join(lines)
        .replace("def update(memory", "def _update(memory")
        .replace("outputs['step']", 'outputs["step"]')
    )


def _head(program: Program, origin: str) -> str:
    formula = text(program).replace("\\", "\\\\").replace('"""', "'''")
    vocabulary, origin = docstring(repr(program.vocabulary.name)), docstring(origin)
    return f'"""A rule of vocabulary {vocabulary}, found by evometa: {origin}.\n\n    {formula}'


def _core(program: Program) -> str:
    """`start` and `update` and the helpers that they use."""
    words = program.vocabulary
    names = [register.name for register in words.registers]
    kept = kept_memory(program)
    early_memory = {names[o] for row in program.setup for o in (*row.operands, row.destination)} & {
        register.name for register in words.memory
    }
    early, late = late_inputs(program, setup=True), late_inputs(program)
    body = [*lines_of(program, program.setup), *lines_of(program, program.update)]
    used = [name for name in _HELPERS if any(f"{name}(" in line for line in body)]
    helpers = "".join(("\n" + _HELPERS[name]) for name in used)
    if "_parts(" in helpers:
        helpers = "\n" + _PARTS + helpers
    zeros = [f"    {name} = xp.zeros(sum(layers), xp.float32)" for name in kept]
    outputs = [register.name for register in words.outputs]
    begin = [f"    {name} = memory[{name!r}]" for name in kept]
    unset = [name for name in outputs if name in unwritten(program)]
    begin += [f"    {name} = _F(0.0)" for name in unset]
    wide = ["", "", "def _wide(a, layers):", "    return xp.broadcast_to(xp.asarray(a, xp.float32), (sum(layers),))"]
    return "\n".join(
        [
            helpers,
            "",
            f"def start(*, layers{''.join(', ' + name for name in early)}):",
            '    """Memory before the first step."""',
            *zeros,
            *[f"    {name} = _F(0.0)" for name in sorted(early_memory - set(kept))],
            *lines_of(program, program.setup),
            f"    return {{{', '.join(f'{name!r}: _wide({name}, layers)' for name in kept)}}}",
            "",
            "",
            f"def update(memory, *, layers{''.join(', ' + name for name in late)}):",
            '    """Outputs by name, and the memory for the next step."""',
            *begin,
            *lines_of(program, program.update),
            f"    outputs = {{{', '.join(f'{name!r}: {name}' for name in outputs)}}}",
            f"    return outputs, {{{', '.join(f'{name!r}: _wide({name}, layers)' for name in kept)}}}",
            *(wide if kept else []),
            "",
        ]
    ).replace("'", '"')
