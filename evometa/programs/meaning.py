"""What a program computes: its values as a graph, and the statements that a reader or a machine would follow.

A program is a list of writes to registers; its graph forgets the registers. Copies, instructions without effect and
values worked out twice disappear, memory that never changes becomes a constant, and memory registers and operands
that may be exchanged get an order that does not depend on names. `simplify` writes this down as a program again,
`formula` for readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

from evometa.programs.code import Instruction, Program
from evometa.programs.graph import COMMUTING, CONSTANT, INPUT, MEMORY, Graph, Node, rounded
from evometa.programs.operations import OPERATIONS
from evometa.programs.vocabulary import TYPES, Vocabulary

DEEPEST = 10  # operations inside each other in one statement; deeper ones get a name on the way
MASK = (1 << 64) - 1
_CODES = {name: crc32(name.encode()) for name in (*OPERATIONS, INPUT, CONSTANT, MEMORY)}


class Layout(NamedTuple):
    """What is asked of a vocabulary again and again."""

    names: tuple[str, ...]
    widths: tuple[int, ...]
    first_constant: int
    first_memory: int
    first_output: int


@lru_cache(maxsize=64)
def layout(vocabulary: Vocabulary) -> Layout:
    """Names and widths of a vocabulary's registers."""
    registers = vocabulary.registers
    return Layout(
        tuple(register.name for register in registers),
        tuple(TYPES.index(register.type) for register in registers),
        vocabulary.first_constant,
        vocabulary.first_memory,
        vocabulary.first_output,
    )


class Meaning(NamedTuple):
    """What a program computes: nodes at the end of each section, and an order that does not depend on names."""

    vocabulary: Vocabulary
    memory: tuple[int, ...]  # registers that matter, in canonical order
    setup: dict[int, Node]  # what they hold after setup, where that is not zero
    update: dict[int, Node]  # what they hold after an update
    outputs: tuple[Node, ...]
    order: dict[Node, tuple[Node, ...]]  # operands in canonical order, of every node that matters


class Target(NamedTuple):
    """What a statement gives a value to: a memory register, an output (by number), or a name of its own."""

    kind: str  # "memory", "output" or "temporary"
    number: int


class Statement(NamedTuple):
    """`target = node`; or `target = via`, where that target holds the value already."""

    target: Target
    node: Node
    via: Target | None = None


def meaning(program: Program) -> Meaning:
    """The graph of a valid program."""
    vocabulary, where = program.vocabulary, layout(program.vocabulary)
    graph = Graph(vocabulary)
    zero = graph.constant(0.0)
    fixed = [graph.leaf(INPUT, i, where.widths[i]) for i in range(where.first_constant)]
    constants = (*program.constants, *([0.0] * vocabulary.constants))[: vocabulary.constants]
    fixed += [graph.constant(rounded(value)) for value in constants]
    cleared = [zero] * (len(where.names) - where.first_output)
    memory = range(where.first_memory, where.first_output)

    held = _run(graph, vocabulary, program.setup, [*fixed, *([zero] * len(memory)), *cleared])
    first = {r: held[r] for r in memory}
    # Memory is taken to be the constant that it starts from until an update says otherwise.
    still = {r: node for r, node in first.items() if node.kind == CONSTANT}
    while True:
        start = [still[r] if r in still else graph.leaf(MEMORY, r, where.widths[r]) for r in memory]
        held = _run(graph, vocabulary, program.update, [*fixed, *start, *cleared])
        moved = [r for r, node in still.items() if held[r] is not node]
        if not moved:
            break
        for r in moved:
            del still[r]

    outputs = tuple(held[where.first_output :])
    live: list[int] = []
    while True:
        nodes = reachable([*outputs, *(held[r] for r in live)])
        found = [int(node.value) for node in nodes if node.kind == MEMORY and int(node.value) not in live]
        if not found:
            break
        live += found
    setup = {r: first[r] for r in live if first[r] is not zero}
    update = {r: held[r] for r in live}
    order = _canonical(where, nodes, setup, update)
    return Meaning(vocabulary, _as_seen(order, update, outputs), setup, update, outputs, order)


def _run(graph: Graph, vocabulary: Vocabulary, section: Sequence[Instruction], held: list[Node]) -> list[Node]:
    for operation, destination, operands in section:
        held[destination] = graph.apply(vocabulary.operations[operation], tuple(held[i] for i in operands))
    return held


