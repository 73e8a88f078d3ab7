"""JAX tasks in worker processes: chunks of the plan, the bits of one process, and a poisoned chunk taken apart."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import call, cli, lineage_files
from wild import gone, ours

from evometa import api
from evometa.archives import events
from evometa.archives.read import Archive
from evometa.errors import ConfigError
from evometa.spec import build

pytest_plugins = ["shared"]

# A candidate above 0.75 does what $EVOMETA_TEST_DEED says, from within the compiled program.
POISON = '''"""A JAX task with a candidate that never ends, or ends the process."""
import os
import jax
import jax.numpy as jnp
import numpy as np
import evometa

DEED = os.environ.get("EVOMETA_TEST_DEED", "")

@evometa.objective(space={"x": evometa.real(0, 1), "y": evometa.real(-1, 1)}, name="poison", baseline={"x": 0.5, "y": 0.0})
def task(key, candidate):
    x, y = candidate["x"], candidate["y"]
    if DEED == "hang":
        x = jax.lax.while_loop(lambda v: v > 0.75, lambda v: jnp.where(v > 0.75, 1.75 - v, v), x)
    if DEED == "exit":
        def leave(v):
            if float(v) > 0.75:
                os._exit(7)
            return np.float32(v)
        x = jax.pure_callback(leave, jax.ShapeDtypeStruct((), jnp.float32), x, vmap_method="sequential")
    if DEED == "raise":
        def bad(v):
            if float(v) > 0.75:
                raise ValueError("not this one")
            return np.float32(v)
        x = jax.pure_callback(bad, jax.ShapeDtypeStruct((), jnp.float32), x, vmap_method="sequential")
    noise = 0.1 * jax.random.normal(key)
    return {"loss": jnp.tanh(x) ** 2 + jnp.exp(y) + noise}
'''


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ridge", ("--generations", 12, "--set", "plan.block=4")),
        ("static", ("--generations", 2, "--strategy", "genetic")),
    ],
)
def test_the_bytes_are_those_of_one_process(copies, compile_cache, name, arguments):
    """Whole blocks as one compiled program there, generation by generation and chunk by chunk here."""
    said = cli(
        "run",
        f"{name}.py",
        "--population",
        8,
        "--seed",
        3,
        *arguments,
        "--workers",
        2,
        "--name",
        name,
        "--out",
        "other",
    )
    assert said.code == 0, said.err
    assert lineage_files(copies / "other" / name) == lineage_files(copies / "runs" / name)
    assert events.read(copies / "other" / name)[0]["backend"] == "processes"
    assert not ours()


def test_a_fresh_worker_starts_warm(folder):
    """What the first run's worker compiled, that of the second finds: nothing is added to the compilation cache."""
    compiled = folder / "compiled"
    compiled.mkdir()
    # Of the driver's own programs none is kept: what is there, a worker put there.
    env = {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "100000"}
    kept = []
    for seed in (3, 4):
        small = ("--population", 4, "--generations", 1, "--seed", seed, "--strategy", "random_search", "--workers", 1)
        said = call(folder, "run", "ridge.py", *small, **env)
        assert said.code == 0, said.err
        kept.append({path.name for path in compiled.iterdir() if path.name.endswith("-cache")})
    assert kept[0] and kept[1] == kept[0]


def test_a_compiled_run_goes_on_in_workers_and_back(copies, compile_cache):
    assert cli("resume", "ridge", "--generations", 16, "--workers", 1).code == 0
    assert cli("resume", "ridge", "--generations", 20, "--backend", "inline").code == 0
    straight = ("run", "ridge.py", "--population", 8, "--seed", 3, "--generations", 20, "--set", "plan.block=4")
    assert cli(*straight, "--name", "ridge", "--out", "straight").code == 0
    assert lineage_files(copies / "runs/ridge") == lineage_files(copies / "straight/ridge")


@pytest.fixture
def poisoned(tmp_path, monkeypatch, compile_cache):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "poison.py").write_text(POISON)

    def run(deed, **spec):
        monkeypatch.setenv("EVOMETA_TEST_DEED", deed)
        given = {
            "task": "poison.py", "strategy": "random_search", "population": 4, "generations": 1, "plan": {"chunk": 4},
            "champion": {"observed": 1, "replicates": 1}, "name": deed or "well", "seed": 1, **spec,
        }  # fmt: skip
        return Archive(api.begin(build(given), tmp_path).path).table().to_pylist()

    return run


@pytest.mark.parametrize(
    ("deed", "limits", "failure", "message"),
    [
        ("exit", {}, "worker_lost", "worker lost: its process ended with status 7 (3 attempts)"),
        ("hang", {"seconds": 2}, "timeout", "took longer than 2 s"),
        ("raise", {}, "error", "ValueError: not this one"),
    ],
)
def test_of_a_poisoned_chunk_only_the_poison_fails(poisoned, deed, limits, failure, message):
    well = poisoned("")
    found = poisoned(deed, limits=limits, workers=1)
    bad = [row for row in found if dict(row["params"])["x"] > 0.75]
    assert len(bad) == 1
    for row, like in zip(found, well, strict=True):
        if row in bad:
            assert row["failure"] == failure and message in row["message"] and row["fitness"] == np.inf, row["message"]
        else:
            assert row["failure"] == "ok" and row["genome"] == like["genome"]
            if deed != "raise" and deed != "exit":  # a callback makes another program, and so other bits
                assert row["scores"] == like["scores"]
    assert gone([p.pid for p in ours()])


def test_a_jax_task_has_no_time_limit_in_this_process(poisoned):
    with pytest.raises(ConfigError, match=r"limits.seconds: only worker processes can be limited so"):
        poisoned("", limits={"seconds": 1}, backend="inline")
