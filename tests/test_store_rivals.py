"""Who may write a run in an object store, what may lie there, and what is refused before anything is computed."""

from __future__ import annotations

import json
import shutil

import pytest
from helpers import cli, lineage_files, one_line

from evometa import folder as folders
from evometa.archives import events, lease, ledger, mirror, place, store
from evometa.errors import EvometaError, IntegrityError, StorageError

pytest_plugins = ["shared", "object_store"]

SMALL = ("run", "plain.py", "--population", 4, "--generations", 2, "--strategy", "genetic", "--name", "x")


# --- several writers ----------------------------------------------------------------------------------


def test_a_living_writer_elsewhere_is_waited_for_and_respected(bucket, made, capsys):
    """Two machines: each has a copy of its own; only the store is between them."""
    path = folders.find(made["path"])
    with folders.locked(path):
        bucket.forget()
        said = cli("resume", made["path"], "--generations", 5)
        one_line(said, 1, "another process is running", f"evometa watch {made['path']}")
        assert "watching it for 1 s" in said.err
    assert cli("resume", made["path"], "--generations", 4).code == 0, "released: at once"


def test_on_one_machine_the_disk_tells(bucket, made):
    with folders.locked(folders.find(made["path"])):
        one_line(cli("resume", made["path"]), 1, "another process is running")
        assert cli("report", made["path"]).code == 0


def test_a_dead_writer_is_followed_at_once_here_and_after_a_while_elsewhere(bucket, made, monkeypatch):
    path = folders.find(made["path"])
    held = lease.Lease(store.Store("bucket"), "runs/x", place.own(path, "leases"))
    held.take()
    lease._RENEWER.drop(held)  # it died
    began = json.loads(bucket.get("runs/x/run.lock"))["token"]
    monkeypatch.setattr(lease.Lease, "_wait", lambda *_: pytest.fail("its own token: no reason to wait"))
    assert cli("resume", made["path"], "--generations", 4).code == 0
    monkeypatch.undo()
    assert json.loads(bucket.get("runs/x/run.lock"))["token"] != began


def test_who_lost_its_lease_commits_nothing_more(bucket, made):
    path = folders.find(made["path"])
    with folders.locked(path):
        mine = next(iter(mirror._leases.values()))
        bucket.put("runs/x/run.lock", b'{"token": "another", "holder": "process 1 on elsewhere"}')
        mine.renew()
        before = bucket.names()
        for commit in (
            lambda: events.append(path, "note", text="too late"),
            lambda: mirror.put(path / "report.md", b"", clobber=True),
            lambda: mirror.remove(path / "run.json"),
        ):
            with pytest.raises(EvometaError, match="another process took over s3://bucket/runs/x"):
                commit()
    assert bucket.names() == before
    assert json.loads(bucket.get("runs/x/run.lock"))["token"] == "another", "nor does it release what is not its own"


def test_a_renewal_that_was_heard_but_not_answered_is_no_loss(bucket, made, diary):
    path = folders.find(made["path"])
    with folders.locked(path):
        mine = next(iter(mirror._leases.values()))
        mine._tag = '"0"'  # the answer with the new one never came
        mine.renew()
        mine.confirm()
        real = store.Store.put

        def unanswered(self, key, data, **condition):
            real(self, key, data, **condition)
            raise store.Refused(key)  # what the second try of the same request is told

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store.Store, "put", unanswered)
            events.append(path, "note", text="still here")
            mirror.put(path / "study.json", b"once")
        events.append(path, "note", text="and goes on")
    assert [event["text"] for event in diary()[-2:]] == ["still here", "and goes on"]


def test_a_stale_diary_is_not_appended_to(bucket, made):
    path = folders.find(made["path"])
    with folders.locked(path):
        bucket.put("runs/x/events.jsonl", bucket.get("runs/x/events.jsonl") + b'{"kind": "somebody"}')
        with pytest.raises(mirror.Overtaken, match="another process wrote it since"):
            events.append(path, "note", text="over it")
    assert bucket.get("runs/x/events.jsonl").endswith(b'"somebody"}')