def reachable(roots: Iterable[Node]) -> list[Node]:
    """The nodes that roots are made of, operands first."""
    seen: dict[int, Node] = {}
    pending = list(roots)
    while pending:
        node = pending.pop()
        if node.number not in seen:
            seen[node.number] = node
            pending.extend(node.args)
    return [seen[number] for number in sorted(seen)]


def _mix(seed: int, *others: int) -> int:
    for other in others:
        seed = ((seed ^ other) * 0x100000001B3 + (seed >> 29)) & MASK
    return seed


def _canonical(
    where: Layout, nodes: list[Node], setup: Mapping[int, Node], update: Mapping[int, Node]
) -> dict[Node, tuple[Node, ...]]:
    """Operands in an order that does not depend on what memory registers are called.

    Every node gets two fingerprints, with and without the constants' values. Memory starts with one of its type and
    first value and takes in what it becomes, as many rounds as there are registers (Weisfeiler and Leman).
    """
    begun = reachable(setup.values())
    prints: dict[Node, tuple[int, int]] = {}
    order: dict[Node, tuple[Node, ...]] = {}
    _sort(begun, prints, order, {})
    colors: dict[int, tuple[int, int]] = {}
    for r in update:
        masked, exact = prints[setup[r]] if r in setup else (0, 0)
        colors[r] = (_mix(where.widths[r], masked), _mix(where.widths[r], exact))
    for _ in range(max(1, len(update))):
        _sort(nodes, prints, order, colors)
        before = len(set(colors.values()))
        for r, node in update.items():
            (masked, exact), (a, b) = colors[r], prints[node]
            colors[r] = (_mix(masked, a), _mix(exact, b))
        if len(set(colors.values())) in (before, len(colors)):
            break
    if update:
        _sort(nodes, prints, order, colors)
    return order


def _sort(
    nodes: list[Node],
    prints: dict[Node, tuple[int, int]],
    order: dict[Node, tuple[Node, ...]],
    colors: Mapping[int, tuple[int, int]],
) -> None:
    """Fingerprints and operand orders of nodes, operands first."""

    def key(node: Node) -> tuple:
        # Small things first: memory, then inputs in their own order.
        rank = node.value if node.kind == INPUT else -1.0
        return node.depth, rank, _CODES[node.kind], prints[node]

    for node in nodes:
        kind = node.kind
        code = _CODES[kind]
        if kind == MEMORY:
            masked, exact = colors[int(node.value)]
            prints[node] = (_mix(code, masked), _mix(code, exact))
        elif kind == CONSTANT:
            prints[node] = (code, _mix(code, hash(node.value) & MASK))
        elif kind == INPUT:
            both = _mix(code, int(node.value))
            prints[node] = (both, both)
        else:
            args = node.args
            if kind in COMMUTING:
                one, other = args
                if (one.kind == CONSTANT) != (other.kind == CONSTANT):
                    swap = (other if kind == "mul" else one).kind == CONSTANT  # 0.1 * g, but g + 0.1
                else:
                    swap = key(other) < key(one)
                args = (other, one) if swap else args
            order[node] = args
            masked, exact = code, code
            for arg in args:
                a, b = prints[arg]
                masked, exact = _mix(masked, a), _mix(exact, b)
            prints[node] = (masked, exact)


def _as_seen(
    order: Mapping[Node, tuple[Node, ...]], update: Mapping[int, Node], outputs: Sequence[Node]
) -> tuple[int, ...]:
    """Memory registers in the order in which one meets them, reading the outputs and then what memory becomes."""
    found: list[int] = []
    seen: set[int] = set()
    roots = list(outputs)
    while roots:
        pending = [roots.pop(0)]
        while pending:
            node = pending.pop()
            if node.number in seen:
                continue
            seen.add(node.number)
            if node.kind == MEMORY:
                found.append(int(node.value))
                roots.append(update[found[-1]])
            pending.extend(reversed(order.get(node, ())))
    return tuple(found)


