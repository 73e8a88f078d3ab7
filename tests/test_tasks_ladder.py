"""The language ladder: what training sees, what is sealed, and that its loss is a code length."""

import re
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evometa.errors import ConfigError, EvometaError
from evometa.tasks.ladder import ladder
from evometa.tasks.parts import charmodel, shifts, words

TINY = {"languages": 2, "steps": 20, "hidden": 16, "support": 200, "query": 40}


@pytest.fixture
def opened(monkeypatch):
    """Names of the word lists that were read, in order."""
    names = []
    real = words.read_list
    monkeypatch.setattr(words, "read_list", lambda language, vault: names.append(language) or real(language, vault))
    words.ranked.cache_clear()
    shifts.parts.cache_clear()
    return names


@pytest.fixture(scope="module")
def tiny():
    return ladder(**TINY)


@lru_cache
def trainer(genome="full", steps=TINY["steps"]):
    """One compiled trainer for many tests."""
    return jax.jit(ladder(**{**TINY, "genome": genome, "steps": steps}).fit)


def learned_on(task, language, candidate=None, **kind):
    support = jax.tree.map(jnp.asarray, task.domain(language).support())
    candidate = jax.tree.map(jnp.float32, candidate or task.baseline)
    return trainer(**kind)(jax.random.key(0), candidate, support)


def test_construction_reads_nothing_and_searching_reads_no_test_language(opened):
    """SYS-2, S0-6: a sealed language is not opened by building the task nor by loading the others."""
    task = ladder(**TINY)
    assert opened == []
    for name in (*task.split.train, *task.split.validation):
        domain = task.domain(name)
        domain.support()
        for query in domain.queries.values():
            query()
    assert set(opened) == set(task.split.train) | set(task.split.validation)
    assert not set(opened) & set(task.split.test)


def test_other_languages_are_a_vault():
    """S0-6: no language outside the named ones can be opened through this task."""
    assert len(words.SCRIPTS) == len(words.TRAIN) + len(words.VALIDATION) + len(words.TEST) == 19
    assert set(ladder().split.train) == {"en", "de", "fr", "es", "it", "pl", "tr", "ru"}
    assert set(ladder().split.validation) == {"ar", "he", "ta"}
    with pytest.raises(EvometaError, match="'xx' is not part of this task"):
        words.read_list("xx")


@pytest.mark.parametrize("language", ["en", "ru", "ta"])
def test_words_are_disjoint_and_ranked_as_stated(language):
    """S0-2: support and home are ranks <= 2000, away ranks > 8000; no word is in two parts."""
    lists = shifts.parts(language, 1400, 300)
    ranks = {name: [rank for rank, _ in getattr(lists, name)] for name in ("support", "home", "away")}
    assert [len(r) for r in ranks.values()] == [1400, 300, 300]
    assert max(ranks["support"] + ranks["home"]) <= 2000 and min(ranks["away"]) > 8000
    texts = [{word for _, word in getattr(lists, name)} for name in ranks]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    everything = words.ranked(language)
    assert all(everything[rank - 1] == word and len(word) >= 3 for rank, word in lists.away)


def test_alphabet_comes_from_support_words_alone():
    """S0-6: a character that only rare words have is unknown; so is one that the support shows once."""
    table = words.alphabet(((1, "abab"), (2, "bac")), classes=64)
    assert table == {"a": 2, "b": 3}
    rows = words.windows(((9000, "abz"),), table, context=3, rows=6)
    assert rows["target"].tolist() == [2, 3, words.UNKNOWN, words.BOUNDARY, 0, 0]
    assert rows["context"][:4].tolist() == [[0, 0, 0], [0, 0, 2], [0, 2, 3], [2, 3, 1]]
    assert rows["weight"].tolist() == [1, 1, 1, 1, 0, 0]
    assert words.alphabet(((1, "aabbbcc"),), classes=4) == {"b": 2, "a": 3}


