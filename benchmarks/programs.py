"""Program evaluations per second: the interpreter against a rule written by hand, and against one jit per program.

An evaluation is what a candidate of an optimizer search costs: a small network (16-32-10) trained for 100 steps of 32
examples with the program as its optimizer, and the loss at the end. Three rows:

* `interpreted`: 1,000 distinct programs through one compiled call (evometa's way: tokens are data);
* `hand`: Adam written in JAX, compiled once, over as many learning rates, beside the interpreted Adam (`adam`);
* `jit`: each of the 1,000 programs unrolled into JAX and compiled by itself, as a search without an interpreter would.

Compile time of `interpreted`, `adam` and `hand` is left out (it is paid once a run, and printed); that of `jit` is the
point and stays in. `update` lines time the update alone, without the network's gradient, for several sizes.

    python benchmarks/programs.py                # about 15 minutes, nearly all of it `jit`; writes results/programs.csv
    python benchmarks/programs.py --jit 50       # fewer programs one by one; their rate is the same
    python benchmarks/programs.py --apart --jit 200    # no times: how far both forms of a program differ, step by step
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

from evometa.machine import spare_threads

spare_threads()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from evometa.programs.code import (  # noqa: E402
    Code,
    Program,
    assemble,
    disassemble,
    split,
)
from evometa.programs.formula import text_of  # noqa: E402
from evometa.programs.interpret import Machine, prepare  # noqa: E402
from evometa.programs.known import known  # noqa: E402
from evometa.programs.operations import arithmetic  # noqa: E402
from evometa.programs.vary import random_programs  # noqa: E402
from evometa.programs.vocabularies import OPTIMIZER  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "programs.csv"
SIZES = ((16, 32), (32,), (32, 10), (10,))
LAYERS = tuple(int(np.prod(shape)) for shape in SIZES)
STEPS, BATCH, CHUNK = 100, 32, 25
MACHINE = Machine(OPTIMIZER, LAYERS)
FAN_IN = jnp.array([16.0, 16.0, 32.0, 32.0])


def _data() -> tuple[Any, Any, Any]:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(STEPS, BATCH, 16)).astype(np.float32)
    y = np.argmax(x @ draw.normal(size=(16, 10)), axis=-1)
    w = np.concatenate([draw.normal(size=n) / np.sqrt(f) for n, f in zip(LAYERS, (16, 16, 32, 32), strict=True)])
    return jnp.asarray(x), jnp.asarray(y), jnp.asarray(w, jnp.float32)


X, Y, W = _data()


def loss(w: Any, x: Any, y: Any) -> Any:
    parts, start = [], 0
    for shape, size in zip(SIZES, LAYERS, strict=True):
        parts.append(w[start : start + size].reshape(shape))
        start += size
    logits = jnp.tanh(x @ parts[0] + parts[1][None]) @ parts[2] + parts[3][None]
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(y)), y])


def train(update: Any, memory: Any) -> Any:
    """Loss after STEPS steps of `update(memory, w, g, t) -> (step, memory)`."""

    def step(carry: Any, row: Any) -> tuple[Any, None]:
        w, memory = carry
        t, x, y = row
        move, memory = update(memory, w, jax.grad(loss)(w, x, y), t)
        return (w + move, memory), None

    (w, _), _ = jax.lax.scan(step, (W, memory), (1.0 + jnp.arange(STEPS), X, Y))
    return loss(w, X[0], Y[0])


def by_machine(code: Code) -> tuple[Any, Any]:
    """`update` as `train` takes it and the first memory, of a program that the machine runs."""
    ready = prepare(OPTIMIZER, code)

    def update(memory: Any, w: Any, g: Any, t: Any) -> tuple[Any, Any]:
        out, memory = MACHINE.step(ready, memory, {"w": w, "g": g, "t": t, "progress": t / STEPS, "fan_in": FAN_IN})
        return out["step"], memory

    return update, MACHINE.start(ready, {"fan_in": FAN_IN})


def interpreted(code: Code) -> Any:
    return train(*by_machine(code))


def hand(rate: Any) -> Any:
    def update(memory: Any, w: Any, g: Any, t: Any) -> tuple[Any, Any]:
        m, v = memory
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        step = -rate * (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8)
        return step, (m, v)

    return train(update, (jnp.zeros_like(W), jnp.zeros_like(W)))


def written_out(code: Code) -> tuple[Any, Any]:
    """The same, written out instruction by instruction while JAX traces."""
    program = disassemble(OPTIMIZER, code)
    assert isinstance(program, Program)
    names = [register.name for register in OPTIMIZER.registers]

    def run(section: Any, held: dict[int, Any]) -> None:
        for operation, place, operands in section:
            a, b, c = (*[held[o] for o in operands], None, None, None)[:3]
            held[place] = arithmetic(OPTIMIZER.operations[operation])(a, b, c, LAYERS)

    def registers(inputs: dict[str, Any], memory: Any) -> dict[int, Any]:
        held = {i: jnp.broadcast_to(jnp.float32(0), W.shape) for i in range(len(names))}
        for i, name in enumerate(names):
            if name in inputs:
                held[i] = jnp.broadcast_to(inputs[name], W.shape).astype(jnp.float32)
        for i, value in enumerate(program.constants):
            held[OPTIMIZER.first_constant + i] = jnp.full(W.shape, value, jnp.float32)
        return held | {OPTIMIZER.first_memory + i: row for i, row in enumerate(memory)}

    wide = FAN_IN[np.repeat(np.arange(len(LAYERS)), LAYERS)]
    first, last = OPTIMIZER.first_memory, OPTIMIZER.first_output

    def update(memory: Any, w: Any, g: Any, t: Any) -> tuple[Any, Any]:
        held = registers({"w": w, "g": g, "t": t, "progress": t / STEPS, "fan_in": wide}, memory)
        run(program.update, held)
        return held[last], tuple(held[i] for i in range(first, last))

    start = registers({"fan_in": wide}, tuple(jnp.zeros_like(W) for _ in range(first, last)))
    run(program.setup, start)
    return update, tuple(start[i] for i in range(first, last))


def unrolled(code: Code) -> Any:
    """The training function of one program, written out."""
    return lambda: train(*written_out(code))


def apart(code: Code) -> tuple[float, float]:
    """How far the two forms of a program come apart: in the worst of its steps, and in the loss after all of them.

    Step by step both see the weights and gradients that the machine came to, each with its own memory, and a step is
    measured against its largest number: what one step adds to the difference. The loss, relative, is that of two
    trainings by themselves.
    """
    update, memory = by_machine(code)
    other, other_memory = written_out(code)

    def step(carry: Any, row: Any) -> tuple[Any, Any]:
        w, memory, other_memory = carry
        t, x, y = row
        g = jax.grad(loss)(w, x, y)
        one, memory = update(memory, w, g, t)
        two, other_memory = other(other_memory, w, g, t)
        finite = jnp.isfinite(one) & jnp.isfinite(two)
        size = jnp.max(jnp.where(finite, jnp.abs(one), 0.0))
        far = jnp.where(finite, jnp.abs(one - two) / jnp.where(size == 0, 1.0, size), jnp.inf)
        same = (one == two) | (jnp.isnan(one) & jnp.isnan(two))
        return (w + one, memory, other_memory), jnp.max(jnp.where(same, 0.0, far))

    rows = (1.0 + jnp.arange(STEPS), X, Y)
    worst = jax.jit(lambda: jnp.max(jax.lax.scan(step, (W, memory, other_memory), rows)[1]))()
    one, two = float(jax.jit(interpreted)(code)), float(jax.jit(unrolled(code))())
    return float(worst), 0.0 if one == two or (one != one and two != two) else abs(one - two) / abs(one)


def distinct_programs(count: int) -> Code:
    """The first `count` random programs that do not have the same effective instructions."""
    numbers = random_programs(OPTIMIZER, jax.random.key(1), 2 * count)
    codes = jax.vmap(lambda row: split(OPTIMIZER, row))(numbers)
    ready = jax.vmap(lambda code: prepare(OPTIMIZER, code))(codes)
    seen: dict[bytes, int] = {}
    for i, (setup, update, counts) in enumerate(zip(*map(np.asarray, ready[:3]), strict=True)):
        seen.setdefault(setup[: counts[0]].tobytes() + b"|" + update[: counts[1]].tobytes(), i)
    if len(seen) < count:
        raise SystemExit(f"{len(seen)} of {2 * count} random programs are distinct, expected {count}")
    return jax.tree.map(lambda leaf: leaf[np.array(list(seen.values())[:count])], codes)


def rate_of(function: Any, rows: Any, count: int, rounds: int = 3) -> tuple[float, float]:
    """(evaluations per second, best of `rounds`; seconds of compilation) of a traceable function of one row."""
    call = jax.jit(lambda: jax.lax.map(function, rows, batch_size=CHUNK))
    began = time.perf_counter()
    jax.block_until_ready(call())
    first, best = time.perf_counter() - began, float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(call())
        best = min(best, time.perf_counter() - began)
    return count / best, first - best


def update_alone(size: int, rows: int = 8, steps: int = 200) -> tuple[float, float]:
    """Microseconds per step of Adam on `size` numbers: interpreted, by hand."""
    machine, code = Machine(OPTIMIZER, (size,)), assemble(known(OPTIMIZER, "adam"))
    g = jax.random.normal(jax.random.key(0), (rows, steps, size))

    def one(g: Any) -> Any:
        ready = prepare(OPTIMIZER, code)
        ready = ready._replace(constants=ready.constants + 0 * g[0, 0])

        def step(memory: Any, row: Any) -> tuple[Any, Any]:
            given = {"w": row[1], "g": row[1], "t": row[0], "progress": 0.5, "fan_in": 1.0}
            out, memory = machine.step(ready, memory, given)
            return memory, jnp.sum(out["step"])

        return jax.lax.scan(step, machine.start(ready, {"fan_in": 1.0}), (1.0 + jnp.arange(steps), g))[1]

    def other(g: Any) -> Any:
        def step(memory: Any, row: Any) -> tuple[Any, Any]:
            (m, v), (t, g) = memory, row
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            return (m, v), jnp.sum(-0.001 * (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8))

        zero = jnp.zeros(size)
        return jax.lax.scan(step, (zero, zero), (1.0 + jnp.arange(steps), g))[1]

    rates = [rate_of(f, g, rows * steps)[0] for f in (one, other)]
    return 1e6 / rates[0], 1e6 / rates[1]


def compare(codes: Code, count: int) -> None:
    """Say which programs end at another loss when they are compiled by themselves, and how far each step is off."""
    steps, finals = [], []
    for i in range(count):
        one = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), codes)
        worst, final = apart(one)
        steps.append(worst)
        finals.append(final)
        if not final <= 1e-3 or not worst <= 1e-4:
            print(f"{i:4}: a step differs by at most {worst:.1e}, the loss by {final:.1e}: {text_of(OPTIMIZER, one)}")
    differ = int(np.sum(~(np.array(finals) <= 1e-3)))
    print(f"{count} programs: {differ} losses differ by more than 0.1 %; no step by more than {max(steps):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--jit", type=int, default=1000, help="how many of them one by one")
    parser.add_argument("--apart", action="store_true", help="compare the two forms of each, and time nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    codes = distinct_programs(given.programs)
    lengths = np.asarray(jax.vmap(lambda code: prepare(OPTIMIZER, code).counts.sum())(codes))
    print(f"{given.programs} distinct programs, {lengths.mean():.1f} effective instructions on average")
    if given.apart:
        compare(codes, given.jit)
        return
    rows: list[tuple[str, float, float, str]] = []

    fast, compile_seconds = rate_of(interpreted, codes, given.programs)
    rows.append(("interpreted", fast, compile_seconds, f"{given.programs} distinct random programs"))
    adam = assemble(known(OPTIMIZER, "adam"))
    rates = jnp.asarray(10 ** np.linspace(-4, -1, 200), jnp.float32)
    scaled = Code(
        jnp.broadcast_to(adam.tokens, (200, *adam.tokens.shape)), jnp.asarray(adam.constants)[None] * jnp.ones((200, 1))
    )
    mine, seconds = rate_of(interpreted, scaled, 200)
    rows.append(("adam", mine, seconds, "the interpreted Adam"))
    peer, seconds = rate_of(hand, rates, 200)
    rows.append(("hand", peer, seconds, "Adam written by hand, compiled once"))

    agree = 0
    expected = np.asarray(jax.jit(lambda: jax.lax.map(interpreted, codes, batch_size=CHUNK))())
    began = time.perf_counter()
    for i in range(given.jit):
        one = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), codes)
        value = float(jax.jit(unrolled(one))())
        agree += bool(np.isclose(value, expected[i], rtol=1e-3, equal_nan=True))
    slow = given.jit / (time.perf_counter() - began)
    rows.append(("jit", slow, 0.0, f"{given.jit} programs compiled one by one; {agree} give the same loss to 0.1 %"))

    with given.out.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["row", "evaluations_per_second", "compile_seconds", "ratio", "note"])
        for name, rate, seconds, note in rows:
            ratio = {"interpreted": fast / slow, "adam": mine / peer}.get(name)
            against = {"interpreted": "x one jit per program", "adam": "x by hand"}.get(name, "")
            text = f"{ratio:.3g} {against}" if ratio else ""
            table.writerow([name, f"{rate:.4g}", f"{seconds:.2f}", text, note])
            print(f"{name:12} {rate:10.4g}/s  compile {seconds:5.2f} s  {text:32} {note}")
        for size in (150, 1000, 3000, 10000):
            ours, theirs = update_alone(size)
            table.writerow(
                [f"update-{size}", "", "", f"{theirs / ours:.3g} x by hand", f"{ours:.1f} us against {theirs:.1f} us"]
            )
            print(f"update alone, {size:6} numbers: {ours:7.1f} us, {theirs:7.1f} us by hand ({ours / theirs:.1f} x)")


if __name__ == "__main__":
    main()
