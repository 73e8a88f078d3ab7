"""Open-ended search, POET and genetic programming, killed and taken up again: the same lineage."""

import pytest
from helpers import cli, rows_digest

from evometa import driver
from evometa.archives.read import list_parts

pytest_plugins = ["shared"]

# The loss is read off the genome, in NumPy: all of the time is the strategies' own.
STONES = '''"""Numbers, a program or a world, judged by what stands in them."""
import numpy as np
import evometa
from evometa.programs.vocabulary import Register, Vocabulary

WORDS = Vocabulary(
    "rule", inputs=(Register("a"), Register("b")), outputs=(Register("y"),), operations=("add", "mul", "sub"),
    constants=0, update=2,
)
SPACES = {
    "numbers": {"x": evometa.real(-1, 1), "y": evometa.real(-1, 1)},
    "words": {"rule": evometa.program(WORDS)},
    "world": {"environment": {"hills": evometa.real(0, 1)}, "solver": {"x": evometa.real(-1, 1)}},
}

def stones(kind):
    task = evometa.task(
        name="stones", runs="python", space=SPACES[kind],
        domains={f"d{n}": {"support": n, "away": n} for n in range(3)},
        split=evometa.Split(("d0",), ("d1",), ("d2",)), objective="away",
    )

    @task.fit
    def fit(key, candidate, support):
        return candidate

    @task.judge
    def judge(key, candidate, query):
        if kind == "world":
            return {"loss": abs(candidate["solver"]["x"] - candidate["environment"]["hills"]) + 0.1}
        if kind == "words":
            return {"loss": float(abs(np.asarray(candidate["rule"].tokens).sum() - 20))}
        return {"loss": abs(candidate["x"] - 0.3) + abs(candidate["y"])}

    return task
'''
CASES = {
    "open_ended": ("numbers", "strategy_options.capacity=10", "strategy_options.islands=2"),
    "poet": ("world", "strategy_options.transfer=2", "strategy_options.reproduce=3"),
    "linear_gp": ("words",),
}


class Killed(BaseException):
    """What nobody handles: the process is gone."""


@pytest.mark.parametrize("strategy", CASES)
def test_a_search_that_was_killed_goes_on_to_the_same_lineage(strategy, tmp_path, monkeypatch, compile_cache):
    """Killed with a checkpoint and a part beyond it, then finished: as if nothing had been."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stones.py").write_text(STONES)
    kind, *options = CASES[strategy]
    given = ("plan.block=2", f"task_options.kind={kind}", *options)
    settings = [word for option in given for word in ("--set", option)]
    run = ("run", "stones.py:stones", "--strategy", strategy, "--population", 8, *settings, "--generations", 6)
    said = cli(*run, "--name", "whole")
    assert said.code == 0, said.err

    commit, broken = driver.commit, tmp_path / "runs" / "broken"

    def kill(folder, *rest):
        """The second block is on disk, and no checkpoint knows of it."""
        part = commit(folder, *rest)
        if folder.name == "lineage" and len(list_parts(folder)) == 2:
            raise Killed
        return part

    with monkeypatch.context() as patched:
        patched.setattr(driver, "commit", kill)
        patched.setattr(driver, "_CHECKPOINT_SECONDS", -1.0)  # after every block
        with pytest.raises(Killed):
            cli(*run, "--name", "broken")
    assert [int(path.name.split("-")[1]) for path in broken.glob("checkpoints/*.json")] == [2]
    assert len(list_parts(broken / "lineage")) == 2
    assert cli("resume", "broken").code == 0
    assert rows_digest(broken) == rows_digest(tmp_path / "runs" / "whole")
