"""Somebody else's archive: looking at it never runs its code, writes nothing, and leads nowhere outside."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import audited
import hostile
import pytest
from helpers import cli, environment, rewrite, write_tasks
from hostile import EVIL, forge

import evometa
from evometa import api, trust
from evometa.archives.query import query
from evometa.errors import EvometaError, IntegrityError, UsageError
from evometa.printable import docstring, markdown, printable, spreadsheet

pytest_plugins = ["shared"]
HERE = Path(__file__).parent


@pytest.fixture
def bad(opened, tmp_path, monkeypatch):
    """The current folder, with a hostile archive in runs/bad and nothing that trusts it."""
    shutil.copytree(opened, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("EVOMETA_TEST_BITTEN", str(tmp_path / "bitten"))
    return hostile.make(tmp_path / "here/runs/x", tmp_path / "here/runs/bad")


def bitten(bad: Path) -> bool:
    return Path(os.environ["EVOMETA_TEST_BITTEN"]).exists()


# --- reading runs nothing ------------------------------------------------------------------------------------


DRAWN = ("svg", "png", "json", "nwk", "csv")
READING = [
    ["archive", "ls", "RUN"],
    ["archive", "show", "RUN", "0:0"],
    ["archive", "top", "RUN"],
    ["archive", "lineage", "RUN", "2:0"],
    ["archive", "lineage", "RUN", "2:0", "--by-generation"],
    ["archive", "lineage", "RUN", "--by-generation", "--json"],
    *(["archive", "lineage", "RUN", "--to", f"TO.{ending}"] for ending in DRAWN),
    *(["archive", "export", "RUN", f"--{form}"] for form in ("csv", "json", "alife", "newick")),
    ["archive", "diff", "RUN", "2:0"],
    ["archive", "diff", "RUN", "2:0", "0:1", "--json"],
    ["archive", "scores", "RUN"],
    ["archive", "scores", "RUN", "1:1"],
    ["archive", "query", "RUN", "SELECT message, operator, text, fitness FROM lineage LIMIT 3"],
    ["archive", "query", "RUN", "SELECT * FROM scores, judgements, timings LIMIT 2", "--json"],
    ["archive", "check", "RUN"],
    ["report", "RUN"],
    ["report", "RUN", "--json"],
    ["runs"],
    ["watch", "RUN", "--once"],
    ["compare", "RUN"],
    ["compare", "RUN", "--families", "group"],
    ["export", "RUN"],
    ["open", "RUN"],
]


@pytest.mark.parametrize("inside", [False, True], ids=["from beside it", "from inside it"])
def test_no_reading_command_runs_or_writes_anything(bad, inside, tmp_path):
    """SYS-5 and the promise of SECURITY.md, as an audit hook of the interpreter sees it."""
    where = bad if inside else bad.parent.parent
    run = "." if inside else "runs/bad"
    places = {"RUN": run, **{f"TO.{ending}": str(tmp_path / f"to.{ending}") for ending in DRAWN}}
    lines = [json.dumps([places.get(word, word) for word in command]) for command in READING]
    before = {path: path.read_bytes() for path in bad.rglob("*") if path.is_file()}
    child = subprocess.run(
        [sys.executable, audited.__file__, str(bad)],
        cwd=where,
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=200,
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
    )
    assert child.returncode == 0, child.stderr
    *printed, found = child.stdout.splitlines()
    drawn = [Path(path) for name, path in places.items() if name != "RUN"]
    asked = {f"write {path}" for file in drawn for path in (repr(file), repr(str(file)))}
    asked.add(f"os.mkdir ({str(tmp_path)!r}, 511, -1)")  # which is there
    assert sorted(set(json.loads(found)) - asked) == []
    assert all(file.stat().st_size for file in drawn)
    assert not bitten(bad)
    shown = "\n".join(printed) + child.stderr
    assert EVIL in shown, "the hostile texts are shown"
    assert not {c for c in shown if c < " " or "\x7f" <= c < "\xa0" or c == "\u202e"} - {"\n", "\t"}
    assert "unexpected" not in child.stderr and "Traceback" not in child.stderr, child.stderr
    assert "damaged" not in shown, "the archive is whole, so that its content was really read"
    assert {path: path.read_bytes() for path in bad.rglob("*") if path.is_file()} == before


def test_the_hook_sees_what_it_is_there_for(tmp_path):
    """The oracle of the test above: a child that does it all is caught at it."""
    (tmp_path / "near.py").write_text("x = 1\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path[:0] = [{str(HERE)!r}, {str(tmp_path)!r}]\n"
        "import audited, evometa.cli\n"
        "def command():\n"
        "    import os, pickle, socket, subprocess\n"
        "    import near\n"
        "    subprocess.run(['true']); os.system('true'); exec('x = \"X5EVIL\"')\n"
        "    open(os.path.join(sys.argv[0] + '.txt'), 'w').close()\n"
        "    pickle.loads(pickle.dumps(os.getcwd)); socket.socket().bind(('127.0.0.1', 0))\n"
        "evometa.cli.main = command\n"
        f"sys.argv = ['audited', {str(tmp_path)!r}]\n"
        "audited.main()\n"
    )
    child = subprocess.run([sys.executable, script], cwd=tmp_path, input="[]", capture_output=True, text=True)
    found = " ".join(json.loads(child.stdout.splitlines()[-1]))
    for word in ("exec <code", "subprocess.Popen", "os.system", "compile", "write", "pickle.find_class", "socket.bind"):
        assert word in found, found


# --- going on needs the user's word --------------------------------------------------------------------------


def options(**more):
    return lambda record: record["spec"].update(more)


COMMANDS = {"fit": ["sh", "-c", "touch $EVOMETA_TEST_BITTEN"], "judge": ["sh", "-c", "touch $EVOMETA_TEST_BITTEN"]}
TABLE = {**COMMANDS, "space": {"x": {"kind": "real"}}, "domains": {"d0": {"support": {}, "away": {}}}}
ATTACKS = {
    "a file in the archive": options(task="runs/bad/task.py"),
    "a file by its whole path": options(task="/etc/evometa.py"),
    "a file of the user's with a function": options(task="plain.py:touch", task_options={"path": "bitten"}),
    "a shell by its module": options(task="os:system", task_options={"command": "touch $EVOMETA_TEST_BITTEN"}),
    "a process by its module": options(task="subprocess:run", task_options={"args": ["touch", "bitten"]}),
    "commands": options(task=TABLE),
    "a strategy in the archive": options(task="digits", strategy="runs/bad/task.py"),
    "a strategy by its module": options(task="digits", strategy="os:system", strategy_options={"command": "true"}),
    "a strategy below": options(task="digits", strategy="genetic", levels=2, nest=[{"strategy": "runs/bad/task.py"}]),
    "commands from a parent": lambda record: record.update({"from": {**FORK, "path": "runs/bad"}}),
}
FORK = {"run": "../bad", "path": "/tmp", "generation": 1, "first": 1}
ACTING = [
    ["resume", "bad", "--generations", 5],
    ["unseal", "bad"],
    ["archive", "show", "bad", "0:0", "--replay"],
    ["archive", "expand", "bad", "0:0"],
    ["run", "plain.py", "--strategy", "genetic", "--population", 6, "--generations", 5, "--from", "bad@1"],
    ["deploy", "bad"],
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_strangers_run_is_not_gone_on_with(bad, attack):
    """Whatever its record names: nothing of it is imported, started or called before the user said so."""
    forge(bad, ATTACKS[attack])
    for command in ACTING:
        said = cli(*command)
        assert said.code == 6 and "evometa trust" in said.err and said.err.count("\n") == 1, (command, said)
        assert not bitten(bad) and not Path("bitten").exists(), command
    with pytest.raises(EvometaError, match="evometa trust"):
        api.resume(bad)


def test_trust_is_given_to_one_record_and_never_to_code_in_an_archive(bad):
    forge(bad, options(task="mine.py", strategy="genetic"))
    Path("mine.py").write_text(hostile.PAYLOAD)
    said = cli("trust", "bad", "--json")
    assert said.code == 0 and [code["reference"] for code in said.data["code"]] == ["mine.py"]
    assert said.data["code"][0]["same"] is False
    assert cli("resume", "bad").code == 6 and not bitten(bad), "another source than the recorded: not imported"
    digest = trust_digest("mine.py")
    forge(bad, lambda record: record["task"].update(code=digest))
    assert "evometa trust" in cli("resume", "bad").err, "another record is another run"
    assert cli("trust", "bad").code == 0
    assert cli("resume", "bad").code == 4 and bitten(bad), "trusted code runs: the test would see it"
    Path(os.environ["EVOMETA_TEST_BITTEN"]).unlink()
    digest = trust_digest("runs/bad/task.py")
    forge(bad, lambda record: (record["spec"].update(task="runs/bad/task.py"), record["task"].update(code=digest)))
    assert cli("trust", "bad").code == 0
    said = cli("resume", "bad")
    assert said.code == 6 and "inside a run's folder" in said.err and not bitten(bad)


def trust_digest(name: str) -> str:
    from evometa.names import sources_digest

    return sources_digest(Path(name))


def test_ones_own_runs_need_no_word(opened, tmp_path, monkeypatch):
    """Started here: resumed from anywhere, unless nothing could be remembered."""
    monkeypatch.chdir(tmp_path)
    write_tasks(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    small = ("--population", 6, "--generations", 2, "--strategy", "genetic")
    assert cli("run", "plain.py", *small, "--name", "mine").code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli("resume", "../runs/mine", "--generations", 3).code == 0
    assert trust.is_mine(tmp_path / "runs/mine")
    (tmp_path / "state/evometa/runs").unlink()
    assert not trust.is_mine(tmp_path / "runs/mine")
    said = cli("resume", "../runs/mine", "--generations", 4)
    assert said.code == 6 and "plain.py" in said.err
    (tmp_path / "state/evometa").rmdir()
    (tmp_path / "state/evometa").write_text("no folder")
    assert cli("trust", "../runs/mine").code == 74
    assert cli("run", "../plain.py", *small, "--name", "again").code == 0, "a run can be made without being remembered"


# --- links and devices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["run.lock", "events.jsonl", ".staging", "cells", "checkpoints", "timings", "run.json"]
)
def test_links_out_of_a_run_are_not_followed_to_write(bad, tmp_path, name):
    victim = tmp_path / "victim"
    inside = victim / "kept.txt"
    victim.mkdir()
    inside.write_text("the user's own")
    forge(bad, options(task="digits", strategy="cma_es"))
    path = bad / name
    target = inside if "." in name[1:] else victim
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
    path.symlink_to(target)
    assert cli("resume", "bad").code in (3, 5)
    assert inside.read_text() == "the user's own" and [p.name for p in victim.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize("kind", ["link", "endless", "pipe", "folder"])
def test_only_files_are_read(bad, kind, tmp_path):
    for file in (next((bad / "lineage").glob("*.parquet")), bad / "events.jsonl", bad / "run.json"):
        data = file.read_bytes()
        file.unlink()
        if kind == "link":
            (tmp_path / "same").write_bytes(data)
            file.symlink_to(tmp_path / "same")
        elif kind == "endless":
            file.symlink_to("/dev/zero")
        elif kind == "pipe":
            os.mkfifo(file)
        else:
            file.mkdir()
        for command in (["archive", "check", "bad"], ["report", "bad"], ["archive", "top", "bad"]):
            said = cli(*command)
            assert "unexpected" not in said.err, said
        assert cli("archive", "check", "bad").code in (3, 5)
        shutil.rmtree(file) if file.is_dir() else file.unlink()
        file.write_bytes(data)
    assert cli("report", "bad").code == 0


# --- SQL -----------------------------------------------------------------------------------------------------


ESCAPING = [
    "SELECT * FROM '/etc/passwd'",
    'SELECT * FROM "/etc/passwd"',
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "WITH x AS (SELECT content FROM read_blob('/etc/passwd')) SELECT * FROM x",
    "SELECT (SELECT content FROM read_text('/etc/passwd'))",
    "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')",
    "SELECT * FROM query_table('/etc/passwd')",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM read_duckdb('/etc/passwd')",
    "SELECT * FROM parquet_kv_metadata('/etc/passwd')",
    "SELECT * FROM arrow_scan(1::UBIGINT, 2::UBIGINT, 3::UBIGINT)",
    "SELECT * FROM pandas_scan(1::UBIGINT)",
    "SELECT * FROM register_external_resource('x')",
    "SELECT * FROM enable_logging()",
    "SELECT * FROM truncate_duckdb_logs()",
    "SELECT * FROM 'https://127.0.0.1:1/x.parquet'",
    "SELECT * FROM 's3://x/y.parquet'",
    "SELECT getenv('HOME')",
    "SELECT sleep_ms(100000)",
    "SELECT write_log('x')",
    "COPY lineage TO '/tmp/evil'",
    "COPY (SELECT 1) TO '/tmp/evil'",
    "ATTACH '/tmp/evil' AS e",
    "INSTALL httpfs",
    "LOAD httpfs",
    "PRAGMA database_list",
    "SET enable_external_access = true",
    "SELECT 1; SET lock_configuration = false",
    "SELECT 1; COPY (SELECT 1) TO '/tmp/evil'",
    "CREATE MACRO f() AS TABLE SELECT 1",
    "EXPORT DATABASE '/tmp/evil'",
    "EXPLAIN ANALYZE SELECT 1",
    "SELECT " + "(" * 3000 + "1" + ")" * 3000,
    "SELECT " + "+".join(["1"] * 20000),
    "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM t) SELECT max(x) FROM t",
    "SELECT count(*) FROM range(100000000000) a, range(100000000000) b",
    "SELECT list(r) FROM range(100000000000) t(r)",
]


@pytest.mark.parametrize("sql", ESCAPING, ids=lambda sql: sql[:40])
def test_a_query_sees_its_archive_alone_and_ends(opened, sql):
    assert query(opened / "runs/x", "SELECT count(*) AS n FROM lineage") == [{"n": 18}]
    with pytest.raises(UsageError, match="query: ") as caught:
        query(opened / "runs/x", sql, seconds=1.0)
    assert "root:" not in str(caught.value) and not Path("/tmp/evil").exists()


# --- texts ---------------------------------------------------------------------------------------------------


def test_texts_are_shown_and_not_obeyed():
    assert printable("a\x1b[2J\x9b\u202e\ttab\nline") == "a\\x1b[2J\\x9b\\u202e\ttab\nline"
    assert printable("a\nb", lines=False) == "a\\nb"
    assert markdown("<b>x</b> 1 < 2 a|b ![x](http://y) [x]: javascript:z") == (
        "&lt;b>x&lt;/b> 1 < 2 a\\|b ![x]\\(http://y) [x]\\: javascript:z"
    )
    assert [spreadsheet(text) for text in ("=1+1", "-2.5", "@x", "+cmd|' /C calc'!A0", "name", "-inf")] == (
        ["'=1+1", "-2.5", "'@x", "'+cmd|' /C calc'!A0", "name", "-inf"]
    )
    for text in ('"""', '\\"""', "x\\", '"', '\n"""\nimport os', "\\N{BULLET}"):
        tree = ast.parse(f'"""{docstring(text)} """\n')
        assert len(tree.body) == 1 and isinstance(tree.body[0], ast.Expr)


