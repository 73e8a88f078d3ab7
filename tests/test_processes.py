"""Worker processes: each candidate within its limits, whatever it does, and the others unharmed."""

from __future__ import annotations

import time

import pytest
from helpers import lineage_files
from wild import SMALL, WILD, enter, gone, ours, outcomes, run_wild

import evometa
from evometa.archives import events
from evometa.archives.read import Archive
from evometa.errors import ConfigError, ResumeMismatch


@pytest.fixture
def wild(tmp_path, monkeypatch):
    return enter(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("mode", "limits", "failure", "message"),
    [
        ("sleep", {"seconds": 0.5}, "timeout", "domain a: took longer than 0.5 s"),
        ("forever", {"seconds": 0.5}, "timeout", "domain a: took longer than 0.5 s"),
        ("ignore", {"seconds": 0.5}, "timeout", "domain a: took longer than 0.5 s"),
        ("stuck", {"seconds": 0.5}, "timeout", "domain a: took longer than 0.5 s"),
        ("exit", {}, "worker_lost", "domain a: worker lost: its process ended with status 3 (3 attempts)"),
        ("segv", {}, "worker_lost", "domain a: worker lost: its process was ended by SIGSEGV (3 attempts)"),
        ("abort", {}, "worker_lost", "domain a: worker lost: its process was ended by SIGABRT (3 attempts)"),
        ("eat", {"memory_mb": 300}, "out_of_memory", "domain a: used more than 300 MB of memory"),
        ("gulp", {"memory_mb": 300}, "out_of_memory", "domain a: used more than 300 MB of memory"),
        ("chat", {"output_mb": 1}, "error", "domain a: wrote more than 1 MB of output"),
        ("mutter", {"output_mb": 1}, "error", "domain a: wrote more than 1 MB of output"),
        ("strange", {}, "error", "domain a: Unpicklable: cannot be pickled"),
        ("break", {}, "error", "domain a: KeyboardInterrupt()"),
        ("leave", {}, "error", "domain a: SystemExit: enough"),
    ],
)
def test_what_goes_wrong_is_recorded_and_the_others_go_on(wild, mode, limits, failure, message):
    before = time.monotonic()
    assert outcomes(run_wild(mode, limits=limits)) == {(failure, message)}
    assert time.monotonic() - before < 200, "nothing waited for a sleep of 987 s"
    assert not ours()


def test_bad_luck_leaves_no_trace(wild):
    """A worker that dies is replaced, and what it computed is computed again: the lineage does not know."""
    lucky = run_wild("fine", out="lucky")
    unlucky = run_wild("unlucky", out="unlucky")
    assert (wild / "luck").is_dir(), "a worker was lost"
    assert events.read(unlucky.path)[-1]["lost"] == {"its process ended with status 9": 1}
    assert lineage_files(unlucky.path) == lineage_files(lucky.path)
    inline = run_wild("fine", out="inline", backend="inline", workers=None)
    assert lineage_files(inline.path) == lineage_files(lucky.path)
    assert inline.record["spec"] == lucky.record["spec"], "where it runs is no part of what it is"


@pytest.mark.parametrize(
    ("mode", "how"),
    [("silent", "its process ended with status 1"), ("mute", "its process closed the pipes that it answers by")],
)
def test_a_worker_that_closes_its_pipes_is_lost(wild, mode, how):
    assert outcomes(run_wild(mode)) == {("worker_lost", f"domain a: worker lost: {how} (3 attempts)")}


def test_the_end_of_a_late_candidate_is_that_of_its_family(wild):
    assert outcomes(run_wild("family", limits={"seconds": 3})) == {("timeout", "domain a: took longer than 3 s")}
    found = [path.read_text().split() for path in wild.glob("pids-*")]
    assert found and gone([int(word) for words in found for word in words])


def test_judging_is_within_limits_too(wild):
    """A champion that hangs on the validation domains is late there, not for ever."""
    (wild / "wild.py").write_text(
        WILD.replace('if candidate["x"] > 0.51:', 'if support == "b" and candidate["x"] != 0.5:')
    )
    with pytest.raises(evometa.EvometaError, match="none of the 2 finalists .* domain b: took longer than 0.5 s"):
        run_wild("stuck", limits={"seconds": 0.5})


def test_a_task_changed_under_way_is_refused(wild):
    """A worker that starts later would import other code than the first did."""
    text = WILD.replace(
        '"fine": lambda: None', '"fine": lambda: (pathlib.Path("wild.py").write_text("# gone"), os._exit(1))'
    )
    (wild / "wild.py").write_text(text)
    with pytest.raises((ResumeMismatch, ConfigError), match="wild.py holds no task|the task's code differs"):
        run_wild("fine")
    assert not ours()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"backend": "inline", "workers": 2}, "inline backend has none"),
        ({"backend": "inline", "workers": None, "limits": {"memory_mb": 1}}, "limits.memory_mb: only worker processes"),
        ({"gpus_per_worker": 3}, "2 workers with 3 GPUs each need 6, this machine shows 0"),
        ({"gpus_per_worker": 0.4}, "expected a whole number, or 1/2, 1/3"),
        ({"workers": 0}, "workers: .*greater than or equal to 1"),
    ],
)
def test_what_does_not_go_together_is_said(wild, monkeypatch, spec, words):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=words):
        run_wild("fine", **spec)


def test_a_task_in_memory_stays_in_this_process(tmp_path):
    task = evometa.objective(space={"x": evometa.real(0, 1)}, runs="python", time_limit=9.0)(
        lambda key, candidate: candidate["x"]
    )
    run = evometa.run(task, out=tmp_path, **SMALL)
    assert events.read(run.path)[0]["backend"] == "inline"
    with pytest.raises(ConfigError, match=r'lives in this process.s memory only.*evometa.run\("file.py", ...\)'):
        evometa.run(task, out=tmp_path, backend="processes", **SMALL)


def test_plain_python_runs_in_processes_where_nothing_is_said(wild):
    assert events.read(run_wild("fine", backend=None, workers=None).path)[0]["backend"] == "processes"


def test_a_time_limit_holds_where_nothing_is_said(wild):
    (wild / "wild.py").write_text(WILD.replace('objective="away",', 'objective="away", time_limit=0.5,'))
    run = run_wild("ignore", backend=None, workers=None)
    assert events.read(run.path)[0]["backend"] == "processes"
    assert outcomes(run) == {("timeout", "domain a: took longer than 0.5 s")}
    assert Archive(run.path).generations() == 1
