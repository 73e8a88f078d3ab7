"""Control arms of the ladder: what each may see, that they differ as described, and that all of them run."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evometa.evaluate import data
from evometa.tasks.ladder import complete, ladder
from evometa.tasks.parts import controls, shifts, words

TINY = {"languages": 4, "support": 60, "query": 24, "steps": 8, "hidden": 8, "embedding": 4, "batch": 8, "pool": 2}
POOLED = [name for name, arm in controls.CONTROLS.items() if arm.pool]
ARMS = [
    *({"control": name} for name in controls.CONTROLS),
    {"learners": "carry"},
    {"learners": "carry", "control": "maml"},
    {"learner": "ngram"},
    *({"learner": "ngram", "control": name} for name in ("maml", "no-separation", "oracle")),
]
NAMES = ["-".join(arm.values()) for arm in ARMS]


def same(one, other):
    return jax.tree.structure(one) == jax.tree.structure(other) and jax.tree.all(
        jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), one, other)
    )


@lru_cache
def loaded(name, **options):
    return data.load(ladder(**TINY, **options), [name])[0]


@lru_cache
def program(**options):
    """One compiled trainer and judge per arm, for all its languages of equal shapes."""
    task = ladder(**TINY, **options)

    # Compiled without optimization: the models are tiny, the programs are many.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})
    def run(candidate, support, queries):
        learned = task.fit(jax.random.key(0), candidate, support)
        return learned, {name: task.judge(None, learned, query)["loss"] for name, query in queries.items()}

    return run


def trained(name, candidate=None, **options):
    """What the baseline, or another candidate, learns on a domain; and its losses."""
    domain = loaded(name, **options)
    candidate = jax.tree.map(jnp.float32, candidate or ladder(**TINY, **options).baseline)
    learned, losses = program(**options)(candidate, domain.support, domain.queries)
    return learned, {name: float(loss) for name, loss in losses.items()}


@pytest.mark.parametrize("arm", ARMS, ids=NAMES)
def test_no_arm_trains_on_the_words_that_judge_it(arm, monkeypatch):
    """S0-2, S0-13: with the judged words of a language replaced, its support is the same to the last bit."""
    task = ladder(**TINY, **arm)
    name = task.split.validation[0] if task.split.validation else task.split.train[0]
    places = [task.split.train[0], name]
    languages = {place: place.split(".")[0] for place in places}
    clean = {place: task.domain(place).support() for place in places}
    real = shifts.parts

    def spoiled(language, *rest):
        lists = real(language, *rest)
        if language not in languages.values():
            return lists
        return words.Parts(lists.support, ((1, "zzz"),) * 24, ((9999, "zz\N{SNOWMAN}"),) * 24, lists.spare)

    monkeypatch.setattr(shifts, "parts", spoiled)
    assert "\N{SNOWMAN}" in shifts.parts(languages[name], 60, 24, "frequency", False).away[0][1]
    for place in places:
        assert same(clean[place], task.domain(place).support())


@pytest.mark.parametrize("arm", ARMS, ids=NAMES)
def test_a_test_language_never_trains_on_its_advanced_words(arm, monkeypatch):
    """S0-6: at the end, support is made of the language's simple words, and of other languages', under every arm."""
    task, real, read = ladder(**TINY, **arm), shifts.parts, set()

    def watched(language, *rest):
        lists = real(language, *rest)
        read.add(language)
        trap = ((9999, "zz\N{SNOWMAN}"),) * 24
        return words.Parts(lists.support, lists.home, trap, trap) if language == "hi" else lists

    clean = task.domain("hi").support()
    monkeypatch.setattr(shifts, "parts", watched)
    assert same(clean, task.domain("hi").support())
    assert read & set(words.TEST) == {"hi"} and read - {"hi"} <= set(words.TRAIN)


@pytest.mark.parametrize("arm", ARMS, ids=NAMES)
def test_every_arm_runs(arm):
    """S0-13: each control is a runnable configuration whose losses are finite where it searches and where it is judged."""
    task = ladder(**TINY, **arm)
    learned, losses = trained(task.split.train[0], **arm)
    assert all(np.isfinite(loss) and loss < 6.0 for loss in losses.values()), losses
    assert task.objectives[0].query in losses
    if "weights" in learned:
        assert all(bool(jnp.isfinite(w).all()) for w in jax.tree.leaves(learned["weights"]))


@pytest.mark.parametrize("arm", [a for a in ARMS if a.get("control") != "oracle"], ids=lambda a: "-".join(a.values()))
def test_shapes_are_equal_over_languages(arm):
    """Domains of one role and equal shapes are one compiled program."""
    task = ladder(**TINY, **arm)
    for names in (task.split.train, task.split.validation, ("hi", "bn")):
        domains = data.load(task, names, data.Opening(1))
        shapes = {str(jax.tree.map(lambda x: (np.shape(x), x.dtype), (d.support, d.queries))) for d in domains}
        assert len(shapes) == 1


def test_controls_are_offered_as_options():
    """S0-13: a control is a word that stands for options, laid over any others; it has no controls of its own."""
    for options in ladder(**TINY, genome="small", rich=5, learners="carry").controls.values():
        ladder(**{**TINY, "genome": "small", "rich": 5, "learners": "carry", **options})
    task = ladder(**TINY)
    assert set(task.controls) == {"regularizer", *controls.CONTROLS}
    assert set(ladder(learner="ngram").controls) == {"regularizer", "maml", "no-separation", "oracle"}
    for name, options in task.controls.items():
        variant = ladder(**{**TINY, **options})
        assert variant.controls == {}
        assert variant.split.test == task.split.test
        assert variant.space.dimension == {"regularizer": 2, **dict.fromkeys(POOLED, 1)}.get(name, 20)


def test_the_pool_and_the_languages_that_tune_are_apart():
    """S0-13: the one number of C1 to C3 is tuned on languages that were not taught; nobody is judged on the pool."""
    for name in POOLED:
        assert ladder(control=name).split.train == ("it", "pl", "tr", "ru")
    support = loaded("fr", control="pooled").support
    pool, update, own = support["phases"]
    assert "update" in update and update["update"].shape == (1,)
    assert loaded("fr", control="pooled-small").support["phases"][1]["update"].shape == (8,)
    assert same(own["context"], loaded("fr").support["context"])
    taught = [shifts.parts(language, 60, 24) for language in ("en", "de")]
    assert pool["weight"].sum() == sum(len(word) + 1 for lists in taught for _, word in lists.support)
    assert update["weight"].sum() == sum(len(word) + 1 for lists in taught for _, word in lists.away + lists.spare)


def test_curriculum_and_shuffled_differ_in_order_only():
    """S0-13, C2: the same windows and steps; then the own simple words alone."""
    ordered, mixed = (loaded("fr", control=f"curriculum{tail}").support["phases"] for tail in ("", "-shuffled"))
    assert [len(phases) for phases in (ordered, mixed)] == [3, 2]
    for key in ("target", "weight", "rank"):
        np.testing.assert_array_equal(np.concatenate([p[key] for p in ordered[:2]]), mixed[0][key])
    assert len(ordered[0]["schedule"]) + len(ordered[1]["schedule"]) == len(mixed[0]["schedule"])
    assert same(ordered[2], mixed[1])
    assert [float(p["scaled"]) for p in ordered] == [1.0, 1.0, 0.0]


def test_multilingual_learns_the_own_language_in_the_first_part_only():
    """S0-13, C3: pretraining includes the target's simple words, fine-tuning does not."""
    tuned = loaded("fr", control="multilingual").support["phases"]
    plain = loaded("fr", control="multilingual-untuned").support["phases"]
    assert [len(tuned), len(plain)] == [2, 1]
    rows = controls.ROWS_SIMPLE * TINY["support"]
    own = loaded("fr").support["context"]
    np.testing.assert_array_equal(tuned[0]["context"][-rows:], own)
    assert tuned[0]["context"].shape[0] == 3 * rows
    assert not any(
        np.array_equal(tuned[1]["context"][s : s + rows], own) for s in range(0, len(tuned[1]["context"]), rows)
    )


