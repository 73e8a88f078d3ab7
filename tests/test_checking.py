"""The check must catch tasks that leak, in every kind and form, and pass those that do not."""

import sys
from pathlib import Path

import numpy as np
import pytest

from evometa.checking import Report, check_strategy, check_task
from evometa.errors import NotFound
from evometa.evaluate import data as datasets
from evometa.fingerprint import fingerprint
from evometa.names import load_task
from evometa.poison import Undo, arrays_of, garble
from evometa.seal import Broken, check_seal

HEAD = """
import jax, jax.numpy as jnp, numpy as np, evometa
RUNS = {runs!r}
xp = jnp if RUNS == "jax" else np

def world(seed):
    x = np.random.default_rng(seed).normal(size=(20,)).astype(np.float32)
    return {{"support": {{"x": x[:10].copy()}}, "home": {{"x": x[10:15].copy()}}, "away": {{"x": x[15:].copy() + 1}}}}

WORLDS = {{name: world(i) for i, name in enumerate(("a", "b", "c"))}}
split = evometa.Split(train=("a", "b"), validation=("c",))

def make(**fields):
    def judge(key, learned, query):
        return {{"loss": ((query["x"] - learned) ** 2).mean()}}
    return evometa.Task(name="small", space=evometa.Space({{"shrink": evometa.real(0, 1)}}), baseline={{"shrink": 0.5}}, runs=RUNS,
        judge=fields.pop("judge", judge), split=split, domains=fields.pop("domains", None) or domains(WORLDS), **fields)

def domains(worlds):
    return [evometa.Domain(n, w["support"], {{"home": w["home"], "away": w["away"]}}) for n, w in worlds.items()]

def learn(key, candidate, support):
    return candidate["shrink"] * support["x"].mean()

def init(key, candidate, support):
    return xp.zeros(())

def step(key, candidate, learner, support):
    return learner + 0.1 * candidate["shrink"] * (support["x"].mean() - learner)
"""

HONEST = {
    "fit": "task = make(fit=learn)",
    "steps": "task = make(init=init, step=step, marks=(2, 5))",
    "lazy": """
def lazy(n):
    return evometa.Domain(n, lambda: WORLDS[n]["support"], {q: (lambda q=q: WORLDS[n][q]) for q in ("home", "away")})
task = make(fit=learn, domains=[lazy(n) for n in WORLDS])
""",
    "one table, cut in parts": """
TABLE = np.arange(60, dtype=np.float32).reshape(3, 20)
task = make(fit=learn, domains=domains({n: {"support": {"x": r[0:10]}, "home": {"x": r[10:20:2]}, "away": {"x": r[11:20:2]}} for n, r in zip("abc", TABLE)}))
""",
}

