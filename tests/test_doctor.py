"""`evometa doctor`: every fault that it is there for is made, found and named with its fix."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from importlib import metadata

import pytest
from helpers import call, cli, start

from evometa import doctor, doctor_machine
from evometa.doctor_machine import Finding

pytest_plugins = ["shared"]
PLAIN = ("run", "plain.py", "--population", 6, "--generations", 3, "--strategy", "genetic", "--name", "x")


def only(findings, check=None) -> Finding:
    (found,) = [one for one in findings if check is None or one.check == check]
    return found


def problem(findings, *words: str) -> Finding:
    (found,) = [one for one in findings if one.status == "problem"]
    for word in words:
        assert word in f"{found.found} | {found.fix}", found
    assert found.fix
    return found


def test_a_well_machine_is_well_and_the_command_says_so(folder, monkeypatch):
    assert cli(*PLAIN).code == 0
    monkeypatch.setattr(doctor, "cores", lambda: [Finding("cores", "ok", "quiet", "")])  # tests run side by side
    said = cli("doctor", "x", "--json")
    problems = [f for f in said.data["findings"] if f["status"] == "problem"]
    assert (said.code, said.data["ok"], problems) == (0, True, [])
    checks = {finding["check"] for finding in said.data["findings"]}
    assert {"disk", "file system", "locks", "archives", "cores", "compilation cache", "jax", "clock"} <= checks
    assert "packages" in checks and any(check.startswith("extra ") for check in checks)
    (folder / "runs/x/run.json").write_text("{}")
    said = cli("doctor")
    assert said.code == 1 and "run.json" in said.out and "to fix:\n  archives: evometa archive check runs/x" in said.out


# --- disk and file system --------------------------------------------------------------------------------------


def test_too_little_disk(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        problem(doctor_machine.disk(tmp_path / "runs"), "GB free", "--out")
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert only(doctor_machine.disk(tmp_path / "not/yet/there")).status == "ok"


def test_too_few_files_left(tmp_path, monkeypatch):
    real = os.statvfs(tmp_path)
    few = os.statvfs_result([*real[:6], 9, 9, *real[8:10]])
    monkeypatch.setattr(doctor_machine.os, "statvfs", lambda path: few)
    problem(doctor_machine.disk(tmp_path), "9 more files", "archive compact")


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs", "lustre", "cifs"])
def test_a_network_file_system_under_the_runs(tmp_path, kind):
    mounts = tmp_path / "mounts"
    shared = tmp_path / "a share"
    (shared / "runs").mkdir(parents=True)
    escaped = str(shared).replace(" ", "\\040")
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nhost:/x {escaped} {kind} rw 0 0\ntmpfs /dev/shm tmpfs rw 0 0\n")
    problem(doctor_machine.network(shared / "runs/new", mounts), kind, "local disk")
    assert only(doctor_machine.network(tmp_path, mounts)).found.endswith("ext4")
    assert only(doctor_machine.network(tmp_path, tmp_path / "none")).status == "note"


# --- locks and archives ----------------------------------------------------------------------------------------


def test_a_run_that_was_killed_is_named_and_a_living_one_is_not(folder):
    """A real lock, held and then left by kill -9."""
    assert only(doctor.locks(folder / "runs")).found == "no run was left"
    process = start(folder, *PLAIN, EVOMETA_TEST_SLEEP="0.3")
    end = time.monotonic() + 120
    while not list((folder / "runs/x").glob("cells/*")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    assert process.poll() is None
    assert only(doctor.locks(folder / "runs")).found == "1 runs under way"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = problem(doctor.locks(folder / "runs"), "x was left by process", str(process.pid))
    assert left.fix == f"evometa resume {folder / 'runs/x'}"
    assert call(folder, *left.fix.split()[1:]).code == 0, "the fix fixes it"
    assert only(doctor.locks(folder / "runs")).status == "ok"


def test_a_lock_of_another_machine_cannot_be_told(folder):
    assert cli(*PLAIN).code == 0
    (folder / "runs/x/run.lock").write_text("process 7 on elsewhere.example")
    problem(doctor.locks(folder / "runs"), "process 7 on elsewhere.example", "evometa resume")
    assert only(doctor.locks(folder / "runs", folder / "none")).status == "note"


def test_an_unreadable_archive(folder):
    assert cli(*PLAIN).code == 0
    run = folder / "runs/x"
    assert only(doctor.archives(folder / "runs", run)).status == "ok"
    part = sorted((run / "lineage").glob("*.parquet"))[0]
    data = bytearray(part.read_bytes())
    data[100] ^= 1
    part.write_bytes(data)
    assert only(doctor.archives(folder / "runs", None)).status == "ok", "only the newest rows are looked at"
    found = [one for one in doctor.archives(folder / "runs", run) if one.status == "problem"]
    assert part.name in found[0].found and found[0].fix == f"evometa archive check {run}"
    (run / "events.jsonl").write_text("{}\n{}\n")
    problem(doctor.archives(folder / "runs", None), "events.jsonl")


# --- cores, clock, folders -------------------------------------------------------------------------------------


def test_oversubscribed_cores(tmp_path):
    quota = tmp_path / "cpu.max"
    quota.write_text("max 100000\n")
    assert only(doctor_machine.cores(1.0, quota, 4, {})).status == "ok"
    problem(doctor_machine.cores(9.0, quota, 4, {}), "a load of 9.0 on 4 cores", "--workers")
    quota.write_text("150000 100000\n")
    problem(doctor_machine.cores(1.0, quota, 4, {}), "4 cores are visible, and a quota allows 1.5", "taskset")
    quota.write_text("400000 100000\n")
    problem(doctor_machine.cores(1.0, quota, 4, {"OMP_NUM_THREADS": "64"}), "OMP_NUM_THREADS=64", "unset")
    assert only(doctor_machine.cores(1.0, quota, 4, {"NPROC": "16", "OMP_NUM_THREADS": "4"})).status == "ok"


def test_a_clock_that_went_back(tmp_path):
    written = tmp_path / "file"
    written.write_text("")
    problem(doctor_machine.clock(written, now=0.0), "1970-01-01", "timedatectl")
    assert only(doctor_machine.clock(written)).status == "ok"


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    problem(doctor.writable("cache", tmp_path / "file/cache", "Set X"), "cannot be written", "Set X")
    assert only(doctor.writable("cache", tmp_path / "cache", "")).status == "ok"
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert only(doctor.writable("cache", doctor._cache_folder(), "")).found == "switched off"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    assert doctor._cache_folder() == tmp_path / "mine"


# --- packages, devices, clusters -------------------------------------------------------------------------------


def test_packages_and_extras():
    have = {"jax": "0.10.2", "pebble": "5.0.0", "ray": "2.60.0rc1", "altair": "6.1"}

    def version(name):
        if name not in have:
            raise metadata.PackageNotFoundError(name)
        return have[name]

    def look(*requires):
        return only(doctor.packages(requires, version))

    assert look("jax>=0.10").found == "jax 0.10.2"
    assert "jax 0.10.2, expected 0.11 or later" in problem([look("jax>=0.11,<1")]).found
    assert problem([look("numpy>=2")], "numpy is missing", "pip install --upgrade evometa")
    assert look('pebble>=5; extra == "processes"').check == "extra processes"
    assert "pip install --upgrade 'evometa[ray]'" in problem([look('ray[default]>=2.61; extra == "ray"')]).fix
    both = doctor.packages(['altair>=6; extra == "reports"', 'vl-convert-python>=1.9; extra == "reports"'], version)
    problem(both, "vl-convert-python is missing", "evometa[reports]")
    absent = look('obstore>=0.12; extra == "s3"')
    assert (absent.status, absent.found) == ("note", "not installed, for object stores")
    assert list(doctor.packages(['pytest>=9; extra == "dev"'], version)) == []


def test_what_jax_computes_on(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    said = json.dumps(["cpu", ["cpu:0"], "0.10.2"])
    assert only(doctor.devices(lambda code: (True, said), tmp_path / "none")).status == "ok"
    problem(doctor.devices(lambda code: (True, said), tmp_path), "there is a GPU", "jax[cuda")
    problem(doctor.devices(lambda code: (False, "no answer within 120 s")), "JAX does not start", "JAX_PLATFORMS=cpu")
    problem(doctor.devices(lambda code: (True, "nonsense")), "JAX does not start")


CLUSTERS = {
    "raise RuntimeError('Version mismatch: The cluster was started with:\\n Ray: 2.59.0')": (
        "mismatch",
        "same versions",
    ),
    # Ray names the reason first, and then says only that it could not connect.
    "raise ConnectionError('Failed to connect') from OSError('RPC error: InvalidAuthToken: Unauthenticated. Ensure')": (
        "127.0.0.1:6379: it asks for another token than this process has",
        "~/.ray/auth_token",
        "RAY_AUTH_MODE=token",
    ),
    "raise ConnectionError('Failed to connect to GCS')": ("does not answer: ConnectionError", "ray start"),
    "raise SystemExit(3)": ("does not answer: ended with status 3", "RAY_ADDRESS"),
}


@pytest.mark.parametrize("does", CLUSTERS)
def test_a_cluster_that_does_not_take_this_process(tmp_path, monkeypatch, does):
    """A child with a `ray` of its own, that answers as the real one does."""
    (tmp_path / "ray.py").write_text(f"__version__ = '2.60.0'\ndef init(**_):\n    {does}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = CLUSTERS[does]
    problem(doctor.cluster({"RAY_ADDRESS": "127.0.0.1:6379"}), *words)


def test_a_cluster_that_does_and_one_that_is_not_asked_for(tmp_path, monkeypatch):
    (tmp_path / "ray.py").write_text("__version__ = '2.60.0'\ndef init(address, **_):\n    assert address == 'a:1'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert only(doctor.cluster({"RAY_ADDRESS": "a:1"})).found == "a:1 takes this process, ray 2.60.0"
    assert list(doctor.cluster({})) == []
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\")\n")
    problem(doctor.cluster({"RAY_ADDRESS": "a:1"}), "ray is missing", "evometa[ray]")


def test_a_process_that_never_answers(monkeypatch):
    monkeypatch.setattr(doctor, "SECONDS", 0.2)
    assert doctor._python("import time; time.sleep(60)") == (False, "no answer within 0.2 s")
    monkeypatch.setattr(doctor.sys, "executable", "/nothing")
    assert doctor._python("")[0] is False


def test_the_doctor_touches_nothing(folder):
    assert cli(*PLAIN).code == 0
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*")}
    cli("doctor", "x")
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*")} == before
