"""Questions to an archive in SQL, and one number that says whether two archives hold the same rows."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from evometa.archives.content import Content
from evometa.archives.read import Archive, to_dicts, unnest_scores
from evometa.archives.schema import LINEAGE, empty
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
    "memory_limit": "2GB",
    "lock_configuration": "true",
}
SECONDS = 300.0  # a query without an end is stopped then
# All that makes tables out of something else than the views. Others read files, take addresses (`arrow_scan`), or hide
# a query in a text (`query`, `json_execute_serialized_sql`).
TABLE_FUNCTIONS = {"generate_series", "json_each", "json_tree", "query_table", "range", "repeat", "unnest"}
REFUSED = {"pg_sleep", "sleep_ms", "write_log"}  # these do something else than compute
# Kinds of syntax that take columns without naming them.
IMPLICIT = {"STAR", "NATURAL", "SHOW_REF", "PIVOT", "POSITIONAL_REFERENCE", "TABLE_FUNCTION"}


def query(run_path: Path | str, sql: str, seconds: float = SECONDS) -> list[dict[str, Any]]:
    """Rows that a single SELECT gives over the views `lineage`, `scores`, `judgements` and `timings`.

    `scores` has one row per candidate and cell. The query sees these and nothing else: no file, no network, no
    variable; it is stopped after so many `seconds`, and where it needs more than 2 GB besides the views. Raises
    `UsageError` for anything that is not one such SELECT, and for one that DuckDB refuses; `NotFound` and
    `IntegrityError` as reading does.
    """
    return to_dicts(query_arrow(run_path, sql, seconds))


def query_arrow(run_path: Path | str, sql: str, seconds: float = SECONDS) -> pa.Table:
    """The same as an Arrow table."""
    archive = Archive(run_path)
    with duckdb.connect(":memory:", config=LOCKED) as connection:
        tree = _parse(connection, sql)
        needs = _needs(tree)
        columns = _columns(tree)
        for every in (False, True):
            _register(connection, archive, needs, LINEAGE.names if every else columns)
            try:
                with _stopped_after(connection, seconds):
                    return connection.sql(sql).to_arrow_table()
            except duckdb.BinderException as error:
                if every or columns == LINEAGE.names:
                    raise _refused(error) from None
                # Perhaps a column was needed that nobody named: once more with all of them.
            except duckdb.Error as error:
                raise _refused(error) from None
    raise AssertionError("unreachable")


@contextmanager
def _stopped_after(connection: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[None]:
    timer = threading.Timer(seconds, connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    except duckdb.InterruptException:
        raise UsageError(f"query: not done after {seconds:g} s, so it was stopped. Ask for less") from None
    finally:
        timer.cancel()


def content_digest(run_path: Path | str) -> str:
    """Sha256 over the lineage's rows, however they are cut into parts; the run's own name is left out.

    An extended run, a resumed run and an unbroken one of the same spec have the same digest.
    """
    archive = Archive(run_path)

    def digest() -> str:
        content = Content()
        for part in archive.parts():
            for table in part.batches():
                content.update(table)
        return content.hexdigest()

    return archive.steady(digest)


# --- SQL ------------------------------------------------------------------------------------------


def _parse(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise _refused(error) from None
    kinds = [statement.type.name for statement in statements]
    if kinds == ["SELECT"]:
        try:
            tree = json.loads(connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()[0][0])
            if not tree["error"]:
                _only_computes(tree)
                return tree
        except RecursionError:
            raise UsageError("query: expected fewer levels of brackets") from None
        except duckdb.Error as error:
            raise _refused(error) from None
    found = ", ".join(kinds) or "nothing"
    raise UsageError(f"query: expected a single SELECT, got {found}. Try: SELECT count(*) FROM lineage")


def _only_computes(tree: Any) -> None:
    """Refuse every function that does more than compute from what it is given."""
    sources = {id(node["function"]) for node in _nodes(tree) if node.get("type") == "TABLE_FUNCTION"}
    for node in _nodes(tree):
        name = str(node.get("function_name", "")).lower()
        if (id(node) in sources and name not in TABLE_FUNCTIONS) or name in REFUSED:
            known = ", ".join((*VIEWS, *sorted(TABLE_FUNCTIONS)))
            raise UsageError(f"query: {name or 'this source'} is not allowed. A query sees only {known}")


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
