"""What can go wrong, each with the exit code that the command line gives for it.

Messages say what was expected, what came, and what to type next, in one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from evometa.printable import as_typed


class EvometaError(Exception):
    """A run could not do what was asked (exit code 1)."""

    exit_code = 1

    def __str__(self) -> str:
        return as_typed(super().__str__())


class UsageError(EvometaError):
    """The call itself is wrong: an option, a name, a combination (exit code 2)."""

    exit_code = 2


class NotFound(EvometaError):
    """A task, strategy, run or candidate of that name does not exist (exit code 3)."""

    exit_code = 3


class ConfigError(EvometaError):
    """A spec, space, task or strategy is ill-formed (exit code 4)."""

    exit_code = 4


class IntegrityError(EvometaError):
    """Something on disk is not what was written (exit code 5)."""

    exit_code = 5


class ResumeMismatch(EvometaError):
    """A run cannot go on here to the same bits (exit code 6)."""

    exit_code = 6


class StorageError(EvometaError):
    """The disk refused: full, read-only, or failing (exit code 74, `EX_IOERR`)."""

    exit_code = 74


def how_to_install(package: str | None) -> str:
    """What to type for a package that is missing: not every package is called as it is imported."""
    if package in ("sklearn", "wordfreq", "msgpack"):  # what the built-in tasks use
        return "Type: pip install 'evometa[tasks]'"
    if package in ("gymnax", "six"):
        return "Type: pip install 'evometa[rl]'"
    return f"Type: pip install {package}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `' Did you mean "x"?'` for the closest known name, or the empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f' Did you mean "{close[0]}"?' if close else ""
