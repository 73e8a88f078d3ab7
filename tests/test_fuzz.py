"""Damaged and forged archives, a thousand kinds: each reading ends well or with a typed error, within bounds."""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fuzzing
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import evometa
from evometa.archives import shapes
from evometa.archives.check import check
from evometa.archives.read import Archive, list_parts
from evometa.archives.regular import too_large
from evometa.errors import EvometaError, IntegrityError

pytest_plugins = ["shared"]
COUNT = 1000
WAYS = {"flip", "cut", "zero", "swap", "bomb", "deep"} | {
    f"forge_{what}" for what in ("record", "events", "checkpoint", "arrays", "bytes", "footer", "column", "ledger")
}


@pytest.fixture
def base(opened):
    """The runs of a folder, one of them opened: never to be changed."""
    return opened / "runs"


@pytest.mark.timeout(1800)  # on a machine that is busy with other things
def test_a_thousand_damaged_archives(base, tmp_path):
    """Reliability R15: typed errors only, no crash of native code, and no more memory than the limit of the readers."""
    wrong, ends = fuzzing.search(base, tmp_path, 0, COUNT)
    assert wrong == []
    assert ends["read"] + ends["refused"] >= COUNT * fuzzing.READINGS * 0.9
    assert min(ends["read"], ends["refused"]) > COUNT // 2, "both ends are met, or nothing was damaged"
    assert ends["peak"] < fuzzing.MEMORY


def test_the_search_finds_what_it_is_there_for(base, tmp_path, monkeypatch):
    """The oracle of the test above: a reader that breaks, hangs or dies is named with its case."""
    shutil.copytree(base, tmp_path / "base")
    seen = {}
    for name, read in {"breaks": lambda: {}["x"], "hangs": lambda: time.sleep(60)}.items():
        monkeypatch.setattr(fuzzing, "readings", lambda run, read=read: dict.fromkeys("abcdef", read))
        monkeypatch.setattr(fuzzing, "SECONDS", 0.05)
        with rings():
            seen[name] = fuzzing.case(tmp_path / "base", tmp_path / "scratch", 3)
    assert all("KeyError" in line and line.startswith("case 3") for line in seen["breaks"]) and seen["breaks"]
    assert all("Late" in line for line in seen["hangs"]) and seen["hangs"]
    monkeypatch.setattr(fuzzing.sys, "executable", shutil.which("false"))
    wrong, _ = fuzzing._search(tmp_path / "base", tmp_path / "scratch", 5, 2)
    assert [line[:12] for line in wrong] == ["WRONG case 5", "WRONG case 6"], "a process that dies is a find of its own"


@contextlib.contextmanager
def rings():
    import signal

    def late(*_):
        raise fuzzing.Late

    before = signal.signal(signal.SIGALRM, late)
    yield
    signal.signal(signal.SIGALRM, before)


def test_every_way_of_damage_is_met_and_does_some(base, tmp_path):
    met = set()
    for number in range(150):
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        shutil.copytree(base, tmp_path / "x")
        before = {p.name: p.read_bytes() for p in (tmp_path / "x").rglob("*") if p.is_file()}
        with contextlib.suppress(ValueError, UnicodeError, EvometaError, pa.ArrowException, IndexError):
            way = fuzzing.damage(tmp_path / "x/x", number).split(":")[0]
            after = {p.name: p.read_bytes() for p in (tmp_path / "x").rglob("*") if p.is_file()}
            if before != after:
                met.add(way)
    assert met == WAYS


def test_every_fourth_case_is_of_a_compacted_run(base, tmp_path):
    run = fuzzing.merged(base, tmp_path / "scratch") / "x"
    parts = list_parts(run / "lineage")
    assert [part.index and part.index.groups for part in parts] == [2, None] and check(run).ok
    file = fuzzing.index.path_of(parts[0].path)
    before, met = {path: path.read_bytes() for path in file.parent.iterdir()}, 0
    for number in range(20):
        fuzzing.forge_index(run, random.Random(number))
        met += any(path.read_bytes() != data for path, data in before.items())
        for path, data in before.items():
            path.write_bytes(data)
    assert met == 20


