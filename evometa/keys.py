"""Every random number of a run, as a function of (seed, generation, stream): nothing is stored or carried.

`key(seed, generation, stream)` is `fold_in(fold_in(key(seed), generation), stream)`. Evaluation keys then
fold in the domain and the replicate, never the candidate: all candidates of a generation meet the same
luck, so their differences are paired (common random numbers).
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import Any

import jax
import jax.numpy as jnp


class Stream(IntEnum):
    """What a key is for. The numbers are part of the determinism contract: append, never renumber."""

    INIT = 0
    ASK = 1
    EVALUATE = 2
    TELL = 3
    VALIDATE = 4
    UNSEAL = 5
    CHECK = 6


def stream_key(seed: int, generation: Any, stream: Stream) -> Any:
    """The key of one stream of one generation; `generation` may be traced. Seeds up to 64 bits."""
    root = jax.random.fold_in(jax.random.key(seed & 0xFFFFFFFF), (seed >> 32) & 0xFFFFFFFF)
    return jax.random.fold_in(jax.random.fold_in(root, generation), int(stream))


def name_word(name: str) -> int:
    """A domain's or query's own 32-bit word, so that its luck does not depend on its neighbours."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def cell_keys(key: Any, names: tuple[str, ...], replicates: int) -> Any:
    """Keys `[len(names), replicates]` for the inner trainings on those domains; traceable."""
    words = jnp.asarray([name_word(name) for name in names], jnp.uint32)
    per_domain = jax.vmap(lambda word: jax.random.fold_in(key, word))(words)
    numbers = jnp.arange(replicates, dtype=jnp.uint32)
    return jax.vmap(lambda k: jax.vmap(lambda r: jax.random.fold_in(k, r))(numbers))(per_domain)


def fit_and_judge_keys(key: Any, queries: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    """Split one cell key into the trainer's key and one key per query."""
    judge = jax.random.fold_in(key, 1)
    return jax.random.fold_in(key, 0), {query: jax.random.fold_in(judge, name_word(query)) for query in queries}


def as_int(key: Any) -> int:
    """A key as one int below 2**63, for `numpy.random.default_rng` and everything else that takes a seed."""
    words = [int(word) for word in jax.random.key_data(key).ravel()]
    return (words[0] << 32 | words[-1]) & (2**63 - 1)
