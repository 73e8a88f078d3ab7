"""Small tasks, the command line in this process and in others, and what to compare of their runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from evometa.archives.query import content_digest
from evometa.archives.read import Archive, list_parts
from evometa.archives.write import commit

# Ridge regression by 20 gradient steps; six worlds, the last one sealed.
RIDGE = '''"""Ridge regression by gradient steps."""
import jax
import jax.numpy as jnp
import numpy as np
import evometa

def world(number):
    draw = np.random.default_rng(number)
    slope = draw.normal(size=3)
    def points(shift):
        x = draw.normal(size=(8, 3)) + shift
        return {"x": x.astype(np.float32), "y": (x @ slope + 0.3 * draw.normal(size=8)).astype(np.float32)}
    return {"support": points(0), "home": points(0), "away": points(1)}

task = evometa.task(
    name="ridge",
    space={"rate": evometa.log(1e-3, 0.2), "decay": evometa.log(1e-5, 1.0)},
    baseline={"rate": 0.02, "decay": 1e-3},
    domains={f"w{n}": world(n) for n in range(6)},
    split=evometa.Split(("w0", "w1", "w2"), ("w3", "w4"), ("w5",)),
)

@task.fit
def fit(key, candidate, support):
    def step(w, _):
        slope = support["x"].T @ (support["x"] @ w - support["y"]) / 8
        return w - candidate["rate"] * (slope + candidate["decay"] * w), None
    return jax.lax.scan(step, 0.1 * jax.random.normal(key, (3,)), length=20)[0]

@task.judge
def judge(key, w, query):
    return {"loss": jnp.mean((query["x"] @ w - query["y"]) ** 2)}
'''

# The same for plain Python; every training is counted in $EVOMETA_TEST_CALLS, and takes $EVOMETA_TEST_SLEEP.
PLAIN = '''"""Noisy parabola in plain Python."""
import os
import time
import numpy as np
import evometa

task = evometa.task(
    name="plain",
    runs="python",
    space={"x": evometa.real(-1, 1), "kind": evometa.categorical(["round", "flat"])},
    domains={f"d{n}": {"support": n, "away": n} for n in range(5)},
    split=evometa.Split(("d0", "d1"), ("d2",), ("d3", "d4")),
    objective="away",
)

@task.fit
def fit(key, candidate, support):
    calls = os.environ.get("EVOMETA_TEST_CALLS")
    if calls:
        with open(calls, "a") as file:
            file.write(f"{key} {candidate['x']!r} {candidate['kind']} {support}\\n")
    time.sleep(float(os.environ.get("EVOMETA_TEST_SLEEP", "0")))
    return candidate

@task.judge
def judge(key, candidate, query):
    bend = 1.0 if candidate["kind"] == "round" else 0.2
    noise = 0.1 * np.random.default_rng(key).normal()
    return {"loss": bend * (candidate["x"] - 0.1 * query) ** 2 + noise}
'''

# Static columns: the width sets an array's shape; a choice arrives as itself where it is static.
STATIC = '''"""A column that sets array shapes."""
import jax
import jax.numpy as jnp
import evometa

task = evometa.task(
    name="static",
    space={"width": evometa.integer(1, 3, static=True), "kind": evometa.categorical(["sum", "max"], static=True),
           "x": evometa.real(-1, 1)},
    domains={f"d{n}": {"support": jnp.float32(n), "away": jnp.float32(n)} for n in range(3)},
    split=evometa.Split(("d0", "d1"), ("d2",)),
)

@task.fit
def fit(key, candidate, support):
    return candidate["x"] + 0.1 * jax.random.normal(key, (candidate["width"],))

@task.judge
def judge(key, learned, query):
    return {"loss": jnp.mean((learned - 0.1 * query) ** 2) + 0.01 * learned.shape[0]}
'''


class Said(NamedTuple):
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Standard output as JSON; nothing else may be on it."""
        return json.loads(self.out)


def cli(*arguments: object) -> Said:
    """`evometa ...` in this process, which has its devices already."""
    from unittest import mock

    from evometa import machine
    from evometa.cli import main

    out, err = io.StringIO(), io.StringIO()
    argv = ["evometa", *map(str, arguments)]
    with (
        mock.patch.object(machine, "use_host_devices"),
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "path", list(sys.path)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code: Any = 0
        except SystemExit as stop:
            code = stop.code
    return Said(0 if code is None else code, out.getvalue(), err.getvalue())


def environment(**more: str) -> dict[str, str]:
    """Environment of a child: no devices chosen for it, compiled programs kept between children."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "EVOMETA_"))}
    return {**kept, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "", **more}


def start(folder: Path, *arguments: object, **env: str) -> subprocess.Popen[str]:
    """`python -m evometa ...` as a process of its own."""
    command = [sys.executable, "-m", "evometa", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment(**env), stdout=pipe, stderr=pipe, text=True)


def call(folder: Path, *arguments: object, **env: str) -> Said:
    """The same, waited for."""
    process = start(folder, *arguments, **env)
    out, err = process.communicate(timeout=200)
    return Said(process.returncode, out, err)


def one_line(said: Said, code: int, *fragments: str) -> None:
    """The command said one clear line with these words, and nothing on standard output."""
    assert said.code == code, said
    assert said.out == "", said
    lines = said.err.strip().splitlines()
    last = lines[-1] if lines else ""
    assert last.startswith("evometa: "), said
    assert "Traceback" not in said.err and "unexpected" not in last, said
    for fragment in fragments:
        assert fragment in last, f"{fragment!r} is not in: {last}"


def lineage_files(path: Path) -> dict[str, bytes]:
    """Name and bytes of every lineage part."""
    return {part.path.name: part.path.read_bytes() for part in list_parts(path / "lineage")}


def rewrite(path: Path, number: int, column: str, change: Callable[[list[Any]], list[Any]]) -> None:
    """Put another column into a lineage part, under a name that is right for it: a forgery that no hash shows."""
    part = list_parts(path / "lineage")[number]
    table = part.read()
    at = table.schema.get_field_index(column)
    values = pa.array(change(table[column].to_pylist()), table.schema.field(at).type)
    part.path.unlink()
    commit(path / "lineage", table.set_column(at, table.schema.field(at), values), part.first)


def rows_digest(path: Path) -> str:
    """One word for all lineage rows, however they are cut into parts."""
    return content_digest(path)


def columns(path: Path, *names: str) -> pa.Table:
    """Some columns of a lineage."""
    return Archive(path).table(list(names))


def losses(path: Path) -> np.ndarray:
    """`[rows, cells]` of a lineage."""
    scores = Archive(path).table(["scores"])["scores"].to_pylist()
    return np.array([[np.nan if cell["loss"] is None else cell["loss"] for cell in row] for row in scores])


def write_tasks(folder: Path) -> None:
    """The three small tasks, as files."""
    for name, text in (("ridge", RIDGE), ("plain", PLAIN), ("static", STATIC)):
        (folder / f"{name}.py").write_text(text)
