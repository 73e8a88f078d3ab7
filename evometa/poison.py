"""Overwrite data in place and put it back; take the fingerprint of any object. The tools of `seal.py`."""

from __future__ import annotations

import ctypes
import hashlib
import types
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import numpy as np

_DEEPEST = 32


class Undo:
    """What was overwritten, to be put back in reverse order."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], None]] = []

    def write(self, array: np.ndarray, content: Any) -> None:
        """Overwrite an array in place."""
        kept = array.copy()
        array[...] = content
        self._steps.append(lambda: np.copyto(array, kept))

    def put(self, container: Any, key: Any, value: Any) -> None:
        """Replace an item of a dict or a list."""
        kept = container[key]
        container[key] = value
        self._steps.append(lambda: container.__setitem__(key, kept))

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Replace an attribute, also of a frozen dataclass."""
        kept = getattr(owner, name)
        object.__setattr__(owner, name, value)
        self._steps.append(lambda: object.__setattr__(owner, name, kept))

    def restore(self) -> None:
        """Put everything back."""
        while self._steps:
            self._steps.pop()()


def arrays_of(value: Any) -> list[np.ndarray]:
    """Writable views of the memory of every array inside a value, in a fixed order.

    NumPy, JAX on a CPU, torch on a CPU, pandas; inside dicts, lists, tuples and objects. Memory that must
    not be written (a file mapped for reading) is left out.
    """
    found: list[np.ndarray] = []
    _walk(value, lambda array: found.append(array), lambda *_: None)
    return found


def garble(value: Any, undo: Undo) -> None:
    """Overwrite all that a value holds: floats become NaN, other numbers and texts something else."""
    arrays: list[np.ndarray] = []
    items: list[tuple[Any, Any]] = []
    _walk(value, arrays.append, lambda container, key: items.append((container, key)))
    for array in arrays:
        undo.write(array, _garbage(array))
    for container, key in items:
        undo.put(container, key, _other(container[key]))


def _walk(value: Any, on_array: Callable[[np.ndarray], Any], on_item: Callable[[Any, Any], Any]) -> None:
    """Visit every array, and every plain value that sits in a dict or a list where it can be replaced."""
    seen: set[int] = set()

    def visit(value: Any, depth: int) -> None:
        if id(value) in seen or depth > _DEEPEST:
            return
        seen.add(id(value))
        array = _memory(value)
        if array is not None:
            if array.dtype.kind == "O":
                for item in array.ravel():
                    visit(item, depth + 1)
            else:
                on_array(array)
        elif isinstance(value, MutableMapping | list):
            pairs = list(value.items() if isinstance(value, MutableMapping) else enumerate(value))
            for key, item in pairs:
                if isinstance(item, bool | int | float | complex | str | bytes):
                    on_item(value, key)
                else:
                    visit(item, depth + 1)
        elif isinstance(value, Mapping):
            for item in value.values():
                visit(item, depth + 1)
        elif isinstance(value, tuple | set | frozenset):
            for item in value:
                visit(item, depth + 1)
        elif hasattr(value, "_mgr"):  # pandas
            for item in getattr(value._mgr, "arrays", ()):
                visit(item, depth + 1)
        elif hasattr(value, "__dict__") and not isinstance(
            value, type | types.ModuleType | types.FunctionType | types.MethodType
        ):
            visit(vars(value), depth + 1)

    visit(value, 0)


def _memory(value: Any) -> np.ndarray | None:
    """A writable array over the value's own memory; None where it has none, or none that may be written."""
    if isinstance(value, np.ndarray):
        return _writable(value)
    if hasattr(
        value, "unsafe_buffer_pointer"
    ):  # a JAX array promises never to change: only its memory can be overwritten
        try:
            if {device.platform for device in value.devices()} != {"cpu"} or len(value.devices()) > 1 or not value.size:
                return None
            memory: Any = (ctypes.c_uint8 * value.nbytes).from_address(value.unsafe_buffer_pointer())
            return np.ndarray(value.shape, np.dtype(value.dtype), memory)
        except (RuntimeError, ValueError, TypeError, NotImplementedError):
            return None
    if hasattr(value, "detach") and hasattr(value, "numpy"):  # torch
        try:
            return _writable(value.detach().numpy())
        except (RuntimeError, TypeError):
            return None
    return None


