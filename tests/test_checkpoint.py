"""A state comes back to the same bits, from the newest checkpoint that is whole, or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest

from evometa import checkpoint
from evometa.archives.sealed import scan, seal, unseal
from evometa.errors import ConfigError, IntegrityError, ResumeMismatch, StorageError

META = {"spec_digest": "abc", "last_part": "part-000000000-0123456789abcdef.parquet", "note": {"a": [1, 2.5, None]}}


def save(run, generation, state=None, **meta):
    state = {"mean": np.arange(4.0) + generation} if state is None else state
    return checkpoint.save(run, generation, state, META | meta)


def load(run, like=None, spec_digest="abc"):
    return checkpoint.load(run, {"mean": np.zeros(4)} if like is None else like, spec_digest=spec_digest)


def same_bits(left, right):
    left, right = np.asarray(left), np.asarray(right)
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


# --- round trips --------------------------------------------------------------------------------------


def test_no_checkpoint(tmp_path):
    assert load(tmp_path) is None and scan(tmp_path) == []


def test_a_flat_dict_comes_back(tmp_path):
    state = {
        "f": np.float32([1.5, np.nan, np.inf, -0.0, 1e-45]),
        "d": np.array([[1.0, 2.0], [3.0, 4.0]]).T,  # not contiguous
        "i": np.arange(6, dtype=np.int8).reshape(2, 3)[:, ::2],
        "b": np.array([True, False]),
        "u": np.array(2**64 - 1, np.uint64),
        "none": np.zeros((0, 3), np.float16),
        "c": np.array([1 + 2j, 3j], np.complex64),
        "z": np.array([[1 + 2j]], np.complex128),
        "scalar": np.float32(0.1),
        "flag": True,
        "count": 2**40,
        "sigma": 0.1,
    }
    path = save(tmp_path, 7, state)
    assert path.name.startswith("ckpt-000000007-") and path.suffix == ".json"
    generation, back, meta = load(
        tmp_path, {name: type(v)() if np.isscalar(v) else np.empty_like(v) for name, v in state.items()}
    )
    assert generation == 7 and meta == META | {"skipped": []} and list(back) == sorted(state)
    for name, value in state.items():
        assert same_bits(back[name], value) and type(back[name]) is type(value), name
    back["f"][0] = 3  # what comes back may be written to


def test_flat_dicts_need_no_jax(tmp_path):
    code = (
        "import sys, numpy as np; from evometa import checkpoint\n"
        f"run = {str(tmp_path)!r}; state = {{'a': np.arange(3), 'n': 4}}\n"
        "checkpoint.save(run, 1, state, {'spec_digest': 's'}); print(checkpoint.load(run, state, spec_digest='s')[1])\n"
        "assert 'jax' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Inner(NamedTuple):
    mean: object
    history: object


def test_any_pytree_comes_back(tmp_path):
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    state = Inner(
        {"x": jnp.arange(3, dtype=jnp.float32), "half": jnp.ones((2, 2), jnp.bfloat16), "key": jnp.uint32([1, 2])},
        (jnp.int32(4), [np.arange(2), None], jnp.bool_(True), 3, jnp.zeros((0,), jnp.float8_e4m3fn)),
    )
    save(tmp_path, 3, state)
    back = load(tmp_path, state)[1]
    assert jax.tree.structure(back) == jax.tree.structure(state)
    for was, now in zip(jax.tree.leaves(state), jax.tree.leaves(back), strict=True):
        assert same_bits(was, now) and isinstance(now, type(was))


def test_dataclass_pytrees_and_single_arrays_come_back(tmp_path):
    jax = pytest.importorskip("jax")
    struct = pytest.importorskip("flax.struct")

    @struct.dataclass
    class State:
        mean: jax.Array
        name: str = struct.field(pytree_node=False, default="fixed")

    save(tmp_path / "a", 1, State(jax.numpy.ones(3)))
    back = load(tmp_path / "a", State(jax.numpy.zeros(3)))[1]
    assert isinstance(back, State) and same_bits(back.mean, np.ones(3, np.float32))
    save(tmp_path / "b", 1, jax.numpy.ones(3))
    assert same_bits(load(tmp_path / "b", jax.numpy.zeros(3))[1], np.ones(3, np.float32))


def test_flat_dicts_have_the_same_paths_with_and_without_jax(tmp_path):
    jax = pytest.importorskip("jax")
    save(tmp_path, 1, {"a": np.arange(3, dtype=np.float32), "it's": np.zeros(2, np.float32)})
    back = load(tmp_path, {"a": jax.numpy.zeros(3), "it's": jax.numpy.zeros(2)})[1]
    assert same_bits(back["a"], np.arange(3, dtype=np.float32)) and isinstance(back["a"], jax.Array)


@pytest.mark.parametrize("leaf", ["text", object(), np.array(["a"]), np.array([None])])
def test_only_arrays_of_numbers(tmp_path, leaf):
    pytest.importorskip("jax")
    with pytest.raises(ConfigError, match="state"):
        save(tmp_path, 1, {"a": [leaf]})


def test_meta_needs_a_spec_digest(tmp_path):
    with pytest.raises(ConfigError, match="spec_digest"):
        checkpoint.save(tmp_path, 1, {}, {"last_part": "x"})


# --- what does not fit ----------------------------------------------------------------------------------


def test_another_spec_is_refused(tmp_path):
    save(tmp_path, 5)
    with pytest.raises(ResumeMismatch, match="--from") as caught:
        load(tmp_path, spec_digest="other")
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    ("like", "words"),
    [
        ({"mean": np.zeros(5)}, r"state\['mean'\] was float64\[4\] and is float64\[5\]"),
        ({"mean": np.zeros(4, np.float32)}, r"state\['mean'\] was float64\[4\] and is float32\[4\]"),
        ({"mean": np.zeros(4), "sigma": 1.0}, r"state\['sigma'\] was nothing and is an array"),
        ({}, r"state\['mean'\] was an array and is nothing"),
    ],
)
def test_another_tree_is_refused_by_name(tmp_path, like, words):
    save(tmp_path, 5)
    with pytest.raises(ResumeMismatch, match=words):
        load(tmp_path, like)


# --- on disk ----------------------------------------------------------------------------------------------


def test_the_last_three_are_kept(tmp_path):
    for generation in range(1, 8):
        save(tmp_path, generation)
    assert [found.generation for found in scan(tmp_path)] == [5, 6, 7]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 6 and list((tmp_path / ".staging").iterdir()) == []
    assert load(tmp_path)[0] == 7


def test_equal_states_are_equal_files(tmp_path):
    one, two = save(tmp_path / "a", 3), save(tmp_path / "b", 3)
    assert one.name == two.name and one.read_bytes() == two.read_bytes()
    assert save(tmp_path / "a", 3) == one and len(scan(tmp_path / "a")) == 1


def test_arrays_whose_json_never_came_are_passed_over_and_removed(tmp_path):
    save(tmp_path, 1)
    stray = save(tmp_path, 2)
    stray.unlink()
    assert load(tmp_path)[0] == 1
    save(tmp_path, 3)
    assert not stray.with_suffix(".safetensors").exists() and load(tmp_path)[0] == 3


def damage(path, how):
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 4]) + data[-8:])


@pytest.mark.parametrize("how", ["gone", "cut", "empty", "flipped"])
@pytest.mark.parametrize("ending", [".json", ".safetensors"])
def test_a_broken_one_falls_back_to_the_one_before(tmp_path, ending, how, caplog):
    save(tmp_path, 1)
    path = save(tmp_path, 2).with_suffix(ending)
    damage(path, how)
    generation, state, meta = load(tmp_path)
    assert generation == 1 and same_bits(state["mean"], np.arange(4.0) + 1)
    if (ending, how) != (".json", "gone"):  # without its JSON it never was one
        assert len(meta["skipped"]) == 1 and path.name in meta["skipped"][0] and path.name in caplog.text
    save(tmp_path, 2)  # the same state again, over the damaged file
    assert load(tmp_path)[0] == 2 and load(tmp_path)[2]["skipped"] == []


def test_a_broken_one_further_on_is_removed_by_the_next(tmp_path):
    save(tmp_path, 1)
    damage(save(tmp_path, 9), "cut")
    save(tmp_path, 2)
    assert [found.generation for found in scan(tmp_path)] == [1, 2]


def test_all_broken_is_none(tmp_path):
    for generation in (1, 2):
        damage(save(tmp_path, generation), "cut")
    assert load(tmp_path) is None and all(found.record is None for found in scan(tmp_path))


def test_every_flipped_bit_of_a_checkpoint_is_found(tmp_path):
    path = save(tmp_path, 1)
    for file in (path, path.with_suffix(".safetensors")):
        data = file.read_bytes()
        with open(file, "r+b", buffering=0) as handle:
            for bit in range(0, 8 * len(data), 7):
                os.pwrite(handle.fileno(), bytes([data[bit // 8] ^ 1 << bit % 8]), bit // 8)
                assert scan(tmp_path)[0].problem, bit
                os.pwrite(handle.fileno(), bytes([data[bit // 8]]), bit // 8)
    assert load(tmp_path)[0] == 1


def test_a_renamed_checkpoint_is_refused(tmp_path):
    path = save(tmp_path, 1)
    for file in (path, path.with_suffix(".safetensors")):
        file.rename(file.with_name(file.name.replace("000000001", "000000002")))
    assert load(tmp_path) is None and "renamed" in scan(tmp_path)[0].problem


def test_a_later_format_is_refused(tmp_path):
    path = save(tmp_path, 1)
    record = unseal(path.read_bytes(), path)
    path.write_bytes(seal(record | {"format": "2.0"}))
    assert "2.0" in scan(tmp_path)[0].problem


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"null", b'"x"', b"\xff", b"[" * 5000, b'{"seal": 1}'])
def test_unseal_refuses_anything_else(tmp_path, data):
    with pytest.raises(IntegrityError, match="x.json"):
        unseal(data, tmp_path / "x.json")


def test_unseal_refuses_json_that_only_means_the_same(tmp_path):
    data = seal({"a": 1})
    assert unseal(data, tmp_path) == {"a": 1}
    with pytest.raises(IntegrityError):
        unseal(json.dumps(json.loads(data)).encode(), tmp_path)


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename", "unlink"])
def test_a_disk_that_refuses_leaves_the_ones_before(tmp_path, monkeypatch, call):
    for generation in (1, 2, 3):
        save(tmp_path, generation)

    def refuse(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(StorageError, match="ENOSPC.*evometa resume"):
            save(tmp_path, 4)
    assert load(tmp_path)[0] in ((3,) if call != "unlink" else (4,))
    save(tmp_path, 4)
    assert load(tmp_path)[0] == 4 and len(scan(tmp_path)) == 3
