"""One number that says whether rows are the same, however they are cut into parts."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa

from evometa.archives.schema import numbers


class Content:
    """A running hash of rows, one per leaf of every column's type: where tables begin and end leaves no trace.

    The run's own name is left out, so equal runs of different names are equal.
    """

    def __init__(self) -> None:
        self._of: dict[str, Any] = {}

    def update(self, table: pa.Table) -> None:
        """Add the rows of a table. Nulls, NaNs and signed zeros count as what they are, bit for bit."""
        for name in table.column_names:
            if name != "run":
                array = table[name].combine_chunks()
                self._update(array, name)

    def hexdigest(self) -> str:
        """Sha256 over everything so far."""
        order = list(dict.fromkeys(path.split("/")[0] for path in self._of))
        leaves = sorted(self._of.items(), key=lambda item: (order.index(item[0].split("/")[0]), item[0]))
        text = "\n".join(f"{path} {leaf.hexdigest()}" for path, leaf in leaves)
        return hashlib.sha256(text.encode()).hexdigest()

    def _update(self, array: pa.Array, path: str) -> None:
        valid = numbers(array.is_valid())
        self._feed(f"{path}/valid", valid.astype(np.uint8))
        kind = array.type
        if pa.types.is_struct(kind):
            for i, field in enumerate(kind):
                self._update(array.field(i), f"{path}/{field.name}")
        elif pa.types.is_list(kind) or pa.types.is_map(kind):
            if pa.types.is_map(kind):
                array = array.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
            self._feed(f"{path}/length", numbers(array.value_lengths()).astype(np.int64))
            self._update(array.flatten(), f"{path}/of")
        elif pa.types.is_string(kind):
            array = array.drop_null()
            if len(array):
                _, places, data = array.buffers()
                offsets = np.frombuffer(places, np.int32, len(array) + 1, 4 * array.offset)
                self._feed(f"{path}/length", np.diff(offsets))
                self._feed(f"{path}/bytes", memoryview(data or b"")[offsets[0] : offsets[-1]])
        else:
            self._feed(f"{path}/bytes", numbers(array.drop_null()))

    def _feed(self, path: str, data: np.ndarray | memoryview) -> None:
        self._of.setdefault(path, hashlib.sha256()).update(np.ascontiguousarray(data))


def rows_digest(table: pa.Table) -> str:
    """The `Content` of one table."""
    content = Content()
    content.update(table)
    return content.hexdigest()
