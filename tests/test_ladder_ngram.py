"""The n-gram learner of the ladder: proper probabilities, textbook special cases, rich genomes that start neutral."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evometa.tasks.ladder import ladder
from evometa.tasks.parts import backoff, ngram, words
from evometa.tasks.parts.charmodel import Sizes
from evometa.tasks.parts.learner import merge

TINY = {"learner": "ngram", "languages": 2, "support": 200, "query": 40}
CORPUS = ((1, "abab"), (2, "abba"), (3, "baab"), (4, "abc"))
FIT = jax.jit(lambda candidate, support: backoff.fit(None, candidate, support, Sizes()))


@pytest.fixture(scope="module")
def task():
    return ladder(**TINY)


def learn(support, changes=None):
    candidate = jax.tree.map(jnp.float32, merge(ngram.BASELINE, changes or {}))
    return FIT(candidate, jax.tree.map(jnp.asarray, support))


def chances(learned, query, classes):
    """Probability of every class after each context of a query that `lookup` can build: `[classes, N]`."""
    return np.stack([np.exp(backoff.log_probability(learned, query(target), Sizes())) for target in range(classes)])


def asker(chosen, seen, table, rows):
    """A query whose targets are all of one class."""

    def ask(target):
        data = words.windows(chosen, table, 4, rows[0])
        data["target"] = np.full_like(data["target"], target)
        known = words.known(table, 64)
        places = backoff.lookups(data, words.windows(seen, table, 4, rows[1]), known)
        return {"target": data["target"], "position": data["position"], **places}

    return ask


def corner(task, value):
    return jax.tree.map(np.asarray, task.space.decode(np.full(task.space.dimension, value, np.float32)))


@pytest.mark.parametrize("where", ["baseline", "low", "high"])
def test_probabilities_sum_to_one(task, where):
    """SYS-3: over the alphabet, the word's end and UNKNOWN the probabilities are one, for any candidate."""
    lists = ((5, "word"), (9000, "wörds"), (9001, "zebra"), (9002, "on"))
    seen = tuple((rank, text) for rank, text in enumerate(["word", "sword", "wore", "on", "one", "words"] * 3, 1))
    table = words.alphabet(seen, 64)
    support = ngram.support(seen, table, 140, Sizes())
    changes = {"baseline": {}, "low": corner(task, 0.01), "high": corner(task, 0.97)}[where]
    total = chances(learn(support, changes), asker(lists, seen, table, (30, 140)), 2 + len(table)).sum(0)
    np.testing.assert_allclose(total, 1.0, atol=1e-5)


def test_tables_without_room_stay_proper():
    """Where more pairs are distinct than the tables hold, the rarest count as unseen and nothing is lost."""
    draw = np.random.default_rng(0)
    seen = tuple((n, "".join(draw.choice(list("abcdefghij"), 8))) for n in range(1, 61))
    table = words.alphabet(seen, 64)
    support = ngram.support(seen, table, 540, Sizes())
    room = support["orders"][4]["pair"].shape[0] - 1
    assert (
        (support["orders"][4]["pair"].sum(1) > 0).sum()
        == room
        < len({w[i : i + 5] for _, w in seen for i in range(4)}) + 300
    )
    np.testing.assert_allclose(support["orders"][4]["pair"].sum(), support["orders"][4]["total"].sum(), rtol=1e-6)
    total = chances(learn(support), asker(seen[:5], seen, table, (50, 540)), 2 + len(table)).sum(0)
    np.testing.assert_allclose(total, 1.0, atol=1e-5)


def test_a_bigram_by_hand():
    """Absolute discounting with back-off, computed by hand for the letter after one letter (Chen and Goodman 1999)."""
    table = words.alphabet(CORPUS, 64)
    assert table == {"a": 2, "b": 3}  # c is seen once: UNKNOWN
    discount, concentration = 0.4, 2.0
    # Orders 3 to 5 hand everything down: their concentration outweighs every count.
    huge = {f"order{n}": 1e9 for n in (3, 4, 5)}
    flat = {name: {"once": discount, "twice": discount, "more": discount} for name in ngram.BASELINE["discount"]}
    plain = {"concentration": {"order1": concentration, "order2": concentration, **huge}, "discount": flat}
    learned = learn(ngram.support(CORPUS, table, 40, Sizes()), {**plain, "output": {"floor": 0.0}})
    found = chances(learned, asker(((1, "a"),), CORPUS, table, (2, 40)), 4)[:, 1]  # after a, position 1
    one = {0: 4, 1: 1, 2: 7, 3: 7}  # end, c, a, b
    first = {t: (n - discount + (4 * discount + concentration) / 4) / (19 + concentration) for t, n in one.items()}
    after_a = {0: 1, 2: 1, 3: 5}  # abba|, ba-a-b, ab ab ab ab ab
    below = len(after_a) * discount + concentration
    expected = [(max(after_a.get(t, 0) - discount, 0) + below * first[t]) / (7 + concentration) for t in range(4)]
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_continuation_counts_longer_contexts():
    """Kneser and Ney 1995: a letter counts as often as letters differ before it, in the words' own weights."""
    seen = ((1, "aab"), (2, "aab"), (3, "cb"), (4, "cb"), (5, "cab"))
    table = words.alphabet(seen, 64)
    first = ngram.support(seen, table, 40, Sizes())["orders"][0]
    letters = {
        text: float(first["more_pair"][row].sum())
        for text, row in {"end": 0, **{c: i for i, c in enumerate(table, 1)}}.items()
    }
    # before the end: b; before a: start, a, c; before b: a, c; before c: start
    assert letters == {"end": 1.0, "a": 3.0, "b": 2.0, "c": 1.0}


