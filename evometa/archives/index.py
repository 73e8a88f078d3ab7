"""What lets a reader trust a piece of a large part, and choose it: digests of its columns, bounds of its row groups.

A part's name holds the digest of the whole file, and to verify that takes reading all of it. `compact` writes
`RUN/index/<part>.index` beside the parts it makes; with it, `archive top` reads a hundredth of the bytes and still
believes none that was changed. Its text holds a digest of the footer and of every column of every row group, and the
lowest and highest generation and fitness of each row group, by which readers choose. An index is derived, never
needed: where it is missing or damaged, parts are read whole.

The file: the length of a JSON text (8 bytes, little-endian), the text, and the arrays that an ancestry asks for (see
kin.py). Archives of earlier versions have `<part>.json`, the text without arrays.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evometa.archives import kin
from evometa.archives.regular import fill, open_file, read_file, require_headers
from evometa.archives.sealed import seal, unseal
from evometa.errors import IntegrityError

FOLDER = "index"
SUFFIX, EARLIER = ".index", ".json"
DIGITS = 16
BOUNDED = ("generation", "fitness")  # columns by which readers choose row groups


class Index:
    """The verified footer of a part, and what its other bytes must be."""

    def __init__(self, record: dict[str, Any], metadata: pq.FileMetaData) -> None:
        self.rows = metadata.num_rows
        self.groups = metadata.num_row_groups
        self.sizes = [metadata.row_group(group).num_rows for group in range(self.groups)]
        self._size = int(record["size"])
        self._digests: list[str] = record["groups"]
        self._metadata = metadata
        self._leaves = _leaves(metadata)
        self._bounds = {name: self._limits(found) for name, found in record.get("bounds", {}).items()}

    def bounds(self, name: str) -> np.ndarray:
        """Lowest and highest value of one of `BOUNDED` in each row group, `[groups, 2]`; -inf, inf where unknown."""
        return self._bounds[name] if name in self._bounds else self._limits([[None, None]] * self.groups)

    def _limits(self, found: Sequence[Sequence[float | None]]) -> np.ndarray:
        limits = np.array(found, dtype=np.float64)  # None: nan
        if limits.shape != (self.groups, 2):
            raise ValueError("as many bounds as row groups")
        return np.where(np.isnan(limits), [[-np.inf, np.inf]], limits)

    def open(self, path: Path, groups: Iterable[int], columns: Sequence[str] | None) -> pq.ParquetFile:
        """The part as a Parquet file in memory that holds these columns of these row groups, every byte verified.

        Raises `IntegrityError` (what is wrong, without the part's name), `OSError`.
        """
        names = self._leaves if columns is None else [name for name in columns if name in self._leaves]
        leaves = [leaf for name in names for leaf in self._leaves[name]]
        # As large as the file, but what is never touched takes no memory.
        view = np.empty(self._size, np.uint8).data
        source = pa.BufferReader(pa.py_buffer(view))
        file = pq.ParquetFile(source, metadata=self._metadata, page_checksum_verification=True)
        descriptor = open_file(path, os.O_RDONLY)
        try:
            for group in groups:
                require_headers(file, [group], leaves)
                digests = self._digests[group]
                for leaf in leaves:
                    start, end = _chunk(self._metadata, group, leaf)
                    fill(descriptor, view[start:end], start)
                    digest = digests[DIGITS * leaf : DIGITS * (leaf + 1)]
                    if hashlib.sha256(view[start:end]).hexdigest()[:DIGITS] != digest:
                        raise IntegrityError(
                            f"row group {group}, bytes {start} to {end} are not those that were written"
                        )
        finally:
            os.close(descriptor)
        return file


def path_of(part: Path) -> Path:
    """Where the index of a part is, if it has one."""
    return part.parent.parent / FOLDER / f"{part.name}{SUFFIX}"


def build(data: pa.Buffer, name: str) -> bytes:
    """The bytes of the index of a part with these bytes."""
    said, arrays = kin.pack(data)
    text = seal({**_record(data, name), "bounds": _bounds(data), "kin": said})
    return len(text).to_bytes(8, "little") + text + arrays


def listed(run: Path) -> set[str]:
    """The names of a run's parts that have an index of this version."""
    try:
        names = os.listdir(run / FOLDER)
    except OSError:
        return set()
    return {name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)}


def load_kin(part: Path) -> kin.Kin | None:
    """What the index of a part says of ancestors; None where it has none that says it."""
    path = path_of(part)
    try:
        text, start = _text(path)
        record = unseal(text, path)
        return kin.Kin(record["kin"], path, start) if record["part"] == part.name else None
    except (OSError, IntegrityError, KeyError, TypeError, ValueError):
        return None


