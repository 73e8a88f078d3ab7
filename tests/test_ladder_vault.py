"""The vault and the kinds of shift: who may read which words. No list of a vault language is opened here."""

import unicodedata

import jax
import numpy as np
import pytest

from evometa.errors import EvometaError
from evometa.evaluate import data
from evometa.tasks.ladder import ladder
from evometa.tasks.parts import shifts, words

TINY = {"languages": 2, "support": 60, "query": 20, "learner": "ngram"}


@pytest.fixture
def invented(monkeypatch):
    """Every language has invented words of its own script; returns the names of those that were read."""
    names = []

    def read(language):
        names.append(language)
        script = (words.SCRIPTS | words.VAULT)[language].upper()
        letters = [chr(c) for c in range(0x60, 0x1200) if unicodedata.name(chr(c), "").startswith(script)]
        letters = [c for c in letters if unicodedata.category(c)[0] == "L"][:12]
        draw = np.random.default_rng(len(names))
        return ["".join(draw.choice(letters, 3 + n % 9)) for n in range(9000)]

    monkeypatch.setattr(words, "_read", read)
    clear()
    yield names
    clear()


def clear():
    words.ranked.cache_clear()
    shifts.parts.cache_clear()


@pytest.fixture
def nothing_is_read(monkeypatch):
    """A reader that fails the test."""
    monkeypatch.setattr(words, "_read", lambda language: pytest.fail(f"{language} was read"))
    clear()
    yield
    clear()


@pytest.mark.parametrize("language", list(words.VAULT))
def test_vault_languages_are_refused(nothing_is_read, language):
    """S0-6: no list of the vault is read but for a test domain of `ladder(test="vault")`."""
    with pytest.raises(EvometaError, match=f"'{language}' is in the vault.*evometa unseal"):
        words.read_list(language)
    for shift in shifts.SHIFTS:
        with pytest.raises(EvometaError, match="is in the vault"):
            shifts.parts(language, 60, 20, shift)


def test_every_domain_has_its_script_and_family():
    """S0-7: families are tags, so that a level can be judged on families that the one below never saw."""
    everything = {**words.TRAIN, **words.VALIDATION, **words.TEST, **words.VAULT}
    assert set(everything) == set(words.FAMILIES) and len(everything) == 19 + 16
    assert not set(words.VAULT) & set(words.SCRIPTS)
    task = ladder(test="vault", hindi=True, test_shift="length")
    for domain in task.domains:
        language = domain.name.split("-")[0]
        assert domain.tags["family"] == words.FAMILIES[language]
        assert domain.tags["script"] == everything[language]
        assert domain.tags["shift"] == ("length" if domain.name in task.split.test else "frequency")
    assert task.split.test == (*(f"{name}-length" for name in words.VAULT), "hi-length")
    assert {d.name for d in task.domains if d.tags.get("opened") == "before"} == {"hi-length"}


def test_the_vault_opens_for_its_own_test_domains_only(invented):
    """S0-6, SYS-2: building and searching read none of it; an opening reads exactly the test languages."""
    task = ladder(test="vault", **TINY)
    assert task.split.test == tuple(words.VAULT) and invented == []
    data.load(task, (*task.split.train, *task.split.validation))
    assert set(invented) == {"en", "de", "ar", "he", "ta"}
    with pytest.raises(EvometaError, match="is sealed"):
        data.load(task, ["ko"])
    assert "ko" not in invented
    loaded = data.load(task, ["ko", "vi", "fa", "uk"], data.Opening(1))
    assert invented[-4:] == ["ko", "vi", "fa", "uk"]
    shapes = {str(jax.tree.map(np.shape, (domain.support, domain.queries))) for domain in loaded}
    assert len(shapes) == 1
    assert all(np.sum(domain.queries["away"]["weight"]) > 60 for domain in loaded)


