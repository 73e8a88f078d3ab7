"""Programs as formulas: one line for the archive, a block for LaTeX, and the structure without constants.

    m = lerp(m, g, 0.1); step = -0.001 * m / (sqrt(v) + 1e-08)

A formula is written from the program's graph (`meaning.py`), so two programs that simplify to the same have the same
formula. Statements are followed one after the other; what a statement reads is the newest value of a name. Memory
keeps a name, what is used once is written where it is used, and brackets are left out where mathematics (though
not rounding) allows it: a * (b / c) reads a * b / c.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from evometa.programs.code import Code, Program, Refusal, disassemble, normalize
from evometa.programs.graph import CONSTANT, INPUT, MEMORY, Node
from evometa.programs.meaning import Meaning, Statement, Target, layout, meaning, statements
from evometa.programs.operations import OPERATIONS
from evometa.programs.simplify import canonical_registers
from evometa.programs.vocabulary import FIELDS, Vocabulary

# How tightly an expression holds together: sums, products and signs, powers, names and functions.
SUM, PRODUCT, POWER, ATOM = 1, 2, 4, 5
# What an operation gives, and what its operands need to go without brackets.
_PLAIN = {
    "add": (SUM, (SUM, SUM)), "sub": (SUM, (SUM, PRODUCT)), "mul": (PRODUCT, (PRODUCT, PRODUCT)),
    "div": (PRODUCT, (PRODUCT, PRODUCT + 1)), "neg": (PRODUCT, (PRODUCT,)), "square": (POWER, (ATOM,)),
}  # fmt: skip
_LATEX = {
    "add": (SUM, (SUM, SUM)), "sub": (SUM, (SUM, PRODUCT)), "mul": (PRODUCT, (PRODUCT, PRODUCT)),
    "neg": (PRODUCT, (PRODUCT,)), "lerp": (SUM, (PRODUCT, PRODUCT, PRODUCT)), "where": (SUM, (SUM, PRODUCT, PRODUCT)),
    "square": (POWER, (ATOM,)), "div": (PRODUCT + 1, (0, 0)), "exp": (POWER, (0,)),
}  # fmt: skip


def text(program: Program) -> str:
    """The canonical formula of a valid program in one line, constants with four significant digits.

    `setup: ...; update: ...` where there is a setup; a program that does nothing reads `step = 0`.
    """
    return _Writer(meaning(program)).line()


def structure(program: Program) -> str:
    """The formula with constants replaced by c0, c1, ... in their order: equal for rules that differ in constants only.

    Constants take their signs with them, and every occurrence has a number of its own.
    """
    return _Structure(meaning(program)).line()


def latex(program: Program) -> str:
    r"""The formula as a LaTeX `aligned` block; memory is written `m \leftarrow ...`."""
    writer = _Latex(meaning(program))
    setup, update = writer.sections()
    lines = [rf"{target} &\leftarrow {value} && \text{{(setup)}}" for target, value in setup]
    lines += [rf"{target} &\leftarrow {value}" for target, value in update]
    return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"


def text_of(vocabulary: Vocabulary, code: Code) -> str:
    """The formula of token and constant arrays, or `refused: ...`; the last thousands are remembered.

    Raises for no array, whatever its shape and type.
    """
    found = normalize(vocabulary, code)
    return str(found) if isinstance(found, Refusal) else _text_of(vocabulary, *(part.tobytes() for part in found))


@lru_cache(maxsize=8192)
def _text_of(vocabulary: Vocabulary, tokens: bytes, constants: bytes) -> str:
    rows = np.frombuffer(tokens, np.int32).reshape(vocabulary.length, FIELDS)
    found = disassemble(vocabulary, Code(rows, np.frombuffer(constants, np.float32)))
    return str(found) if isinstance(found, Refusal) else text(found)


class _Writer:
    """Writes statements as text."""

    rules: Mapping[str, tuple[int, tuple[int, ...]]] = _PLAIN

    def __init__(self, what: Meaning) -> None:
        self.what = what
        self.layout = layout(what.vocabulary)
        places = canonical_registers(what)
        self.memory = {r: self.layout.names[place] for r, place in places.items()}
        taken = set(places.values())
        where = self.layout
        self.spare = [r for r in range(where.first_memory, where.first_output) if r not in taken]
        self.temporaries: dict[tuple[int, int], str] = {}  # by section and number
        self.section = 0
        self.holders: Mapping[Node, Target] = {}

    def line(self) -> str:
        setup, update = ["; ".join(f"{a} = {b}" for a, b in part) for part in self.sections()]
        return f"setup: {setup}; update: {update}" if setup else update

    def sections(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Names and what they become, in setup and in update."""
        what = self.what
        setup = self.written(*statements(what, what.setup, ()))
        self.section = 1
        return setup, self.written(*statements(what, what.update, what.outputs))

    def written(self, ordered: Sequence[Statement], holders: Mapping[Node, Target]) -> list[tuple[str, str]]:
        self.holders = holders
        lines = []
        for target, node, via in ordered:
            # The right side first: it may read the name that it is given to.
            value = self.target(via) if via is not None else self.node(node, 0)
            lines.append((self.target(target, node.width), value))
        return lines

    def target(self, target: Target, width: int = 0) -> str:
        if target.kind == "memory":
            return self.name(self.memory[target.number])
        if target.kind == "output":
            return self.name(self.layout.names[self.layout.first_output + target.number])
        key = (self.section, target.number)
        if key not in self.temporaries:
            fit = [r for r in self.spare if self.layout.widths[r] >= width]
            if fit:
                place = min(fit, key=lambda r: (self.layout.widths[r], r))
                self.spare.remove(place)
                self.temporaries[key] = self.layout.names[place]
            else:
                taken = {*self.layout.names, *self.temporaries.values()}
                self.temporaries[key] = next(f"u{i}" for i in range(1, 10**6) if f"u{i}" not in taken)
        return self.name(self.temporaries[key])

    def node(self, node: Node, need: int, top: bool = True) -> str:
        """A node as text, in brackets where it holds together less tightly than `need`."""
        if not top and node in self.holders:
            return self.target(self.holders[node])
        if node.kind == CONSTANT:
            shown = self.number(node.value)
            return self.bracket(shown) if shown.startswith("-") and need > PRODUCT else shown
        if node.kind in (INPUT, MEMORY):
            number = int(node.value)
            return self.name(self.layout.names[number] if node.kind == INPUT else self.memory[number])
        level, needs = self.rules.get(node.kind, (ATOM, (0, 0, 0)))
        shown = self.operation(node, needs)
        return self.bracket(shown) if level < need else shown

    def operation(self, node: Node, needs: tuple[int, ...]) -> str:
        args = [self.node(arg, need, top=False) for arg, need in zip(self.what.order[node], needs, strict=False)]
        if node.kind in ("add", "sub"):
            return self.sum(node, *args)
        template = self.template(node.kind)
        if node.kind == "where":
            test = self.what.order[node][0]
            if test.kind == "sub" and test not in self.holders:
                # a - b > 0 reads a > b.
                one, other = (self.node(arg, SUM, top=False) for arg in self.what.order[test])
                return template.replace(" 0", " {d}").format(a=one, b=args[1], c=args[2], d=other)
        return template.format(**dict(zip("abc", args, strict=False)))

    def sum(self, node: Node, one: str, other: str) -> str:
        plus = node.kind == "add"
        if other.startswith("-"):
            plus, other = not plus, other[1:]
        return f"{one} {'+' if plus else '-'} {other}"

    def template(self, kind: str) -> str:
        return OPERATIONS[kind].text

    def number(self, value: float) -> str:
        return f"{value:.4g}"

    def name(self, name: str) -> str:
        return name

    def bracket(self, shown: str) -> str:
        return f"({shown})"