def test_an_exported_phylogeny_holds_no_formula(bad):
    rewrite(bad, 0, "operator", lambda values: ["=1+1"] * len(values))
    said = cli("archive", "export", "bad", "--alife")
    assert said.code == 0 and ",'=1+1," in said.out and ",=1+1," not in said.out, said


def test_an_exported_rule_holds_nothing_of_an_archives_texts(tmp_path):
    """Names of runs and vocabularies end no docstring and start no line."""
    from evometa.export.latex import latex_source
    from evometa.export.module import optax_module, python_module
    from evometa.programs.known import known
    from evometa.programs.vocabularies import VOCABULARIES
    from evometa.programs.vocabulary import Vocabulary

    words = VOCABULARIES["optimizer"].to_json()
    for breakout in ('"""\nimport os\nos.system("true")\n"""', "'''\nimport os", "\\", "\nimport os\n"):
        evil = json.loads(json.dumps(words))
        evil["name"] = breakout
        for row in evil["inputs"]:
            row["text"] = breakout
        vocabulary = Vocabulary.from_json(evil)
        program = known(VOCABULARIES["optimizer"], "adam")._replace(vocabulary=vocabulary)
        for form in (python_module, optax_module):
            text = form(program, breakout, {f"x = 1{breakout}": 1.0})
            imported = {a.name for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import) for a in n.names}
            assert "os" not in imported, text
        latex = latex_source(program, breakout, {breakout: 1.0})
        assert not [line for line in latex.splitlines() if line.startswith("import os")], latex


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "", ".hidden", "x" * 65, "a\nb", "a\x1bb", "CON "])
def test_a_runs_name_is_a_name(opened, name, tmp_path, monkeypatch):
    monkeypatch.chdir(opened)
    said = cli("run", "plain.py", "--strategy", "genetic", "--out", tmp_path / "out", "--name", name)
    assert said.code == 2 and not list(tmp_path.glob("*/*")), said


