"""Load the data of domains, and only of those that the caller may see.

A test domain's loader is called for nobody but the holder of an `Opening`, which one module makes:
`unseal.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evometa.contract import Domain, Task
from evometa.errors import EvometaError


@dataclass(frozen=True)
class Opening:
    """Permission to load test domains; made by `unseal.py` after it has recorded that it opens them."""

    number: int


@dataclass(frozen=True)
class Loaded:
    """One domain's data in memory."""

    name: str
    role: str
    support: Any
    queries: Mapping[str, Any]


def load(task: Task, names: Sequence[str], opening: Opening | None = None) -> tuple[Loaded, ...]:
    """Load the named domains, in that order.

    Raises `EvometaError` for a test domain without an `Opening` and for a domain without a role in the split.
    """
    loaded = []
    for name in names:
        domain = task.domain(name)
        role = task.split.role(name)
        if role is None:
            raise EvometaError(
                f"domain {name!r} has no role in the split of task {task.name!r}, so nothing may load it"
            )
        if role == "test" and opening is None:
            raise EvometaError(
                f"domain {name!r} is sealed: only `evometa unseal RUN` opens test domains, and records it"
            )
        loaded.append(_load(task, domain, role))
    return tuple(loaded)


def _load(task: Task, domain: Domain, role: str) -> Loaded:
    try:
        support = domain.support() if callable(domain.support) else domain.support
        queries = {name: query() if callable(query) else query for name, query in domain.queries.items()}
    except EvometaError:
        raise
    except ModuleNotFoundError as error:
        raise EvometaError(
            f"task {task.name!r} needs the package {error.name!r}. Type: pip install {error.name}"
        ) from error
    except Exception as error:
        raise EvometaError(
            f"domain {domain.name!r} of task {task.name!r} failed to load: {type(error).__name__}: {error}"
        ) from error
    return Loaded(domain.name, role, support, queries)


def digest(domains: Sequence[Loaded]) -> str:
    """sha256 of what the domains hold: names, array shapes and bytes, file contents where a path is given."""
    sha = hashlib.sha256()
    for domain in domains:
        for label, value in [("support", domain.support), *sorted(domain.queries.items())]:
            sha.update(f"{domain.name}/{label}\0".encode())
            _feed(sha, value)
    return sha.hexdigest()


def _feed(sha: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            sha.update(f"{key}\0".encode())
            _feed(sha, value[key])
    elif isinstance(value, list | tuple):
        sha.update(f"[{len(value)}]".encode())
        for item in value:
            _feed(sha, item)
    elif isinstance(value, str | Path):
        sha.update(str(value).encode())
        path = Path(value)
        if len(str(value)) < 4096 and path.exists():
            for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
                sha.update(hashlib.sha256(file.read_bytes()).digest())
    elif hasattr(value, "shape") and hasattr(value, "dtype"):
        array = np.ascontiguousarray(value)
        if array.dtype.kind == "O":
            _feed(sha, array.tolist())
        else:
            sha.update(f"{array.dtype}{array.shape}".encode())
            sha.update(array.tobytes())
    elif isinstance(value, int | float | bool | bytes | type(None)):
        sha.update(repr(value).encode())
    else:
        # Objects of the user's own: their type and public state; addresses never enter.
        sha.update(type(value).__qualname__.encode())
        _feed(
            sha, {k: v for k, v in vars(value).items() if not k.startswith("_")} if hasattr(value, "__dict__") else None
        )