def test_the_oracle_reads_an_opened_vault_only(invented):
    """S0-13, C8: the oracle trains on the test languages' own words, so on the vault it needs to be told twice."""
    task = ladder(test="vault", control="oracle", opened=True, **TINY)
    assert task.split.train[:2] == ("ko.oracle", "vi.oracle") and task.split.test == tuple(words.VAULT)
    data.load(task, ["ko.oracle"])
    assert invented == ["ko"]


def test_korean_is_spelled_out(monkeypatch):
    """Syllables are taken apart: the few letters of the script, not its thousands of blocks."""
    monkeypatch.setattr(words, "_read", lambda language: ["\N{HANGUL SYLLABLE HAN}\N{HANGUL SYLLABLE GUG}", "abc"])
    clear()
    (spelled,) = words.ranked("ko", True)
    clear()
    assert [unicodedata.name(c) for c in spelled][:3] == [
        "HANGUL CHOSEONG HIEUH",
        "HANGUL JUNGSEONG A",
        "HANGUL JONGSEONG NIEUN",
    ]
    assert len(spelled) == 6


@pytest.mark.parametrize(
    ("count", "found"), [(70, "at least 80 simple .*got 70"), (8010, "at least 20 advanced .*got 10")]
)
def test_a_language_of_few_words_says_so(monkeypatch, count, found):
    draw = np.random.default_rng(0)
    made = ["".join(draw.choice(list("abcdefgh"), 9)) for _ in range(count)]
    monkeypatch.setattr(words, "_read", lambda language: made)
    clear()
    with pytest.raises(EvometaError, match=f"{found}. Ask for fewer with task_options.support"):
        ladder(**TINY).domain("en").support()
    clear()


def texts(lists):
    return {name: {word for _, word in getattr(lists, name)} for name in ("support", "home", "away", "spare")}


@pytest.mark.parametrize("shift", shifts.SHIFTS)
@pytest.mark.parametrize("language", ["en", "ru", "ta"])
def test_parts_of_a_shift_are_disjoint(language, shift):
    """S0-2, S0-10: no word of any part is in another, under any shift."""
    lists = texts(shifts.parts(language, 1400, 300, shift))
    assert [len(part) for part in lists.values()] == [1400, 300, 300, 300]
    assert len(set.union(*lists.values())) == 2300


@pytest.mark.parametrize("language", ["en", "de", "he"])
def test_shifts_are_what_they_say(language):
    """S0-10: short and long words of one list, with a gap; compounds of two words of `home`; rare words."""
    frequency, length, compound = (shifts.parts(language, 1400, 300, shift) for shift in shifts.SHIFTS)
    lengths = {name: {len(word) for word in part} for name, part in texts(length).items()}
    assert max(lengths["support"] | lengths["home"]) + 1 < min(lengths["away"] | lengths["spare"])
    assert max(rank for part in (length.support, length.home, length.away) for rank, _ in part) <= words.ADVANCED
    assert (compound.support, compound.home) == (frequency.support, frequency.home)
    for halves, made in ((compound.home, compound.away), (compound.support, compound.spare)):
        known = {word for _, word in halves}
        assert all(any(w[:cut] in known and w[cut:] in known for cut in range(len(w))) for _, w in made)
    assert min(rank for rank, _ in frequency.away) > words.ADVANCED


def test_searching_under_one_shift_and_testing_under_another():
    """S0-10: the matrix of shifts is two options; train and validation use the first, test the second."""
    task = ladder(train_shift="compound", test_shift="length", **TINY)
    assert task.split.train == ("en-compound", "de-compound")
    assert task.split.validation == ("ar-compound", "he-compound", "ta-compound")
    assert task.split.test[:2] == ("hi-length", "fi-length")
    for names in (task.split.train + task.split.validation, ("en-compound",)):
        loaded = data.load(task, names)
        assert len({str(jax.tree.map(np.shape, (domain.support, domain.queries))) for domain in loaded}) == 1
    plain = data.load(ladder(**TINY), ["en"])[0]
    np.testing.assert_array_equal(loaded[0].queries["home"]["target"], plain.queries["home"]["target"])
    assert not np.array_equal(loaded[0].queries["away"]["target"][:100], plain.queries["away"]["target"][:100])
