"""Values and operations on them, in which equal things are one node and simpler equals replace what they equal.

Every rewrite keeps the value to the bit (but for the sign of a zero), with two exceptions, which keep it to
rounding: `exp`, `log` and `tanh` of constants, and the mean of what is one number already. Inputs are taken to be
finite and below 1e15; what may be infinite or NaN (memory, above all) is not cancelled: m - m stays.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evometa.programs.operations import OPERATIONS, STEEP, TINY
from evometa.programs.vocabulary import Vocabulary

INPUT, CONSTANT, MEMORY = "input", "constant", "memory"  # the kinds of leaves; other nodes are of an operation's name
LARGEST_INPUT = 1e15
LARGEST = 1e38
SLACK = 1.000001  # bounds are worked out in double precision, values in single
COMMUTING = frozenset(name for name, operation in OPERATIONS.items() if operation.commutes)
NEVER_NEGATIVE = frozenset(("abs", "square", "sqrt", "exp", "rms", "layer_rms"))
REDUCES = {"mean": 0, "rms": 0, "layer_mean": 1, "layer_rms": 1}
WIDTHS = {name: {"all": 0, "layer": 1, "list": 2}[o.kind] for name, o in OPERATIONS.items() if o.kind != "map"}
NO_LARGER = frozenset((
    "neg", "abs", "copy", "relu", "half", "layer_max", "layer_min", "layer_first", "reverse", "sort", "descend",
    "cummax", "shift", "rotate",
))  # fmt: skip  # a magnitude is at most that of the operand


@dataclass(slots=True, eq=False)
class Node:
    """A value: an input, a constant, what memory held before the step, or an operation on values."""

    number: int  # operands have smaller ones
    kind: str
    args: tuple[Node, ...]
    value: float  # of a constant; of an input or memory the register's number
    width: int  # 0 one number, 1 one per layer, 2 one per element
    depth: int
    finite: bool  # surely neither infinite nor NaN
    most: float  # its magnitude is at most this, where it is not NaN
    positive: bool  # surely not below zero


def rounded(value: float) -> float:
    """The float32 nearest to a number. Raises `OverflowError` where it is too large for one."""
    return struct.unpack("f", struct.pack("f", value))[0]


def _divide(a: float, b: float) -> float:
    return a / ((-rounded(TINY) if b < 0 else rounded(TINY)) if abs(b) < rounded(TINY) else b)


# The arithmetic of `operations.arithmetic` on plain numbers; what is left is rounded to float32 by the caller.
_FOLD: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _divide,
    "neg": lambda a: -a,
    "abs": lambda a: abs(a),
    "sign": lambda a: float((a > 0) - (a < 0)),
    "square": lambda a: a * a,
    "sqrt": lambda a: math.sqrt(rounded(abs(a) + 1e-24)),
    "exp": lambda a: math.exp(min(max(a, -STEEP), STEEP)),
    "log": lambda a: math.log(rounded(abs(a) + TINY)),
    "tanh": math.tanh,
    "max": lambda a, b: max(a, b),
    "min": lambda a, b: min(a, b),
    "clip": lambda a, b: min(max(a, -abs(b)), abs(b)),
    "lerp": lambda a, b, c: a + rounded(rounded(b - a) * c),
    "where": lambda a, b, c: b if a > 0 else c,
    "mean": lambda a: a,
    "layer_mean": lambda a: a,
    "rms": lambda a: math.sqrt(rounded(a * a)),
    "layer_rms": lambda a: math.sqrt(rounded(a * a)),
}


class Graph:
    """Makes nodes; asks of every new one whether it is an old one, or something simpler."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.operations = frozenset(vocabulary.operations)
        self._nodes: dict[tuple, Node] = {}

    def leaf(self, kind: str, value: float, width: int = 0) -> Node:
        """An input, a constant, or what memory held."""
        key = (kind, value)
        node = self._nodes.get(key)
        if node is None:
            most = {INPUT: LARGEST_INPUT, MEMORY: math.inf}.get(kind, abs(value))
            positive = kind == CONSTANT and value >= 0
            node = Node(len(self._nodes), kind, (), value, width, 0, kind != MEMORY, most, positive)
            self._nodes[key] = node
        return node

    def constant(self, value: float) -> Node:
        """A constant; minus zero is zero."""
        return self.leaf(CONSTANT, value + 0.0)

    def apply(self, kind: str, args: tuple[Node, ...]) -> Node:
        """The node of an operation on nodes, or the simpler one that it equals."""
        if all(arg.kind == CONSTANT for arg in args) and kind in _FOLD:
            try:
                return self.constant(rounded(_FOLD[kind](*(arg.value for arg in args))))
            except (OverflowError, ZeroDivisionError):
                pass  # too large for float32: left to the machine
        rule = _RULES.get(kind)
        simpler = rule(self, *args) if rule else None
        if simpler is not None:
            return simpler
        numbers = [arg.number for arg in args]
        if kind in COMMUTING:
            numbers.sort()
        key = (kind, *numbers)
        node = self._nodes.get(key)
        if node is None:
            widest = max(arg.width for arg in args)
            width = WIDTHS.get(kind, widest)
            most = _most(kind, *(arg.most for arg in args), divisor=args[-1])
            given = args[1:] if kind == "where" else args
            finite = most < LARGEST and all(arg.finite for arg in given)
            if kind in ("rms", "layer_rms"):
                finite = finite and most * most < LARGEST
            depth = 1 + max(arg.depth for arg in args)
            node = Node(len(self._nodes), kind, args, 0.0, width, depth, finite, most, _positive(kind, args))
            self._nodes[key] = node
        return node

    def _has(self, kind: str, *args: Node) -> Node | None:
        """`apply` where the vocabulary has the operation."""
        return self.apply(kind, args) if kind in self.operations else None

    def _copy(self, a: Node) -> Node:
        return a

    def _add(self, a: Node, b: Node) -> Node | None:
        for one, other in ((a, b), (b, a)):
            if _is(other, 0.0):
                return one
            if other.kind == "neg" and "sub" in self.operations:
                return self.apply("sub", (one, other.args[0]))
        return None

    def _sub(self, a: Node, b: Node) -> Node | None:
        if _is(b, 0.0):
            return a
        if a is b and a.finite:
            return self.constant(0.0)
        if _is(a, 0.0):
            return self._has("neg", b)
        return self._has("add", a, b.args[0]) if b.kind == "neg" else None

    def _mul(self, a: Node, b: Node) -> Node | None:
        for one, other in ((a, b), (b, a)):
            if _is(other, 1.0):
                return one
            if _is(other, 0.0) and one.finite:
                return other
            if _is(other, -1.0) and "neg" in self.operations:
                return self.apply("neg", (one,))
            if other.kind == CONSTANT and one.kind == "neg":
                return self.apply("mul", (one.args[0], self.constant(-other.value)))
        if a.kind == "neg" and b.kind == "neg":
            return self.apply("mul", (a.args[0], b.args[0]))
        return self._has("square", a) if a is b else None

    def _div(self, a: Node, b: Node) -> Node | None:
        if _is(b, 1.0):
            return a
        if _is(b, -1.0):
            return self._has("neg", a)
        if _is(a, 0.0) and b.finite:
            return a
        if a.kind == "neg" and b.kind == CONSTANT and abs(b.value) >= 1e-9:
            return self.apply("div", (a.args[0], self.constant(-b.value)))
        # Elsewhere x / x is not 1 where x is zero.
        return self.constant(1.0) if a is b and a.kind == "exp" and a.finite else None

    def _neg(self, a: Node) -> Node | None:
        if a.kind == "neg":
            return a.args[0]
        if a.kind == "sub":
            return self.apply("sub", (a.args[1], a.args[0]))
        if a.kind in ("mul", "div"):
            for i, arg in enumerate(a.args):
                if arg.kind == CONSTANT and (a.kind == "mul" or i == 0 or abs(arg.value) >= 1e-9):
                    flipped = self.constant(-arg.value)
                    return self.apply(a.kind, tuple(flipped if j == i else other for j, other in enumerate(a.args)))
        return None

    def _abs(self, a: Node) -> Node | None:
        if a.positive:
            return a
        return self.apply("abs", a.args) if a.kind == "neg" else None

    def _sign(self, a: Node) -> Node | None:
        return a if a.kind == "sign" else None

    def _square(self, a: Node) -> Node | None:
        return self.apply("square", a.args) if a.kind in ("neg", "abs") else None

    def _sqrt(self, a: Node) -> Node | None:
        return self.apply("sqrt", a.args) if a.kind in ("neg", "abs") else None  # it takes the magnitude itself

    def _log(self, a: Node) -> Node | None:
        return self.apply("log", a.args) if a.kind in ("neg", "abs") else None

    def _max(self, a: Node, b: Node) -> Node | None:
        if a is b:
            return a
        for one, other in ((a, b), (b, a)):
            if other.kind == CONSTANT and other.value <= 0 and one.positive:
                return one
        return None

    def _min(self, a: Node, b: Node) -> Node | None:
        if a is b:
            return a
        for one, other in ((a, b), (b, a)):
            if other.kind == CONSTANT and other.value <= 0 and one.positive and one.finite:
                return other
        return None

    def _clip(self, a: Node, b: Node) -> Node | None:
        if b.kind in ("neg", "abs"):
            return self.apply("clip", (a, b.args[0]))
        if b.kind == CONSTANT:
            if b.value < 0:
                return self.apply("clip", (a, self.constant(-b.value)))
            if a.most <= b.value:
                return a
            if b.value == 0 and a.finite:
                return b
        return a if a.kind == "clip" and a.args[1] is b else None

    def _lerp(self, a: Node, b: Node, c: Node) -> Node | None:
        if _is(a, 0.0):
            return self._has("mul", b, c)
        if a is b and a.finite and c.finite:
            return a
        # lerp(a, b, 1) is a + (b - a), which is b only up to what rounds away beside a: it stays.
        return a if _is(c, 0.0) and a.finite and a.most + b.most < LARGEST and b.finite else None

    def _where(self, a: Node, b: Node, c: Node) -> Node | None:
        if b is c:
            return b
        if a.kind == CONSTANT:
            return b if a.value > 0 else c
        return self.apply("where", (a.args[0], b, c)) if a.kind == "sign" else None

    def _mean(self, a: Node) -> Node | None:
        return a if a.width == 0 and a.finite else None

    def _layer_mean(self, a: Node) -> Node | None:
        return a if a.width <= 1 and a.finite else None

    def _rms(self, a: Node) -> Node | None:
        return self.apply("rms", a.args) if a.kind in ("neg", "abs") else None

    def _layer_rms(self, a: Node) -> Node | None:
        return self.apply("layer_rms", a.args) if a.kind in ("neg", "abs") else None


