"""The tasks whose candidates are programs: every profile can be planned, and costs more than the one before."""

import pytest
from helpers import cli

PROFILES = ("smoke", "standard", "full")


@pytest.mark.parametrize("task", ["learned_opt", "local_rule", "sym_bbo", "rl_loss_graph"])
def test_every_profile_can_be_planned(task, tmp_path, monkeypatch, compile_cache):
    monkeypatch.chdir(tmp_path)
    planned = []
    for profile in PROFILES:
        said = cli("run", task, "--profile", profile, "--dry-run", "--json")
        assert said.code == 0, said.err
        assert said.data["spec"]["strategy"] == "linear_gp"
        planned.append(said.data["candidates"])
    assert planned == sorted(planned) and len(set(planned)) == 3
    assert not list(tmp_path.iterdir())
