"""How `away` differs from `home`: the kinds of distribution shift, as word lists of one language.

`frequency`: frequent words, then rare ones. `length`: short words, then long ones, all of them among the
frequent half of the list. `compound`: frequent words, then two of them joined, a word that nobody wrote.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from evometa.errors import ConfigError, EvometaError
from evometa.tasks.parts import words
from evometa.tasks.parts.words import Parts, Words

SHIFTS = ("frequency", "length", "compound")
# Windows that a word of `away` may take on average, its end included: shapes are equal over languages.
ROWS = {"frequency": 12, "length": 16, "compound": 16}
SHORT, LONG = 0.4, 0.8  # quantiles of word length: `length` trains up to the one and is judged from the other


@lru_cache(maxsize=64)
def parts(language: str, support: int, query: int, shift: str = "frequency", vault: bool = False) -> Parts:
    """`support` simple words, `query` other simple ones, `query` advanced ones and as many spare.

    Which word goes where follows from a hash of the word. Raises `ConfigError` for more words than there
    are simple ones and `EvometaError` for a language with too few words of either kind.
    """
    if support + query > words.SIMPLE:
        raise ConfigError(f"ladder: expected support + query words <= {words.SIMPLE}, got {support} + {query}")
    pairs = tuple(enumerate(words.ranked(language, vault), start=1))
    simple, advanced = _by_length(pairs) if shift == "length" else (pairs[: words.SIMPLE], pairs[words.ADVANCED :])
    simple, advanced = words.shuffled(language, simple), words.shuffled(language, advanced)
    seen, home, away, spare = simple[:support], simple[support : support + query], advanced[:query], advanced[query:]
    if shift == "compound":
        known = {word for _, word in simple}
        away, spare = _compounds(language, home, query, known), _compounds(language, seen, query, known)
    # A task of few words per query is content with as few.
    for kind, found, needed in (("simple", simple, support + query), ("advanced", away, min(words.FEWEST, query))):
        if len(found) < needed:
            raise EvometaError(
                f"ladder: expected at least {needed} {kind} words of language {language!r} for the shift {shift!r},"
                f" got {len(found)}. Ask for fewer with task_options.support and .query, or leave the language out"
            )
    return Parts(seen, home, away, spare[:query])


def _by_length(pairs: Words) -> tuple[Words, Words]:
    """Short and long words among the first `ADVANCED` ranks; the lengths between go to neither."""
    known = pairs[: words.ADVANCED]
    lengths = [len(word) for _, word in known] or [0]
    short = int(np.quantile(lengths, SHORT, method="lower"))
    long = max(int(np.quantile(lengths, LONG, method="higher")), short + 2)
    return tuple(p for p in known if len(p[1]) <= short), tuple(p for p in known if len(p[1]) >= long)


def _compounds(language: str, simple: Words, count: int, known: set[str]) -> Words:
    """`count` words that are two of `simple` joined, none of them `known`; the rank is the rarer half's.

    `simple` is in the order of its hashes, so which word meets which follows from hashes too.
    """
    made: dict[str, int] = {}
    for turn in range(1, len(simple)):
        for index, (rank, left) in enumerate(simple):
            other, right = simple[(index + turn) % len(simple)]
            if left + right not in known:
                made.setdefault(left + right, max(rank, other))
        if len(made) >= count:
            break
    return words.shuffled(language, ((rank, word) for word, rank in made.items()))[:count]
