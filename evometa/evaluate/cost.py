"""What one candidate costs, read off its traced program: arithmetic and live memory.

An estimate that is the same on every machine (no timing, no compiler): it decides how a run is cut into
chunks and blocks, and that decision is part of the determinism contract.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax

# Elementwise functions that cost a CPU about ten additions each.
_SLOW = {
    "exp",
    "exp2",
    "log",
    "log1p",
    "expm1",
    "tanh",
    "logistic",
    "sin",
    "cos",
    "pow",
    "erf",
    "erf_inv",
    "rsqrt",
    "sqrt",
    "div",
}
_HASHES = {"random_bits", "threefry2x32", "random_fold_in", "random_split"}


class Cost(NamedTuple):
    """`flops`: arithmetic of one call; `live_bytes`: the most memory that is live at once inside it."""

    flops: float
    live_bytes: float


def cost(function: Any, *arguments: Any) -> Cost:
    """Cost of `function(*arguments)`; the arguments may be `jax.ShapeDtypeStruct`s."""
    return _jaxpr_cost(jax.make_jaxpr(function)(*arguments).jaxpr)


def _bytes(variable: Any) -> float:
    shape, dtype = getattr(variable.aval, "shape", ()), getattr(variable.aval, "dtype", None)
    return math.prod(shape) * (getattr(dtype, "itemsize", 8) if dtype is not None else 0)


def _jaxpr_cost(jaxpr: Any) -> Cost:
    last_use = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.invars if not hasattr(v, "val")}
    last_use |= {v: len(jaxpr.eqns) for v in jaxpr.outvars if not hasattr(v, "val")}
    flops = live = peak = 0.0
    for i, eqn in enumerate(jaxpr.eqns):
        inner_flops, inner_live = _equation_cost(eqn)
        flops += inner_flops
        live += sum(_bytes(v) for v in eqn.outvars)
        peak = max(peak, live + inner_live)
        # Inputs of the jaxpr itself belong to the caller, who counts them.
        done = {v for v in [*eqn.invars, *eqn.outvars] if not hasattr(v, "val") and last_use.get(v, -1) <= i}
        live -= sum(_bytes(v) for v in done if v not in jaxpr.invars and v not in jaxpr.constvars)
    return Cost(flops, peak)


def _equation_cost(eqn: Any) -> Cost:
    name, out = eqn.primitive.name, sum(math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars)
    inner = [sub for value in eqn.params.values() for sub in _sub_jaxprs(value)]
    if inner:
        costs = [_jaxpr_cost(sub) for sub in inner]
        times = eqn.params.get("length", 1) if name == "scan" else 1
        if name == "cond":
            return Cost(max(c.flops for c in costs), max(c.live_bytes for c in costs))
        return Cost(times * sum(c.flops for c in costs), max(c.live_bytes for c in costs))
    if name == "dot_general":
        contracted = eqn.params["dimension_numbers"][0][0]
        return Cost(2.0 * out * math.prod(eqn.invars[0].aval.shape[d] for d in contracted), 0.0)
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        return Cost(2.0 * out * math.prod(kernel) / max(kernel), 0.0)
    if name.startswith("reduce_") or name in ("argmin", "argmax", "cumsum", "sort"):
        return Cost(float(sum(math.prod(getattr(v.aval, "shape", ())) for v in eqn.invars)), 0.0)
    if name in _HASHES:
        return Cost(30.0 * out, 0.0)
    return Cost((10.0 if name in _SLOW else 1.0) * out, 0.0)


def _sub_jaxprs(value: Any) -> list[Any]:
    if hasattr(value, "eqns"):
        return [value]
    if hasattr(value, "jaxpr"):
        return _sub_jaxprs(value.jaxpr)
    if isinstance(value, tuple | list):
        return [sub for item in value for sub in _sub_jaxprs(item)]
    return []
