"""Word lists as character windows: the data of the language ladder.

Source: the frequency lists bundled with `wordfreq` 3.1 (Speer 2022; data CC-BY-SA 4.0), read directly
from the package's `small_<language>.msgpack.gz`. Kept are words of at least three characters that are
all letters or marks of the language's own script; a word's rank is its place among the kept ones.
Korean is spelled out in single letters (NFD, conjoining jamo), every other language composed (NFC).

Only languages named in `SCRIPTS` can be opened freely. Those in `VAULT` are sealed for verdicts: they are
read for a caller that asks for the vault, and no other is read at all.
"""

from __future__ import annotations

import gzip
import hashlib
import unicodedata
from collections.abc import Iterable
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
# Not opened by any pilot, demo or test; the first ones are the most distant from one another.
VAULT = {
    "ko": "Hangul",
    "vi": "Latin",
    "id": "Latin",
    "fa": "Arabic",
    "lt": "Latin",
    "ro": "Latin",
    "uk": "Cyrillic",
    "da": "Latin",
    "fil": "Latin",
    "ur": "Arabic",
    "lv": "Latin",
    "pt": "Latin",
    "bg": "Cyrillic",
    "is": "Latin",
    "sl": "Latin",
    "ca": "Latin",
}
_FAMILIES = {
    "Germanic": "en de nl sv da is",
    "Romance": "fr es it pt ca ro",
    "Slavic": "pl ru cs uk bg sl",
    "Baltic": "lt lv",
    "Hellenic": "el",
    "Indo-Iranian": "hi bn fa ur",
    "Turkic": "tr",
    "Uralic": "fi hu",
    "Semitic": "ar he",
    "Dravidian": "ta",
    "Austronesian": "id fil",
    "Austroasiatic": "vi",
    "Koreanic": "ko",
}
FAMILIES = {language: family for family, names in _FAMILIES.items() for language in names.split()}

SIMPLE = 2000  # ranks up to this are the frequent, simple words
ADVANCED = 8000  # ranks above this are the rare, advanced words
FEWEST = 100  # advanced words that a language must have
SHORTEST = 3  # characters

Words = tuple[tuple[int, str], ...]  # (rank, word)

BOUNDARY = 0  # class of the word's end; as a context symbol it also stands before the word
UNKNOWN = 1  # class of every character outside the alphabet


@dataclass(frozen=True)
class Parts:
    """The disjoint word lists of one language, as (rank, word) pairs; ranks start at 1."""

    support: Words
    home: Words
    away: Words
    spare: Words = ()  # further advanced words, as many as `away` where there are; never judged


def read_list(language: str, vault: bool = False) -> list[str]:
    """Words of one language from `wordfreq`, most frequent first, unfiltered.

    `vault` is set for the test domains of `ladder(test="vault")` alone, and for the oracle's copies of them.
    Raises `EvometaError` for a language of the vault without it, and for one that the task does not have.
    """
    if language in VAULT and not vault:
        raise EvometaError(
            f"ladder: language {language!r} is in the vault: it opens as a test domain of test='vault' only,"
            " with: evometa unseal RUN"
        )
    if language not in SCRIPTS and language not in VAULT:
        raise EvometaError(f"ladder: language {language!r} is not part of this task; it has {', '.join(SCRIPTS)}")
    return _read(language)


def _read(language: str) -> list[str]:
    """The only reader of files here."""
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


@lru_cache(maxsize=64)
def ranked(language: str, vault: bool = False) -> tuple[str, ...]:
    """The kept words of a language, most frequent first; a word's rank is its index plus 1."""
    script = (SCRIPTS | VAULT).get(language, "").upper()
    form = "NFD" if script == "HANGUL" else "NFC"
    known: dict[str, bool] = {}

    def belongs(character: str) -> bool:
        if character not in known:
            letter = unicodedata.category(character)[0] in "LM"
            known[character] = letter and unicodedata.name(character, "").startswith(script)
        return known[character]

    words = (unicodedata.normalize(form, word) for word in read_list(language, vault))
    kept = (word for word in words if len(word) >= SHORTEST and all(map(belongs, word)))
    return tuple(dict.fromkeys(kept))


def shuffled(language: str, pairs: Iterable[tuple[int, str]]) -> Words:
    """In an order that follows from a hash of each word: it depends on no generator and no earlier order."""
    return tuple(sorted(pairs, key=lambda pair: _shuffle(language, pair[1])))


def _shuffle(language: str, word: str) -> bytes:
    return hashlib.sha256(f"{language}/{word}".encode()).digest()


def alphabet(words: Words, classes: int) -> dict[str, int]:
    """Character -> class, from support words alone: the most frequent ones, at most `classes` - 2.

    A character seen once is left to UNKNOWN, which so gets evidence of its own.
    """
    counts: dict[str, int] = {}
    for _, word in words:
        for character in word:
            counts[character] = counts.get(character, 0) + 1
    common = sorted((c for c, n in counts.items() if n > 1), key=lambda c: (-counts[c], c))
    return {character: index for index, character in enumerate(common[: classes - 2], start=2)}


def known(table: dict[str, int], classes: int) -> np.ndarray:
    """Classes that the support's alphabet has, end of word and unknown among them: `[classes]` float32, 1 or 0."""
    return (np.arange(classes) < 2 + len(table)).astype(np.float32)


def windows(words: Words, table: dict[str, int], context: int, rows: int) -> dict[str, np.ndarray]:
    """Words as next-character predictions, padded with weight 0 to exactly `rows`.

    Arrays (N = rows): `context` [N, context] int32 classes, the nearest character last; `target` [N] int32;
    `position` [N] int32, characters before the target; `length` [N] float32, characters of the word;
    `rank` [N] float32; `weight` [N] float32, 1 or 0. Words that would overflow `rows` are left out.
    """
    return dict(_windows(words, tuple(table.items()), context, rows))


@lru_cache(maxsize=128)  # a study makes the same ones for every run
def _windows(words: Words, items: tuple[tuple[str, int], ...], context: int, rows: int) -> dict[str, np.ndarray]:
    table = dict(items)
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
