"""How something becomes durable: written apart, fsynced, linked to its name, and only then acknowledged.

The appearance of a name is the commit. A crash or a power cut before it leaves a stray file in
`.staging`; after it, the whole file. Nothing that carries a final name is ever half written.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evometa.archives import mirror
from evometa.errors import EvometaError, IntegrityError, StorageError

STAGING = ".staging"
ASIDE = ".compact-"  # folders beside those that `compact` exchanges them with: being built, or superseded
GRACE = 60.0  # seconds for which superseded parts are kept for readers that were listing them
FOLDERS = ("lineage", "timings", "judgements", "checkpoints")
CURES = {
    errno.ENOSPC: "the disk is full. Free some space, then: {resume}",
    errno.EDQUOT: "your disk quota is used up. Free some space, then: {resume}",
    errno.EROFS: "the file system is read-only. Make it writable, then: {resume}",
    errno.EIO: "the disk reports a failure. Check it (dmesg), then: {check}",
    errno.EACCES: "this user may not write there. Change the owner or the permissions, then: {resume}",
    errno.EPERM: "this user may not write there. Change the owner or the permissions, then: {resume}",
}

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # what file systems without hard links say


def commit(folder: Path, table: pa.Table, first_generation: int) -> Path:
    """Make a table durable as `part-<first generation>-<sha256>.parquet` in `folder`, and return its path.

    Once this returns, the rows survive a crash and a power cut. The same rows committed twice are one
    file. Raises `StorageError` where the disk refuses (the part is then not there, and the call may be
    repeated), `IntegrityError` where a damaged file has the part's name.
    """
    data = encode(table)
    digest = hashlib.sha256(data).hexdigest()
    path = Path(folder) / f"part-{first_generation:09d}-{digest[:16]}.parquet"
    publish(path, data, path.parent.parent / STAGING)
    return path


def encode(table: pa.Table) -> pa.Buffer:
    """The bytes of a part: a Parquet file, zstd, one row group, with page checksums and statistics."""
    return encode_groups(table.schema, [table])


def encode_groups(schema: pa.Schema, tables: Iterable[pa.Table]) -> pa.Buffer:
    """The same of several tables, each a row group of its own (at most a million rows)."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        use_dictionary=_word_columns(schema),  # numbers hardly repeat: without, parts are a quarter smaller
        write_page_checksum=True,
        write_statistics=True,
        store_schema=False,  # the Parquet types say it all; this saves 3 kB per part
    ) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=1 << 20)
    return sink.getvalue()


def _word_columns(schema: pa.Schema) -> Any:
    """Parquet's paths of the columns that hold strings."""

    def paths(of: pa.DataType, path: str) -> list[str]:
        if pa.types.is_map(of):
            return paths(of.key_type, f"{path}.key_value.key") + paths(of.item_type, f"{path}.key_value.value")
        if pa.types.is_list(of):
            return paths(of.value_type, f"{path}.list.element")
        if pa.types.is_struct(of):
            return [found for field in of for found in paths(field.type, f"{path}.{field.name}")]
        return [path] if pa.types.is_string(of) else []

    return [found for field in schema for found in paths(field.type, field.name)]


def write_once(path: Path, data: bytes) -> Path:
    """Make `data` durable under a name that is not taken; the same bytes there already are a success.

    Raises `IntegrityError` where the name holds other bytes, `StorageError` where the disk refuses.
    """
    path = Path(path)
    publish(path, data, path.parent / STAGING)
    return path


def replace(path: Path, data: bytes) -> Path:
    """Make `data` durable under a name, atomically instead of what is there. Raises `StorageError`."""
    path = Path(path)
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    publish(path, data, run / STAGING, clobber=True)
    return path


def publish(path: Path, data: bytes | pa.Buffer, staging: Path, *, clobber: bool = False) -> None:
    """Stage `data`, fsync it, give it its name, fsync the folder; of a run in a store, in the store first.

    Raises `StorageError` where the disk refuses, `IntegrityError` where the name holds other bytes and
    `clobber` is false.
    """
    with storage(path):
        ensure_folder(path.parent)
        ensure_folder(staging)
        temporary = _stage(staging, path.name, data)
        try:
            mirror.put(path, data, clobber=clobber)
            if clobber:
                os.rename(temporary, path)
            else:
                _link(temporary, path, data)
            sync_folder(path.parent)
        finally:
            with suppress(OSError):
                os.unlink(temporary)


def remove(path: Path) -> None:
    """Remove a file, if it is there. Raises `StorageError`."""
    with storage(path):
        mirror.remove(path)
        with suppress(FileNotFoundError):
            os.unlink(path)