# name -> (source, words of the message)
LEAKS = {
    "support is a view of the query": (
        """
for w in WORLDS.values():
    w["support"] = {"x": w["away"]["x"][:]}
task = make(fit=learn)
""",
        "shares memory",
    ),
    "fit reads a global query": (
        """
def fit(key, candidate, support):
    return candidate["shrink"] * WORLDS["b"]["away"]["x"].mean() + support["x"].mean()
task = make(fit=fit)
""",
        "training sees them",
    ),
    "step reads a closure": (
        """
def closed(secret):
    def step(key, candidate, learner, support):
        return learner + 0.1 * (secret.mean() - learner)
    return step
task = make(init=init, step=closed(WORLDS["a"]["home"]["x"]), marks=(1, 3))
""",
        "training sees them",
    ),
    "fit asks the task for its query": (
        """
def fit(key, candidate, support):
    return candidate["shrink"] * task.domains[0].queries["away"]["x"].mean()
task = make(fit=fit)
""",
        "training sees them",
    ),
    "fit calls a query's loader": (
        """
def fit(key, candidate, support):
    return 0 * task.domains[0].queries["away"]()["x"].mean() + support["x"].mean()
task = make(fit=fit, domains=[evometa.Domain(n, w["support"], {"away": (lambda n=n: {"x": WORLDS[n]["away"]["x"].copy()})}) for n, w in WORLDS.items()])
""",
        "loaded the queries a/away",
    ),
    "support scaled over both": (
        """
ALL = {n: np.random.default_rng(i).normal(size=20) for i, n in enumerate("abc")}
task = make(fit=learn, domains=[evometa.Domain(n, lambda n=n: {"x": ALL[n][:10] / ALL[n].std()}, {"away": {"x": ALL[n][10:]}}) for n in ALL])
""",
        "computed from query data",
    ),
}
JAX_LEAKS = {
    "a global JAX array inside a jitted function": (
        """
SECRET = jnp.asarray(WORLDS["a"]["away"]["x"] * 1)
for w in WORLDS.values():
    w["away"] = {"x": SECRET}
@jax.jit
def fit(key, candidate, support):
    return candidate["shrink"] * jnp.mean(SECRET) + support["x"].mean()
task = make(fit=fit)
""",
        "training sees them",
    ),
}
PYTHON_LEAKS = {
    "judge goes on training": (
        """
def fit(key, candidate, support):
    return {"mean": support["x"].mean()}
def judge(key, learned, query):
    learned["mean"] += 0.1 * query["x"].mean()
    return {"loss": learned["mean"] ** 2}
task = make(fit=fit, judge=judge)
""",
        "judge changes what was learned",
    ),
    "judge trains between marks": (
        """
class Net:
    def __init__(self): self._w = 0.0
def init(key, candidate, support): return Net()
def step(key, candidate, net, support): net._w += support["x"].mean(); return net
def judge(key, net, query):
    net._w -= query["x"].mean()
    return {"loss": net._w ** 2}
task = make(init=init, step=step, judge=judge, marks=(1, 2))
""",
        "judge changes what was learned",
    ),
    "fit raises on poison": (
        """
def fit(key, candidate, support):
    assert np.isfinite(WORLDS["b"]["home"]["x"]).all()
    return support["x"].mean()
task = make(fit=fit)
""",
        "training raised AssertionError",
    ),
    "fit writes into its support": (
        """
def fit(key, candidate, support):
    support["x"] -= support["x"].mean() - 0.25
    return support["x"].std()
task = make(fit=fit)
""",
        "in place",
    ),
}


def checked(tmp_path: Path, source: str, runs: str) -> Report:
    path = tmp_path / "small.py"
    path.write_text(HEAD.format(runs=runs) + source)
    return check_task(str(path))


def seal_of(tmp_path: Path, source: str, runs: str) -> tuple[bool, str, str]:
    """The seal's line; for JAX tasks without the other checks, which compile for seconds."""
    if runs == "python":
        line = next(line for line in checked(tmp_path, source, runs).lines if line.check == "seal")
        return line.ok, line.found, line.cure
    path = tmp_path / "small.py"
    path.write_text(HEAD.format(runs=runs) + source)
    task = load_task(str(path))
    try:
        return True, check_seal(task, datasets.load(task, task.split.train)), ""
    except Broken as broken:
        return False, broken.found, broken.cure


def problems(report: Report) -> str:
    return " | ".join(f"{line.check}: {line.found}" for line in report.lines if not line.ok)


@pytest.mark.parametrize("runs", ["jax", "python"])
@pytest.mark.parametrize("name", HONEST)
def test_honest_tasks_keep_the_seal(tmp_path: Path, name: str, runs: str) -> None:
    ok, found, _ = seal_of(tmp_path, HONEST[name], runs)
    assert ok and "the same to the bit" in found, found


def test_an_honest_task_passes_every_check(tmp_path: Path) -> None:
    report = checked(tmp_path, HONEST["steps"], "jax")
    assert report.ok, report.text()
    assert [line.check for line in report.lines] == [
        "space", "data", "baseline, train", "baseline, validation", "random candidates",
        "determinism", "independence", "seal", "cost",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("runs", "name", "leak"),
    [
        *[(runs, name, leak) for runs in ("jax", "python") for name, leak in LEAKS.items()],
        *[("jax", name, leak) for name, leak in JAX_LEAKS.items()],
        *[("python", name, leak) for name, leak in PYTHON_LEAKS.items()],
    ],
)
def test_leaking_tasks_are_caught(tmp_path: Path, runs: str, name: str, leak: tuple[str, str]) -> None:
    source, words = leak
    ok, found, cure = seal_of(tmp_path, source, runs)
    assert not ok and words in found and cure, found