def statements(
    what: Meaning, memory: Mapping[int, Node], outputs: Sequence[Node]
) -> tuple[list[Statement], dict[Node, Target]]:
    """How to work out one section: statements in an order that never overwrites what is read later.

    The second value says which target holds a node that has a name. Named are what memory and outputs become, what is
    used more than once (but for one operation on a leaf, such as g^2), and what is too deep to read.
    """
    changed = [(r, memory[r]) for r in what.memory if r in memory and not _keeps(r, memory[r])]
    roots = [(Target("memory", r), node) for r, node in changed]
    roots += [(Target("output", i), node) for i, node in enumerate(outputs)]
    holders = _named(what, roots)
    ordered = _post_order(what, [*outputs, *(node for _, node in changed)], holders)
    pending = [Statement(holders[node], node) for node in ordered]
    for target, node in roots:
        holder = holders.get(node)
        if holder != target:
            pending.append(Statement(target, node, holder))
    return _in_order(what, pending, holders), holders


def _keeps(register: int, node: Node) -> bool:
    return node.kind == MEMORY and node.value == register


def _named(what: Meaning, roots: Sequence[tuple[Target, Node]]) -> dict[Node, Target]:
    """Which operations get a name of their own, and what it is."""
    uses: dict[Node, int] = {}
    nodes = [node for node in reachable(node for _, node in roots) if node.args]
    for node in nodes:
        for arg in node.args:
            uses[arg] = uses.get(arg, 0) + 1
    holders: dict[Node, Target] = {}
    for target, node in roots:
        if node.args:
            holders.setdefault(node, target)
    height: dict[Node, int] = {}
    temporaries = 0
    for node in nodes:
        inside = [height[arg] for arg in node.args if arg.args and arg not in holders]
        height[node] = 1 + max(inside, default=0)
        small = len(node.args) == 1 and not node.args[0].args
        if node not in holders and ((uses.get(node, 0) > 1 and not small) or height[node] > DEEPEST):
            holders[node] = Target("temporary", temporaries)
            temporaries += 1
    return holders


def _post_order(what: Meaning, roots: Sequence[Node], among: Mapping[Node, Target]) -> list[Node]:
    """Nodes of `among` that roots are made of, operands first, in canonical order."""
    found: list[Node] = []
    seen: set[int] = set()
    pending = [(root, False) for root in reversed(roots)]
    while pending:
        node, done = pending.pop()
        if done:
            if node in among:
                found.append(node)
        elif node.number not in seen:
            seen.add(node.number)
            pending.append((node, True))
            pending.extend((arg, False) for arg in reversed(what.order.get(node, ())))
    return found


def _reads(statement: Statement, holders: Mapping[Node, Target]) -> tuple[set[Target], set[int]]:
    """Targets that a statement needs, and memory registers whose old value it reads."""
    if statement.via is not None:
        return {statement.via}, set()
    needs: set[Target] = set()
    old: set[int] = set()
    pending = [statement.node]
    while pending:
        node = pending.pop()
        if node.kind == MEMORY:
            old.add(int(node.value))
        elif node in holders and node is not statement.node:
            needs.add(holders[node])
        else:
            pending.extend(node.args)
    return needs, old


def _in_order(what: Meaning, pending: list[Statement], holders: dict[Node, Target]) -> list[Statement]:
    """The statements such that values exist before they are read, and old memory is read before it is overwritten."""
    found: list[Statement] = []
    done: set[Target] = set()
    fresh = sum(target.kind == "temporary" for target in holders.values())
    reads = [_reads(statement, holders) for statement in pending]
    while pending:
        ready = [i for i, (needs, _) in enumerate(reads) if needs <= done]
        free = [i for i in ready if not _overwrites(i, pending, reads)]
        i = free[0] if free else next(i for i in ready if pending[i].via is None)
        statement = pending.pop(i)
        reads.pop(i)
        if not free:
            # Old and new value are both needed: the new one waits under a name of its own.
            aside = Target("temporary", fresh)
            fresh += 1
            late = Statement(statement.target, statement.node, aside)
            if holders.get(statement.node) == statement.target:
                holders[statement.node] = aside
                pending = [s._replace(via=aside) if s.via == statement.target else s for s in pending]
                reads = [_reads(s, holders) for s in pending]
            pending.append(late)
            reads.append(({aside}, set()))
            statement = statement._replace(target=aside)
        found.append(statement)
        done.add(statement.target)
    return found


def _overwrites(i: int, pending: Sequence[Statement], reads: Sequence[tuple[set[Target], set[int]]]) -> bool:
    target = pending[i].target
    if target.kind != "memory":
        return False
    return any(target.number in old for j, (_, old) in enumerate(reads) if j != i)
