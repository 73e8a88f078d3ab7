"""The normal samples behind told genomes, for the evosax methods that keep them from `ask`.

A genome that left the bounds is folded back before it is judged, so the sample that a method kept is
not the one that was judged; step-size control then sees none of the folding and grows without end
(MA-ES lost to random search that way). CMA-ES recomputes its samples from what it is told; these
functions do so for the others: `(library state, told rows [P, D]) -> library state`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from evometa.types import Genomes


def _xnes(state: Any, rows: Genomes) -> Any:
    return state.replace(z=jnp.linalg.solve(state.B.T, ((rows - state.mean) / state.std).T).T)


def _ma_es(state: Any, rows: Genomes) -> Any:
    return state.replace(z=jnp.linalg.solve(state.M, ((rows - state.mean) / state.std).T).T)


def _cr_fm_nes(state: Any, rows: Genomes) -> Any:
    length = jnp.linalg.norm(state.v)
    unit = state.v / length
    y = (rows - state.mean) / (state.std * state.D)
    # y = z + (sqrt(1 + |v|^2) - 1) (z . unit) unit, solved for z
    z = y + (1.0 / jnp.sqrt(1.0 + length**2) - 1.0) * (y @ unit)[:, None] * unit
    return state.replace(z=z, y=y)


def _guided_es(state: Any, rows: Genomes) -> Any:
    return state.replace(z=rows - state.mean)


RECOVER: dict[str, Callable[[Any, Genomes], Any]] = {
    "xNES": _xnes,
    "MA_ES": _ma_es,
    "CR_FM_NES": _cr_fm_nes,
    "GuidedES": _guided_es,
}

# What `ask` must leave as `tell` left it. CMA-ES adds 1e-8 to the diagonal of C in `ask` and keeps the
# sum; compiled as one block the sum is fused into the update of `tell` and rounded once instead of twice,
# so a block and single steps differ in the last bit. The sum is made anew in every `ask` anyway.
KEEP: dict[str, tuple[str, ...]] = {"CMA_ES": ("C",), "Sep_CMA_ES": ("C",)}