_RULES = {name: getattr(Graph, f"_{name}") for name in OPERATIONS if hasattr(Graph, f"_{name}")}


def _is(node: Node, value: float) -> bool:
    return node.kind == CONSTANT and node.value == value


def _most(kind: str, a: float, b: float = 0.0, c: float = 0.0, divisor: Node | None = None) -> float:
    """The largest magnitude that an operation gives for operands of these magnitudes."""
    if kind in ("tanh", "sign", "less", "equal"):
        return min(a, 1.0) if kind == "tanh" else 1.0
    if kind in NO_LARGER:
        return a + 1.0 if kind == "half" else a
    if kind in ("max", "min"):
        return max(a, b)
    if kind == "where":
        return max(b, c)
    if kind == "clip":
        return min(a, b)
    if kind == "exp":
        return math.exp(min(a, STEEP)) * SLACK
    if kind == "log":
        return max(28.0, math.log(a + 1.0) * SLACK)
    if kind == "sqrt":
        return (math.sqrt(a) + 1e-12) * SLACK
    if kind in REDUCES:
        return a * 1.01  # sums of many
    if kind == "div":
        least = abs(divisor.value) if divisor is not None and divisor.kind == CONSTANT else 0.0
        return a / max(least, TINY / SLACK) * SLACK
    if math.inf in (a, b, c):
        return math.inf
    found = {"add": a + b, "sub": a + b, "mul": a * b, "square": a * a, "lerp": a + (a + b) * c}
    return found.get(kind, math.inf) * SLACK


def _positive(kind: str, args: Sequence[Node]) -> bool:
    if kind in NEVER_NEGATIVE:
        return True
    if kind == "max":
        return any(arg.positive for arg in args)
    if kind == "where":
        return args[1].positive and args[2].positive
    return kind in ("add", "mul", "div", "min", "mean", "layer_mean", "sqrt") and all(arg.positive for arg in args)
