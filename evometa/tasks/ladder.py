"""The language ladder: train on a language's simple words, be judged on its advanced ones.

Source: the procedure of seed 000 (docs: "nested generalization training"). A language is a domain. The
inner learner, a small model of characters, sees simple words only (as a rule frequent ones, rank <= 2000); `home`
is other simple words, `away` is advanced words (rare ones, rank > 8000; `shifts.py` has the other kinds). The
genome is the learner's update rule and output rule, searched on some languages and carried to languages that
no one has looked at. Loss: nats per character, ends of words included; see `parts/charmodel.py` for why it is
a proper code length.

The test languages of `test="demo"` have been looked at while the task was built; verdicts use `test="vault"`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from evometa.contract import Domain, Objective, Split, Task
from evometa.errors import ConfigError, did_you_mean
from evometa.space import Candidate, Space, weights
from evometa.tasks.parts import backoff, charmodel, controls, neural, ngram, shifts, words
from evometa.tasks.parts.learner import Learner, merge, reduced

LEARNERS = {"neural": neural.LEARNER, "ngram": ngram.LEARNER}
GENOMES = ("full", "small", "regularizer")
TESTS = ("demo", "vault")
CARRIED = ("reset", "carry")

PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {
        "task": {"languages": 2, "steps": 30, "hidden": 16, "support": 200, "query": 40},
        "generations": 3,
        "population": 8,
    },
    "standard": {"task": {}, "generations": 32, "population": 24},
    "full": {"task": {"steps": 600, "hidden": 64, "support": 1500, "query": 500}, "generations": 80, "population": 32},
}


def ladder(
    *,
    genome: Literal["full", "small", "regularizer"] = "full",
    learner: str = "neural",
    languages: int = 8,
    support: int = 1400,
    query: int = 300,
    context: int = 4,
    embedding: int = 8,
    hidden: int = 48,
    steps: int = 400,
    batch: int = 64,
    rich: int = 0,
    train_shift: str = "frequency",
    test_shift: str = "frequency",
    test: Literal["demo", "vault"] = "demo",
    hindi: bool = False,
    opened: bool = False,
    control: str = "",
    learners: Literal["reset", "carry"] = "reset",
    pool: int = 3,
    pool_steps: int = 0,
    scale: int = 0,
    growth: int = 2,
) -> Task:
    """The language ladder as a task.

    `learner`: "neural", a small network trained step by step, or "ngram", counts with back-off. `genome`: "full"
    searches every column; "small" about ten; "regularizer" only two (control C7), the rest staying at the
    baseline. `rich`: so many further numbers (see `most_rich` of the learners). `languages`: how many of the eight
    search languages drive the search. `support`, `query`: words per language and part (support + query <= 2000).
    `context`: characters the model sees (neural >= 2, ngram >= 4). `embedding`, `hidden`: layer widths. `steps`,
    `batch`: inner training, `batch` a multiple of 8.

    `train_shift`, `test_shift`: how `away` differs from `home` in the train and validation domains, and in the
    test domains: "frequency", "length" or "compound". `test`: "demo" or "vault" languages; with the vault,
    `hindi` adds Hindi, which the demonstration has opened before. `control`: a control arm of `controls.py`;
    `opened` lets "oracle" read a vault that has been opened and recorded. `learners`: "reset" for each language,
    or "carry" the weights through the simple words of others first. `pool`: so many other languages at most are
    read by "carry" and by controls, for `pool_steps` steps at a time (0: as many as `steps`).

    `scale`: the size law S0-11: `hidden` x 2^scale, and the genome about x 2^(growth scale) by rich numbers; the law
    has growth 2 for the first meta level (n + 1 for the n-th). Neural only.

    Raises `ConfigError` for options that do not go together.
    """
    options = dict(locals())
    if scale:
        options |= _scaled(options)
        hidden = options["hidden"]
    _check(options)
    chosen, arm = LEARNERS[learner], controls.CONTROLS.get(control)
    sizes = charmodel.Sizes(context=context, embedding=embedding, hidden=hidden, batch=batch, steps=steps)
    train = tuple(words.TRAIN)[:languages]
    others: tuple[str, ...] = train if learners == "carry" else ()
    if arm and arm.pool:
        others, train = train[: languages // 2], train[languages // 2 :]
    recipe = controls.Recipe(control, learners == "carry", support, query, pool_steps or steps, train_shift)
    world = _World(chosen, sizes, recipe, others, min(pool, languages - 1))
    held = (*words.VAULT, *(["hi"] if hindi else [])) if test == "vault" else tuple(words.TEST)
    searched = [_Place(language, train_shift, True) for language in (*train, *words.VALIDATION)]
    sealed = [_Place(language, test_shift, False, language in words.VAULT) for language in held]
    copies = [place._replace(suffix=".oracle") for place in sealed] if control == "oracle" else []
    names = {role: tuple(place.name for place in places) for role, places in (("test", sealed), ("copies", copies))}
    split = Split(
        train=names["copies"] or tuple(place.name for place in searched[: len(train)]),
        validation=() if copies else tuple(place.name for place in searched[len(train) :]),
        test=names["test"],
    )
    columns, baseline = _genome(chosen, options, arm)
    return Task(
        name="ladder",
        space=Space(columns),
        domains=tuple(_domain(place, world) for place in [*(copies or searched), *sealed]),
        fit=partial(_fit, chosen=chosen, sizes=sizes),
        judge=partial(chosen.judge, sizes=sizes),
        objective=Objective(query="both" if control == "no-separation" else "away", reduction="mean"),
        baseline=baseline,
        split=split,
        controls={} if control or genome == "regularizer" else _controls(chosen),
        source=__name__,
    )


def complete(candidate: Mapping[str, Any], learner: str = "neural") -> Candidate:
    """A candidate of any genome with the baseline's values for what it does not name."""
    return merge(LEARNERS[learner].baseline, candidate)


