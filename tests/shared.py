"""Fixtures that several test modules share: `pytest_plugins = ["shared"]` asks for them."""

from __future__ import annotations

import contextlib
import shutil

import jax
import pytest
from helpers import cli, write_tasks


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the three tasks in it, as current folder."""
    write_tasks(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def compile_cache(tmp_path_factory):
    """The same small programs are compiled once for all tests and their children."""
    cache = str(tmp_path_factory.getbasetemp() / "compiled")
    names = {
        "jax_compilation_cache_dir": cache,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    yield cache
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, compile_cache):
    """A folder with three finished runs of the tasks in it: never to be changed, see `copies`."""
    folder = tmp_path_factory.mktemp("finished")
    write_tasks(folder)
    with contextlib.chdir(folder):
        small, here = ("--population", 8, "--seed", 3), ("--backend", "inline")
        for arguments in (
            ("run", "ridge.py", *small, "--generations", 12, "--set", "plan.block=4", "--name", "ridge"),
            ("run", "plain.py", *small, *here, "--generations", 5, "--strategy", "genetic", "--name", "plain"),
            ("run", "static.py", *small, "--generations", 2, "--strategy", "genetic", "--name", "static"),
        ):
            said = cli(*arguments)
            assert said.code == 0, said.err
    return folder


@pytest.fixture(scope="session")
def opened(tmp_path_factory):
    """A folder with a run `x` of the task `plain` that was opened, and its ledger: never to be changed."""
    folder = tmp_path_factory.mktemp("opened")
    write_tasks(folder)
    with contextlib.chdir(folder):
        small = ("--population", 6, "--generations", 3, "--strategy", "genetic")
        assert cli("run", "plain.py", *small, "--name", "x").code == 0
        assert cli("unseal", "x").code == 0
    return folder


@pytest.fixture
def enter_copy(tmp_path, monkeypatch):
    """`enter_copy(folder)` copies a folder, makes the copy the current folder and returns it; it may be changed."""

    def enter(folder):
        target = shutil.copytree(folder, tmp_path / "copies")
        monkeypatch.chdir(target)
        return target

    return enter


@pytest.fixture
def copies(finished, enter_copy):
    """A copy of the finished runs, as current folder; may be changed."""
    return enter_copy(finished)
