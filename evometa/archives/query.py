"""Questions to an archive in SQL, and one number that says whether two archives hold the same rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from evometa.archives.read import Archive, to_dicts, unnest_scores
from evometa.archives.schema import LINEAGE, empty, numbers
from evometa.errors import UsageError

VIEWS = ("lineage", "scores", "judgements", "timings")
# No files, no network, no extensions, no Python variables: SQL sees the tables it is given and nothing else.
LOCKED: dict[str, Any] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
    "lock_configuration": "true",
}
# Kinds of syntax that take columns without naming them.
IMPLICIT = {"STAR", "NATURAL", "SHOW_REF", "PIVOT", "POSITIONAL_REFERENCE", "TABLE_FUNCTION"}


def query(run_path: Path | str, sql: str) -> list[dict[str, Any]]:
    """Rows that a single SELECT gives over the views `lineage`, `scores`, `judgements` and `timings`.

    `scores` has one row per candidate and cell. Raises `UsageError` for anything that is not one SELECT,
    and for a SELECT that DuckDB refuses; `NotFound` and `IntegrityError` as reading does.
    """
    return to_dicts(query_arrow(run_path, sql))


def query_arrow(run_path: Path | str, sql: str) -> pa.Table:
    """The same as an Arrow table."""
    archive = Archive(run_path)
    with duckdb.connect(":memory:", config=LOCKED) as connection:
        tree = _parse(connection, sql)
        needs = _needs(tree)
        columns = _columns(tree)
        for every in (False, True):
            _register(connection, archive, needs, LINEAGE.names if every else columns)
            try:
                return connection.sql(sql).to_arrow_table()
            except duckdb.BinderException as error:
                if every or columns == LINEAGE.names:
                    raise _refused(error) from None
                # Perhaps a column was needed that nobody named: once more with all of them.
            except duckdb.Error as error:
                raise _refused(error) from None
    raise AssertionError("unreachable")


def content_digest(run_path: Path | str) -> str:
    """Sha256 over the lineage's rows, however they are cut into parts; the run's own name is left out.

    An extended run, a resumed run and an unbroken one of the same spec have the same digest.
    """
    hashes = {name: _Leaves() for name in LINEAGE.names if name != "run"}
    for part in Archive(run_path).parts():
        table = part.read()
        for name, leaves in hashes.items():
            leaves.update(table[name].combine_chunks(), name)
    text = "\n".join(f"{path} {leaf.hexdigest()}" for name in hashes for path, leaf in sorted(hashes[name].of.items()))
    return hashlib.sha256(text.encode()).hexdigest()


# --- SQL ------------------------------------------------------------------------------------------


def _parse(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise _refused(error) from None
    kinds = [statement.type.name for statement in statements]
    if kinds == ["SELECT"]:
        tree = json.loads(connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()[0][0])
        if not tree["error"]:
            return tree
    found = ", ".join(kinds) or "nothing"
    raise UsageError(f"query: expected a single SELECT, got {found}. Try: SELECT count(*) FROM lineage")


def _refused(error: Exception) -> UsageError:
    text = " ".join(str(error).split("\n\n")[0].split())
    outside = "disabled by configuration" in text or "does not exist" in text
    return UsageError(f"query: {text.rstrip('.')}." + (f" A query sees only {', '.join(VIEWS)}." if outside else ""))


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(child)


def _needs(tree: Any) -> set[str]:
    """The views that a query names; all where it hides its tables in a table function."""
    if any(node.get("type") == "TABLE_FUNCTION" for node in _nodes(tree)):
        return set(VIEWS)
    return {node["table_name"].lower() for node in _nodes(tree) if node.get("type") == "BASE_TABLE"} & set(VIEWS)


def _columns(tree: Any) -> list[str]:
    """The lineage's columns that a query may touch: reading fewer is what makes a million rows quick."""
    tables, names = set(), set()
    for node in _nodes(tree):
        if IMPLICIT & {node.get("type"), node.get("class"), node.get("ref_type")} or node.get("column_name_alias"):
            return LINEAGE.names
        if "class" not in node:
            tables |= {str(node.get(key)).lower() for key in ("alias", "table_name")}
        names |= {str(name).lower() for key in ("column_names", "using_columns") for name in node.get(key) or ()}
    whole_rows = any(
        len(node["column_names"]) == 1 and str(node["column_names"][0]).lower() in tables
        for node in _nodes(tree)
        if node.get("column_names")
    )
    return LINEAGE.names if whole_rows else [name for name in LINEAGE.names if name in names] or ["generation"]


def _register(connection: duckdb.DuckDBPyConnection, archive: Archive, needs: set[str], columns: list[str]) -> None:
    also = {"generation", "index", "scores"} if "scores" in needs else set()
    needed = sorted({*columns, *also}, key=LINEAGE.names.index)
    table = archive.table(needed) if needs & {"lineage", "scores"} else empty(LINEAGE)
    if "scores" in needs:
        connection.register("scores", unnest_scores(table.select(["generation", "index", "scores"])))
    connection.register("lineage", table)
    if "judgements" in needs:
        connection.register("judgements", archive.judgements())
    if "timings" in needs:
        connection.register("timings", archive.timings())


# --- content --------------------------------------------------------------------------------------


class _Leaves:
    """Running hashes of a column, one per leaf of its type: where parts begin and end leaves no trace."""

    def __init__(self) -> None:
        self.of: dict[str, Any] = {}

    def update(self, array: pa.Array, path: str) -> None:
        valid = numbers(array.is_valid())
        self._feed(f"{path}/valid", valid.astype(np.uint8))
        kind = array.type
        if pa.types.is_struct(kind):
            for i, field in enumerate(kind):
                self.update(array.field(i), f"{path}/{field.name}")
        elif pa.types.is_list(kind) or pa.types.is_map(kind):
            if pa.types.is_map(kind):
                array = array.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
            self._feed(f"{path}/length", numbers(array.value_lengths()).astype(np.int64))
            self.update(array.flatten(), f"{path}/of")
        elif pa.types.is_string(kind):
            array = array.drop_null()
            if len(array):
                _, places, data = array.buffers()
                offsets = np.frombuffer(places, np.int32, len(array) + 1, 4 * array.offset)
                self._feed(f"{path}/length", np.diff(offsets))
                self._feed(f"{path}/bytes", memoryview(data)[offsets[0] : offsets[-1]])
        else:
            self._feed(f"{path}/bytes", numbers(array.drop_null()))

    def _feed(self, path: str, data: np.ndarray | memoryview) -> None:
        self.of.setdefault(path, hashlib.sha256()).update(np.ascontiguousarray(data))