class _Place(NamedTuple):
    """One domain: a language under a shift, and in what capacity."""

    language: str
    shift: str
    searched: bool  # drives the search or chooses; else it is judged at the end
    vault: bool = False
    suffix: str = ""

    @property
    def name(self) -> str:
        return self.language + ("" if self.shift == "frequency" else f"-{self.shift}") + self.suffix


class _World(NamedTuple):
    """What all domains share."""

    learner: Learner
    sizes: charmodel.Sizes
    recipe: controls.Recipe
    others: tuple[str, ...]  # languages that domains may read besides their own
    most: int  # how many of them


def _domain(place: _Place, world: _World) -> Domain:
    # Functions, not arrays: a test language is read when it is unsealed and not before.
    names = ("home", "away", "both") if world.recipe.control == "no-separation" else ("home", "away")
    queries = {name: partial(_query, place, name, world) for name in names}
    scripts = words.SCRIPTS | words.VAULT
    tags = {"script": scripts[place.language], "family": words.FAMILIES[place.language], "shift": place.shift}
    tags["data"] = f"wordfreq/{place.language}"  # whatever the learner makes of them, the words are the same
    if place.suffix:
        tags["copy_of"] = place._replace(suffix="").name
    if place.language in words.TEST and not place.vault and not place.searched:
        tags["opened"] = "before"
    sealed = place.vault and not place.suffix
    return Domain(place.name, partial(_support, place, world), queries, tags, sealed)


def _source(language: str, shift: str, world: _World, vault: bool = False) -> controls.Source:
    lists = shifts.parts(language, world.recipe.support, world.recipe.query, shift, vault)
    return controls.Source(lists, words.alphabet(lists.support, world.sizes.classes))


def _support(place: _Place, world: _World) -> dict[str, Any]:
    recipe, sizes, learner = world.recipe, world.sizes, world.learner
    own = _source(place.language, place.shift, world, place.vault)
    chosen, rows = controls.own_words(recipe, own, place.searched, learner.neural)
    data = learner.support(chosen, own.table, rows, sizes)
    if not learner.neural:
        return data
    pool = [language for language in world.others if language != place.language][: world.most]
    sources = [_source(language, recipe.shift, world) for language in pool]
    phases = controls.phases(recipe, own, sources, place.searched, sizes)
    return {"phases": phases, "alphabet": data["alphabet"], "counts": data["counts"]} if phases else data


def _query(place: _Place, name: str, world: _World) -> dict[str, Any]:
    if name == "both":
        return controls.both(_query(place, "home", world), _query(place, "away", world))
    recipe, sizes = world.recipe, world.sizes
    own = _source(place.language, place.shift, world, place.vault)
    seen, seen_rows = controls.own_words(recipe, own, place.searched, world.learner.neural)
    # Rows per word differ between parts (advanced words are longer), never between languages: shapes stay equal.
    chosen, rows = {
        "home": (own.lists.home, controls.ROWS_SIMPLE * recipe.query),
        "away": (own.lists.away, shifts.ROWS[place.shift] * recipe.query),
    }[name]
    return world.learner.query(chosen, seen, own.table, (rows, seen_rows), sizes)


def _fit(key: Any, candidate: Candidate, support: Any, *, chosen: Learner, sizes: charmodel.Sizes) -> Any:
    return chosen.fit(key, merge(chosen.baseline, candidate), support, sizes)