def load(part: Path) -> Index | None:
    """The index of a part; None where it has none that can be used. Raises `OSError` where there is no such part."""
    path = path_of(part)
    if not path.exists():
        path = _earlier(part)
    try:
        record = unseal(_text(path)[0], path)
        size, digest, groups = int(record["size"]), str(record["footer"]), list(record["groups"])
    except (OSError, IntegrityError, KeyError, TypeError, ValueError, OverflowError):
        return None
    descriptor = open_file(part, os.O_RDONLY)
    try:
        if record.get("part") != part.name or os.fstat(descriptor).st_size != size or size < 12:
            return None
        end = bytearray(8)
        fill(descriptor, memoryview(end), size - 8)
        length = min(int.from_bytes(end[:4], "little") + 8, size)
        footer = bytearray(length)
        fill(descriptor, memoryview(footer), size - length)
    finally:
        os.close(descriptor)
    if hashlib.sha256(footer).hexdigest() != digest:
        return None  # one of the two was changed: reading the whole part tells which
    metadata = pq.read_metadata(pa.BufferReader(bytes(footer)))
    whole = all(isinstance(text, str) and len(text) == DIGITS * metadata.num_columns for text in groups)
    if not whole or len(groups) != metadata.num_row_groups or not metadata.num_rows or not groups:
        return None
    try:
        return Index(record, metadata)
    except (AttributeError, TypeError, ValueError):
        return None


def problem(part: Path) -> str:
    """What is wrong with the index of a part (that is whole itself), or the empty string. Raises `OSError`."""
    path, data = path_of(part), pa.py_buffer(b"")
    if path.exists() or _earlier(part).exists():
        data = pa.py_buffer(read_file(part))
    if path.exists():
        whole = read_file(path) == build(data, part.name)
    else:
        path = _earlier(part)
        whole = not path.exists() or read_file(path) == seal(_record(data, part.name))
    return "" if whole else f"{path}: not the index of its part. Make it anew with: evometa archive repair"


def orphans(run: Path) -> Iterator[Path]:
    """Indexes of parts that are not there (any more), and those of earlier versions that have a successor."""
    folder = run / FOLDER
    for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
        part = name.removesuffix(SUFFIX).removesuffix(EARLIER)
        outdated = name.endswith(EARLIER) and (folder / f"{part}{SUFFIX}").exists()
        if outdated or not (run / "lineage" / part).exists():
            yield folder / name


def _earlier(part: Path) -> Path:
    return path_of(part).with_suffix(EARLIER)


def _text(path: Path) -> tuple[bytes, int]:
    """The JSON text of an index, and where its arrays start."""
    if path.suffix == EARLIER:
        return read_file(path), 0
    descriptor = open_file(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        head = bytearray(8)
        fill(descriptor, memoryview(head), 0)
        length = int.from_bytes(head, "little")
        text = bytearray(min(length, size))  # a wrong length is no reason to fill the memory
        fill(descriptor, memoryview(text), 8)
    finally:
        os.close(descriptor)
    return bytes(text), 8 + length


def _record(data: pa.Buffer, name: str) -> dict[str, Any]:
    """What the index says of a part's bytes."""
    file = pq.ParquetFile(pa.BufferReader(data))
    metadata, view = file.metadata, memoryview(data)
    require_headers(file, range(metadata.num_row_groups), range(metadata.num_columns))
    groups = [
        "".join(_digest(view, *_chunk(metadata, group, leaf)) for leaf in range(metadata.num_columns))
        for group in range(metadata.num_row_groups)
    ]
    footer = hashlib.sha256(view[_footer(view) :]).hexdigest()
    return {"part": name, "size": len(view), "footer": footer, "groups": groups}


def _bounds(data: pa.Buffer) -> dict[str, list[list[float | None]]]:
    """Of each column of `BOUNDED` the lowest and highest value per row group; null where there is no finite one.

    From the values: statistics of a footer that somebody else wrote can end the process (see `require_headers`).
    """
    file = pq.ParquetFile(pa.BufferReader(data))
    found: dict[str, list[list[float | None]]] = {name: [] for name in BOUNDED if name in file.schema_arrow.names}
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=list(found), use_threads=False)
        for name, bounds in found.items():
            values = table[name].drop_null().to_numpy().astype(np.float64)
            values = values[~np.isnan(values)]
            ends = (values.min(), values.max()) if len(values) else (np.nan, np.nan)
            bounds.append([float(end) if np.isfinite(end) else None for end in ends])
    return found


def _leaves(metadata: pq.FileMetaData) -> dict[str, list[int]]:
    """Column -> the numbers of its leaves."""
    found: dict[str, list[int]] = {}
    for leaf in range(metadata.num_columns):
        found.setdefault(metadata.schema.column(leaf).path.split(".")[0], []).append(leaf)
    return found


def _chunk(metadata: pq.FileMetaData, group: int, leaf: int) -> tuple[int, int]:
    """Where a column of a row group begins and ends in the file."""
    chunk = metadata.row_group(group).column(leaf)
    start = chunk.data_page_offset
    if chunk.has_dictionary_page:
        start = min(start, chunk.dictionary_page_offset)
    return start, start + chunk.total_compressed_size


def _digest(view: memoryview, start: int, end: int) -> str:
    return hashlib.sha256(view[start:end]).hexdigest()[:DIGITS]


def _footer(view: memoryview) -> int:
    return len(view) - 8 - int.from_bytes(view[-8:-4], "little")
