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

from evometa.contract import Domain, Task
from evometa.errors import EvometaError, how_to_install
from evometa.fingerprint import fingerprint


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
        loaded.append(read(task, domain, role))
    return tuple(loaded)


def read(task: Task, domain: Domain, role: str) -> Loaded:
    """One domain's data, for a caller that has seen to it that they may be read: `load`, or a world of a nested task,
    whose own role was checked."""
    try:
        support = domain.support() if callable(domain.support) else domain.support
        queries = {name: query() if callable(query) else query for name, query in domain.queries.items()}
    except EvometaError:
        raise
    except ModuleNotFoundError as error:
        raise EvometaError(
            f"task {task.name!r} needs the package {error.name!r}. {how_to_install(error.name)}"
        ) from error
    except Exception as error:
        raise EvometaError(
            f"domain {domain.name!r} of task {task.name!r} failed to load: {type(error).__name__}: {error}"
        ) from error
    return Loaded(domain.name, role, support, queries)


def digest(domains: Sequence[Loaded], base: Path = Path()) -> str:
    """sha256 of what the domains hold (see fingerprint.py), file contents where a path is given.

    Relative paths start at `base`.
    """
    sha = hashlib.sha256()
    for domain in domains:
        for label, value in [("support", domain.support), *sorted(domain.queries.items())]:
            try:
                word = fingerprint(value, files=base)
            except OSError as error:
                raise EvometaError(f"{label} of domain {domain.name!r} cannot be read: {error}") from error
            sha.update(f"{domain.name}/{label}\0{word}\0".encode())
    return sha.hexdigest()