def _writable(array: np.ndarray) -> np.ndarray | None:
    if array.flags.writeable:
        return array
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    if not owner.flags.owndata:
        return None
    # A read-only view of memory that NumPy owns: write through the address, and leave its flags alone.
    view = np.lib.stride_tricks.as_strided(array, writeable=False)
    start = view.__array_interface__["data"][0]
    low, high = np.lib.array_utils.byte_bounds(view)
    memory: Any = (ctypes.c_uint8 * (high - low)).from_address(low)
    return np.ndarray(view.shape, view.dtype, memory, start - low, view.strides)


def _garbage(array: np.ndarray) -> Any:
    if array.dtype.kind in "fc" or array.dtype.kind == "V":  # V: bfloat16 and its like
        try:
            return np.full(array.shape, np.nan, array.dtype)
        except (TypeError, ValueError):
            return np.zeros(array.shape, array.dtype)
    if array.dtype.kind == "b":
        return ~array
    if array.dtype.kind in "iu":
        return np.invert(array)
    if array.dtype.kind in "mM":
        return array + np.timedelta64(977, "D")
    return np.full(array.shape, "?", array.dtype)


def _other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return ~value
    if isinstance(value, float | complex):
        return float("nan")
    return b"?" if isinstance(value, bytes) else "?"


def fingerprint(value: Any) -> str:
    """sha256 of what an object holds, private attributes included; addresses never enter."""
    sha = hashlib.sha256()
    _feed(sha, value, set())
    return sha.hexdigest()


def _feed(sha: Any, value: Any, above: set[int]) -> None:
    sha.update(f"<{type(value).__qualname__}>".encode())
    if id(value) in above or len(above) > 4 * _DEEPEST:
        return
    if isinstance(value, bool | int | float | complex | str | bytes | type(None)):
        sha.update(repr(value).encode())
        return
    above = above | {id(value)}
    if _is_key(value):
        import jax

        value = jax.random.key_data(value)
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu().numpy()
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        array = np.ascontiguousarray(value)
        sha.update(f"{array.dtype}{array.shape}".encode())
        if array.dtype.kind == "O":
            _feed(sha, array.tolist(), above)
        else:
            sha.update(array.tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            _feed(sha, key, above)
            _feed(sha, value[key], above)
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(sha, item, above)
    elif isinstance(value, set | frozenset):
        for word in sorted(fingerprint(item) for item in value):
            sha.update(word.encode())
    elif isinstance(value, np.random.Generator):
        _feed(sha, value.bit_generator.state, above)
    elif isinstance(value, types.FunctionType):
        sha.update(value.__code__.co_code + repr(value.__defaults__).encode())
        for cell in value.__closure__ or ():
            _feed(sha, cell.cell_contents, above)
    elif hasattr(value, "to_numpy") and hasattr(value, "columns"):  # a table
        _feed(sha, list(map(str, value.columns)), above)
        _feed(sha, value.to_numpy(), above)
    elif isinstance(value, type | types.ModuleType):
        sha.update(value.__name__.encode())
    else:
        for name in sorted({*getattr(value, "__dict__", {}), *_slots(value)}):
            sha.update(name.encode())
            _feed(sha, getattr(value, name, None), above)


def _slots(value: Any) -> list[str]:
    names = [getattr(cls, "__slots__", ()) for cls in type(value).__mro__]
    return [n for group in names for n in ((group,) if isinstance(group, str) else group) if not n.startswith("__")]


def _is_key(value: Any) -> bool:
    if type(value).__module__.partition(".")[0] not in ("jax", "jaxlib"):
        return False
    import jax

    return hasattr(value, "dtype") and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)