def test_data_are_as_before_after_a_check(tmp_path: Path) -> None:
    path = tmp_path / "small.py"
    path.write_text(HEAD.format(runs="python") + LEAKS["fit reads a global query"][0])
    check_task(str(path))
    module = sys.modules["evometa_user_small"]
    fresh = module.world(1)
    assert all(np.array_equal(module.WORLDS["b"][part]["x"], fresh[part]["x"]) for part in fresh)
    assert module.task.domains[1].queries["away"]["x"] is module.WORLDS["b"]["away"]["x"]


def test_test_domains_stay_closed(tmp_path: Path) -> None:
    source = """
calls = []
split = evometa.Split(train=("a",), validation=("b",), test=("c",))
def sealed():
    calls.append(1)
    return WORLDS["c"]["away"]
task = make(fit=learn, domains=[*domains({n: WORLDS[n] for n in "ab"}), evometa.Domain("c", sealed, {"home": sealed, "away": sealed})])
"""
    report = checked(tmp_path, source, "python")
    assert report.ok, report.text()
    assert sys.modules["evometa_user_small"].calls == []
    peeking = (
        source
        + "\ndef fit(key, candidate, support):\n    return task.domains[2].support()['x'].mean()\ntask = make(fit=fit, domains=task.domains)\n"
    )
    report = checked(tmp_path, peeking, "python")
    assert "loaded c/support" in problems(report)


@pytest.mark.parametrize(
    ("runs", "source", "check", "words"),
    [
        (
            "python",
            "import itertools; n = itertools.count()\ntask = make(fit=lambda k, c, s: float(next(n)))",
            "determinism",
            "other numbers",
        ),
        (
            "jax",
            "task = make(fit=lambda k, c, s: s['x'].mean() + np.random.default_rng().random())",
            "determinism",
            "other numbers",
        ),
        ("jax", "task = make(fit=lambda k, c, s: s['x'].mean() / 0)", "baseline, train", "not a finite number"),
        (
            "python",
            "def fit(k, c, s): raise ValueError('no')\ntask = make(fit=fit)",
            "baseline, train",
            "ValueError: no",
        ),
        (
            "python",
            "def fit(k, c, s):\n    if c['shrink'] != 0.5: raise ValueError('only a half')\n    return 0.0\ntask = make(fit=fit)",
            "random candidates",
            "only a half",
        ),
        ("jax", "task = make(fit=learn, judge=lambda k, l, q: {'loss': q['x']})", "functions", "real scalar"),
        (
            "jax",
            "def broken(): raise OSError('gone')\ntask = make(fit=learn, domains=[evometa.Domain(n, broken, {'away': broken}) for n in 'abc'])",
            "data",
            "gone",
        ),
    ],
)
def test_other_problems_are_named(tmp_path: Path, runs: str, source: str, check: str, words: str) -> None:
    report = checked(tmp_path, source, runs)
    line = next(line for line in report.lines if line.check == check)
    assert not line.ok and words in line.found and line.cure, report.text()


def test_a_black_box_has_no_seal(tmp_path: Path) -> None:
    path = tmp_path / "box.py"
    path.write_text(
        "import evometa\n@evometa.objective(space={'x': evometa.real(0, 1)})\ndef box(key, c):\n    return (c['x'] - 0.3) ** 2\n"
    )
    report = check_task(str(path))
    assert report.ok and "one function: nothing held out by construction" in report.text()
    assert report.to_json()["ok"] is True


TRAIN = """
import json, sys, pathlib
q = json.load(sys.stdin)
support = pathlib.Path(q["support"])
numbers = [float(x) for x in (support / "x.txt").read_text().split()]
{extra}
pathlib.Path(q["learned"], "mean.json").write_text(json.dumps(q["candidate"]["shrink"] * sum(numbers)))
"""
JUDGE = """
import json, sys, pathlib
q = json.load(sys.stdin)
mean = json.loads(pathlib.Path(q["learned"], "mean.json").read_text())
numbers = [float(x) for x in pathlib.Path(q["query"]).read_text().split()]
print(json.dumps({"loss": sum((x - mean) ** 2 for x in numbers)}))
"""


