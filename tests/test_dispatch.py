"""The dispatcher against an engine made of paper: whatever happens on the way, what comes home is the same."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evometa.backends.dispatch import Dispatcher, Ended, Limits, work
from evometa.backends.wire import Frames, ended_head, ended_of, frame
from evometa.errors import EvometaError, StorageError
from evometa.types import Failure


def value(unit):
    return {"failure": 0, "message": "", "loss": unit[0] + 0.1 * unit[2]}


class PaperJob:
    """`bad` units fail by their own account; see `PaperEngine` for worse."""

    def __init__(self, candidates, replicates=1, most=None, groups=1):
        self.units = [(c, "d", r) for c in range(candidates) for r in range(replicates)]
        self.most, self.groups = most, groups

    def group(self, unit):
        return unit[0] % self.groups

    def pack(self, units, fresh):
        assert len({self.group(unit) for unit in units}) == 1
        assert self.most is None or len(units) <= self.most
        return work("scope", units, {}, b"", Limits(), fresh)

    def failed(self, unit, failure, message):
        return {"failure": int(failure), "message": message}


class PaperEngine:
    """Ends works in any order; `ends(work, seen)` says how, `seen` counting how often its units were tried."""

    def __init__(self, ends, capacity=3, seed=0):
        self.ends, self.capacity, self.draw = ends, capacity, random.Random(seed)
        self.out, self.tried, self.most_out, self.cancelled = {}, Counter(), 0, []
        self.old: list[Ended] = []

    def submit(self, ticket, work):
        assert ticket not in self.out
        self.out[ticket] = work
        self.most_out = max(self.most_out, len(self.out))
        self.tried[work.covers] += 1

    def wait(self, timeout):
        found = []
        if self.old and self.draw.random() < 0.5:
            found.append(self.draw.choice(self.old))  # once more: a late duplicate
        for ticket in self.draw.sample(sorted(self.out), self.draw.randint(1, len(self.out)) if self.out else 0):
            work = self.out.pop(ticket)
            ended = self.ends(work, self.tried[work.covers])._replace(ticket=ticket)
            self.old.append(ended)
            found.append(ended)
        return found

    def cancel(self, ticket):
        self.out.pop(ticket, None)
        self.cancelled.append(ticket)

    def close(self):
        pass


def well(work, _):
    return Ended(0, {unit: value(unit) for unit in work.covers}, seconds=0.001)


def gather(engine, job, done=None, **options):
    kept = []
    found = Dispatcher(engine, **options).gather(job, done, lambda outcomes: kept.extend(outcomes.items()))
    assert len({unit for unit, _ in kept}) == len(kept), "each is kept once"
    assert not set(done or {}) & {unit for unit, _ in kept}
    assert not engine.out
    return found, kept


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 3), st.sampled_from([None, 1, 3, 4]), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_everything_comes_home_once_and_in_order(seed, candidates, replicates, most, capacity):
    engine = PaperEngine(well, capacity, seed)
    job = PaperJob(candidates, replicates, most, groups=2)
    found, kept = gather(engine, job)
    assert list(found) == job.units and found == {unit: value(unit) for unit in job.units}
    assert dict(kept) == found
    assert engine.most_out <= capacity


def test_what_was_done_before_is_not_done_again():
    engine, job = PaperEngine(well), PaperJob(4, 2)
    done = {unit: {"failure": 0, "message": "old"} for unit in job.units[::2]}
    found, kept = gather(engine, job, done)
    assert [found[unit].get("message") for unit in job.units[::2]] == ["old"] * 4
    assert {unit for unit, _ in kept} == set(job.units[1::2])


@given(st.integers(0, 10**6), st.integers(1, 5), st.data())
@settings(max_examples=60, deadline=None)
def test_a_candidate_ends_with_its_first_failure(seed, capacity, data):
    """Whoever finishes first: what lies behind the first failing training does not count, and is not kept for long."""
    job = PaperJob(5, 4)
    bad = data.draw(st.sets(st.sampled_from(job.units)))

    def ends(work, _):
        outcomes = {u: {"failure": 3, "message": f"{u}"} if u in bad else value(u) for u in work.covers}
        return Ended(0, outcomes, seconds=1.0)

    found, _ = gather(PaperEngine(ends, capacity, seed), job)
    expected = []
    for candidate in range(5):
        for unit in (unit for unit in job.units if unit[0] == candidate):
            expected.append(unit)
            if unit in bad:
                break
    assert list(found) == expected


def test_what_cannot_matter_is_not_even_tried():
    job = PaperJob(6, 5)

    def ends(work, _):
        return Ended(0, {u: {"failure": 3, "message": ""} for u in work.covers}, seconds=1.0)

    engine = PaperEngine(ends, capacity=1)
    gather(engine, job)
    assert {unit for covers in engine.tried for unit in covers} == {(c, "d", 0) for c in range(6)}


@pytest.mark.parametrize("size", [1, 2, 3, 8, 13])
def test_a_poisoned_chunk_is_split_until_the_one_is_known(size):
    for poison in {0, size // 2, size - 1}:

        def ends(work, _, poison=poison):
            if any(unit[0] == poison for unit in work.covers):
                return Ended(0, {}, Failure.WORKER_LOST, None, "its process ended with status 3")
            return well(work, 0)

        engine = PaperEngine(ends)
        found, _ = gather(engine, PaperJob(size, most=8))
        bad = {unit: outcome for unit, outcome in found.items() if outcome["failure"]}
        assert bad == {
            (poison, "d", 0): {
                "failure": int(Failure.WORKER_LOST),
                "message": "worker lost: its process ended with status 3 (3 attempts)",
            }
        }
        killed = sum(n for covers, n in engine.tried.items() if any(unit[0] == poison for unit in covers))
        chunk = next(covers for covers in engine.tried if any(u[0] == poison for u in covers))
        if len(chunk) > 1:
            assert engine.tried[chunk] == 2, "twice whole, then split"
        assert killed <= 2 + 4 + 3


@pytest.mark.parametrize("failure", [Failure.TIMEOUT, Failure.OUT_OF_MEMORY, Failure.ERROR])
def test_other_ends_are_final(failure):
    def ends(work, _):
        if any(unit[0] == 2 for unit in work.covers):
            return Ended(0, {}, failure, None, "took longer than 1 s")
        return well(work, 0)

    engine = PaperEngine(ends)
    found, _ = gather(engine, PaperJob(6, most=4))
    assert {u[0]: o["message"] for u, o in found.items() if o["failure"]} == {2: "took longer than 1 s"}
    assert max(engine.tried.values()) == 1, "nothing is tried twice"


def test_the_unit_at_fault_is_believed_and_the_others_go_on():
    def ends(work, _):
        bad = next((i for i, unit in enumerate(work.covers) if unit[0] == 3), None)
        if bad is None:
            return well(work, 0)
        before = {unit: value(unit) for unit in work.covers[:bad]}
        return Ended(0, before, Failure.TIMEOUT, work.covers[bad], "late", seconds=0.001)

    found, _ = gather(PaperEngine(ends, capacity=1), PaperJob(40))
    assert {u[0] for u, o in found.items() if o["failure"]} == {3} and len(found) == 40


def test_losses_that_end_well_leave_no_trace():
    for seed in range(20):
        draw = random.Random(seed)

        def ends(work, seen, draw=draw):
            if seen < 3 and draw.random() < 0.3:
                return Ended(0, {}, Failure.WORKER_LOST, None, "node removed")
            return well(work, 0)

        found, _ = gather(PaperEngine(ends, seed=seed), PaperJob(9, 2))
        assert found == {unit: value(unit) for unit in PaperJob(9, 2).units}


def test_losses_are_counted():
    dispatcher = Dispatcher(
        PaperEngine(lambda w, seen: well(w, 0) if seen > 1 else Ended(0, {}, Failure.WORKER_LOST, message="gone"))
    )
    dispatcher.gather(PaperJob(3))
    assert dispatcher.lost == {"gone": 3}


def test_a_full_memory_is_believed_of_a_new_worker_only():
    fresh = []

    def ends(work, _):
        fresh.append(work.fresh)
        return (
            Ended(0, {}, Failure.OUT_OF_MEMORY, work.covers[0], "full", fresh=work.fresh)
            if len(fresh) < 3
            else well(work, 0)
        )

    found, _ = gather(PaperEngine(ends, capacity=1), PaperJob(1))
    assert fresh == [False, True] and found[0, "d", 0]["failure"] == Failure.OUT_OF_MEMORY


def test_a_refusal_ends_it_and_nothing_stays_out():
    def ends(work, _):
        return Ended(0, {}, refusal=StorageError("the disk is full"))

    engine = PaperEngine(ends, capacity=4, seed=3)
    with pytest.raises(StorageError, match="the disk is full"):
        Dispatcher(engine).gather(PaperJob(9))
    assert not engine.out


def test_an_answer_without_its_units_is_no_answer():
    with pytest.raises(EvometaError, match="answered 0 of 1 units"):
        Dispatcher(PaperEngine(lambda *_: Ended(0, {}))).gather(PaperJob(1))


def test_superfluous_works_are_cancelled():
    """A generation is complete while a training that no longer counts is still under way: it is stopped."""

    class Slow(PaperEngine):
        def wait(self, timeout):
            if timeout is not None:
                return []  # the stray goes on and on
            work = self.out.pop(1)
            return [Ended(1, {unit: {"failure": 3, "message": ""} for unit in work.covers}, seconds=9.0)]

    engine = Slow(well, capacity=2)
    found = Dispatcher(engine).gather(PaperJob(1, 2))
    assert list(found) == [(0, "d", 0)] and engine.cancelled == [2] and not engine.out


def test_equal_work_has_equal_keys_and_other_work_has_others():
    given = [("s", [(0, "d", 0)], {"a": 1}, b"x"), ("t", [(0, "d", 0)], {"a": 1}, b"x"), ("s", [(1, "d", 0)], {"a": 1}, b"x"),
             ("s", [(0, "d", 0)], {"a": 2}, b"x"), ("s", [(0, "d", 0)], {"a": 1}, b"y")]  # fmt: skip
    keys = [work(*one, Limits()).key for one in given]
    assert len(set(keys)) == 5 and keys[0] == work(*given[0], Limits(1.0), True).key


@given(st.lists(st.tuples(st.dictionaries(st.text(), st.integers()), st.binary()), max_size=4), st.integers(1, 7))
@settings(max_examples=50, deadline=None)
def test_frames_arrive_whole_however_they_are_cut(messages, size):
    data = b"".join(frame(head, body) for head, body in messages)
    frames = Frames()
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    assert list(itertools.chain.from_iterable(map(frames.feed, pieces))) == messages


def test_an_ending_crosses_the_wire():
    for ended in (
        Ended(3, {(0, "d", 1): {"failure": 0, "x": 0.1}}, Failure.TIMEOUT, (1, "d", 0), "late", 1.5, "here", False),
        Ended(4, {}, refusal=StorageError("full")),
    ):
        back = ended_of(frames_of(ended_head(ended)))
        assert back._replace(refusal=None) == ended._replace(refusal=None)
        assert type(back.refusal) is type(ended.refusal) and str(back.refusal) == str(ended.refusal)
    strange = {**ended_head(ended), "refusal": ["os", "a name that is no error of ours"]}
    assert type(ended_of(strange).refusal) is EvometaError


def frames_of(head):
    ((head, _),) = Frames().feed(frame(head))
    return head
