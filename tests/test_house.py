"""The house plan (design, section 5): imports point down only, rooms stay small, nothing dangerous is kept in them."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import evometa

PACKAGE = Path(evometa.__file__).parent
MOST_LINES = 400

# Floors from the bottom. A folder of evometa is one room, a module beside them is one too.
FLOORS = {
    "ground": "errors types programs/ column space contract keys printable statistics likely fingerprint power comparison verdict",
    "machines": "evaluate/ backends/ archives/",
    "guests": "strategies/ tasks/",
    "loop": "loop",
    "run": "spec spec_task placement rebuild names trust doctor doctor_machine folder machine checkpoint nest nest_search levels session judging driver champion"
    " unseal replay expand upkeep deployment api demo arms compare study study_arms study_cost study_plan study_record"
    " study_spec checking checks seal poison testing testing_bench scaffold",
    "reports": "reports/ export/",
    "cli": "cli cli_doctor cli_archive cli_archive_more cli_author cli_export cli_look cli_study __main__",
}
# What each floor may use besides its own rooms. Guests and machines do not know each other, and neither knows the loop.
BELOW = {
    "ground": (),
    "machines": ("ground",),
    "guests": ("ground",),
    "loop": ("ground", "machines"),
    "run": ("ground", "machines", "guests", "loop"),
    "reports": ("ground", "machines", "guests", "run"),
    "cli": ("ground", "machines", "guests", "loop", "run", "reports"),
}
# Between rooms of one floor only these stairs, within folders everything.
STAIRS = {
    "ground": "errors>printable contract>errors contract>space programs/>errors column>errors column>programs/ space>errors space>column"
    " space>programs/ likely>statistics"
    " power>statistics comparison>errors comparison>statistics comparison>power"
    " verdict>errors verdict>statistics verdict>comparison",
    "machines": "backends/>evaluate/",
    "guests": "",
    "loop": "",
    "reports": "",
    "cli": "__main__>cli cli>cli_archive cli>cli_author cli_author>cli_archive"
    " cli>cli_archive_more cli_archive_more>cli_archive"
    " cli>cli_export cli_export>cli_archive cli>cli_look cli_look>cli_archive cli>cli_study cli_study>cli_archive cli>cli_doctor cli_doctor>cli_archive",
}
# Whoever looks on must not be able to act; and what is run must not know who watches.
FORBIDDEN = (
    "reports/>api",
    "reports/>driver",
    "reports/>unseal",
    "reports/>replay",
    "archives/>contract",
    "loop>archives/",
)


def modules() -> dict[str, Path]:
    """Dotted name -> file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ("evometa", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> set[str]:
    """The evometa modules that a file imports, anywhere in it, also late or for types only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "evometa"}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "evometa":
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
    return found


IMPORTS = {name: imports(path) for name, path in MODULES.items()}


def room(module: str) -> str:
    parts = module.split(".")
    if len(parts) == 1:
        return ""  # the package itself: its version and its lazy front door
    return f"{parts[1]}/" if (PACKAGE / parts[1]).is_dir() else parts[1]


FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names.split()}


def edges() -> set[tuple[str, str]]:
    return {(room(name), room(target)) for name, targets in IMPORTS.items() for target in targets} - {("", "")}


def test_every_room_is_on_a_floor():
    rooms = {room(name) for name in MODULES} - {""}
    assert rooms - set(FLOOR_OF) == set(), "a new room: say in this file and in the design on which floor it is"
    assert set(FLOOR_OF) - rooms == set(), "a room that is gone"


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_point_down(floor):
    for one, other in sorted(edges()):
        if one == other or not one or not other or FLOOR_OF[one] != floor:
            continue
        above = FLOOR_OF[other]
        if above == floor:
            allowed = floor == "run" or f"{one}>{other}" in STAIRS[floor].split()
            assert allowed, f"a new stair on the floor {floor}: {one} imports {other}"
        else:
            assert above in BELOW[floor], f"{one} ({floor}) imports {other} ({above})"
        assert f"{one}>{other}" not in FORBIDDEN, f"{one} imports {other}"


def test_no_cycle_between_rooms_nor_between_modules():
    for graph in ({name: {t for t in targets if t != name} for name, targets in IMPORTS.items()}, rooms_graph()):
        try:
            list(TopologicalSorter(graph).static_order())
        except CycleError as cycle:
            pytest.fail(f"a cycle: {' > '.join(cycle.args[1])}")


def rooms_graph():
    graph: dict[str, set[str]] = {}
    for one, other in edges():
        if one != other:
            graph.setdefault(one, set()).add(other)
    return graph


def test_the_loop_knows_no_guest():
    text = MODULES["evometa.loop"].read_text()
    assert not re.search("cma_es|genetic|evosax|optuna|ladder|digits", text)


def test_no_room_is_larger_than_a_sitting():
    for path in MODULES.values():
        assert len(path.read_text().splitlines()) <= MOST_LINES, path


def test_every_public_name_is_described():
    for path in MODULES.values():
        tree = ast.parse(path.read_text())
        where = path.relative_to(PACKAGE)
        if tree.body:
            assert ast.get_docstring(tree), f"{where} has no docstring"
        for node in tree.body:
            described(node, where)
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                protocol = any(getattr(base, "id", "") == "Protocol" for base in node.bases)
                for member in node.body if not protocol else ():
                    described(member, where)


def described(node, where):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
        assert ast.get_docstring(node), f"{where}: {node.name} has no docstring"


DANGEROUS_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
DANGEROUS_CALLS = {"eval", "exec", "compile", "__import__"}


def test_nothing_is_unpickled_or_evaluated():
    """Archives and checkpoints are data: reading one must never run code."""
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "").split(".")[0]]
            assert not DANGEROUS_MODULES & set(names), path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in DANGEROUS_CALLS, f"{path}: {node.func.id}"
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path


def test_no_clock_and_no_luck_of_its_own_in_what_decides_numbers():
    """Keys are functions of seed, generation and stream: no uuid, no stored generator, no clock (design, section 7)."""
    for name in ("loop", "keys", "space", "contract", "evaluate.compiled", "evaluate.settle", "evaluate.plan",
                 "evaluate.cost", "backends.inline", "strategies.genetic", "strategies.evosax_adapter"):  # fmt: skip
        text = MODULES[f"evometa.{name}"].read_text()
        assert not re.search(r"^import (time|uuid|random|secrets)\b|np\.random\.(seed|rand)|datetime", text, re.M), name


def test_every_public_name_resolves():
    for name in evometa.__all__:
        assert getattr(evometa, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        evometa.nothing  # noqa: B018
    assert "Space" in dir(evometa)