def test_maml_adapts_where_it_searches_and_nowhere_else():
    """S0-13, C4: a few advanced words, none of them judged; at the end there are none."""
    lists = shifts.parts("en", 60, 24)
    first, adaptation = loaded("en", control="maml").support["phases"]
    assert same(
        {k: first[k] for k in ("context", "target")}, {k: loaded("en").support[k] for k in ("context", "target")}
    )
    assert adaptation["weight"].sum() == sum(len(word) + 1 for _, word in lists.spare[:3])
    assert adaptation["schedule"].shape == (1,)
    task = ladder(**TINY, control="maml")
    assert "phases" not in task.domain("hi").support() and "phases" in task.domain("ta").support()
    before, after = trained("en"), trained("en", control="maml")
    assert not same(before[0]["weights"], after[0]["weights"])
    counted = [loaded("en", learner="ngram", control=c).support["orders"][0]["total"].sum() for c in ("", "maml")]
    assert counted[1] - counted[0] == adaptation["weight"].sum()


def test_no_separation_trains_on_both_and_is_scored_on_both():
    """S0-13, C9: simple and advanced words in training, the mean of both losses as the objective."""
    for learner in ("neural", "ngram"):
        arm = {"learner": learner, "control": "no-separation"} if learner == "ngram" else {"control": "no-separation"}
        assert str(ladder(**TINY, **arm).objectives[0]) == "both"
        _, losses = trained("en", **arm)
        assert losses["both"] == pytest.approx((losses["home"] + losses["away"]) / 2, rel=1e-5)
    lists = shifts.parts("en", 60, 24)
    support = loaded("en", control="no-separation").support
    assert support["weight"].sum() == sum(len(word) + 1 for _, word in lists.support + lists.spare)
    np.testing.assert_array_equal(support["alphabet"], loaded("en").support["alphabet"])
    assert same(ladder(**TINY, control="no-separation").domain("hi").support(), ladder(**TINY).domain("hi").support())


