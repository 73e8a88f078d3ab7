"""The state of a run on disk: arrays in safetensors, a tree spec in JSON, never pickle.

`checkpoints/ckpt-<generation>-<sha256>.safetensors` holds the leaves, the `.json` of the same name says
what they are. The JSON comes last: where it is, the checkpoint is whole. The last three are kept, and a
broken one falls back to the one before.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from evometa.archives.regular import read_file
from evometa.archives.sealed import FOLDER, FORMAT, NAME, scan, seal
from evometa.archives.write import remove, replace, storage
from evometa.errors import ConfigError, IntegrityError, ResumeMismatch
from evometa.types import State

KEEP = 3
log = logging.getLogger("evometa")


def save(run_path: Path, generation: int, state: State, meta: Mapping[str, Any]) -> Path:
    """Make a state durable and return the path of its JSON. Keeps the last three checkpoints.

    `state` is a pytree of arrays (flat dicts of NumPy arrays need no jax). `generation` is the next one
    to run: those before it are in the lineage. `meta` is anything JSON and holds `spec_digest` (what must
    be equal on resume) and, where there is one, `last_part` (the name of the last committed part: how
    `archive check` knows that none is missing at the end).

    Raises `StorageError` where the disk refuses; the checkpoints before it stay.
    """
    if "spec_digest" not in meta:
        raise ConfigError("checkpoint: expected meta to hold 'spec_digest', got " + ", ".join(meta))
    folder = Path(run_path) / FOLDER
    tensors: dict[str, np.ndarray] = {}
    leaves = []
    for path, leaf in _flatten(state)[0]:
        array = _host(leaf, path)
        plain = array if array.dtype.kind in "biuf" and array.dtype.type.__module__ == "numpy" else _as_words(array)
        tensors[path] = np.array(plain, order="C", copy=None)
        leaves.append({"path": path, "dtype": array.dtype.name, "shape": list(array.shape)})
    data = save_tensors(tensors)
    digest = hashlib.sha256(data).hexdigest()
    stem = f"ckpt-{generation:09d}-{digest[:16]}"
    record = {"format": FORMAT, "generation": generation, "leaves": leaves, "meta": dict(meta), "sha256": digest}
    # Over what is there: a damaged file of that name is what a fallback left behind.
    replace(folder / f"{stem}.safetensors", data)
    path = replace(folder / f"{stem}.json", seal(record))
    _prune(folder, stem)
    return path


def load(run_path: Path, like: State, *, spec_digest: str) -> tuple[int, State, dict[str, Any]] | None:
    """The newest whole checkpoint as (generation, state, meta); None where there is none.

    `like` is a state of the right shape (what `init` gives, values ignored; an array of no rows may have
    grown): leaves come back as NumPy arrays, jax arrays or Python numbers, as they are there. Broken
    checkpoints are passed over, logged, and named in `meta["skipped"]`.

    Raises `ResumeMismatch` where the spec's digest, a leaf's path, dtype or shape is another.
    """
    skipped: list[str] = []
    for found in reversed(scan(run_path)):
        if found.record is None:
            skipped.append(found.problem)
            log.warning("%s; going back to the one before", found.problem)
            continue
        record = found.record
        if record["meta"]["spec_digest"] != spec_digest:
            fork = f"evometa run --from {Path(run_path).name}@{found.generation}"
            raise ResumeMismatch(
                f"{found.path}: expected a checkpoint of spec {spec_digest[:16]}, got one of"
                f" {record['meta']['spec_digest'][:16]}. The spec or the code changed; to go on with it, fork: {fork}"
            )
        try:
            tensors = load_tensors(read_file(found.path.with_suffix(".safetensors")))
            state = _restore(record["leaves"], tensors, like, found.path)
        except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
            # Its bytes are those of its name: it was made so.
            raise IntegrityError(f"{found.path}: its arrays cannot be read ({error})") from None
        return found.generation, state, {**record["meta"], "skipped": skipped}
    return None


def _prune(folder: Path, newest: str) -> None:
    """Keep the newest three; remove arrays whose JSON never came. Only one process writes a run."""
    with storage(folder):
        names = sorted(name for name in os.listdir(folder) if NAME.fullmatch(name))
        older = sorted(name[:-5] for name in names if name.endswith(".json") and name[:-5] < newest)
        # What is further on than the newest was broken, or belongs to a past that did not come: it goes.
        keep = {newest, *older[-(KEEP - 1) :]}
        # The JSON goes first: without it, arrays are nobody's checkpoint.
        for name in sorted(names, key=lambda name: name.endswith(".safetensors")):
            if name.rsplit(".", 1)[0] not in keep:
                remove(folder / name)


# --- trees ----------------------------------------------------------------------------------------


def _flatten(state: State) -> tuple[list[tuple[str, Any]], Any]:
    """Leaves with their paths, and what rebuilds the tree from leaves."""
    plain = (np.ndarray, np.generic, bool, int, float)
    if type(state) is dict and all(type(name) is str and isinstance(state[name], plain) for name in state):
        names = sorted(state)
        pairs = [(f"state[{name!r}]", state[name]) for name in names]  # the paths that jax gives, without jax
        return pairs, lambda leaves: dict(zip(names, leaves, strict=True))
    from jax import tree_util

    pairs, tree = tree_util.tree_flatten_with_path(state)
    return [("state" + tree_util.keystr(path), leaf) for path, leaf in pairs], tree.unflatten


def _host(leaf: Any, path: str) -> np.ndarray:
    array = np.asarray(leaf)
    if array.dtype.hasobject or array.dtype.kind not in "biufcV":
        raise ConfigError(f"checkpoint: expected arrays of numbers, got {type(leaf).__name__} at {path}")
    return array


def _as_words(array: np.ndarray) -> np.ndarray:
    """Complex and extension types (bfloat16 ...) as unsigned words; the JSON keeps their name."""
    words = {1: np.uint8, 2: np.uint16, 4: np.uint32}.get(array.dtype.itemsize, np.uint64)
    whole = np.array(array, order="C", copy=None)
    if array.dtype.itemsize == 16:
        return whole.reshape(*array.shape, 1).view(np.uint64)
    return whole.view(words)


def _restore(leaves: list[dict[str, Any]], tensors: Mapping[str, np.ndarray], like: State, where: Path) -> State:
    pairs, rebuild = _flatten(like)
    stored = {leaf["path"]: leaf for leaf in leaves}
    expected = [path for path, _ in pairs]
    cure = "The strategy or its options changed; start anew or fork the run"
    for path in [*expected, *stored]:
        if path not in stored or path not in set(expected):
            was, now = ("nothing", "an array") if path not in stored else ("an array", "nothing")
            raise ResumeMismatch(f"{where}: {path} was {was} and is {now}. {cure}")
    restored = []
    for path, leaf in pairs:
        kind, shape = _kind(leaf), list(np.shape(leaf))
        if shape[:1] == [0] and stored[path]["shape"]:
            # Nothing told yet: a history that grows by rows (Optuna's) has any length on disk.
            shape[0] = stored[path]["shape"][0]
        was, now = _described(stored[path]["dtype"], stored[path]["shape"]), _described(kind.name, shape)
        if was != now:
            raise ResumeMismatch(f"{where}: {path} was {was} and is {now}. {cure}")
        array = tensors[path]
        if array.dtype != kind:
            array = array.view(kind).reshape(shape)
        restored.append(_as_it_was(array, leaf))
    return rebuild(restored)


def _kind(leaf: Any) -> np.dtype:
    return np.dtype(leaf.dtype) if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def _described(dtype: str, shape: Any) -> str:
    return f"{dtype}{list(shape)}"


def _as_it_was(array: np.ndarray, leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return array.copy()
    if isinstance(leaf, np.generic):  # before float: a np.float64 is both
        return array[()]
    if isinstance(leaf, bool | int | float):
        return array.item()
    import jax.numpy as jnp

    return jnp.asarray(array)