class _Structure(_Writer):
    """The same with names for constants."""

    constants = 0

    def number(self, value: float) -> str:
        del value
        self.constants += 1
        return f"c{self.constants - 1}"

    def sum(self, node: Node, one: str, other: str) -> str:
        # x - c1 * y is x + c1 * y with another c1.
        right = self.what.order[node][1]
        scaled = right.kind == CONSTANT or (
            right.kind == "mul" and right not in self.holders and self.what.order[right][0].kind == CONSTANT
        )
        return f"{one} + {other}" if scaled else super().sum(node, one, other)


class _Latex(_Writer):
    """The same in LaTeX."""

    rules = _LATEX

    def template(self, kind: str) -> str:
        return "{a}^2" if kind == "square" else OPERATIONS[kind].latex

    def operation(self, node: Node, needs: tuple[int, ...]) -> str:
        shown = super().operation(node, needs)
        share = node.args[-1]
        if node.kind == "lerp" and share.kind == CONSTANT:
            rest = self.number(1.0 - share.value)
            shown = shown.replace(rf"\left(1 - {self.number(share.value)}\right)", rest, 1)
        return re.sub(r" \\, (?=[-\d])", r" \\cdot ", shown)

    def number(self, value: float) -> str:
        digits, _, exponent = f"{value:.4g}".partition("e")
        if not exponent:
            return digits
        power = f"10^{{{int(exponent)}}}"
        return {"1": power, "-1": f"-{power}"}.get(digits, rf"{digits} \cdot {power}")

    def name(self, name: str) -> str:
        return name if len(name) == 1 else rf"\mathrm{{{name.replace('_', chr(92) + '_')}}}"

    def bracket(self, shown: str) -> str:
        return rf"\left({shown}\right)"
