"""The genealogy to look at: rows that do not overlap, repeats left out, the champion's line, and a tree for the terminal."""

import contextlib
import json
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import numpy as np
import pytest
from helpers import cli, one_line, write_tasks

from evometa.archives.read import Archive
from evometa.reports import genealogy_figure
from evometa.reports.genealogy import Family, ancestors, champion_name, eminent, family, rows_of, tree_text

pytest_plugins = ["shared"]


def crowd(generations, population, seed=0):
    """A random genealogy: parents of the last ten generations, some without any."""
    draw = np.random.default_rng(seed)
    count = generations * population
    born = np.repeat(np.arange(generations), population)
    low = np.maximum(0, born - 10) * population
    mother = np.where((born > 0) & (draw.random(count) < 0.9), draw.integers(low, np.maximum(born * population, 1)), -1)
    others = [(row, int(draw.integers(0, born[row] * population))) for row in range(population, count, 7)]
    index = np.tile(np.arange(population), generations)
    return Family(born, index, draw.random(count), mother, others, np.zeros(count, bool), {})


def test_life_lines_do_not_overlap_and_the_line_comes_first():
    people = crowd(30, 12)
    line = people.line(len(people.generation) - 1)
    place = rows_of(people, line)
    assert np.abs(place[line]).max() <= 2  # in the middle, nearly straight
    last = people.generation.copy()
    np.maximum.at(last, people.mother[people.mother >= 0], people.generation[people.mother >= 0])
    fertile = np.isin(np.arange(len(last)), people.mother)
    cells = [(place[row], at) for row in np.flatnonzero(fertile) for at in range(people.generation[row], last[row] + 1)]
    assert len(cells) == len(set(cells)) and (place[fertile] == np.round(place[fertile])).all()
    # The childless stay beside their mothers.
    childless = ~fertile & (people.mother >= 0)
    childless[line] = False
    assert np.abs(place[childless] - place[people.mother[childless]]).max() <= 0.4


def test_related_rows_are_near():
    """Steps from mothers to children against steps between the same rows, shuffled."""
    people = crowd(40, 16, seed=1)
    place = rows_of(people, [])
    has = people.mother >= 0
    shuffled = np.random.default_rng(0).permutation(place)
    mine, luck = (np.abs(rows[has] - rows[people.mother[has]]).mean() for rows in (place, shuffled))
    assert mine < 0.4 * luck


def test_of_too_many_the_lines_of_those_that_matter_stay_whole(monkeypatch):
    people = crowd(40, 16)
    monkeypatch.setattr("evometa.reports.genealogy.MOST", 100)
    keep = eminent(people, (39, 5))
    assert 100 <= keep.sum() < 200 and keep[people.line(39 * 16 + 5)].all()
    kept = people.only(keep)
    roots = people.mother[keep] < 0
    assert ((kept.mother < 0) == roots).all()  # nobody lost her mother
    assert (kept.generation[kept.mother[kept.mother >= 0]] < kept.generation[kept.mother >= 0]).all()


def test_ancestors_are_those_of_all_parents():
    people = Family(
        np.arange(5), np.zeros(5, int), np.zeros(5), np.array([-1, 0, -1, 1, 3]), [(3, 2)], np.zeros(5, bool), {}
    )
    assert ancestors(people, 3).tolist() == [True, True, True, True, False]
    only = people.only(ancestors(people, 3))
    assert only.mother.tolist() == [-1, 0, -1, 1] and only.others == [(3, 2)]


def test_a_family_leaves_out_what_was_asked_again(finished):
    path = finished / "runs" / "plain"  # genetic: row 0 asks the best of the generation before again
    people, archive = family(path), Archive(path)
    assert len(people.generation) + len(people.repeats) == 40 and len(people.repeats) >= 4
    for name, whom in people.repeats.items():
        assert archive.row(*name)["genome"] == archive.row(*whom)["genome"] and people.row(name) == people.row(whom)
    assert (people.generation[people.mother[people.mother >= 0]] < people.generation[people.mother >= 0]).all()


def test_a_tree_names_everybody_once():
    def node(generation, index, operator):
        return {"generation": generation, "index": index, "fitness": 0.25, "operator": operator}

    edges = [((3, 1), (2, 0)), ((3, 1), (1, 4)), ((2, 0), (1, 4)), ((1, 4), (0, 2))]
    data = {
        "nodes": [node(3, 1, "crossover"), node(2, 0, "mutation"), node(1, 4, "mutation"), node(0, 2, "random")],
        "edges": [{"child": list(a), "parent": list(b)} for a, b in edges],
    }
    assert tree_text(data).splitlines() == [
        "3:1  0.25  crossover",
        "├─ 2:0  0.25  mutation",
        "│  1:4  0.25  mutation",
        "│  0:2  0.25  random",
        "└─ 1:4  (see above)",
    ]
    assert tree_text(data, most=2).endswith("... and 3 more lines (all with --json)")


@pytest.fixture(scope="module")
def explored(tmp_path_factory, compile_cache):
    """A folder with a run of open-ended search in it."""
    folder = tmp_path_factory.mktemp("explored")
    write_tasks(folder)
    with contextlib.chdir(folder):
        options = ("--set", "strategy_options.capacity=16", "--population", 8, "--generations", 6, "--name", "tree")
        assert cli("run", "ridge.py", "--strategy", "open_ended", *options).code == 0
    return folder


