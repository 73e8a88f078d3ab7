"""sha256 of what any object holds: for data digests, and for the seal's comparisons of learners.

Equal contents give equal words in every process: no address enters, and neither the order of a set or
a dict nor the run of the hash seed. Which objects are shared does enter, as far as it decides which
object is met twice.
"""

from __future__ import annotations

import hashlib
import os
import re
import types
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_DEEPEST = 128  # levels; Python's own stack ends at about three times as many
_SETS = 2  # sets within sets: each element of one is walked afresh, so that their order cannot matter
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_Function = types.FunctionType


def fingerprint(value: Any, files: bool | Path = False) -> str:
    """sha256 of what an object holds, private state included.

    `files`: where a text or a path names something that exists, what lies there counts too; a folder says
    where relative paths start. Functions
    count by name, defaults and closure, and without `files` by their code as well (a task's code has a
    digest of its own, and byte code follows the version of Python).
    """
    return _fingerprint(value, files, 0, {})


def without_addresses(text: str) -> str:
    """The text with every ` at 0x7f...` made alike: addresses differ from process to process."""
    return ADDRESS.sub(" at 0x...", text)


def _fingerprint(value: Any, files: bool | Path, sets: int, ranks: dict[tuple[int, int], tuple[str, Any]]) -> str:
    walk = _Walk(files, sets, ranks)
    walk.feed(value)
    return walk.sha.hexdigest()


