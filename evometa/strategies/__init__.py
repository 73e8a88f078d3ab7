"""The built-in strategies by name: `{"cma_es": "module:factory", ...}`; importing this imports no library.

A factory is `cma_es(space, population=32, **hyperparameters) -> Strategy`. One file per method or
library; all of one shape. Third parties add theirs as entry points of the group `evometa.strategies`.
"""

from __future__ import annotations

from evometa.strategies.catalogue import CATALOGUE, Entry, describe

STRATEGIES: dict[str, str] = {name: entry.factory for name, entry in CATALOGUE.items()}

__all__ = ["CATALOGUE", "STRATEGIES", "Entry", "describe"]
