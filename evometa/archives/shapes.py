"""What JSON of an archive must hold before anybody believes it: hashes say that nothing changed, not that it is right.

A shape is a type, a tuple of shapes (any of them), `[shape]` (a list of such), `{"name": shape}` (an object with at
least these; a name that ends in `?` may be missing) or `{"*": shape}` (any names).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evometa.errors import IntegrityError

NUMBER = (float, int)
NONE = type(None)
TEXTS = {"*": str}
_MOST = 1 << 53  # whole numbers beyond have no meaning in any of these fields, but a run's seed

SPACE = [{"name": str, "kind": str, "choices": list, "shape": [int], "low?": NUMBER, "high?": NUMBER, "scale?": NUMBER}]
FORK = {"run": str, "path": str, "generation": int, "first": int}
# Of run.json: what readers use. What only a resume needs is compared with what the resume computes.
RECORD = {
    "format": str,
    "generations": int,
    "seed": int,
    "spec": {"task": (str, dict), "task_options?": dict, "strategy": str, "nest?": [dict], "seed?": int},
    "plan": {"chunk": int, "devices": int, "block": int, "platform": str},
    "strategy": {"name": str, "population": int, "operators?": [str], "code?": str},
    "task": {
        "name": str,
        "code": str,
        "space": SPACE,
        "objectives": [str],
        "split": {"*": [str]},
        "black_box": bool,
        "runs": str,
    },
    "from?": (NONE, FORK),
    "folder": str,
    "tags?": {"*": TEXTS},
    "versions?": TEXTS,
}
MAYBE = (NONE, *NUMBER)
INTERVAL = {
    "difference": MAYBE,
    "low": MAYBE,
    "high": MAYBE,
    "estimand": str,
    "unit": str,
}
# Of the diary, by kind; other kinds are read by nobody but people.
EVENTS: dict[str, Any] = {
    "started": {"generations": int, "run_json_sha256?": str},
    "extended": {"generations": int},
    "champion": {
        "generations": int,
        "generation": (NONE, int),
        "index": (NONE, int),
        "label": str,
        "genome": [NUMBER],
        "validation": MAYBE,
        "baseline": MAYBE,
        "probability": MAYBE,
        "domains": [str],
        "judgements?": str,
    },
    "opening": {"opening": int, "domains": [str], "seeds": int},
    "opened": {"opening": int, "looks": int, "overall": INTERVAL, "judgements?": str},
    "note": {"text": str},
    "compacting": {"instead": TEXTS},
}
CHECKPOINT = {
    "format": str,
    "generation": int,
    "sha256": str,
    "meta": {"spec_digest": str, "last_part?": (NONE, str)},
    "leaves": [{"path": str, "dtype": str, "shape": [int]}],
}
LEDGER = {"domains?": TEXTS, "variants?": TEXTS, "sources?": TEXTS, "announced?": [str], "data_digest?": str}


def require(value: Any, shape: Any, path: Path, where: str = "") -> None:
    """Raise `IntegrityError` that names the first place where a value is not of a shape."""
    wrong = _wrong(value, shape, where)
    if wrong:
        raise IntegrityError(f"{path}: {wrong}")


def _wrong(value: Any, shape: Any, where: str) -> str:
    if isinstance(shape, tuple):
        wrongs = [_wrong(value, one, where) for one in shape]
        # Of several shapes, the one that was meant says best what is wrong.
        return (
            ""
            if "" in wrongs
            else next((w for w, s in zip(wrongs, shape, strict=True) if _meant(value, s)), wrongs[-1])
        )
    if isinstance(shape, type):
        if isinstance(value, bool) and shape is not bool or not isinstance(value, shape):
            return _expected(where, _word(shape), value)
        if shape is int and abs(value) > _MOST and not where.endswith("seed"):
            return f"{where}: expected a smaller number, got one of {value.bit_length()} bits"
        return ""
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _expected(where, "a list", value)
        return next((w for i, item in enumerate(value) if (w := _wrong(item, shape[0], f"{where}[{i}]"))), "")
    if not isinstance(value, dict):
        return _expected(where, "an object", value)
    dot = f"{where}." if where else ""
    if "*" in shape:
        return next((w for name, item in value.items() if (w := _wrong(item, shape["*"], f"{dot}{name}"))), "")
    for key, inner in shape.items():
        name = key.rstrip("?")
        if name not in value:
            if key == name:
                return f"expected {dot}{name}, which is missing"
        elif wrong := _wrong(value[name], inner, f"{dot}{name}"):
            return wrong
    return ""


def _meant(value: Any, shape: Any) -> bool:
    return isinstance(value, dict) and isinstance(shape, dict) or isinstance(value, list) and isinstance(shape, list)


def _expected(where: str, what: str, value: Any) -> str:
    return f"{where or 'its content'}: expected {what}, got {_word(type(value))}"


def _word(kind: type) -> str:
    words = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}
    return {**words, list: "a list", NONE: "null"}.get(kind, kind.__name__)
