"""Overwrite data in place and put it back. The tools of `seal.py`."""

from __future__ import annotations

import ctypes
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
