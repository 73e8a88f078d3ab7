"""What an instruction can do: every operation of every vocabulary, with its arithmetic and how it is written.

All operations are total: a division by zero, the logarithm of zero or an overflowing exponential gives a
large finite number, and only what overflows float32 becomes infinite. Nothing raises.

An operation is of one of four kinds. `map` works element by element; `layer` reduces each layer to one number;
`list` reads each layer as a list and gives one as long; `all` reduces everything to one number. Arithmetic is float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TINY = 1e-12  # what a denominator or the argument of a logarithm is kept away from zero by
STEEP = 20.0  # exp is cut at exp(+-STEEP)


@dataclass(frozen=True)
class Operation:
    """One row of the table.

    Templates hold `{a}`, `{b}`, `{c}` for the operands and, in `python`, `xp` for NumPy or jax.numpy.
    """

    name: str
    arity: int
    text: str  # how `archive show` writes it
    python: str  # the same arithmetic as `apply`, to the bit where each operation is rounded alone
    latex: str
    kind: str = "map"  # map, layer, list or all
    commutes: bool = False  # may a and b be exchanged?


TABLE: tuple[Operation, ...] = (
    Operation("nop", 0, "", "", ""),
    Operation("copy", 1, "{a}", "{a}", "{a}"),
    Operation("add", 2, "{a} + {b}", "{a} + {b}", "{a} + {b}", commutes=True),
    Operation("sub", 2, "{a} - {b}", "{a} - {b}", "{a} - {b}"),
    Operation("mul", 2, "{a} * {b}", "{a} * {b}", r"{a} \, {b}", commutes=True),
    Operation("div", 2, "{a} / {b}", "_div({a}, {b})", r"\frac{{{a}}}{{{b}}}"),
    Operation("neg", 1, "-{a}", "-{a}", "-{a}"),
    Operation("abs", 1, "abs({a})", "xp.abs({a})", r"\left|{a}\right|"),
    Operation("sign", 1, "sign({a})", "xp.sign({a})", r"\operatorname{{sign}}\left({a}\right)"),
    Operation("square", 1, "{a}^2", "xp.square({a})", r"\left({a}\right)^2"),
    Operation("sqrt", 1, "sqrt({a})", "xp.sqrt(xp.abs({a}) + _F(1e-24))", r"\sqrt{{\left|{a}\right|}}"),
    Operation("exp", 1, "exp({a})", "xp.exp(xp.clip({a}, _F(-20.0), _F(20.0)))", r"e^{{{a}}}"),
    Operation("log", 1, "log({a})", "xp.log(xp.abs({a}) + _F(1e-12))", r"\log\left|{a}\right|"),
    Operation("tanh", 1, "tanh({a})", "xp.tanh({a})", r"\tanh\left({a}\right)"),
    Operation("max", 2, "max({a}, {b})", "xp.maximum({a}, {b})", r"\max\left({a}, {b}\right)", commutes=True),
    Operation("min", 2, "min({a}, {b})", "xp.minimum({a}, {b})", r"\min\left({a}, {b}\right)", commutes=True),
    Operation("clip", 2, "clip({a}, {b})", "_clip({a}, {b})", r"\operatorname{{clip}}_{{\pm {b}}}\left({a}\right)"),
    Operation(
        "lerp", 3, "lerp({a}, {b}, {c})", "{a} + ({b} - {a}) * {c}",
        r"\left(1 - {c}\right) {a} + {c} \, {b}",
    ),
    Operation(
        "where", 3, "where({a} > 0, {b}, {c})", "xp.where({a} > 0, {b}, {c})",
        r"\left[{a} > 0\right] {b} + \left[{a} \le 0\right] {c}",
    ),
    Operation("layer_mean", 1, "layer_mean({a})", "_layer_mean({a})", r"\langle {a} \rangle_\ell", "layer"),
    Operation("layer_rms", 1, "layer_rms({a})", "_layer_rms({a})", r"\left\lVert {a} \right\rVert_\ell", "layer"),
    Operation("mean", 1, "mean({a})", "_mean({a})", r"\langle {a} \rangle", "all"),
    Operation("rms", 1, "rms({a})", "_rms({a})", r"\left\lVert {a} \right\rVert", "all"),
    Operation("relu", 1, "relu({a})", "xp.maximum({a}, _F(0.0))", r"\left[{a}\right]_+"),
    Operation("half", 1, "half({a})", "xp.floor({a} * _F(0.5))", r"\left\lfloor \tfrac{{1}}{{2}} {a} \right\rfloor"),
    Operation("mod", 2, "mod({a}, {b})", "_mod({a}, {b})", r"{a} \bmod {b}"),
    Operation("less", 2, "less({a}, {b})", "xp.where({a} < {b}, _F(1.0), _F(0.0))", r"\left[{a} < {b}\right]"),
    Operation(
        "equal", 2, "equal({a}, {b})", "xp.where({a} == {b}, _F(1.0), _F(0.0))", r"\left[{a} = {b}\right]",
        commutes=True,
    ),
    *(
        Operation(
            name, 1, f"{name}({{a}})", f"_{name}({{a}})", rf"\operatorname{{{{{word}}}}}_\ell\left({{a}}\right)", kind
        )
        for name, word, kind in (
            ("layer_sum", "sum", "layer"), ("layer_max", "max", "layer"), ("layer_min", "min", "layer"),
            ("layer_first", "first", "layer"), ("reverse", "reverse", "list"), ("sort", "sort", "list"),
            ("descend", "descend", "list"), ("cumsum", "cumsum", "list"), ("cummax", "cummax", "list"),
            ("shift", "shift", "list"), ("rotate", "rotate", "list"), ("delta", "delta", "list"),
        )
    ),
)  # fmt: skip

OPERATIONS: dict[str, Operation] = {operation.name: operation for operation in TABLE}


def arithmetic(name: str) -> Callable[[Any, Any, Any, tuple[int, ...]], Any]:
    """The JAX function of an operation: `f(a, b, c, layers) -> [N]` float32; operands it does not take are ignored.

    a, b, c: `[N]`. layers: sizes of the layers that the N elements consist of, in their order.
    """
    import jax.numpy as jnp

    from evometa.programs.rows import ascending, before, running

    def div(a: Any, b: Any) -> Any:
        return a / jnp.where(jnp.abs(b) < TINY, jnp.where(b < 0, -TINY, TINY).astype(jnp.float32), b)

    def by_layer(reduce: Any, a: Any, layers: tuple[int, ...]) -> Any:
        if len(set(layers)) == 1:
            rows = a.reshape(len(layers), layers[0])
            return jnp.broadcast_to(reduce(rows, axis=1, keepdims=True), rows.shape).reshape(-1)
        parts, start = [], 0
        for size in layers:
            part = a[start : start + size]
            parts.append(jnp.broadcast_to(reduce(part, axis=0, keepdims=True), part.shape))
            start += size
        return jnp.concatenate(parts)

    def root_mean_square(a: Any, axis: int, keepdims: bool) -> Any:
        return jnp.sqrt(jnp.mean(a * a, axis=axis, keepdims=keepdims))

    def first(rows: Any, axis: int, keepdims: bool) -> Any:
        del keepdims
        return jnp.take(rows, jnp.array([0]), axis=axis)

    def along(change: Any, a: Any, layers: tuple[int, ...]) -> Any:
        if len(set(layers)) == 1:
            return change(a.reshape(len(layers), layers[0])).reshape(-1)
        ends = [sum(layers[: i + 1]) for i in range(len(layers))]
        return jnp.concatenate([change(a[end - n : end][None])[0] for n, end in zip(layers, ends, strict=True)])

    def mod(a: Any, b: Any) -> Any:
        rest = a - b * jnp.floor(a / jnp.where(b == 0, 1.0, b))  # 0 where b is zero, as where it is beyond float32
        return jnp.where((b == 0) | ~jnp.isfinite(rest), 0.0, rest)

    functions: dict[str, Callable[[Any, Any, Any, tuple[int, ...]], Any]] = {
        "nop": lambda a, b, c, layers: a,
        "copy": lambda a, b, c, layers: a,
        "add": lambda a, b, c, layers: a + b,
        "sub": lambda a, b, c, layers: a - b,
        "mul": lambda a, b, c, layers: a * b,
        "div": lambda a, b, c, layers: div(a, b),
        "neg": lambda a, b, c, layers: -a,
        "abs": lambda a, b, c, layers: jnp.abs(a),
        "sign": lambda a, b, c, layers: jnp.sign(a),
        "square": lambda a, b, c, layers: jnp.square(a),
        "sqrt": lambda a, b, c, layers: jnp.sqrt(jnp.abs(a) + 1e-24),
        "exp": lambda a, b, c, layers: jnp.exp(jnp.clip(a, -STEEP, STEEP)),
        "log": lambda a, b, c, layers: jnp.log(jnp.abs(a) + TINY),
        "tanh": lambda a, b, c, layers: jnp.tanh(a),
        "max": lambda a, b, c, layers: jnp.maximum(a, b),
        "min": lambda a, b, c, layers: jnp.minimum(a, b),
        "clip": lambda a, b, c, layers: jnp.clip(a, -jnp.abs(b), jnp.abs(b)),
        "lerp": lambda a, b, c, layers: a + (b - a) * c,
        "where": lambda a, b, c, layers: jnp.where(a > 0, b, c),
        "layer_mean": lambda a, b, c, layers: by_layer(jnp.mean, a, layers),
        "layer_rms": lambda a, b, c, layers: by_layer(root_mean_square, a, layers),
        "mean": lambda a, b, c, layers: jnp.broadcast_to(jnp.mean(a), a.shape),
        "rms": lambda a, b, c, layers: jnp.broadcast_to(jnp.sqrt(jnp.mean(a * a)), a.shape),
        "relu": lambda a, b, c, layers: jnp.maximum(a, 0.0),
        "half": lambda a, b, c, layers: jnp.floor(a * 0.5),
        "mod": lambda a, b, c, layers: mod(a, b),
        "less": lambda a, b, c, layers: jnp.where(a < b, 1.0, 0.0),
        "equal": lambda a, b, c, layers: jnp.where(a == b, 1.0, 0.0),
        "layer_sum": lambda a, b, c, layers: by_layer(jnp.sum, a, layers),
        "layer_max": lambda a, b, c, layers: by_layer(jnp.max, a, layers),
        "layer_min": lambda a, b, c, layers: by_layer(jnp.min, a, layers),
        "layer_first": lambda a, b, c, layers: by_layer(first, a, layers),
        "reverse": lambda a, b, c, layers: along(lambda rows: rows[:, ::-1], a, layers),
        "sort": lambda a, b, c, layers: along(ascending, a, layers),
        "descend": lambda a, b, c, layers: along(lambda rows: ascending(rows)[:, ::-1], a, layers),
        "cumsum": lambda a, b, c, layers: along(running(jnp.add), a, layers),
        "cummax": lambda a, b, c, layers: along(running(jnp.maximum), a, layers),
        "shift": lambda a, b, c, layers: along(before, a, layers),
        "rotate": lambda a, b, c, layers: along(lambda rows: jnp.roll(rows, -1, axis=1), a, layers),
        "delta": lambda a, b, c, layers: along(lambda rows: rows - before(rows), a, layers),
    }
    return functions[name]
