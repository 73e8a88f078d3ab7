"""Ancestries of merged parts: from what their indexes keep of parents, from whole parts, or candidate by candidate."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from archive_samples import make_block, make_run, make_table
from helpers import rewrite

from evometa import upkeep
from evometa.archives import compact, genealogy, index, kin, pedigree, write
from evometa.archives.check import check
from evometa.archives.part import Part, list_parts
from evometa.archives.read import Archive
from evometa.archives.sealed import seal

GENERATIONS = 40


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("small"), blocks=GENERATIONS // 2, generations=2)


@pytest.fixture(scope="module")
def merged(small, tmp_path_factory):
    """Four parts of ten generations in row groups of four; parents are up to three generations older."""
    run = shutil.copytree(small, tmp_path_factory.mktemp("merged") / "x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compact, "GROUP", 30)
        assert compact.compact(run, rows=80).files == 4
    return run


@pytest.fixture
def run(merged, tmp_path):
    return shutil.copytree(merged, tmp_path / "x")


QUESTIONS = [(g, i, depth) for g in (0, 9, 10, 21, 39) for i in (0, 1, 7) for depth in (None, 0, 3)]


def answers(archive):
    return [archive.ancestry(*question) for question in QUESTIONS] + [
        archive.ancestry(g, 2, depth, by_generation=True) for g in (0, 10, 39) for depth in (None, 0, 15)
    ]


@pytest.fixture(scope="module")
def expected(small):
    """By a walk over plain rows; the order is that of the archive of small parts, which tests of reading look at."""
    rows = {(r["generation"], r["index"]): r for r in Archive(small).table(list(pedigree.COLUMNS)).to_pylist()}
    found = answers(Archive(small))
    for (generation, index_, depth), said in zip(QUESTIONS, found, strict=False):
        nodes, edges, frontier = {(generation, index_)}, [], {(generation, index_)}
        for _ in range(GENERATIONS if depth is None else depth):
            links = [(c, (p["generation"], p["index"])) for c in frontier for p in rows[c]["parents"]]
            edges += links
            frontier = {parent for _, parent in links} - nodes
            nodes |= frontier
        assert {(n["generation"], n["index"]) for n in said["nodes"]} == nodes and len(said["nodes"]) == len(nodes)
        assert sorted((tuple(e["child"]), tuple(e["parent"])) for e in said["edges"]) == sorted(edges)
        for node in said["nodes"]:
            row = rows[node["generation"], node["index"]]
            assert (node["fitness"], node["operator"]) == (row["fitness"], row["operator"])
    return found


@pytest.fixture
def read(monkeypatch):
    """What is read: candidates by themselves (`one`), parts as a whole (`whole`)."""
    counts = {"one": 0, "whole": 0}

    class Counted(genealogy.Source):
        def __new__(cls, first, name, bred, whole, one):
            def count(word, work):
                def counted(*given):
                    counts[word] += 1
                    return work(*given)

                return counted

            return genealogy.Source.__new__(cls, first, name, bred, count("whole", whole), count("one", one))

    monkeypatch.setattr("evometa.archives.read.Source", Counted)
    return counts


@pytest.mark.parametrize(("looks", "ones", "wholes"), [(10**6, (1, 99), 0), (2, (1, 12), 3), (0, (0, 0), 4)])
def test_merged_parts_say_what_small_ones_say(merged, expected, read, monkeypatch, looks, ones, wholes):
    """Whoever is not kept is looked up; from some lookups on, a part is read whole, and the walk begins again."""
    monkeypatch.setattr(genealogy, "_LOOKS", looks)
    assert answers(Archive(merged)) == expected
    assert ones[0] <= read["one"] <= ones[1] and wholes - 1 <= read["whole"] <= wholes, read


def test_each_question_to_an_archive_of_its_own(merged, expected, monkeypatch):
    monkeypatch.setattr(genealogy, "_LOOKS", 1)
    for question, said in zip(QUESTIONS, expected, strict=False):
        assert Archive(merged).ancestry(*question) == said


def test_a_short_way_back_reads_little(run, expected):
    """Damage where no step leads does not matter."""
    first = list_parts(run / "lineage")[0].path
    first.write_bytes(b"damaged")
    index.path_of(first).unlink()
    archive = Archive(run)
    said = dict(zip(QUESTIONS, expected, strict=False))
    for i in (0, 1, 7):
        assert archive.ancestry(39, i, 3) == said[39, i, 3]


def test_growing_and_merging_again(run, tmp_path):
    """New parts, small ones behind large ones, and others in their place while an archive is open."""
    archive = Archive(run)
    archive.ancestry(39, 0), archive.ancestry(39, 0, by_generation=True)
    whole = make_run(tmp_path / "whole", blocks=23, generations=2)
    for first in (40, 42, 44):
        write.commit(run / "lineage", make_table(make_block(first, 2)), first)
        last = (first + 1, 3)
        assert archive.ancestry(*last) == Archive(whole).ancestry(*last) == Archive(run).ancestry(*last)
        assert archive.ancestry(*last, by_generation=True) == Archive(whole).ancestry(*last, by_generation=True)
    assert compact.compact(run, rows=400).files == 1
    assert answers(archive) == answers(Archive(whole))
    assert archive.ancestry(45, 3) == Archive(whole).ancestry(45, 3)


@pytest.mark.parametrize("place", ["line", "bred"])
def test_damaged_arrays_are_not_believed(run, expected, place):
    for part in list_parts(run / "lineage"):
        path = index.path_of(part.path)
        data = bytearray(path.read_bytes())
        text = int.from_bytes(data[:8], "little")
        section = json.loads(bytes(data[8 : 8 + text]))["kin"]["sections"][place]
        data[8 + text + section["start"] + 16] ^= 1
        path.write_bytes(data)
    assert answers(Archive(run)) == expected
    found = check(run)
    assert len(found.problems) == 4 and "not the index of its part" in found.problems[0]
    upkeep.repair(run)
    assert check(run).ok and answers(Archive(run)) == expected


FORGERIES = {
    "a row that is not there": lambda found: found._replace(parents=np.full_like(found.parents, 10**6)),
    "an outsider that is not there": lambda found: found._replace(parents=np.full_like(found.parents, -(10**6))),
    "an operator without a name": lambda found: found._replace(operators=()),
    "an operator that is no text": lambda found: found._replace(operators=([1],) * 9),
    "places beyond the end": lambda found: found._replace(offsets=found.offsets * 2),
    "places that go back": lambda found: found._replace(offsets=np.r_[0, found.offsets[:-2][::-1], found.offsets[-1:]]),
    "keys in no order": lambda found: found._replace(keys=found.keys[::-1]),
    "fractions for places": lambda found: found._replace(offsets=found.offsets.astype(np.float64)),
    "fractions for rows": lambda found: found._replace(parents=found.parents.astype(np.float64)),
    "numbers too few": lambda found: found._replace(fitness=found.fitness[:3]),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_arrays_are_not_believed(run, expected, monkeypatch, forgery):
    """Digests that fit do not make numbers that can be."""
    found = kin._found
    monkeypatch.setattr(kin, "_found", lambda data: (found(data)[0], FORGERIES[forgery](found(data)[1])))
    for part in list_parts(run / "lineage"):
        data = index.build(pa.py_buffer(part.path.read_bytes()), part.name)
        index.path_of(part.path).write_bytes(data)
        said = index.load_kin(part.path)
        assert said is not None and said.bred() is None and said.line() is not None
    assert answers(Archive(run)) == expected


@pytest.mark.parametrize(
    "said",
    [
        None,
        {},
        {"sections": 1, "operators": []},
        {"sections": {"bred": {"start": 0, "size": 1 << 60}}, "operators": []},
        {"sections": {"bred": {"start": float("inf"), "size": 8}}, "operators": []},
    ],
)
def test_a_text_that_says_nothing_of_use(run, expected, said):
    for part in list_parts(run / "lineage"):
        text = seal({**index._record(pa.py_buffer(part.path.read_bytes()), part.name), "kin": said})
        index.path_of(part.path).write_bytes(len(text).to_bytes(8, "little") + text)
    assert answers(Archive(run)) == expected


@pytest.mark.parametrize("bounds", [None, {"fitness": 1}, {"fitness": [[0.0, "x"]]}, {"fitness": [[0.0, 1.0]] * 999}])
def test_forged_bounds_make_no_index(run, bounds):
    for part in list_parts(run / "lineage"):
        data = pa.py_buffer(part.path.read_bytes())
        good = index._record(data, part.name)
        index.path_of(part.path).write_bytes((len(text := seal(good))).to_bytes(8, "little") + text)
        assert index.load(part.path) is not None  # without bounds: every row group is read
        text = seal({**good, "bounds": bounds})
        index.path_of(part.path).write_bytes(len(text).to_bytes(8, "little") + text)
        assert index.load(part.path) is None


def test_indexes_of_earlier_versions(run, expected):
    """A text without arrays: good for pieces of parts, and an ancestry reads whole parts."""
    folder = run / "index"
    for part in list_parts(run / "lineage"):
        index.path_of(part.path).unlink()
        earlier = folder / f"{part.name}.json"
        earlier.write_bytes(seal(index._record(pa.py_buffer(part.path.read_bytes()), part.name)))
    archive = Archive(run)
    assert answers(archive) == expected and all(part.index and not part.kin for part in archive.parts())
    assert check(run).ok and list(index.orphans(run)) == []
    earlier.write_bytes(b"{}")  # the last one
    assert "not the index of its part" in check(run).problems[0]
    upkeep.repair(run)
    assert check(run).ok and index.path_of(part.path).exists()
    assert list(index.orphans(run)) == [earlier], "it has a successor"
    upkeep.repair(run)
    assert not earlier.exists() and answers(Archive(run)) == expected


def test_operators_that_are_missing(run):
    """A forgery: `check` has no word on it, and an ancestry says that there is none."""
    for number in range(4):
        rewrite(run, number, "operator", lambda values: [None] * len(values))
    found = Archive(run).ancestry(39, 0)
    assert len(found["nodes"]) > 30 and {node["operator"] for node in found["nodes"]} == {None}


def test_few_are_kept(merged):
    """Those with children, and the last generation."""
    for one in list_parts(merged / "lineage"):
        part = Part(one.folder, one.name, one.first, one.digest)
        assert part.kin is not None
        found, whole = part.kin.bred(), part.pedigree()
        assert found is not None and 30 < len(found.keys) < len(whole.keys) == 80
        bred = np.unique(whole.keys[whole.parents[whole.parents >= 0]])
        assert set(found.keys) == set(bred) | set(whole.keys[-8:])
