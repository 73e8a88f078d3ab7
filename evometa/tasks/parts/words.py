"""Word lists as character windows: the data of the language ladder.

Source: the frequency lists bundled with `wordfreq` 3.1 (Speer 2022; data CC-BY-SA 4.0), read directly
from the package's `small_<language>.msgpack.gz`. Kept are words of at least three characters that are
all letters or marks of the language's own script; a word's rank is its place among the kept ones.

Only languages named in `SCRIPTS` can be opened. The others are a vault for later verdicts.
"""

from __future__ import annotations

import gzip
import hashlib
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from evometa.errors import EvometaError

TRAIN = {
    "en": "Latin",
    "de": "Latin",
    "fr": "Latin",
    "es": "Latin",
    "it": "Latin",
    "pl": "Latin",
    "tr": "Latin",
    "ru": "Cyrillic",
}
VALIDATION = {"ar": "Arabic", "he": "Hebrew", "ta": "Tamil"}
TEST = {
    "hi": "Devanagari",
    "fi": "Latin",
    "el": "Greek",
    "nl": "Latin",
    "hu": "Latin",
    "cs": "Latin",
    "bn": "Bengali",
    "sv": "Latin",
}
SCRIPTS = {**TRAIN, **VALIDATION, **TEST}

SIMPLE = 2000  # ranks up to this are the frequent, simple words
ADVANCED = 8000  # ranks above this are the rare, advanced words
SHORTEST = 3  # characters

BOUNDARY = 0  # class of the word's end; as a context symbol it also stands before the word
UNKNOWN = 1  # class of every character outside the alphabet


@dataclass(frozen=True)
class Parts:
    """The disjoint word lists of one language, as (rank, word) pairs; ranks start at 1."""

    support: tuple[tuple[int, str], ...]
    home: tuple[tuple[int, str], ...]
    away: tuple[tuple[int, str], ...]


def read_list(language: str) -> list[str]:
    """Words of one language from `wordfreq`, most frequent first, unfiltered. The only reader of files here."""
    if language not in SCRIPTS:
        raise EvometaError(f"ladder: language {language!r} is not part of this task; it has {', '.join(SCRIPTS)}")
    import msgpack

    package = find_spec("wordfreq")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'wordfreq'", name="wordfreq")
    path = Path(package.origin).parent / "data" / f"small_{language}.msgpack.gz"
    with gzip.open(path) as file:
        packed: Any = msgpack.load(file)
    head, *buckets = packed
    if head != {"format": "cB", "version": 1}:
        raise EvometaError(f"ladder: expected a wordfreq list of format cB, version 1 in {path}, got {head}")
    return [word for bucket in buckets for word in bucket]


@lru_cache(maxsize=32)
def ranked(language: str) -> tuple[str, ...]:
    """The kept words of a language, most frequent first; a word's rank is its index plus 1."""
    script = SCRIPTS[language].upper()
    known: dict[str, bool] = {}

    def belongs(character: str) -> bool:
        if character not in known:
            letter = unicodedata.category(character)[0] in "LM"
            known[character] = letter and unicodedata.name(character, "").startswith(script)
        return known[character]

    words = (unicodedata.normalize("NFC", word) for word in read_list(language))
    kept = (word for word in words if len(word) >= SHORTEST and all(map(belongs, word)))
    return tuple(dict.fromkeys(kept))


@lru_cache(maxsize=32)
def parts(language: str, support: int, query: int) -> Parts:
    """`support` frequent words, `query` other frequent words and `query` rare ones.

    Which word goes where follows from a hash of the word, so it depends on no generator and no order.
    """
    if support + query > SIMPLE:
        raise EvometaError(f"ladder: expected support + query words <= {SIMPLE}, got {support} + {query}")
    pairs = list(enumerate(ranked(language), start=1))
    simple = sorted(pairs[:SIMPLE], key=lambda pair: _shuffle(language, pair[1]))
    rare = sorted(pairs[ADVANCED:], key=lambda pair: _shuffle(language, pair[1]))
    return Parts(tuple(simple[:support]), tuple(simple[support : support + query]), tuple(rare[:query]))


def _shuffle(language: str, word: str) -> bytes:
    return hashlib.sha256(f"{language}/{word}".encode()).digest()


def alphabet(words: tuple[tuple[int, str], ...], classes: int) -> dict[str, int]:
    """Character -> class, from support words alone: the most frequent ones, at most `classes` - 2.

    A character seen once is left to UNKNOWN, which so gets evidence of its own.
    """
    counts: dict[str, int] = {}
    for _, word in words:
        for character in word:
            counts[character] = counts.get(character, 0) + 1
    common = sorted((c for c, n in counts.items() if n > 1), key=lambda c: (-counts[c], c))
    return {character: index for index, character in enumerate(common[: classes - 2], start=2)}


def windows(
    words: tuple[tuple[int, str], ...], table: dict[str, int], context: int, rows: int
) -> dict[str, np.ndarray]:
    """Words as next-character predictions, padded with weight 0 to exactly `rows`.

    Arrays (N = rows): `context` [N, context] int32 classes, the nearest character last; `target` [N] int32;
    `position` [N] int32, characters before the target; `length` [N] float32, characters of the word;
    `rank` [N] float32; `weight` [N] float32, 1 or 0. Words that would overflow `rows` are left out.
    """
    columns: list[tuple[list[int], int, int, int, int]] = []
    for rank, word in words:
        codes = [table.get(character, UNKNOWN) for character in word]
        if len(columns) + len(codes) + 1 > rows:
            break
        padded = [BOUNDARY] * context + codes
        for position, target in enumerate([*codes, BOUNDARY]):
            columns.append((padded[position : position + context], target, position, len(codes), rank))
    filled = len(columns)
    columns += [([BOUNDARY] * context, BOUNDARY, 0, 1, 1)] * (rows - filled)
    contexts, targets, positions, lengths, ranks = zip(*columns, strict=True)
    return {
        "context": np.array(contexts, np.int32),
        "target": np.array(targets, np.int32),
        "position": np.array(positions, np.int32),
        "length": np.array(lengths, np.float32),
        "rank": np.array(ranks, np.float32),
        "weight": (np.arange(rows) < filled).astype(np.float32),
    }


def counts(support: dict[str, np.ndarray], classes: int) -> dict[str, np.ndarray]:
    """How often a class followed none, one and two others in support windows (float32).

    `one` [classes], `two` [classes]*2, `three` [classes]*3, and the totals of the contexts: `after_two`
    [classes]*2, `after_one` [classes].
    """
    three = np.zeros((classes, classes, classes), np.float32)
    np.add.at(three, (support["context"][:, -2], support["context"][:, -1], support["target"]), support["weight"])
    two = three.sum(axis=0)
    return {
        "one": two.sum(axis=0),
        "two": two,
        "three": three,
        "after_one": two.sum(axis=1),
        "after_two": three.sum(axis=2),
    }