def test_fit_is_bit_identical_whatever_the_queries_hold(tiny, monkeypatch):
    """S0-2: with every home and away word replaced, support and training are the same to the last bit."""
    clean = learned_on(tiny, "en")
    real = shifts.parts("en", TINY["support"], TINY["query"])
    poisoned = words.Parts(real.support, ((1, "qzqz"),) * 40, ((9999, "zqzq\N{SNOWMAN}"),) * 40)
    monkeypatch.setattr(shifts, "parts", lambda *_: poisoned)
    assert "\N{SNOWMAN}" in shifts.parts("en", 200, 40).away[0][1]
    again = learned_on(tiny, "en")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), clean, again))


def test_shapes_are_equal_over_languages(tiny):
    """Domains of equal shapes are one compiled program (design: contracts)."""
    names = ("en", "de", *tiny.split.validation)
    shapes = {
        str(jax.tree.map(lambda x: (x.shape, x.dtype), (d.support(), {q: f() for q, f in d.queries.items()})))
        for d in map(tiny.domain, names)
    }
    assert len(shapes) == 1


@pytest.mark.parametrize("where", ["baseline", "center", "corner"])
def test_probabilities_sum_to_one(tiny, where):
    """SYS-3: the loss is a proper code length: over every class the probabilities are one, for any candidate."""
    genome = {"center": tiny.space.center, "corner": np.full(tiny.space.dimension, 0.97, np.float32)}.get(where)
    candidate = tiny.baseline if genome is None else tiny.space.decode(genome)
    learned = learned_on(tiny, "de", candidate)
    query = {name: jnp.asarray(value[:50]) for name, value in tiny.domain("de").queries["away"]().items()}
    classes = int(learned["alphabet"].sum())

    def chance(target):
        asked = {**query, "target": jnp.full_like(query["target"], target)}
        return jnp.exp(charmodel.log_probability(learned, asked, charmodel.Sizes(hidden=16, steps=20)))

    total = jax.vmap(chance)(jnp.arange(classes)).sum(0)
    np.testing.assert_allclose(total, 1.0, atol=2e-5)


def test_unknown_characters_cost_an_honest_escape(tiny):
    """An unknown character costs ln 256 nats beyond its class, so no candidate can hide it."""
    learned = learned_on(tiny, "en")
    row = {name: jnp.asarray(value[:1]) for name, value in tiny.domain("en").queries["away"]().items()}
    row["target"] = jnp.full(1, words.UNKNOWN)
    sizes = charmodel.Sizes(hidden=16, steps=20)
    loss = charmodel.judge(jax.random.key(0), learned, row, sizes)["loss"]
    expected = float(np.log(256.0) - charmodel.log_probability(learned, row, sizes)[0])
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_padding_does_not_count(tiny):
    """Rows of weight 0 change neither training nor the loss."""
    learned = learned_on(tiny, "en")
    query = tiny.domain("en").queries["home"]()
    spoiled = {**query, "target": np.where(query["weight"] > 0, query["target"], 7).astype(np.int32)}
    judge = jax.jit(partial(tiny.judge, jax.random.key(0)))
    assert float(judge(learned, query)["loss"]) == float(judge(learned, spoiled)["loss"])
    support = tiny.domain("en").support()
    wrong = {**support, "target": np.where(support["weight"] > 0, support["target"], 7).astype(np.int32)}
    baseline = jax.tree.map(jnp.float32, tiny.baseline)
    again = trainer()(jax.random.key(0), baseline, jax.tree.map(jnp.asarray, wrong))
    np.testing.assert_array_equal(learned["weights"]["output"], again["weights"]["output"])


def test_training_learns_and_judging_changes_nothing(tiny):
    """S0-4: a finished learner gives the same score however often and in whatever order it is judged."""
    learned = learned_on(tiny, "en", steps=150)
    before = jax.tree.map(np.array, learned)
    queries = {name: query() for name, query in tiny.domain("en").queries.items()}
    judge = jax.jit(partial(charmodel.judge, sizes=charmodel.Sizes(hidden=16)))
    first = {name: float(judge(jax.random.key(1), learned, query)["loss"]) for name, query in queries.items()}
    second = {name: float(judge(jax.random.key(2), learned, queries[name])["loss"]) for name in reversed(queries)}
    assert first == second
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), before, learned))
    assert first["home"] < 2.9 < np.log(28)  # better than uniform over English letters by far
    assert first["home"] < first["away"]