def test_a_cache_that_is_emptied_under_a_run_empties_nothing(bucket, made, diary):
    path = folders.find(made["path"])
    before = {key: bucket.get(key) for key in bucket.names()}
    with folders.locked(path):
        shutil.rmtree(path)
        with pytest.raises(StorageError, match="evometa resume s3://bucket/runs/x"):
            events.append(path, "note", text="into nothing")
        mirror.complete(path)
        assert lineage_files(path) == bucket.lineage("x")
        events.append(path, "note", text="and goes on")
    assert diary()[-1]["text"] == "and goes on"
    assert {key: bucket.get(key) for key in before if "." in key and "events" not in key and "lock" not in key} == {
        key: data for key, data in before.items() if "." in key and "events" not in key and "lock" not in key
    }


def test_a_ledger_is_written_by_many_machines(bucket, made):
    """Each append meets what others added since, and is put behind it."""
    root = place.local(bucket.url)
    for number in range(3):
        ledger.append(root, {"data_digest": "d", "runs": [str(number)], "domains": {}, "seeds": 1})
        bucket.forget()
    real, raced = mirror.fetch_lines, []

    def overtaken(path):
        real(path)
        if not raced:
            raced.append(path)
            other = bucket.get("runs/openings.jsonl")
            entries, good, _ = events.good_part(other)
            line = events._line(events._entry({"kind": "opened", "data_digest": "d"}, entries))
            bucket.put("runs/openings.jsonl", other[:good] + line)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror, "fetch_lines", overtaken)
        ledger.append(root, {"data_digest": "d", "runs": ["last"], "domains": {}, "seeds": 1})
    assert raced and ledger.count(root, "d") == 5


def test_names_are_claimed_in_the_store(bucket, folder):
    unnamed = [word for word in SMALL if word not in ("--name", "x")]
    names = []
    for _ in range(2):
        names.append(cli(*unnamed, "--out", bucket.url, "--json").data["run"])
        bucket.forget()
    assert names == ["plain-genetic-s0", "plain-genetic-s0-2"]


def test_cells_of_another_past_are_not_used(bucket, made):
    """A removed run's finished cells would be another run's numbers."""
    path = folders.find(made["path"])
    (path / "cells").mkdir(exist_ok=True)
    (path / "cells" / "gen-000000003.jsonl").write_text("of a past that did not come\n")
    bucket.put("runs/x/run.lock", json.dumps({"token": "elsewhere", "released": True}).encode())
    with folders.locked(path):
        assert not (path / "cells").exists()
    (path / "cells").mkdir()
    for key in bucket.names():
        bucket.remove(key)
    assert cli("runs", "--out", bucket.url, "--json").data == []
    assert not (path / "cells").exists() and not (path / "run.json").exists()


# --- what a store may hold ----------------------------------------------------------------------------


def test_only_known_names_are_fetched(bucket, made, folder):
    path = folders.find(made["path"])
    real = set(bucket.names())
    for name in (".bashrc", "x/.hidden", "x/task.py", "x/lineage/evil.py", "x/lineage/lineage/run.json", "x/cells/a/run.json",
                 "x/run.json/run.json", "x/a b/run.json", "x/" + "d/" * 20 + "run.json", "x/lineage/part-1.parquet"):  # fmt: skip
        bucket.put(f"runs/{name}", b"evil")
    bucket.forget()
    assert cli("archive", "check", made["path"]).code == 0
    there = {file.relative_to(path.parent).as_posix() for file in path.parent.rglob("*") if file.is_file()}
    assert there <= {key.removeprefix("runs/") for key in real}


def test_a_name_that_leads_out_is_refused(bucket, made):
    bucket.put("runs/x/../../../escaped", b"evil")
    bucket.forget()
    one_line(cli("report", made["path"]), 5, "leads elsewhere", "Remove it")


def test_a_file_where_a_folder_should_be(bucket, folder):
    path = place.local(f"{bucket.url}/x")
    path.parent.mkdir(parents=True)
    path.write_text("in the way")
    bucket.put("runs/x/run.json", b"{}")
    one_line(cli("report", f"{bucket.url}/x"), 5, "one name for an object and for a folder")