def test_a_picture_shows_everybody_the_champion_and_the_repertoire(explored, tmp_path):
    path = explored / "runs" / "tree"
    people = family(path)
    assert people.member.sum() == 16
    said = cli("archive", "lineage", path, "--to", tmp_path / "tree.json")
    assert said.code == 0 and "tree.json" in said.out
    spec = json.loads((tmp_path / "tree.json").read_text())
    rows = [layer["data"]["values"] for layer in spec["layer"]]
    dots = next(values for values in rows if values and "loss" in values[0])
    assert len({dot["who"] for dot in dots}) == len(people.generation)
    assert sum(dot["member"] for dot in dots) == 16
    generation, index = champion_name(path)
    hero = people.row((generation, index))
    assert hero is not None
    assert rows[-1][0]["who"] == f"{people.generation[hero]}:{people.index[hero]}"
    assert {dot["who"] for dot in dots if dot["line"]} == {
        f"{people.generation[row]}:{people.index[row]}" for row in people.line(hero)
    }
    assert "rings: the 16" in " ".join(spec["title"]["subtitle"])
    # Colour is the loss itself, whatever the ends of the scale; the line is red from one end to the other.
    shown = {dot["who"]: dot["loss"] for dot in dots}
    for row in Archive(path).table(["generation", "index", "fitness"]).to_pylist():
        assert shown.get(f"{row['generation']}:{row['index']}", row["fitness"]) == pytest.approx(row["fitness"])
    coloured = [layer["encoding"]["color"] for layer in spec["layer"] if "color" in layer["encoding"]]
    assert [color["field"] for color in coloured] == ["loss", "loss"] and all(c["scale"]["clamp"] for c in coloured)
    red = [
        layer for layer in spec["layer"] if layer["mark"].get("color") == "#d62728" and layer["mark"]["type"] == "rule"
    ]
    solid = [segment for layer in red if "strokeDash" not in layer["mark"] for segment in layer["data"]["values"]]
    steps = {(segment["x2"], segment["y2"]) for segment in solid}
    places = {(dot["x"], dot["y"]) for dot in dots if dot["line"]}
    assert len(places) > 1 and len(places - steps) <= 1  # all but the eldest are reached


def test_pictures_are_files_of_their_kind(explored, tmp_path):
    path = explored / "runs" / "tree"
    assert cli("archive", "lineage", path, "5:1", "--to", tmp_path / "tree.svg").code == 0
    assert ElementTree.parse(tmp_path / "tree.svg").getroot().tag.endswith("svg")
    assert cli("archive", "lineage", path, "--to", tmp_path / "tree.png").code == 0
    assert (tmp_path / "tree.png").read_bytes().startswith(b"\x89PNG")
    assert cli("archive", "lineage", path, "--to", tmp_path / "tree.nwk").code == 0
    assert (tmp_path / "tree.nwk").read_text().strip().endswith(";")
    assert cli("archive", "lineage", path, "--to", tmp_path / "tree.csv").code == 0
    assert len((tmp_path / "tree.csv").read_text().splitlines()) == 1 + 48
    one_line(cli("archive", "lineage", path, "5:1", "--to", tmp_path / "tree.csv"), 2, "Leave out 5:1")
    one_line(cli("archive", "lineage", path, "--to", tmp_path / "tree.gif"), 2, ".svg, .png, .json")
    one_line(cli("archive", "lineage", path, "99:1", "--to", tmp_path / "tree.svg"), 3, "99")


def test_five_thousand_candidates_are_drawn_readably(tmp_path, monkeypatch):
    """Everybody has a dot in the frame; dots are smaller than rows are apart, and no two life lines share a place."""
    people = crowd(100, 50)
    monkeypatch.setattr(genealogy_figure, "family", lambda path: people)
    monkeypatch.setattr(genealogy_figure, "champion_name", lambda path: (99, 7))
    drawn = ElementTree.parse(genealogy_figure.picture(tmp_path / "crowd", tmp_path / "crowd.svg")).getroot()
    width, height = float(drawn.attrib["width"]), float(drawn.attrib["height"])
    assert width <= 1700 and height <= 1200  # a page, not a scroll

    spots, sizes = {}, set()
    for dot in drawn.iter("{http://www.w3.org/2000/svg}path"):
        who = re.search(r"; who: (\d+):(\d+)", dot.get("aria-label", ""))
        if who is not None:
            x, y = (float(number) for number in re.findall(r"[-\d.]+", dot.attrib["transform"]))
            spots[int(who[1]) * 50 + int(who[2])] = (x, y)
            sizes.add(
                2 * float(dot.attrib["d"].partition(",")[0].removeprefix("M"))
            )  # a circle begins at its right end
    assert len(spots) == 5000 and len(sizes) == 1
    x, y = np.array([spots[row] for row in range(5000)]).T
    assert x.min() >= 0 and x.max() <= width and y.min() >= 0 and y.max() <= height
    assert np.ptp(x.reshape(100, 50), axis=1).max() < 1e-6 and (np.diff(x[::50]) > 3 * max(sizes)).all()

    last = people.generation.copy()
    np.maximum.at(last, people.mother[people.mother >= 0], people.generation[people.mother >= 0])
    rows = {}
    for row in np.flatnonzero(np.isin(np.arange(5000), people.mother)).tolist():
        rows.setdefault(round(float(y[row]), 3), []).append((int(people.generation[row]), int(last[row])))
    assert np.diff(sorted(rows)).min() > max(sizes)
    for lives in rows.values():
        assert all(one[1] < two[0] for one, two in pairwise(sorted(lives)))
    # The champion's line runs through the middle.
    line = y[people.line(99 * 50 + 7)]
    assert np.abs(line - (y.min() + y.max()) / 2).max() < 0.1 * np.ptp(y)


def test_without_a_candidate_it_is_the_champion(explored):
    said = cli("archive", "lineage", explored / "runs" / "tree")
    assert said.code == 0 and said.out.startswith("{}:{}".format(*champion_name(explored / "runs" / "tree")))