def test_a_study_names_no_runs_outside_it(opened, tmp_path):
    from evometa import study_record
    from evometa.archives import sealed

    for judged in ("../x", "/etc", "a/../../b"):
        rows = [{"name": "a", "judged": judged, "label": "a", "oracle": False}]
        (tmp_path / "study.json").write_bytes(sealed.seal({"study": {}, "runs": rows}))
        with pytest.raises(IntegrityError, match="expected the names of runs"):
            study_record.arms_of(tmp_path)


# --- the source ----------------------------------------------------------------------------------------------


PACKAGE = Path(evometa.__file__).parent
NO_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "xml", "ctypes", "code", "runpy"}
NO_CALLS = {"eval", "exec", "compile", "__import__", "input", "breakpoint"}
NO_METHODS = {"system", "popen", "execv", "execve", "spawnv", "read_pickle", "to_pickle", "from_code", "literal_eval"}
# Where names become modules, and where processes are started: by the user's word, see names.py and trust.py.
MAY_IMPORT = {
    "names.py",
    "__init__.py",
    "reports/catalogue.py",
    "tasks/parts/qnet.py",
    "placement.py",
    "backends/worker.py",
}
MAY_START = {"backends/", "doctor.py", "machine.py"}
READS = ("archives/", "reports/", "export/", "folder.py", "champion.py", "compare.py", "arms.py", "study_record.py")


def test_the_source_has_no_way_from_data_to_code():
    for path in PACKAGE.rglob("*.py"):
        where = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            words = set()
            if isinstance(node, ast.Import):
                words = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                words = {(node.module or "").split(".")[0]}
            may = {"ctypes"} if where in LIBC else set()
            assert not words & (NO_MODULES - may), f"{where}: {words}"
            starts = {"subprocess", "multiprocessing", "pebble"} & words
            assert not starts or where.startswith(tuple(MAY_START)), f"{where}: {starts}"
            assert not starts or not where.startswith(READS), f"{where} starts processes"
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                assert not (isinstance(node.func, ast.Name) and name in NO_CALLS), f"{where}: {name}"
                assert name not in NO_METHODS, f"{where}: {name}"
                computed = name in ("import_module", "exec_module", "load_module", "find_loader")
                plain = bool(node.args) and isinstance(node.args[0], ast.Constant)
                assert not computed or plain or where in MAY_IMPORT, f"{where} imports a computed name"
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
                assert isinstance(node.value, ast.Constant) and node.value.value is False, where


LIBC = {"archives/write.py", "backends/worker.py", "poison.py"}  # system calls that Python has no function for