# --- claims --------------------------------------------------------------------------------------------------


def test_a_header_that_claims_too_much_is_refused_before_anything_is_decoded(base, tmp_path, monkeypatch):
    """Fifty million zeros fit into 200 kB: what counts is what they would take."""
    shutil.copytree(base / "x", tmp_path / "x")
    part = next((tmp_path / "x/lineage").glob("*.parquet"))
    file = pq.ParquetFile(part)
    assert too_large(file, ["generation", "scores"], [0]) == ""
    values = file.metadata.num_rows * 4
    assert too_large(file, ["generation"], [0], most=values) == ""
    assert "fit" in too_large(file, ["generation"], [0], most=values - 1)
    assert "fit" in too_large(file, ["message", "failure"], [0], most=10)
    monkeypatch.setattr("evometa.archives.regular.free_memory", lambda: 2 * (values - 1))
    with pytest.raises(IntegrityError, match="its header claims .* GB"):
        Archive(tmp_path / "x").table(["generation"])


FLIPS = '''"""Every bit of a footer once the other way round; what is said of each, counted."""
import collections, io, re
import pyarrow as pa, pyarrow.parquet as pq
from evometa.archives import index
from evometa.archives.regular import too_large
from evometa.errors import IntegrityError

out = io.BytesIO()
pq.write_table(pa.table({"generation": pa.array([1, 2], pa.int32()), "fitness": pa.array([0.5, None])}), out)
data, said = out.getvalue(), collections.Counter()
footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
for bit in range(8 * footer, 8 * (len(data) - 8)):
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    try:
        file = pq.ParquetFile(pa.BufferReader(bytes(flipped)))
        words = too_large(file, file.schema_arrow.names, range(file.num_row_groups))
        assert too_large(file, [], range(file.num_row_groups)) == ""
        index._record(pa.py_buffer(bytes(flipped)), "part"), index._bounds(pa.py_buffer(bytes(flipped)))
    except (IntegrityError, pa.ArrowException, OSError, UnicodeDecodeError) as error:
        words = str(error)
    said[re.sub("[^a-z]+", " ", words)] += 1
print(*(f"{count} {words}" for words, count in said.items()), sep="\\n")
'''


def test_a_footer_that_contradicts_itself_is_refused(tmp_path):
    """Arrow ends the process (SIGABRT) where it is asked for such a header; found among 100,000 damaged archives."""
    (tmp_path / "flips.py").write_text(FLIPS)
    child = subprocess.run([sys.executable, tmp_path / "flips.py"], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-2000:]
    assert "level histogram size mismatch" in child.stdout and "that is declared as" in child.stdout


def test_nobody_asks_a_footer_for_its_statistics():
    """Of too few bytes they end the process too, and no reader says so before."""
    source = Path(evometa.__file__).parent
    asked = [path.name for path in source.rglob("*.py") if re.search(r"\)\.statistics\b|has_min_max", path.read_text())]
    assert asked == []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": 1}, "expected b, which is missing"),
        ({"a": True, "b": []}, "a: expected a whole number, got true or false"),
        ({"a": 2**60, "b": []}, "a: expected a smaller number, got one of 61 bits"),
        ({"a": 1, "b": [1, "x"]}, r"b\[1\]: expected a whole number, got a text"),
        ({"a": 1, "b": [], "c": {"d": None}}, "c.d: expected a text, got null"),
        ({"a": 1, "b": [], "e": {"x": 1}}, "e.x: expected a text, got a whole number"),
        ([], "its content: expected an object, got a list"),
    ],
)
def test_what_json_must_hold_is_named_by_its_place(tmp_path, value, words):
    shape = {"a": int, "b": [int], "c?": {"d": str}, "e?": (type(None), {"*": str})}
    shapes.require({"a": 1, "b": [2], "e": None, "more": 0}, shape, tmp_path)
    with pytest.raises(IntegrityError, match=words):
        shapes.require(value, shape, tmp_path)
