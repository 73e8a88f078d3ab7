"""Every random number of a run, as a function of (seed, generation, stream): nothing is stored or carried.

`key(seed, generation, stream)` is `fold_in(fold_in(key(seed), generation), stream)`; a nested search has a key of
its own in the place of `key(seed)`. Evaluation keys then fold in the domain and the replicate, never the candidate:
all candidates of a generation meet the same luck, so their differences are paired (common random numbers).
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
    PLACEBO = 7


def root_key(seed: int) -> Any:
    """The key that a search starts from. Seeds up to 64 bits."""
    return jax.random.fold_in(jax.random.key(seed & 0xFFFFFFFF), (seed >> 32) & 0xFFFFFFFF)


def stream_key(root: Any, generation: Any, stream: Stream) -> Any:
    """The key of one stream of one generation; `root` is a seed or a key, `generation` may be traced."""
    start = root_key(root) if isinstance(root, int) else root
    return jax.random.fold_in(jax.random.fold_in(start, generation), int(stream))


def name_word(name: str) -> int:
    """A domain's or query's own 32-bit word, so that its luck does not depend on its neighbours."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def cell_keys(key: Any, names: tuple[str, ...], replicates: int) -> Any:
    """Keys `[len(names), replicates]` for the inner trainings on those domains; traceable."""
    return word_keys(key, jnp.asarray([name_word(name) for name in names], jnp.uint32), replicates)


def word_keys(key: Any, words: Any, replicates: int) -> Any:
    """As `cell_keys`, for the words `[domains]` of the names: they may be traced."""
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
