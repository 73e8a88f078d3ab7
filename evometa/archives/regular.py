"""What may be read of an archive that anybody could have made: regular files, of the declared types, that fit.

A name in an archive may be a link to another file, a device without an end, or a pipe that nobody writes to. A header
may claim more rows than there is memory for.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from evometa.errors import IntegrityError

# What names a row. Judgements of nobody's genome have no index.
KEYS = {
    "lineage": ("generation", "index", "parents", "scores", "params", "choices"),
    "judgements": ("opening",),
    "timings": ("first_generation",),
}
# Bytes of a decoded value by its physical type in Parquet; a text takes its place in the offsets at the least.
_WIDTH = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 8}


def read_file(path: Path) -> bytes:
    """The bytes of a regular file. Raises `IntegrityError` for a link, a device or a pipe, `OSError` as `open` does."""
    descriptor = open_file(path, os.O_RDONLY)
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def open_file(path: Path, flags: int, mode: int = 0o644) -> int:
    """A descriptor of a regular file, which no link led to. Raises `IntegrityError` for anything else."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError:
        if path.is_symlink():
            raise IntegrityError(f"{path}: expected a file, got a link to another. Nothing in an archive is") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IntegrityError(f"{path}: expected a file, got a folder, a device or a pipe")
    return descriptor


def fill(descriptor: int, view: memoryview, offset: int) -> None:
    """Read into the whole of `view`. Raises `IntegrityError` where the file ends before."""
    while len(view):
        count = os.preadv(descriptor, [view], offset)
        if count == 0:
            raise IntegrityError(f"the file ends before byte {offset + len(view)}")
        view, offset = view[count:], offset + count


def no_links(run: Path) -> None:
    """Raise `IntegrityError` where a link in a run's folder leads elsewhere: whoever writes there would write here."""
    folders = [run]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise IntegrityError(
                        f"{entry.path}: expected files and folders, got a link. A run is only written where no link"
                        " leads out of it: put what it stands for in its place"
                    )
                if entry.is_dir():
                    folders.append(Path(entry.path))


def wrong_types(file: pq.ParquetFile, schema: pa.Schema) -> str:
    """Which column is not of its declared type; empty where all are. Columns of later versions may be there."""
    if not file.metadata.num_rows:
        return "expected rows, got none"
    found = file.schema_arrow
    for field in schema:
        if found.names.count(field.name) > 1:
            return f"expected one column {field.name!r}, got several"
        at = found.get_field_index(field.name)
        if at >= 0 and not found.field(at).type.equals(field.type):
            return f"expected column {field.name!r} of type {field.type}, got {found.field(at).type}"
    return ""


def nameless(columns: Mapping[str, pa.ChunkedArray], table: str) -> str:
    """Which of the columns that name a row of a table is null somewhere; empty where none is."""
    null = [name for name in KEYS.get(table, ()) if name in columns and columns[name].null_count]
    return f"expected a {null[0]} in every row, got rows without" if null else ""


def require_headers(file: pq.ParquetFile, groups: Iterable[int], leaves: Sequence[int]) -> None:
    """Raise `OSError` where the header of one of these columns in one of these row groups contradicts itself.

    Whoever asks Arrow for such a header ends the process (pyarrow 26.0.1: `RowGroupMetaData.column` lets an exception
    of C++ out). A reader that is opened on it says what is wrong; asked for batches of no rows, it decodes nothing.
    Statistics are another way to end it (`ColumnChunkMetaData.statistics`), and this does not look at them: nobody may.
    """
    for group in groups if leaves else ():  # of no columns, batches of no rows are a division by zero
        next(file.reader.iter_batches(0, row_groups=[group], column_indices=leaves, use_threads=False), None)
        for leaf in leaves:
            found = file.metadata.row_group(group).column(leaf).physical_type
            if found != (declared := file.metadata.schema.column(leaf).physical_type):
                raise OSError(f"its header has a column of {found} that is declared as {declared}")


def too_large(file: pq.ParquetFile, columns: Iterable[str], groups: Sequence[int], most: int | None = None) -> str:
    """Why these columns and row groups cannot be decoded in memory; empty where they can. Looks at the header only.

    `most`: bytes, by default half of what this process may still have. Raises `OSError` (see `require_headers`).
    """
    wanted, metadata, needed = set(columns), file.metadata, 0
    names = [metadata.schema.column(leaf).path.split(".")[0] for leaf in range(metadata.num_columns)]
    leaves = [leaf for leaf, name in enumerate(names) if name in wanted]
    require_headers(file, groups, leaves)
    for number in groups:
        group = metadata.row_group(number)
        for leaf in leaves:
            column = group.column(leaf)
            if column.num_values < 0 or group.num_rows < 0:
                return "its header counts a negative number of values"
            needed += column.num_values * _WIDTH.get(column.physical_type, 8)
            if column.physical_type == "BYTE_ARRAY":
                needed += max(0, column.total_uncompressed_size)
    most = free_memory() // 2 if most is None else most
    return f"its header claims {needed / 1e9:.3g} GB of values, and {most / 1e9:.3g} GB fit" if needed > most else ""


def free_memory() -> int:
    """Bytes that this process may still have: of the machine, its control group and its own limit the least."""
    found = [1 << 62]
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if soft != resource.RLIM_INFINITY:
        found.append(soft)
    try:
        with open("/proc/meminfo") as lines:
            found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        found += [int(limit)] if limit.isdigit() else []
    except OSError:
        pass
    return min(found)
