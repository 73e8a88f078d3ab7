"""An interpolated n-gram model of characters: counted once per support, made probabilities by a candidate.

The probability of a character t after the k characters c is

    P_k(t | c) = (kept(c, t) + back(c) P_{k-1}(t | c')) / (kept(c) + back(c)),    back(c) = taken(c) + concentration_k

Every count loses a discount (Ney, Essen and Kneser 1994, "On structuring probabilistic dependences in
stochastic language modelling"; one discount per count as in Chen and Goodman 1999, "An empirical study of
smoothing techniques for language modeling"). What is taken goes, with a concentration, to the context c',
one character shorter: the two-parameter form of Teh 2006, "A hierarchical Bayesian language model based on
Pitman-Yor processes". Concentration 0 is interpolated Kneser-Ney, discount 0 a Dirichlet prior (MacKay and
Peto 1995, "A hierarchical Dirichlet language model"). Counts of shorter contexts can be mixed with the number
of longer contexts seen before (Kneser and Ney 1995, "Improved backing-off for m-gram language modeling").
P_{-1} is uniform over the alphabet.

Counts are weighted: a word's weight is the candidate's choice, by rank and length. The tables keep counts
apart for `GROUPS` kinds of word, so all that a candidate does to them is products of small matrices.
Probabilities are proper, and an unknown character costs ln 256 nats more: see `charmodel.py`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa.tasks.parts.charmodel import ESCAPES, Sizes
from evometa.tasks.parts.words import BOUNDARY, UNKNOWN

ORDERS = 5  # an n-gram of order n sees n - 1 characters
BINS = 3  # counts of one, of two and of more have discounts of their own
_RANKS, _LENGTHS = (200.0, 800.0), (4.5, 7.5)  # edges between the kinds of word
_TYPICAL_RANKS, _TYPICAL_LENGTHS = (70.0, 450.0, 1350.0), (4.0, 6.0, 9.0)  # what stands for each kind
GROUPS = len(_TYPICAL_RANKS) * len(_TYPICAL_LENGTHS)
# Tables have room for this share of a support's rows; 0.41 was the most that one of the search languages fills.
# Where more pairs are distinct, the rarest count as unseen.
_ROOM = 0.56
_BASE = 64  # classes in a code: `Sizes.classes` at most
_SIZES = 8  # kinds of context by the logarithm of its count
CELLS = (ORDERS - 1) * _SIZES * _BASE  # kinds of context for `rich`: order, size, the character before


class Index(NamedTuple):
    """What a support has seen at one order: sorted codes, and the length of the tables (the last row is a null)."""

    pairs: np.ndarray  # [P'] int64: context code * _BASE + target
    contexts: np.ndarray  # [C'] int64: the characters' classes, the nearest in the lowest digit
    most_pairs: int
    most_contexts: int


def tables(data: dict[str, np.ndarray], known: np.ndarray) -> dict[str, Any]:
    """Count the windows `data` of a support (see `words.windows`); `known` [classes] marks its alphabet.

    Per order, with P pairs of context and target and C contexts, all float32: `pair` [P, GROUPS] counts;
    `share` [P, BINS], 1 / count in the bin of that count, so that a discount takes its share of every group;
    `total` [C, GROUPS] counts of a context, `taken` [C, BINS * GROUPS] what a discount of 1 takes from it. With
    `more_` before the name: the same for numbers of longer contexts, at all orders but the last. `cell` [C]
    int32: the kind of context for `rich`, at all orders but the first.
    """
    filled = data["weight"] > 0
    context, target = data["context"][filled], data["target"][filled]
    by_rank = np.searchsorted(_RANKS, data["rank"][filled])
    by_length = np.searchsorted(_LENGTHS, data["length"][filled])
    mass = np.eye(GROUPS)[by_rank * len(_TYPICAL_LENGTHS) + by_length]
    orders: list[dict[str, np.ndarray]] = []
    longer = np.zeros(0)  # [N] how often the pair one character longer occurs, from the order above
    for order in reversed(range(ORDERS)):
        index = _index(context, target, order, len(filled), len(known))
        code = _codes(context, order) * _BASE + target
        pair_of = _find(index.pairs, code, index.most_pairs)
        owner = np.searchsorted(index.contexts, index.pairs // _BASE)
        out = _counted(mass, pair_of, owner, index)
        if order < ORDERS - 1:
            # A word's start has one context before it, however often it occurs: there the count itself stays.
            start = (context[:, -order] == BOUNDARY) if order else np.zeros(len(target), bool)
            novel = mass / np.where(start, 1, longer)[:, None]
            out |= {f"more_{name}": value for name, value in _counted(novel, pair_of, owner, index).items()}
        if order:
            times = np.bincount(pair_of, minlength=index.most_pairs)[: len(owner)]
            size = np.minimum(np.log2(np.bincount(owner, times)), _SIZES - 1).astype(np.int64)
            cell = ((order - 1) * _SIZES + size) * _BASE + index.contexts % _BASE
            out["cell"] = np.pad(cell, (0, index.most_contexts - len(cell))).astype(np.int32)
        orders.insert(0, out)
        _, same, times = np.unique(code, return_inverse=True, return_counts=True)
        longer = times[same]
    return {"orders": tuple(orders), "alphabet": known}


def lookups(query: dict[str, np.ndarray], data: dict[str, np.ndarray], known: np.ndarray) -> dict[str, np.ndarray]:
    """Where a query's windows stand in the tables of the support `data`, `[ORDERS, N]` int32 each.

    `pair` of the target, `end` of a word's end in its place, `before` the context; unseen ones point to the null.
    """
    filled = data["weight"] > 0
    found: dict[str, list[np.ndarray]] = {"pair": [], "end": [], "before": []}
    for order in range(ORDERS):
        index = _index(data["context"][filled], data["target"][filled], order, len(filled), len(known))
        code = _codes(query["context"], order)
        found["pair"].append(_find(index.pairs, code * _BASE + query["target"], index.most_pairs))
        found["end"].append(_find(index.pairs, code * _BASE + BOUNDARY, index.most_pairs))
        found["before"].append(_find(index.contexts, code, index.most_contexts))
    return {name: np.stack(values).astype(np.int32) for name, values in found.items()}


def fit(key: Any, candidate: dict[str, Any], support: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Weigh and discount the counts: per order `pair` [P], `back` [C] (the shorter context's share), `scale` [C]."""
    del key, sizes  # counting has no luck and no steps
    orders = support["orders"]
    weight = _weights(candidate["tilt"], orders[0]["total"][0])
    fitted = []
    for number, table in enumerate(orders, start=1):
        name = f"order{number}"
        discounts = candidate["discount"][name]
        discount = jnp.stack([discounts["once"], discounts["twice"], discounts["more"]])
        pair, kept, taken = _discounted(table, "", weight, discount)
        if number < ORDERS:
            share = candidate["continuation"][name]
            more = _discounted(table, "more_", weight, discount)
            pair, kept, taken = (
                (1.0 - share) * old + share * new for old, new in zip((pair, kept, taken), more, strict=True)
            )
        back = taken + candidate["concentration"][name]
        if number > 1 and "rich" in candidate:
            rich = candidate["rich"]
            back = back * jnp.exp(rich[table["cell"] * rich.shape[0] // CELLS])
        fitted.append({"pair": pair, "back": back / (kept + back), "scale": 1.0 / (kept + back)})
    return {"orders": tuple(fitted), "output": candidate["output"], "alphabet": support["alphabet"]}


def judge(key: Any, learned: dict[str, Any], query: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Nats per character, ends of words counted as characters. One pass over the support counts as one step."""
    del key
    nats = -log_probability(learned, query, sizes) + math.log(ESCAPES) * (query["target"] == UNKNOWN)
    return {
        "loss": jnp.sum(nats * query["weight"]) / jnp.sum(query["weight"]),
        "inner_steps": jnp.ones(()),
    }


def log_probability(learned: dict[str, Any], query: dict[str, Any], sizes: Sizes) -> Any:
    """Log probability of each target: `[N]`. The end of word is made likelier or less by `ending`, then `floor`."""
    del sizes
    rule = learned["output"]
    uniform = 1.0 / jnp.sum(learned["alphabet"])
    chance = end = jnp.full(query["target"].shape, uniform)
    for number, order in enumerate(learned["orders"]):
        before = query["before"][number]
        back, scale = order["back"][before], order["scale"][before]
        chance = order["pair"][query["pair"][number]] * scale + back * chance
        end = order["pair"][query["end"][number]] * scale + back * end
    early = (query["position"].astype(jnp.float32) - 5.0) / 5.0
    pull = jnp.exp(rule["ending"] + rule["ending_slope"] * early)
    chance = chance * jnp.where(query["target"] == BOUNDARY, pull, 1.0) / (1.0 + end * (pull - 1.0))
    return jnp.log((1.0 - rule["floor"]) * chance + rule["floor"] * uniform)


def _weights(tilt: dict[str, Any], windows: Any) -> Any:
    """Weight of each kind of word `[GROUPS]`, 1 on average over the support's windows."""
    rank, length = np.meshgrid(np.log(_TYPICAL_RANKS), np.log(_TYPICAL_LENGTHS), indexing="ij")
    lean = tilt["rank"] * np.float32(rank.ravel() - rank.mean())
    weight = jnp.exp(lean + tilt["length"] * np.float32(length.ravel() - length.mean()))
    return weight * (jnp.sum(windows) / jnp.sum(windows * weight))


def _discounted(table: dict[str, Any], kind: str, weight: Any, discount: Any) -> tuple[Any, Any, Any]:
    """What is left of pairs `[P]` and of contexts `[C]`, and what was taken from contexts `[C]`."""
    pair = _times(table[f"{kind}pair"], weight) * (1.0 - _times(table[f"{kind}share"], discount))
    taken = _times(table[f"{kind}taken"], (discount[:, None] * weight[None]).ravel())
    return pair, jnp.maximum(_times(table[f"{kind}total"], weight) - taken, 0.0), taken


def _times(table: Any, vector: Any) -> Any:
    return jnp.matmul(table, vector, precision=jax.lax.Precision.HIGHEST)


def _codes(context: np.ndarray, order: int) -> np.ndarray:
    """Codes `[N]` int64 of the last `order` characters of contexts `[N, context]`."""
    code = np.zeros(len(context), np.int64)
    for distance in range(order, 0, -1):
        code = code * _BASE + context[:, -distance]
    return code


def _index(context: np.ndarray, target: np.ndarray, order: int, rows: int, classes: int) -> Index:
    room = int(rows * _ROOM)
    most_pairs, most_contexts = min(room, classes ** (order + 1)), min(room, classes**order)
    pairs, times = np.unique(_codes(context, order) * _BASE + target, return_counts=True)
    if len(pairs) > most_pairs:
        pairs = np.sort(pairs[np.argsort(-times, kind="stable")[:most_pairs]])
    return Index(pairs, np.unique(pairs // _BASE), most_pairs + 1, most_contexts + 1)


def _find(known: np.ndarray, wanted: np.ndarray, most: int) -> np.ndarray:
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[place] == wanted, place, most - 1)


def _counted(mass: np.ndarray, pair_of: np.ndarray, owner: np.ndarray, index: Index) -> dict[str, np.ndarray]:
    """The tables of `tables` for windows whose `mass` [N, GROUPS] goes to the pairs `pair_of` [N]."""
    pair = np.zeros((index.most_pairs, GROUPS))
    np.add.at(pair, pair_of, mass)
    pair[-1] = 0.0  # pairs without room were not seen
    count = np.rint(pair.sum(axis=1)).astype(np.int64)
    share = np.where(count[:, None] > 0, np.eye(BINS)[np.clip(count, 1, BINS) - 1] / np.maximum(count, 1)[:, None], 0.0)
    total = np.zeros((index.most_contexts, GROUPS))
    taken = np.zeros((index.most_contexts, BINS, GROUPS))
    seen = len(owner)
    np.add.at(total, owner, pair[:seen])
    np.add.at(taken, owner, share[:seen, :, None] * pair[:seen, None])
    tables = {"pair": pair, "share": share, "total": total, "taken": taken.reshape(-1, BINS * GROUPS)}
    return {name: value.astype(np.float32) for name, value in tables.items()}