def _genome(
    chosen: Learner, options: Mapping[str, Any], arm: controls.Control | None
) -> tuple[Mapping[str, Any], Candidate]:
    """What is searched, and its baseline."""
    if arm and arm.columns is not None and arm.baseline is not None:
        return arm.columns, dict(arm.baseline)
    columns = chosen.genomes[options["genome"]]
    baseline = reduced(chosen.baseline, columns)
    if rich := options["rich"]:
        # A rich number of 1 is a factor of exp(0.3); at 0 it changes nothing.
        return {**columns, "rich": weights((rich,), scale=0.3)}, {**baseline, "rich": [0.0] * rich}
    return columns, baseline


def _scaled(options: Mapping[str, Any]) -> dict[str, int]:
    """`hidden` and `rich` under the size law."""
    scale, growth = options["scale"], options["growth"]
    if scale < 0 or growth < 0 or options["learner"] != "neural":
        raise ConfigError(
            "ladder: expected scale >= 0 and growth >= 0 with learner='neural', got"
            f" scale={scale}, growth={growth}, learner={options['learner']!r}"
        )
    genes = Space(LEARNERS["neural"].genomes[options["genome"]]).dimension + options["rich"]
    return {
        "hidden": options["hidden"] * 2**scale,
        "rich": genes * 2 ** (growth * scale) - genes + options["rich"],
    }


def _controls(chosen: Learner) -> dict[str, dict[str, Any]]:
    """Control arms as options: `regularizer` (C7), and those of `controls.py` that the learner can do."""
    found: dict[str, dict[str, Any]] = {"regularizer": {"genome": "regularizer", "rich": 0}}
    for name, arm in controls.CONTROLS.items():
        if chosen.neural or not arm.pool:
            alone = {"genome": "full", "rich": 0, "learners": "reset"} if arm.pool else {}
            found[name] = {"control": name, **alone}
    return found


def _known(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(
            f"ladder: expected a {option} of {', '.join(known)}, got {value!r}.{did_you_mean(value, known)}"
        )


def _check(options: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for an option out of its range and for options that contradict each other."""
    for option, known in (
        ("learner", LEARNERS), ("genome", GENOMES), ("train_shift", shifts.SHIFTS), ("test_shift", shifts.SHIFTS),
        ("test", TESTS), ("control", ("", *controls.CONTROLS)), ("learners", CARRIED),
    ):  # fmt: skip
        _known(option, options[option], tuple(known))
    learner, control, genome, rich = (options[name] for name in ("learner", "control", "genome", "rich"))
    chosen, arm = LEARNERS[learner], controls.CONTROLS.get(control)
    carry, pooled = options["learners"] == "carry", arm is not None and arm.pool
    least, groups = (2 if chosen.neural else backoff.ORDERS - 1), charmodel.GROUPS
    batch, context, languages = options["batch"], options["context"], options["languages"]
    sizes = charmodel.Sizes(context=context, embedding=options["embedding"], hidden=options["hidden"])
    most = chosen.most_rich(sizes)
    needed = 2 if carry or pooled else 1
    wrong = {
        f"{needed} <= languages <= {len(words.TRAIN)}, got {languages}": not needed <= languages <= len(words.TRAIN),
        f"batch a multiple of {groups} and context >= {least}, got batch={batch}, context={context}": batch % groups
        or batch < groups
        or context < least,
        f"support + query words <= {words.SIMPLE} and both >= 1, got {options['support']} + {options['query']}": (
            options["support"] + options["query"] > words.SIMPLE or min(options["support"], options["query"]) < 1
        ),
        f"0 <= rich <= {most} for the learner {learner!r} of these sizes, got {rich}": not 0 <= rich <= most,
        f"pool >= 1 and pool_steps >= 0, got pool={options['pool']}, pool_steps={options['pool_steps']}": (
            options["pool"] < 1 or options["pool_steps"] < 0
        ),
        f"learner='neural' for control={control!r} and learners={options['learners']!r}: counts of one language"
        f" mean nothing in another, got {learner!r}": not chosen.neural and (carry or pooled),
        f"genome='full', rich=0 and learners='reset' with control={control!r}, which searches one number of its own,"
        f" got {genome!r}, {rich}, {options['learners']!r}": pooled and (genome != "full" or rich or carry),
        "hindi=True with test='vault' only: the demo's test languages have it": options["hindi"]
        and options["test"] != "vault",
        "opened=True with control='oracle' and test='vault' once the vault has been opened and recorded; without it"
        " the oracle would read the vault first": (control == "oracle" and options["test"] == "vault")
        is not options["opened"],
    }  # fmt: skip
    for expected, broken in wrong.items():
        if broken:
            raise ConfigError(f"ladder: expected {expected}")