def test_the_oracle_searches_copies_of_the_test_languages():
    """S0-13, C8: it cheats, under names that say so."""
    task = ladder(**TINY, control="oracle")
    assert task.split.train == tuple(f"{name}.oracle" for name in words.TEST)
    assert task.split.validation == () and task.split.test == tuple(words.TEST)
    assert same(task.domain("hi.oracle").queries["away"](), ladder(**TINY).domain("hi").queries["away"]())


def test_weights_are_carried_through_other_languages():
    """S0-5: `carry` trains on the pool's simple words first, each in turn, never on the own ones twice."""
    for name, others in (("en", ("de", "fr")), ("es", ("en", "de")), ("ta", ("en", "de"))):
        *carried, own = loaded(name, learners="carry").support["phases"]
        assert same(own["context"], loaded(name).support["context"])
        for phase, other in zip(carried, others, strict=True):
            assert same(phase["context"], loaded(other).support["context"])
    reset, carry = (trained("en", **arm)[0] for arm in ({}, {"learners": "carry"}))
    assert not same(reset["weights"], carry["weights"])
    assert float(carry["inner_steps"]) == 3 * float(reset["inner_steps"]) == 24.0


def test_a_phase_alone_is_ordinary_training():
    """The last phase has the keys of a support without phases: one phase gives the same weights to the last bit."""
    domain = loaded("en")
    own = {**domain.support, "schedule": np.zeros(8, np.float32), "scaled": np.float32(0)}
    alone = {"phases": (own,), "alphabet": own["alphabet"], "counts": own["counts"]}
    baseline = jax.tree.map(jnp.float32, ladder(**TINY).baseline)
    plain, phased = (program()(baseline, support, domain.queries)[0] for support in (domain.support, alone))
    assert same(plain["weights"], phased["weights"])


@pytest.mark.parametrize("name", ["pooled", "pooled-small", "curriculum", "multilingual"])
def test_the_searched_number_matters(name):
    """S0-13: at another value of a control's one number, another learner comes out."""
    number = next(iter(ladder(**TINY, control=name).baseline))
    low, high = (trained("fr", {number: value}, control=name)[0]["weights"]["output"] for value in (0.01, 1.0))
    assert not np.array_equal(low, high)


def test_rich_and_small_genomes_start_as_the_full_one():
    """S0-12: further numbers at zero change no bit; every part of the hidden layer has its number."""
    most = 4 * 4 * 8
    plain, losses = trained("en")
    small = ladder(**TINY, genome="small")
    assert small.space.dimension == 10
    assert trained("en", complete(small.baseline))[1] == losses
    for rich in (3, most):
        variant = ladder(**TINY, rich=rich)
        assert variant.space.dimension == 20 + rich
        candidate = {**variant.baseline, "rich": np.zeros(rich)}
        assert trained("en", candidate, rich=rich)[1] == losses
    moved = trained("en", {**candidate, "rich": np.eye(most)[5]}, rich=most)[0]["weights"]["hidden"]
    assert not np.array_equal(moved.ravel()[5], plain["weights"]["hidden"].ravel()[5])
