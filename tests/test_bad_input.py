"""Whatever is wrong with what a user gives: one clear line (expected, got, what to do) and its exit code."""

from __future__ import annotations

import subprocess

import pytest
from helpers import PLAIN, RIDGE, cli, lineage_files, one_line

import evometa
from evometa.errors import ConfigError

pytest_plugins = ["shared"]

QUICK = ("--generations", 2, "--population", 4, "--strategy", "genetic")


def variant(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


# --- names and numbers on the command line -----------------------------------------------------------------

WRONG_CALLS = {
    "unknown task": (["laddr"], 3, ["laddr", 'Did you mean "ladder"?']),
    "unknown file": (["nothing.py"], 3, ["nothing.py", "evometa new task nothing"]),
    "a file's stem": (["plain"], 3, ["evometa run plain.py"]),
    "unknown attribute": (["plain.py:tsk"], 3, ["tsk", 'Did you mean "task"?']),
    "unknown module": (["no_such_module:task"], 3, ["no_such_module"]),
    "unknown strategy": (["plain.py", "--strategy", "genetics"], 3, ["genetics", 'Did you mean "genetic"?', "evometa strategies"]),
    "unknown strategy option": (
        ["plain.py", "--strategy", "genetic", "--set", "strategy_options.sigm=1"], 2, ["sigm", 'Did you mean "sigma"?']
    ),
    "strategy option out of range": (
        ["plain.py", "--strategy", "genetic", "--set", "strategy_options.sigma=-1"], 4, ["sigma", "-1"]
    ),
    "unknown key": (["plain.py", "--set", "generatons=3"], 4, ["generatons", 'Did you mean "generations"?']),
    "unknown key in a table": (["plain.py", "--set", "plan.chunks=3"], 4, ["plan.chunks", 'Did you mean "chunk"?']),
    "a value for a table": (["plain.py", "--set", "plan=3"], 4, ["plan", "3"]),
    "no value": (["plain.py", "--set", "seed"], 2, ["KEY=VALUE", "'seed'"]),
    "a word for a number": (["plain.py", "--set", "seed=abc"], 4, ["seed", "integer", "'abc'"]),
    "a negative seed": (["plain.py", "--seed", "-1"], 4, ["seed", "greater than or equal to 0", "-1"]),
    "no generations": (["plain.py", "--generations", "0"], 4, ["generations", "greater than or equal to 1"]),
    "population 0": (["plain.py", "--strategy", "genetic", "--population", "0"], 4, ["population of at least 4", "got 0"]),
    "population 1": (["ridge.py", "--population", "1"], 4, ["population of at least", "got 1"]),
    "unknown strategy file": (["plain.py", "--strategy", "mine.py:mine"], 3, ["mine.py", "evometa new strategy mine"]),
    "a strategy that cannot search it": (["plain.py", "--strategy", "cma_es"], 4, ["categorical", "kind", "genetic"]),
    "unknown query": (["plain.py", "--objective", "awy"], 4, ["awy", 'Did you mean "away"?']),
    "unknown reduction": (["plain.py", "--objective", "away:wurst"], 4, ["wurst", 'Did you mean "worst"?']),
    "a fraction that is none": (["plain.py", "--objective", "away:cvar:2"], 4, ["fraction", "2"]),
    "a fraction that is no number": (["plain.py", "--objective", "away:cvar:x"], 4, ["QUERY[:REDUCTION[:FRACTION]]", "away:cvar:x"]),
    "unknown domain": (["plain.py", "--set", 'split.train=["d9"]'], 4, ["no domain 'd9'"]),
    "a domain twice": (["plain.py", "--set", 'split.train=["d0"]', "--set", 'split.test=["d0"]'], 4, ["'d0'", "train", "test"]),
    "no train domain": (["plain.py", "--set", "split.train=[]"], 4, ["at least one train domain"]),
    "unknown backend": (["plain.py", "--backend", "mainframe"], 4, ["backend", "'mainframe'"]),
    "unknown profile": (["ladder", "--profile", "smok"], 3, ["smok", 'Did you mean "smoke"?']),
    "a profile where there is none": (["plain.py", "--profile", "smoke"], 3, ["plain.py", "none"]),
    "options for a task that takes none": (["plain.py", "--set", "task_options.size=3"], 2, ["takes no options", "size"]),
    "unknown task option": (["ladder", "--set", "task_options.wdth=3"], 2, ["wdth"]),
    "a path as name": (["plain.py", *QUICK, "--name", "../x"], 2, ["'../x'", "--out DIR"]),
    "an empty name": (["plain.py", *QUICK, "--name", ""], 2, ["run name"]),
    "a fork of nothing": (["plain.py", "--strategy", "genetic", "--from", "plain@1"], 3, ["'plain'"]),
    "a fork without a generation": (["plain.py", "--strategy", "genetic", "--from", "plain"], 2, ["RUN@GENERATION"]),
    "unknown option": (["plain.py", "--poulation", "3"], 2, ["--poulation", "--population"]),
    "no such command": ([], 2, []),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_CALLS)
def test_a_wrong_call_is_one_line(folder, case):
    arguments, code, fragments = WRONG_CALLS[case]
    said = cli("run", *arguments) if arguments else cli("rum")
    one_line(said, code, *fragments)
    assert not list(folder.glob("runs/*/lineage")), "nothing may have been computed"


def test_debug_shows_the_traceback(folder, monkeypatch):
    monkeypatch.delenv("EVOMETA_DEBUG", raising=False)
    monkeypatch.setenv("EVOMETA_DEBUG", "")  # so that monkeypatch takes away what --debug sets
    with pytest.raises(Exception, match="no task is called"):
        cli("--debug", "run", "laddr")


# --- task files ------------------------------------------------------------------------------------------------

WRONG_FILES = {
    "not Python": ("def f(:\n", 4, ["bad.py:1", "not Python"]),
    "raises on import": ("x = 1\ny = x / 0\n", 4, ["bad.py:2", "ZeroDivisionError"]),
    "needs a missing package": ("import no_such_package_at_all\n", 1, ["no_such_package_at_all", "pip install no_such_package_at_all"]),
    "holds no task": ("x = 1\n", 4, ["holds no task", "evometa.task("]),
    "holds several": (PLAIN + "\nother = task.build().with_(name='other')\nanother = other.with_(name='c')\ndel task\n", 4, ["several tasks", "other"]),
    "fit and no judge": (variant(PLAIN, ("@task.judge", "")), 4, ["judge", "@task.judge"]),
    "judge and no fit": (variant(PLAIN, ("@task.fit", "")), 4, ["fit", "neither"]),
    "low above high": (variant(PLAIN, ("real(-1, 1)", "real(2, 1)")), 4, ["'x'", "low < high", "low=2, high=1"]),
    "a number for a column": (variant(PLAIN, ("evometa.real(-1, 1)", "3")), 4, ["'x'", "column", "int"]),
    "log from zero": (variant(PLAIN, ("real(-1, 1)", "log(0, 1)")), 4, ["'x'", "low > 0", "real"]),
    "a baseline outside": (
        variant(PLAIN, ('runs="python",', 'runs="python", baseline={"x": 7, "kind": "flat"},')), 4, ["'x'", "-1 .. 1", "7"]
    ),
    "a baseline without a name": (
        variant(PLAIN, ('runs="python",', 'runs="python", baseline={"kind": "flat"},')), 4, ["missing ['x']"]
    ),
    "a domain without the query": (variant(PLAIN, ('"away": n}', '("away" if n else "home"): n}')), 4, ["'away'", "'d0'", "home"]),
    "an unknown field": (variant(PLAIN, ('runs="python",', 'runs="python", replikates=3,')), 4, ["replikates", 'Did you mean "replicates"?']),
    "a JAX judge that returns a vector": (variant(RIDGE, ("jnp.mean((query[\"x\"] @ w - query[\"y\"]) ** 2)", "query[\"x\"] @ w")), 4, ["loss", "scalar", "(8,)"]),
    "a JAX judge that returns a number": (variant(RIDGE, ('return {"loss": jnp.mean((query["x"] @ w - query["y"]) ** 2)}', "return jnp.sum(w)")), 4, ["dict with a 'loss'"]),
    "a JAX judge that returns a string": (variant(RIDGE, ("jnp.mean((query[\"x\"] @ w - query[\"y\"]) ** 2)", "'low'")), 4, ["loss"]),
    "a JAX judge without a loss": (variant(RIDGE, ('{"loss"', '{"los"')), 4, ["'loss'", "los"]),
    "not traceable": (variant(RIDGE, ("    def step(w, _):", "    float(candidate['rate'])\n    def step(w, _):")), 4, ["traceable", 'runs="python"']),
    "a shape that does not fit": (variant(RIDGE, ("(3,)), length", "(4,)), length")), 4, ["ridge", "TypeError"]),
    "a loader that raises": (variant(PLAIN, ('"support": n', '"support": lambda: 1 / 0')), 1, ["'d0'", "failed to load", "ZeroDivisionError"]),
    "a loader that needs a package": (
        variant(PLAIN, ('"support": n', '"support": lambda: __import__("no_such_package_at_all")')), 1, ["pip install no_such_package_at_all"]
    ),
    "a missing package inside a JAX fit": (
        variant(RIDGE, ("    def step(w, _):", "    import no_such_package_at_all\n    def step(w, _):")), 1, ["pip install no_such_package_at_all"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_wrong_task_file_is_one_line(folder, case):
    text, code, fragments = WRONG_FILES[case]
    (folder / "bad.py").write_text(text)
    arguments = ("--strategy", "random_search", "--generations", 2, "--population", 4)
    one_line(cli("run", "bad.py", *arguments), code, *fragments)
    assert not list(folder.glob("runs/*/lineage")), "nothing may have been computed"


EVERYBODY_FAILS = {
    "NaN": ("float('nan')", "nan"),
    "infinity": ("float('inf')", "inf"),
    "too large for float32": ("1e39", "1e+39"),
    "a string": ("'low'", "'low'"),
    "a bool": ("True", "bool"),
    "a tuple": ("(1.0, 2.0)", "tuple"),
    "None": ("None", "None"),
    "an array": ("np.zeros(3)", "ndarray"),
    "a complex number": ("1j", "complex"),
    "an exception": ("1 / 0", "ZeroDivisionError"),
}


@pytest.mark.parametrize("case", EVERYBODY_FAILS)
def test_when_everybody_fails_the_run_says_why(folder, case):
    loss, word = EVERYBODY_FAILS[case]
    loss_line = '{"loss": bend * (candidate["x"] - 0.1 * query) ** 2 + noise}'
    (folder / "bad.py").write_text(variant(PLAIN, (loss_line, f'{{"loss": {loss}}}')))
    one_line(
        cli("run", "bad.py", *QUICK),
        1,
        "every candidate of the first 1 generation(s) failed",
        word,
        "evometa check task bad.py",
    )


def test_a_fit_that_needs_a_package_says_which(folder):
    text = variant(PLAIN, ("    time.sleep", "    import no_such_package_at_all\n    time.sleep"))
    (folder / "bad.py").write_text(text)
    one_line(cli("run", "bad.py", *QUICK), 1, "no_such_package_at_all", "Install the package with pip")


def test_when_everybody_fails_in_jax_the_run_says_so(folder):
    (folder / "bad.py").write_text(variant(RIDGE, ("jnp.mean((query", "jnp.nan * jnp.mean((query")))
    one_line(cli("run", "bad.py", "--generations", 2, "--population", 4), 1, "every candidate", "nonfinite")


# --- spec files -------------------------------------------------------------------------------------------------

GOOD_SPEC = """# a run
task = "plain.py"
strategy = "genetic"
generations = 2
population = 4

[plan]
block = 1
"""
WRONG_SPECS = {
    "a typo": (("population", "populatoin"), 4, ["spec.toml:5", "populatoin", 'Did you mean "population"?']),
    "a typo in a table": (("block", "blok"), 4, ["spec.toml:8", "plan.blok", 'Did you mean "block"?']),
    "a wrong type": (("generations = 2", 'generations = "two"'), 4, ["spec.toml:4", "generations", "'two'"]),
    "out of range": (("block = 1", "block = 0"), 4, ["spec.toml:8", "plan.block", "0"]),
    "not TOML": (("generations = 2", "generations = = 2"), 4, ["spec.toml", "not TOML", "line 4"]),
    "no task": (('task = "plain.py"', ""), 4, ["task", "required"]),
}


@pytest.mark.parametrize("case", WRONG_SPECS)
def test_a_wrong_spec_names_file_and_line(folder, case):
    change, code, fragments = WRONG_SPECS[case]
    (folder / "spec.toml").write_text(variant(GOOD_SPEC, change))
    one_line(cli("run", "spec.toml"), code, *fragments)


GOOD_TABLE = """strategy = "random_search"
[task]
fit = ["python", "train.py"]
judge = ["python", "judge.py"]
split = {train = ["a"]}
replicates = 1

[task.space]
rate = {kind = "log", low = 1e-3, high = 1}

[task.domains]
a = {support = "a", away = "a"}
"""
WRONG_TABLES = {
    "a typo in the split": (("{train", "{trian"), ["spec.toml:5", "task.split.trian", 'Did you mean "train"?']),
    "a split without train": (('{train = ["a"]}', "{}"), ["spec.toml:5", "task.split.train", "required"]),
    "a number for a column": (('{kind = "log", low = 1e-3, high = 1}', "3"), ["spec.toml:9", "task.space.rate", "3"]),
    "a word for a bound": (("low = 1e-3", 'low = "a"'), ["spec.toml:9", "task.space.rate.low", "number", "'a'"]),
    "a typo in a column": (("low = ", "lo = "), ["spec.toml:9", "task.space.rate.lo", 'Did you mean "low"?']),
    "an unknown kind": (('"log"', '"lgo"'), ["spec.toml:9", "task.space.rate.kind", "'lgo'"]),
    "bounds that do not fit": (("low = 1e-3", "low = 2"), ["'rate'", "low < high"]),
    "a typo in the table": (("replicates", "replikates"), ["spec.toml:6", "task.replikates", 'Did you mean "replicates"?']),
    "a number for a domain": (('{support = "a", away = "a"}', "3"), ["spec.toml:12", "task.domains.a", "3"]),
    "a domain without support": (("support = ", "suport = "), ["'a'", "'support'"]),
    "a string for words": (
        ('["python", "train.py"]', '"python train.py"'), ["spec.toml:3", "task.fit", "list of words", "'python train.py'"]
    ),
    "no judge": (('judge = ["python", "judge.py"]', ""), ["spec.toml:2", "task.judge", "required"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_TABLES)
def test_a_wrong_task_table_names_file_and_line(folder, case):
    change, fragments = WRONG_TABLES[case]
    (folder / "spec.toml").write_text(variant(GOOD_TABLE, change))
    one_line(cli("run", "spec.toml"), 4, *fragments)
    one_line(cli("check", "task", "spec.toml"), 4, *fragments)


def test_a_command_is_a_list_of_words():
    with pytest.raises(ConfigError, match=r"fit expected a list of words .* got the string 'python train.py'"):
        evometa.command_task(fit="python train.py", judge=["x"], space={"x": evometa.real(0, 1)}, domains={})


@pytest.mark.parametrize("package", ["sklearn", "wordfreq", "msgpack"])
def test_a_missing_package_is_named_as_pip_knows_it(folder, package):
    (folder / "bad.py").write_text(f"raise ModuleNotFoundError(name={package!r})\n")
    one_line(cli("run", "bad.py"), 1, package, "pip install 'evometa[tasks]'")


def test_the_spec_as_it_stands_runs_and_flags_win(folder):
    (folder / "spec.toml").write_text(GOOD_SPEC)
    said = cli("run", "spec.toml", "--generations", 3, "--json")
    assert said.code == 0 and said.data["generations"] == 3 and said.data["candidates"] == 12
    one_line(cli("run", "other.toml"), 3, "other.toml")


# --- runs ---------------------------------------------------------------------------------------------------------


def test_a_name_that_is_taken(copies):
    before = lineage_files(copies / "runs/plain")
    said = cli("run", "plain.py", *QUICK, "--name", "plain")
    one_line(said, 2, "'plain' exists in runs", "evometa resume runs/plain", "--name")
    assert lineage_files(copies / "runs/plain") == before


RUN_COMMANDS = [
    ("resume",),
    ("unseal",),
    ("report",),
    ("watch", "--once"),
    ("archive", "ls"),
    ("archive", "top"),
    ("archive", "check"),
]


@pytest.mark.parametrize("command", RUN_COMMANDS, ids=" ".join)
def test_an_unknown_run_is_named_with_its_nearest(copies, command):
    one_line(cli(*command, "plian"), 3, "'plian'", 'Did you mean "plain"?', "evometa runs")


def test_unknown_and_malformed_candidates(copies):
    for words in (
        ("show", "plain", "99:0"),
        ("show", "plain", "0:99"),
        ("lineage", "plain", "99:0"),
        ("scores", "plain", "7:99"),
    ):
        one_line(cli("archive", *words), 3, words[2])
    for text in ("3", "a:b", "1:2:3", "1:", ":1"):
        one_line(cli("archive", "show", "plain", text), 2, "GENERATION:INDEX", repr(text))
    one_line(cli("archive", "query", "plain", "DROP TABLE lineage"), 2, "single SELECT")
    one_line(cli("archive", "query", "plain", "SELECT nothing FROM lineage"), 2, "nothing")


def test_fewer_generations_than_there_are(copies):
    one_line(cli("resume", "plain", "--generations", 2), 2, "5 generations already", "2")
    one_line(cli("run", "plain.py", *QUICK, "--from", "plain@9"), 2, "5 generations", "0 .. 5", "9")


# --- damaged archives ----------------------------------------------------------------------------------------------


def damage(part, how):
    data = part.read_bytes()
    if how == "missing":
        part.unlink()
    elif how == "truncated":
        part.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        part.write_bytes(b"")
    elif how == "flipped":
        part.write_bytes(data[:99] + bytes([data[99] ^ 4]) + data[100:])
    else:
        (part.parent / "notes.txt").write_text("mine")


@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "flipped", "foreign"])
def test_a_damaged_part_is_named(copies, how):
    part = sorted((copies / "runs/plain/lineage").glob("*.parquet"))[-1]
    damage(part, how)
    said = cli("archive", "check", "plain", "--json")
    assert said.code == 5 and not said.data["ok"], said
    name = "notes.txt" if how == "foreign" else part.name
    assert any(name in problem for problem in said.data["problems"]), said.data
    if how not in ("foreign", "missing"):
        one_line(cli("archive", "top", "plain"), 5, part.name, "evometa archive check")
    if how != "foreign":
        one_line(cli("resume", "plain", "--generations", 6), 5, part.name, "evometa archive check")


def test_a_changed_record_or_diary_is_named(copies):
    record = copies / "runs/plain/run.json"
    record.write_text(record.read_text().replace('"seed": 3', '"seed": 4'))
    one_line(cli("resume", "plain"), 5, "run.json")
    assert cli("archive", "check", "plain").code == 5
    diary = copies / "runs/static/events.jsonl"
    diary.write_text(diary.read_text().replace('"generations":2', '"generations":9', 1))
    one_line(cli("resume", "static"), 5, "events.jsonl", "line 1")
    assert cli("archive", "check", "static").code == 5


# --- disks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 96 kB (root only); remounted read-only by `options`."""
    mount = tmp_path / "disk"
    mount.mkdir()

    def mounted(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(mount)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("may not mount here")
        return mount

    yield mounted
    subprocess.run(["umount", str(mount)], capture_output=True, check=False)


def test_a_full_disk_says_so_and_the_run_goes_on_when_there_is_room(folder, small_disk):
    disk = small_disk("size=160k")
    arguments = ("run", "plain.py", "--generations", 30, "--population", 4, "--strategy", "genetic", "--name", "x")
    said = cli(*arguments, "--out", disk)
    one_line(said, 74, "disk", "Free some space", "evometa resume")
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
    assert cli("resume", disk / "x").code == 0
    assert cli("archive", "check", disk / "x").code == 0
    assert cli(*arguments).code == 0
    assert lineage_files(disk / "x") == lineage_files(folder / "runs/x")


def test_a_read_only_disk_says_so(folder, small_disk):
    disk = small_disk("size=1m,ro")
    one_line(cli("run", "plain.py", *QUICK, "--out", disk), 74, "read-only")


def test_a_file_in_the_way(folder):
    (folder / "runs").write_text("I am no folder")
    said = cli("run", "plain.py", *QUICK)
    one_line(said, 74, "runs")
