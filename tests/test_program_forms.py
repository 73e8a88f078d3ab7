"""Two forms of one program, interpreted and written out for the compiler, take the same steps.

The programs are those of `benchmarks/programs.py` whose losses after a hundred steps differed most: they climb, or jump
about, and there what rounds in the last digit grows from step to step.
"""

import jax
import numpy as np
import pytest

from evometa.programs.code import assemble
from evometa.programs.listing import parse
from evometa.programs.vary import random_programs
from evometa.programs.vocabularies import OPTIMIZER

WILD = {
    "climbs": "x = mul(g, fan_in)\nstep = add(g, x)",
    "jumps": "l = layer_rms(w)\nx = mul(progress, l)\nx = div(x, -0.5)\nx = sub(x, fan_in)\nx = lerp(x, t, 2.0)\n"
             "x = sub(1.022, x)\nx = mul(g, x)\nl = layer_rms(x)\nstep = rms(l)",
    "climbs faster": "x = where(g, 0.1219, fan_in)\nstep = mul(g, x)",
    "remembers": "x = where(m, 0.0, progress)\nx = sqrt(x)\nx = sqrt(x)\nx = add(g, x)\nm = lerp(m, x, 0.3)\n"
                 "x = min(t, m)\nstep = exp(x)",
}  # fmt: skip


@pytest.fixture(scope="module")
def bench():
    from benchmarks import programs

    return programs


@pytest.mark.parametrize("name", WILD)
def test_every_step_is_the_same_however_wild_the_training(bench, name):
    worst, final = bench.apart(assemble(parse(OPTIMIZER, WILD[name])))
    assert worst < 1e-4
    assert np.isfinite(final)


def test_a_wrong_step_would_show(bench, monkeypatch):
    """The same comparison with one operation that is off by a thousandth."""
    right = bench.arithmetic
    monkeypatch.setattr(
        bench, "arithmetic", lambda name: (lambda *a: 1.001 * right(name)(*a)) if name == "mul" else right(name)
    )
    assert bench.apart(assemble(parse(OPTIMIZER, WILD["climbs"])))[0] > 1e-4


def test_programs_of_the_benchmark_are_distinct(bench):
    codes = bench.distinct_programs(40)
    tokens = np.asarray(codes.tokens)
    assert len({row.tobytes() for row in tokens}) == len(tokens) == 40
    drawn = random_programs(OPTIMIZER, jax.random.key(1), 80)
    assert np.array_equal(tokens[0], np.asarray(drawn[0][:90]).reshape(18, 5))