class _Walk:
    """One walk through an object; what is met again is named by its number, so that cycles end."""

    def __init__(self, files: bool | Path, sets: int, ranks: dict[tuple[int, int], tuple[str, Any]]) -> None:
        self.sha, self.files, self.sets, self.depth = hashlib.sha256(), files, sets, 0
        self.ranks = ranks  # shared by all walks of one fingerprint, or sets of friends of friends would never end
        # With the object itself, or a temporary one's address could be given to another.
        self.seen: dict[int, tuple[int, Any]] = {}

    def say(self, tag: str, data: bytes | str = b"") -> None:
        """A tagged word with its length in front, so that no two sequences of words read alike."""
        data = data.encode(errors="surrogatepass") if isinstance(data, str) else data
        self.sha.update(b"%b:%d:" % (tag.encode(), len(data)))
        self.sha.update(data)

    def feed(self, value: Any) -> None:
        kind = type(value)
        self.say("type", kind.__qualname__)
        if kind in _PLAIN:
            self.say("is", repr(value))
            if kind is str and self.files:
                self._file(value)
            return
        if id(value) in self.seen:
            self.say("again", str(self.seen[id(value)][0]))
            return
        if self.depth > _DEEPEST:
            return
        self.seen[id(value)] = (len(self.seen), value)
        self.depth += 1
        self._inside(value)
        self.depth -= 1

    def _inside(self, value: Any) -> None:
        if isinstance(value, PurePath):
            self.say("is", str(value))
            if self.files:
                self._file(value)
        elif isinstance(value, type | types.ModuleType):
            self.say("is", getattr(value, "__qualname__", value.__name__))
        elif self._numbers(value):
            return
        elif isinstance(value, Mapping):
            self.say("items", str(len(value)))
            for key in sorted(value) if {*map(type, value)} == {str} else sorted(value, key=self._rank):
                self._word(key)
                self.feed(value[key])
            self._attributes(value)
        elif isinstance(value, list | tuple):
            self.say("items", str(len(value)))
            for item in value:
                self.feed(item)
            self._attributes(value)
        elif isinstance(value, set | frozenset):
            self.say("items", str(len(value)))
            for word in sorted(map(self._rank, value)):
                self.say("item", word)
        elif isinstance(value, np.random.Generator):
            self.feed(value.bit_generator.state)
        elif isinstance(value, np.random.BitGenerator):
            self.feed(value.state)
        elif isinstance(value, _Function):
            self._function(value)
        elif not self._attributes(value):
            self._reduced(value)

    def _rank(self, value: Any) -> str:
        """A word for a key or an element that depends on nothing around it, to sort by."""
        if type(value) in _PLAIN:
            return f"{type(value).__name__} {value!r}"
        if self.sets == _SETS:
            return type(value).__qualname__
        known = self.ranks.get((id(value), self.sets))
        if known is None:
            known = _fingerprint(value, self.files, self.sets + 1, self.ranks), value
            self.ranks[id(value), self.sets] = known
        return known[0]

    # --- arrays and tables ---------------------------------------------------------------------------

    def _numbers(self, value: Any) -> bool:
        """Arrays of every library and tables; False where the value is none."""
        if _is_key(value):
            import jax

            value = jax.random.key_data(value)
        if hasattr(value, "detach") and hasattr(value, "cpu") and hasattr(value, "dtype"):  # torch
            try:
                value = value.detach().cpu()
                value = value.float().numpy() if "bfloat16" in str(value.dtype) else value.numpy()
            except (RuntimeError, TypeError):
                return False
        if type(value).__module__.partition(".")[0] == "pandas" and hasattr(value, "to_numpy"):
            self._pandas(value)
        elif hasattr(value, "tocoo") and hasattr(value, "shape"):  # scipy.sparse, in one order of its entries
            entries = value.tocoo(copy=True)
            entries.sum_duplicates()
            for part in (tuple(map(int, value.shape)), entries.row, entries.col, entries.data):
                self.feed(part)
        elif hasattr(value, "to_numpy") and hasattr(value, "columns"):  # a table of another library
            self.feed([str(name) for name in value.columns])
            self.feed(value.to_numpy())
        elif hasattr(value, "shape") and hasattr(value, "dtype"):
            array = np.asarray(value, order="C")
            if array.dtype.kind == "O" and array.ndim == 0:  # NumPy does not know what it is
                return False
            self.say("array", f"{array.dtype}{array.shape}")
            if isinstance(value, np.ma.MaskedArray):
                self.feed(np.ma.getmaskarray(value))
            if array.dtype.hasobject:
                self.feed(array.tolist())
            else:
                self.say("bytes", array.tobytes())
        else:
            return False
        return True

    def _pandas(self, value: Any) -> None:
        if hasattr(value, "columns"):
            self.feed(value.columns)
            self.feed(value.index)
            for number in range(value.shape[1]):  # names may occur twice
                self.feed(value.iloc[:, number].array)
            return
        self.feed(str(value.dtype))
        self.feed(list(getattr(value, "names", ())) or getattr(value, "name", None))
        if hasattr(value, "index"):
            self.feed(value.index)
        self.feed(value.to_numpy())

    # --- everything else -------------------------------------------------------------------------------

    def _word(self, key: Any) -> None:
        """A mapping's key: a word and never a path, whatever file of that name lies about."""
        files, self.files = self.files, False
        self.feed(key)
        self.files = files

    def _function(self, value: types.FunctionType) -> None:
        self.say("function", f"{value.__module__}.{value.__qualname__}")
        if not self.files:
            self._code(value.__code__)
        self.feed(value.__defaults__)
        self.feed(value.__kwdefaults__)
        for cell in value.__closure__ or ():
            try:
                self.feed(cell.cell_contents)
            except ValueError:  # not filled yet
                self.say("empty")

    def _code(self, code: types.CodeType) -> None:
        self.say("code", code.co_code)
        for item in (*code.co_consts, *code.co_names):
            if isinstance(item, types.CodeType):
                self._code(item)
            else:
                self.feed(item)

    def _attributes(self, value: Any) -> bool:
        """All attributes that the object itself holds; False where there are none."""
        names = sorted({*getattr(value, "__dict__", {}), *_slots(value)}, key=str)
        for name in names:
            self.say("attribute", str(name))
            self.feed(getattr(value, str(name), None))
        return bool(names)

    def _reduced(self, value: Any) -> None:
        """Objects of other languages: what they would hand to a copy, or else what they print."""
        try:
            parts = value.__reduce_ex__(4)
            parts = parts if isinstance(parts, str) else [list(p) if hasattr(p, "__next__") else p for p in parts]
        except Exception:
            parts = None
        if parts is None:
            self.say("repr", without_addresses(repr(value)))
        else:
            self.feed(parts)

    def _file(self, name: str | PurePath) -> None:
        """What lies at a path. Texts of dots and slashes alone are texts: nobody means a whole disk."""
        path = self.files / name if isinstance(self.files, Path) else Path(name)
        if not str(name).strip("./\\ ") or not os.path.exists(path):
            return
        for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
            self.say("file", "" if file == path else file.relative_to(path).as_posix())
            with open(file, "rb") as opened:
                self.say("bytes", hashlib.file_digest(opened, "sha256").digest())


def _slots(value: Any) -> list[str]:
    found = []
    for cls in type(value).__mro__:
        group = cls.__dict__.get("__slots__", ())
        for name in (group,) if isinstance(group, str) else group:
            if name.startswith("__"):
                if name.endswith("__"):  # __dict__, __weakref__
                    continue
                name = f"_{cls.__name__.lstrip('_')}{name}"
            found.append(name)
    return found


def _is_key(value: Any) -> bool:
    if type(value).__module__.partition(".")[0] not in ("jax", "jaxlib"):
        return False
    import jax

    return hasattr(value, "dtype") and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)