def command_folder(tmp_path: Path, extra: str = "", query: str = "data/{name}/away.txt") -> str:
    (tmp_path / "train.py").write_text(TRAIN.format(extra=extra))
    (tmp_path / "judge.py").write_text(JUDGE)
    lines = ["[task]", f"fit = [{sys.executable!r}, 'train.py']", f"judge = [{sys.executable!r}, 'judge.py']"]
    lines += ["[task.space.shrink]", "kind = 'real'", "low = 0.0", "high = 1.0", "[task.split]", "train = ['a', 'b']"]
    for number, name in enumerate("ab"):
        folder = tmp_path / "data" / name
        (folder / "support").mkdir(parents=True)
        (folder / "support" / "x.txt").write_text(f"{number} 2 3")
        path = query.format(name=name)
        (tmp_path / path).write_text(f"{number} 5")
        lines += [f"[task.domains.{name}]", f"support = 'data/{name}/support'", f"away = '{path}'"]
    (tmp_path / "spec.toml").write_text("\n".join(lines))
    return "spec.toml"


@pytest.mark.parametrize(
    ("extra", "query", "words"),
    [
        ("", "data/{name}/away.txt", ""),
        ("", "data/{name}/support/away.txt", "lies inside its support"),
        (
            "numbers += [float(x) for x in (support / '../away.txt').read_text().split()]",
            "data/{name}/away.txt",
            "opened the query",
        ),
        (
            "numbers += [float(x) for x in open('data/b/away.txt').read().split()]",
            "data/{name}/away.txt",
            "opened the query",
        ),
        ("import time; numbers.append(time.time())", "data/{name}/away.txt", "the second time with the same key"),
    ],
)
def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: str, query: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    spec = command_folder(tmp_path, extra, query)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    report = check_task(spec)
    seal = next(line for line in report.lines if line.check == "seal")
    assert seal.ok is (not words) and words in seal.found, report.text()
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_a_link_to_the_query_in_the_support_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = command_folder(tmp_path)
    (tmp_path / "data/b/support/more.txt").symlink_to(tmp_path / "data/b/away.txt")
    assert "which is the file" in problems(check_task(spec))


def test_strategies(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("def bad(space, population=8):\n    raise RuntimeError('not today')\n")
    report = check_strategy(f"{path}:bad")
    assert not report.ok and "not today" in report.text()
    with pytest.raises(NotFound):
        check_strategy("cma_ess")


def test_poison_reaches_and_restores_every_kind_of_memory() -> None:
    import jax.numpy as jnp
    import pandas as pd

    locked = np.arange(4.0)
    locked.flags.writeable = False
    value = {"f": np.arange(3.0), "i": [np.arange(3), "word", 7], "j": jnp.arange(5.0), "b": np.array([True]), "locked": locked[1:],
             "text": np.array(["ab"]), "table": pd.DataFrame({"x": [1.0, 2.0]}), "when": np.array(["2026-01-01"], "M8[D]")}  # fmt: skip
    parts = {name: fingerprint(part) for name, part in value.items()}
    undo = Undo()
    garble(value, undo)
    assert [name for name, part in value.items() if fingerprint(part) == parts[name]] == []
    undo.restore()
    assert {name: fingerprint(part) for name, part in value.items()} == parts
    assert len(arrays_of(value)) == 8


def test_fingerprints_see_private_state_and_no_addresses() -> None:
    class Net:
        def __init__(self, w: float) -> None:
            self._w = w
            self.itself = self

    assert fingerprint(Net(1.0)) == fingerprint(Net(1.0)) != fingerprint(Net(2.0))
    assert fingerprint({"a", "b"}) == fingerprint({"b", "a"})
    rng = np.random.default_rng(0)
    before = fingerprint(rng)
    rng.random()
    assert fingerprint(rng) != before


def test_a_key_is_no_path(tmp_path):
    """A folder `out` beside a task must not change the data of a domain that has a key `out`."""
    before = fingerprint({"out": 1, "file": "x.csv"}, files=tmp_path)
    (tmp_path / "out").write_text("anything")
    assert fingerprint({"out": 1, "file": "x.csv"}, files=tmp_path) == before
    (tmp_path / "x.csv").write_text("1,2")
    assert fingerprint({"out": 1, "file": "x.csv"}, files=tmp_path) != before
