"""Turn raw cells into scores: what failed, and what the rest is worth. The one place for both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from evometa.contract import Objective
from evometa.types import Cell, Failure, Scores


class Raw(NamedTuple):
    """Cells as a backend returns them. Leading axis P; `failure` is what the backend already knows."""

    loss: Any  # [P, C] float32, NaN where not evaluated
    metrics: dict[str, Any]  # each [P, C] float32
    evaluated: Any  # [P, C] bool
    failure: Any  # [P] int8


def settle(raw: Raw, cells: Sequence[Cell], objectives: Sequence[Objective]) -> Scores:
    """Scores of one generation; traceable.

    A candidate fails where the backend said so, and where any evaluated cell holds a loss that is not finite:
    its fitness is +inf in every objective. Rows without any evaluated cell are `SKIPPED`.
    """
    broken = raw.evaluated & ~jnp.isfinite(raw.loss)
    reported = jnp.asarray(raw.failure, jnp.int8)
    failure = jnp.where((reported == Failure.OK) & broken.any(axis=1), jnp.int8(Failure.NONFINITE), reported)
    skipped = (failure == Failure.OK) & ~raw.evaluated.any(axis=1)
    failure = jnp.where(skipped, jnp.int8(Failure.SKIPPED), failure)
    values = jnp.stack([reduce(raw.loss, cells, objective) for objective in objectives], axis=1)
    ok = (failure == Failure.OK)[:, None] & jnp.isfinite(values)
    failure = jnp.where((failure == Failure.OK) & ~ok.all(axis=1), jnp.int8(Failure.NONFINITE), failure)
    return Scores(
        loss=raw.loss,
        evaluated=raw.evaluated,
        fitness=jnp.where((failure == Failure.OK)[:, None], values, jnp.inf).astype(jnp.float32),
        descriptor=jnp.zeros((raw.loss.shape[0], 0), jnp.float32),
        failure=failure,
        metrics=raw.metrics,
    )


def reduce(loss: Any, cells: Sequence[Cell], objective: Objective) -> Any:
    """One number per candidate `[P]` from its cells `[P, C]`: replicates are averaged, then domains reduced."""
    domains = list(dict.fromkeys(cell.domain for cell in cells))
    columns = np.array(
        [[i for i, c in enumerate(cells) if c.domain == d and c.query == objective.query] for d in domains], np.int32
    )  # [domains, replicates]
    per_domain = jnp.mean(loss[:, columns], axis=2)
    if objective.reduction == "mean":
        return jnp.mean(per_domain, axis=1)
    if objective.reduction == "worst":
        return jnp.max(per_domain, axis=1)
    count = max(1, round(objective.fraction * len(domains)))
    return jnp.mean(jnp.sort(per_domain, axis=1)[:, -count:], axis=1)