def test_a_hostile_lock_neither_speaks_nor_holds_for_ever(bucket, made, monkeypatch):
    monkeypatch.setattr(lease, "LONGEST", 1.0)
    lock = {"token": "", "holder": "\x1b[2Jwait", "lease": 10**400}
    bucket.put("runs/x/run.lock", json.dumps(lock).encode())
    said = cli("resume", made["path"], "--generations", 3)
    assert said.code == 0 and "\\x1b[2Jwait" in said.err and "\x1b" not in said.err
    bucket.put("runs/x/run.lock", b"[" * (1 << 17))
    one_line(cli("resume", made["path"], "--generations", 4), 5, "run.lock", "expected at most")


def test_damage_in_the_store_is_named(bucket, made):
    key = next(key for key in bucket.names() if "/lineage/" in key)
    data = bytearray(bucket.get(key))
    data[len(data) // 2] ^= 1
    bucket.put(key, bytes(data))
    for look in (("archive", "top", made["path"]), ("resume", made["path"], "--generations", 5)):
        one_line(cli(*look), 5, f"s3://bucket/{key}", "it was changed")
    found = cli("archive", "check", made["path"], "--json")
    assert found.code == 5 and any(key in problem for problem in found.data["problems"])


def test_other_bytes_under_a_name_are_not_overwritten(bucket, made):
    path = folders.find(made["path"])
    with folders.locked(path):
        mirror.put(path / "run.json", (path / "run.json").read_bytes())  # the same: a success
        with pytest.raises(IntegrityError, match="other bytes"):
            mirror.put(path / "run.json", b"{}")


def test_an_archive_sends_nobody_to_another_store(bucket, made):
    path = folders.find(made["path"])
    assert folders.parent(path.with_name("y"), {"run": "x", "path": ""}) == path
    with pytest.raises(EvometaError, match="in another store"):
        folders.parent(path, {"run": "gone", "path": "s3://elsewhere/gone"})


# --- what is refused before anything is computed ------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("s3://no-such-bucket/p", 74, "there is no such bucket"),
        ("gs://bucket/p", 2, "expected s3://BUCKET/PREFIX or a folder"),
        ("s3:///p", 2, "cannot be a bucket's name"),
        ("s3://bucket/../p", 2, "letters, digits"),
        ("s3://bucket/a//b", 2, "letters, digits"),
        ("s3://bucket/" + "/".join("abcdefghijk"), 2, "at most 8 segments"),
    ],
)
def test_wrong_places(bucket, folder, url, code, words):
    for command in (("run", "plain.py", "--out", url), ("resume", f"{url}/x")):
        said = cli(*command)
        one_line(said, code, words)
        assert said.err.count("\n") == 1, "nothing was computed"


def test_no_credentials_no_package_no_conditions(bucket, made, monkeypatch):
    monkeypatch.setattr(lease, "_checked", set())
    real = store.Store.put

    def careless(self, key, data, *, new=False, tag=None):
        return real(self, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(store.Store, "put", careless)
        one_line(cli("resume", made["path"], "--generations", 4), 74, "ignores conditions of a put")
        assert any(row["check"] == "store" and "ignores" in row["found"] for row in _doctor(bucket))
    assert any(row["check"] == "store" and row["status"] == "ok" for row in _doctor(bucket))
    place._stores.clear()
    with monkeypatch.context() as patch:
        patch.setattr(store.importlib.util, "find_spec", lambda name: None)
        one_line(cli("report", made["path"]), 74, "pip install 'evometa[s3]'")
    with monkeypatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        patch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9/169.254.169.254")  # nobody's machine
        one_line(cli("report", made["path"]), 74, "no credentials", "AWS_ACCESS_KEY_ID")


def _doctor(bucket):
    from evometa.doctor import store as look

    return [finding._asdict() for finding in look(place.local(bucket.url))]


def test_a_cache_that_cannot_be_written(bucket, made, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    one_line(cli("report", made["path"]), 74, "cannot be written", "XDG_CACHE_HOME")


def test_a_copy_is_of_one_endpoint(bucket, made, monkeypatch):
    path = folders.find(made["path"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StorageError, match="at another endpoint"):
        folders.find(path)
