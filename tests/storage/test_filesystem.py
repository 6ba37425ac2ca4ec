"""The file systems: what storage relies on holds for the machine's, for memory, and for the faulty one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from millpond.base.errors import DataDirectoryInUse
from millpond.base.faulty_filesystem import FaultyFilesystem
from millpond.base.filesystem import Filesystem, MemoryFilesystem, OsFilesystem
from millpond.base.limits import REMOVED_AT_ONCE_BYTES
from tests.support.waiting import eventually


@pytest.fixture(params=[OsFilesystem, MemoryFilesystem, FaultyFilesystem])
def filesystem(request: pytest.FixtureRequest) -> Filesystem:
    made = request.param()
    assert isinstance(made, Filesystem)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path)


def test_what_is_written_is_read(filesystem: Filesystem, folder: str) -> None:
    file = filesystem.open(f"{folder}/a", True)
    file.pwrite(3, b"abc")
    file.sync()
    assert file.size() == 6
    assert file.pread(0, 100) == b"\x00\x00\x00abc"
    assert file.pread(4, 1) == b"b"
    assert file.pread(6, 1) == b""
    file.truncate(5)
    assert filesystem.read_bytes(f"{folder}/a") == b"\x00\x00\x00ab"
    file.truncate(6)
    file.allocate(4)
    assert file.pread(0, 100) == b"\x00\x00\x00ab\x00"
    file.close()
    file.close()


def test_allocated_room_reads_as_zeros(filesystem: Filesystem, folder: str) -> None:
    file = filesystem.open(f"{folder}/a", True)
    file.pwrite(0, b"abc")
    file.allocate(10_000)
    assert file.pread(0, 10_000).rstrip(b"\x00") == b"abc"
    file.close()


def test_a_missing_file_is_only_made_when_asked_for(filesystem: Filesystem, folder: str) -> None:
    with pytest.raises(FileNotFoundError):
        filesystem.open(f"{folder}/a", False)
    assert not filesystem.exists(f"{folder}/a")
    filesystem.open(f"{folder}/a", True).close()
    assert filesystem.exists(f"{folder}/a")


def test_names_are_listed_moved_and_removed(filesystem: Filesystem, folder: str) -> None:
    assert filesystem.list(f"{folder}/x/y") == []
    filesystem.mkdirs(f"{folder}/x/y")
    filesystem.mkdirs(f"{folder}/x/y")
    assert filesystem.exists(f"{folder}/x")
    for name in ("b", "a"):
        filesystem.write_bytes_atomically(f"{folder}/x/y/{name}", name.encode())
    assert filesystem.list(f"{folder}/x/y") == ["a", "b"]
    filesystem.rename(f"{folder}/x/y/b", f"{folder}/x/y/a")
    assert filesystem.read_bytes(f"{folder}/x/y/a") == b"b"
    filesystem.remove(f"{folder}/x/y/a")
    filesystem.remove(f"{folder}/x/y/a")
    filesystem.remove(f"{folder}/x/y")
    assert not filesystem.exists(f"{folder}/x/y")
    filesystem.sync_folder(folder)
    assert filesystem.free_bytes(folder) > 0


def test_a_locked_folder_is_in_use_until_released(filesystem: Filesystem, folder: str) -> None:
    lock = filesystem.lock(f"{folder}/lock")
    with pytest.raises(DataDirectoryInUse, match="in use"):
        filesystem.lock(f"{folder}/lock")
    lock.close()
    lock.close()
    filesystem.lock(f"{folder}/lock").close()


def test_the_holder_of_a_lock_is_named_and_its_end_releases_it(folder: str) -> None:
    program = (
        "import sys; from millpond.base.filesystem import OsFilesystem;"
        "lock = OsFilesystem().lock(sys.argv[1]); print('locked', flush=True); sys.stdin.read()"
    )
    source = str(Path(sys.modules[OsFilesystem.__module__].__file__ or "").parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", program, f"{folder}/lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert process.stdout is not None
    assert process.stdin is not None
    with process:
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(DataDirectoryInUse, match=f"by process {process.pid}$"):
            OsFilesystem().lock(f"{folder}/lock")
        process.kill()
        process.wait()
    OsFilesystem().lock(f"{folder}/lock").close()


def test_an_atomic_write_leaves_the_old_or_the_new(folder: str) -> None:
    for operation in ("open", "truncate", "write", "sync", "rename", "sync_folder"):
        disk = FaultyFilesystem()
        disk.write_bytes_atomically("/data/snapshot", b"old" * 1000)
        disk.fail(operation, errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            disk.write_bytes_atomically("/data/snapshot", b"new" * 1000)
        disk.crash(keeps_some=True)
        assert disk.read_bytes("/data/snapshot") in {b"old" * 1000, b"new" * 1000}


@pytest.mark.parametrize("seed", range(30))
def test_an_atomic_write_that_returned_survives_a_power_cut(seed: int) -> None:
    disk = FaultyFilesystem(seed)
    for number in range(10):
        disk.write_bytes_atomically("/data/snapshot", b"%d" % number * 2000)
    disk.crash(keeps_some=True)
    assert disk.read_bytes("/data/snapshot") == b"9" * 2000


def test_a_power_cut_takes_what_was_not_synced() -> None:
    disk = FaultyFilesystem()
    file = disk.open("/data/a", True)
    file.pwrite(0, b"synced")
    file.sync()
    disk.sync_folder("/data")
    file.pwrite(0, b"wasted")
    disk.open("/data/b", True).sync()
    disk.crash()
    assert disk.read_bytes("/data/a") == b"synced"
    assert disk.list("/data") == ["a"]


def test_a_failed_sync_stays_failed_whatever_a_later_one_says() -> None:
    disk = FaultyFilesystem()
    disk.put("/data/a", b"old")
    file = disk.open("/data/a", False)
    file.pwrite(0, b"new")
    disk.fail("sync", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        file.sync()
    file.sync()
    assert file.pread(0, 3) == b"new"
    disk.crash()
    assert disk.read_bytes("/data/a") == b"old"


def test_what_is_discarded_is_gone_at_once_and_its_room_a_little_later(filesystem: Filesystem, folder: str) -> None:
    for size in (10, 3 * REMOVED_AT_ONCE_BYTES):
        file = filesystem.open(f"{folder}/a", True)
        file.truncate(size)
        file.close()
        filesystem.discard(f"{folder}/a")
        assert not filesystem.exists(f"{folder}/a")
    filesystem.discard(f"{folder}/a")


def test_a_large_file_that_is_discarded_gives_its_room_back(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(2 * REMOVED_AT_ONCE_BYTES + 1))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        OsFilesystem().discard(str(path))
        assert not path.exists()
        eventually(lambda: os.fstat(descriptor).st_size <= REMOVED_AT_ONCE_BYTES, "room")
    finally:
        os.close(descriptor)
