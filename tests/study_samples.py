"""A small task with controls of its own, and a study of it: what the tests of studies run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Every world has its own best x; `home` has another. The baseline is far off, so that any search gains.
QUAD = '''"""Noisy parabola: home and away have different best points."""
import os
import time
import numpy as np
import evometa

NAMES = ("d0", "d1", "d2", "d3", "d4", "d5")

def task(control="", wide=1.0, more=0, test=("d3", "d4", "d5"), steps=7):
    place = {name: n + more for n, name in enumerate(NAMES)}
    train = ("d0", "d1")
    if control == "oracle":
        train = tuple(f"{name}-copy" for name in test)
        place |= {f"{name}-copy": place[name] for name in test}
    x = evometa.real(-wide, wide)
    space = {"x": x} if control == "one" else {"x": x, "y": evometa.real(-1, 1)}

    def fit(key, candidate, support):
        time.sleep(float(os.environ.get("EVOMETA_TEST_SLEEP", "0")))
        return candidate

    def judge(key, learned, query):
        place, best = query
        noise = 0.001 * np.random.default_rng(key).normal()
        loss = (learned["x"] - best - 0.01 * place) ** 2 + 0.01 * learned.get("y", 0.0) ** 2
        return {"loss": loss + noise, "inner_steps": steps}

    return evometa.Task(
        name="quad", runs="python", space=evometa.Space(space), fit=fit, judge=judge, source=__file__,
        domains=tuple(
            evometa.Domain(name, n, {"home": (n, -0.3), "away": (n, 0.3)}, {"kin": "odd" if n % 2 else "even"})
            for name, n in place.items()
        ),
        split=evometa.Split(train, ("d2",), test), objective=evometa.Objective("away"),
        baseline={"x": -0.9} if control == "one" else {"x": -0.9, "y": 0.0},
        controls={"one": {"control": "one"}, "oracle": {"control": "oracle"}},
    )
'''

BASE: dict[str, Any] = {"task": "quad.py:task", "strategy": "random_search", "population": 4, "generations": 2}

STUDY = """
name = "q"
seeds = 2

[base]
task = "quad.py:task"
strategy = "genetic"
population = 4
generations = 2

[arms.main]

[arms.random]
control = "random-search"

[arms.nothing]
control = "static"

[[claims]]
name = "searching helps"
kind = "better"
arm = "main"
rival = "baseline"

[[claims]]
name = "random is as good"
kind = "no-better"
arm = "main"
rival = "random"
margin = 0.5

[verdict]
confirms = ["searching helps"]
"""


def write(folder: Path, text: str = STUDY, name: str = "q.toml") -> Path:
    """The task, and a study of it, as files in `folder`."""
    (folder / "quad.py").write_text(QUAD)
    (folder / name).write_text(text)
    return folder / name