def test_extra_mechanisms_are_neutral_at_the_baseline(task):
    """S0-13, C7: the small genome, the regularizer and a rich genome start at the same learner, to the last bit."""
    support, query = task.domain("en").support(), task.domain("en").queries["away"]()

    def loss(variant):
        rich = {"rich": np.array(variant.baseline["rich"])} if "rich" in variant.baseline else {}
        candidate = jax.tree.map(jnp.float32, merge(ngram.BASELINE, {**variant.baseline, **rich}))
        return float(backoff.judge(None, FIT(candidate, jax.tree.map(jnp.asarray, support)), query, Sizes())["loss"])

    variants = [
        ladder(**{**TINY, **options}) for options in ({"genome": "small"}, {"genome": "regularizer"}, {"rich": 50})
    ]
    assert [v.space.dimension for v in (task, *variants)] == [27, 10, 2, 77]
    assert {loss(v) for v in variants} == {loss(task)}


@pytest.mark.parametrize("rich", [1, 12, backoff.CELLS])
def test_rich_numbers_move_the_back_off(task, rich):
    """S0-12: every part of the contexts has a number of its own; each of them that the support meets is read."""
    variant = ladder(**{**TINY, "rich": rich})
    support = jax.tree.map(jnp.asarray, variant.domain("en").support())
    base = {**ngram.BASELINE, "rich": np.zeros(rich)}
    plain = learn(support, base)
    spoken = {int(c) * rich // backoff.CELLS for o in support["orders"][1:] for c in np.asarray(o["cell"])[:-1] if c}
    number = max(spoken)
    moved = learn(support, {**base, "rich": np.eye(rich)[number]})
    assert any(bool((a["back"] != b["back"]).any()) for a, b in zip(plain["orders"], moved["orders"], strict=True))
    assert all(np.array_equal(plain["orders"][0][k], moved["orders"][0][k]) for k in ("pair", "back", "scale"))


def test_every_column_matters(task):
    """A gene that nothing reads would drift: each one changes what is predicted somewhere."""
    base = task.space.encode(task.baseline)
    support = jax.tree.map(jnp.asarray, task.domain("en").support())
    queries = {name: query() for name, query in task.domain("en").queries.items()}

    @jax.jit
    @jax.vmap
    def losses(genome):
        learned = task.fit(None, task.space.decode(genome), support)
        return jnp.stack([task.judge(None, learned, query)["loss"] for query in queries.values()])

    moved = np.where(np.eye(len(base)) > 0, (base + 0.23) % 1.0, base).astype(np.float32)
    found = np.asarray(losses(jnp.concatenate([base[None], moved])))
    assert np.all(np.isfinite(found))
    same = [c.name for c, value in zip(task.space.columns, found[1:], strict=True) if (value == found[0]).all()]
    assert same == []


def test_shapes_are_equal_over_languages_and_training_ignores_queries(task, monkeypatch):
    """S0-2: the tables come from support words alone; domains of equal shapes are one compiled program."""
    from evometa.tasks.parts import shifts

    names = ("en", "de", *task.split.validation)
    shapes = {
        str(jax.tree.map(lambda x: (x.shape, x.dtype), (d.support(), {q: f() for q, f in d.queries.items()})))
        for d in map(task.domain, names)
    }
    assert len(shapes) == 1
    clean, real = task.domain("en").support(), shifts.parts("en", 200, 40)
    monkeypatch.setattr(shifts, "parts", lambda *_: real.__class__(real.support, ((1, "qz"),), ((9999, "zq"),)))
    again = task.domain("en").support()
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), clean, again))


def test_it_learns_and_an_unknown_character_costs_an_honest_escape(task):
    """The same escape as the neural learner: ln 256 nats beyond the class."""
    domain = task.domain("en")
    learned = learn(domain.support())
    home, away = (float(task.judge(None, learned, domain.queries[name]())["loss"]) for name in ("home", "away"))
    assert home < away < np.log(28)
    row = {n: v[..., :1] for n, v in domain.queries["away"]().items()}
    row["target"] = np.full(1, words.UNKNOWN)
    expected = float(np.log(256.0) - backoff.log_probability(learned, row, Sizes())[0])
    assert float(task.judge(None, learned, row)["loss"]) == pytest.approx(expected, rel=1e-6)