def ensure_folder(folder: Path) -> None:
    """Make a folder and those above it, durably: a folder's own name lives in the folder above."""
    if os.path.isdir(folder):
        return
    ensure_folder(folder.parent)
    with suppress(FileExistsError):
        os.mkdir(folder)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(one: Path, other: Path) -> None:
    """Let two folders of the same folder change names, at once for everybody. Raises `EvometaError`, `OSError`."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call is not None and call(here, os.fsencode(one), here, os.fsencode(other), swap) == 0:
        return
    number = ctypes.get_errno() if call is not None else errno.ENOSYS
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        raise EvometaError(
            f"{other}: this file system cannot exchange two folders at once (renameat2), and without that readers would"
            " see rows twice, or none. Copy the run to a local disk of a Linux machine and compact it there"
        )
    raise OSError(number, os.strerror(number), str(other))


def sweep(run_folder: Path) -> list[str]:
    """Tidy up behind a writer that died, before going on; call it only while holding the run's lock.

    Removes what it left in `.staging` (the names are returned) and what `compact` superseded more than `GRACE` ago, and
    makes durable what was named but not acknowledged any more: what is built upon next must not vanish in a power cut.
    """
    run_folder = Path(run_folder)
    staging = run_folder / STAGING
    with storage(run_folder):
        names = sorted(os.listdir(staging)) if staging.is_dir() else []
        for name in names:
            os.unlink(staging / name)
        clear_aside(run_folder, GRACE)
        for folder in (run_folder, *(run_folder / name for name in FOLDERS)):
            if folder.is_dir():
                sync_folder(folder)
    return names


def clear_aside(run_folder: Path, grace: float) -> None:
    """Remove folders of parts that are being built by nobody, or were superseded more than `grace` seconds ago."""
    names = sorted(os.listdir(run_folder)) if run_folder.is_dir() else []
    folders = [run_folder / name for name in names if name.startswith(ASIDE)]
    if folders:
        sync_folder(run_folder)  # the exchange must last before what it superseded goes
    for folder in folders:
        if abs(time.time() - os.stat(folder).st_ctime) >= grace:
            remove_folder(folder)


def remove_folder(folder: Path) -> None:
    """Remove a folder of files. Raises `OSError`."""
    for name in sorted(os.listdir(folder)):
        os.unlink(folder / name)
    os.rmdir(folder)


@contextmanager
def storage(path: Path, then: str = "") -> Iterator[None]:
    """Turn an `OSError` into a `StorageError` that names the path and the cure: to type `then`, or to resume."""
    try:
        yield
    except EvometaError:
        raise
    except OSError as error:
        run = _run_of(Path(path))
        number = error.errno or 0
        resume, check = then or f"evometa resume {run}", then or f"evometa archive check {run}"
        cure = CURES.get(number, f"{os.strerror(number)}. When it is mended: {{resume}}")
        cure = cure.format(resume=resume, check=check)
        raise StorageError(f"the disk refused {path} ({errno.errorcode.get(number, '?')}): {cure}") from error


def _run_of(path: Path) -> Path:
    inside = {*FOLDERS, "cells", "index", STAGING}
    return path.parent.parent if path.parent.name in inside else path if path.is_dir() else path.parent


def _stage(staging: Path, name: str, data: bytes | pa.Buffer) -> Path:
    temporary, descriptor = _free(staging, name)
    _write(temporary, descriptor, [data])
    return temporary


def write_new(path: Path, data: bytes | pa.Buffer) -> None:
    """Write a file that is not there yet, durably but for its name. Raises `OSError`, and leaves nothing then."""
    _write(path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), [data])


def copy_new(source: Path, path: Path) -> None:
    """The same with the bytes of another file."""
    with open(source, "rb") as file:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        _write(path, descriptor, iter(lambda: file.read(1 << 20), b""))


def _write(temporary: Path, descriptor: int, pieces: Iterable[bytes | pa.Buffer]) -> None:
    try:
        try:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[os.write(descriptor, view) :]
            # After an error here the kernel may have dropped the pages: this descriptor is never used again.
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _free(staging: Path, name: str) -> tuple[Path, int]:
    attempt = 0
    while True:
        temporary = staging / f"{name}.{os.getpid()}-{attempt}"
        try:
            return temporary, os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            attempt += 1  # a crashed writer with the same process id left its file here


def _link(temporary: Path, path: Path, data: bytes | pa.Buffer) -> None:
    try:
        os.link(temporary, path)
        return
    except FileExistsError:
        pass  # a process that crashed before it could acknowledge, or the same bytes twice
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if not path.exists():
            os.rename(temporary, path)  # a run has one writer, so nobody took the name in between
            return
    if path.read_bytes() != bytes(data):
        cure = f"Run: evometa archive check {_run_of(path)}"
        raise IntegrityError(f"{path}: this name holds other bytes than those to be written. {cure}")