def test_every_column_matters_to_the_learner(tiny):
    """A gene that nothing reads would drift: each one changes what is predicted somewhere."""
    base = tiny.space.encode(tiny.baseline)
    base[[c.name for c in tiny.space.columns].index("output.counts")] = 0.3  # else concentration is unread
    support = jax.tree.map(jnp.asarray, tiny.domain("en").support())
    query = tiny.domain("en").queries["home"]()

    @jax.jit
    @partial(jax.vmap, in_axes=0)
    def loss(genome):
        learned = tiny.fit(jax.random.key(0), tiny.space.decode(genome), support)
        return tiny.judge(jax.random.key(1), learned, query)["loss"]

    moved = np.where(np.eye(len(base)) > 0, (base + 0.23) % 1.0, base).astype(np.float32)
    losses = np.asarray(loss(jnp.concatenate([base[None], moved])))
    assert np.all(np.isfinite(losses))
    same = [c.name for c, value in zip(tiny.space.columns, losses[1:], strict=True) if value == losses[0]]
    assert same == []


def test_regularizer_is_two_numbers_and_the_baseline_otherwise():
    """S0-13, C7: the regularizer's baseline is the full genome's baseline."""
    full = ladder(**TINY)
    control = ladder(**{**TINY, **full.controls["regularizer"]})
    assert control.space.dimension == 2
    assert [c.name for c in control.space.columns] == ["decay", "dropout.hidden"]
    one = learned_on(full, "en")["weights"]["output"]
    two = learned_on(control, "en", genome="regularizer")["weights"]["output"]
    np.testing.assert_allclose(one, two, atol=1e-5)  # constants are folded: the last bits differ
    assert control.split == full.split


def test_baseline_is_inside_the_space_and_neutral():
    """Every new mechanism is switched off in what a careful user has today."""
    task = ladder()
    genome = task.space.encode(task.baseline)
    assert np.all((genome >= 0) & (genome <= 1))
    recipe, rule = task.baseline, task.baseline["output"]
    assert (
        recipe["smoothing"] == recipe["tilt"]["rank"] == recipe["tilt"]["length"] == recipe["dropout"]["context"] == 0.0
    )
    assert rule["counts"] == rule["ending"] == rule["ending_slope"] == 0.0
    assert rule["temperature"] == recipe["fade"] == 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learner": "neurl"}, "a learner of neural, ngram, got 'neurl'"),
        ({"genome": "all"}, "a genome of full, small, regularizer"),
        ({"languages": 9}, "1 <= languages <= 8, got 9"),
        ({"batch": 12}, "batch a multiple of 8"),
        ({"context": 1}, "context >= 2"),
        ({"learner": "ngram", "context": 3}, "context >= 4"),
        ({"support": 1800}, "support . query words <= 2000"),
        ({"rich": 10_000}, "0 <= rich <= 1536 for the learner 'neural'"),
        ({"learner": "ngram", "rich": 2049}, "0 <= rich <= 2048"),
        ({"pool": 0}, "pool >= 1"),
        ({"train_shift": "lenght"}, 'Did you mean "length"'),
        ({"control": "curiculum"}, 'Did you mean "curriculum"'),
        ({"control": "pooled", "languages": 1}, "2 <= languages"),
        ({"control": "pooled", "genome": "small"}, "genome='full'"),
        ({"control": "pooled", "learners": "carry"}, "learners='reset'"),
        ({"control": "curriculum", "learner": "ngram"}, "learner='neural' for control='curriculum'"),
        ({"learners": "carry", "learner": "ngram"}, "counts of one language mean nothing in another"),
        ({"learners": "carry", "languages": 1}, "2 <= languages"),
        ({"hindi": True}, "hindi=True with test='vault' only"),
        ({"control": "oracle", "test": "vault"}, "opened=True"),
        ({"opened": True}, "opened=True with control='oracle'"),
    ],
)
def test_bad_options_say_what_was_expected(options, words):
    with pytest.raises(ConfigError, match="^ladder: expected") as error:
        ladder(**options)
    assert re.search(words, str(error.value)), error.value
    assert "\n" not in str(error.value)
