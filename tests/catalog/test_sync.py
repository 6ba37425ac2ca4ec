"""`sync` promises that what was committed before survives a power loss."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from millpond.base.errors import StorageFailed
from millpond.catalog.catalog import Catalog
from millpond.catalog.rows import QueueRow, VhostRow


class Disk:
    """Stands in for fdatasync: counts, remembers which files, and fails when told to."""

    def __init__(self) -> None:
        self.synced: list[int] = []
        self.failing = False

    def __call__(self, descriptor: int) -> None:
        if self.failing:
            raise OSError(errno.EIO, "the disk is gone")
        os.fdatasync(descriptor)
        self.synced.append(os.fstat(descriptor).st_ino)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder / "catalog.sqlite"


def open_catalog(path: Path, disk: Disk) -> Catalog:
    catalog = Catalog(path, sync_file=disk)
    catalog.open()
    return catalog


def names(path: Path) -> list[str]:
    catalog = Catalog(path)
    catalog.open()
    try:
        return [row.name for row in catalog.load().queues]
    finally:
        catalog.close()


def wal(path: Path) -> Path:
    return Path(f"{path}-wal")


def test_a_new_catalog_and_its_place_in_the_folder_are_durable_when_open_returns(path: Path, disk: Disk) -> None:
    catalog = open_catalog(path, disk)
    assert set(disk.synced) == {wal(path).stat().st_ino, path.parent.stat().st_ino}
    catalog.close()


def test_a_commit_leaves_the_disk_alone_and_sync_reaches_the_log_once(path: Path, disk: Disk) -> None:
    catalog = open_catalog(path, disk)
    disk.synced.clear()
    for number in range(10):
        catalog.add_queue(QueueRow("/", f"q{number}"))
        catalog.commit()
    assert disk.synced == []
    catalog.sync()
    catalog.sync()
    assert disk.synced == [wal(path).stat().st_ino]
    catalog.close()


def test_sync_has_nothing_to_do_for_changes_that_are_not_committed(path: Path, disk: Disk) -> None:
    catalog = open_catalog(path, disk)
    disk.synced.clear()
    catalog.add_queue(QueueRow("/", "q"))
    catalog.sync()
    catalog.rollback()
    catalog.sync()
    assert disk.synced == []
    catalog.close()


def test_a_commit_made_while_the_disk_works_is_not_taken_for_durable(path: Path) -> None:
    catalog: Catalog
    calls = 0

    def commit_meanwhile(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        os.fdatasync(descriptor)
        if calls == 1:
            catalog.add_queue(QueueRow("/", "meanwhile"))
            catalog.commit()

    catalog = Catalog(path)
    catalog.open()
    catalog._sync_file = commit_meanwhile  # type: ignore[misc]
    catalog.add_queue(QueueRow("/", "first"))
    catalog.commit()
    catalog.sync()
    catalog.sync()
    assert calls == 2
    catalog.sync()
    assert calls == 2
    catalog.close()


def test_a_log_cut_anywhere_behind_what_was_synced_keeps_what_was_synced(path: Path, tmp_path: Path) -> None:
    catalog = open_catalog(path, Disk())
    catalog.add_queue(QueueRow("/", "synced"))
    catalog.commit()
    catalog.sync()
    durable_bytes = wal(path).stat().st_size
    for number in range(3):
        catalog.add_queue(QueueRow("/", f"later-{number}"))
        catalog.commit()
    # The files as a power loss may leave them: the database as it is, of the log any part of what was not synced.
    database, log = path.read_bytes(), wal(path).read_bytes()
    assert len(log) > durable_bytes
    seen = set()
    for length in range(durable_bytes, len(log) + 1, 331):
        copy = tmp_path / "copy"
        copy.mkdir()
        (copy / path.name).write_bytes(database)
        (copy / wal(path).name).write_bytes(log[:length])
        found = names(copy / path.name)
        assert found == ["synced", "later-0", "later-1", "later-2"][: len(found)]
        assert found
        seen.add(len(found))
        shutil.rmtree(copy)
    assert seen >= {1, 2, 3}
    catalog.close()


def test_a_failed_sync_is_never_taken_back(path: Path, disk: Disk) -> None:
    catalog = open_catalog(path, disk)
    catalog.add_queue(QueueRow("/", "q"))
    catalog.commit()
    disk.failing = True
    with pytest.raises(StorageFailed, match="the disk is gone"):
        catalog.sync()
    disk.failing = False
    with pytest.raises(StorageFailed, match="the disk is gone"):
        catalog.sync()
    with pytest.raises(StorageFailed, match="the disk is gone"):
        catalog.add_queue(QueueRow("/", "r"))
    catalog.close()


def test_a_large_log_is_copied_into_the_database_by_sync(
    path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millpond.base.limits.CATALOG_WAL_BYTES", 64 * 1024)
    catalog = open_catalog(path, disk)
    log_bytes_max = 0
    for number in range(300):
        catalog.add_vhost(VhostRow(f"v{number}", "x" * 500))
        catalog.commit()
        catalog.sync()
        log_bytes_max = max(log_bytes_max, wal(path).stat().st_size)
    assert log_bytes_max < 128 * 1024
    assert path.stat().st_size > 100 * 1024
    assert len(catalog.load().vhosts) == 300
    catalog.close()


def test_syncs_on_another_thread_and_commits_do_not_disturb_each_other(
    path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millpond.base.limits.CATALOG_WAL_BYTES", 32 * 1024)
    catalog = open_catalog(path, disk)
    stop = threading.Event()
    failures: list[Exception] = []

    def sync_all_the_time() -> None:
        while not stop.is_set():
            try:
                catalog.sync()
            except Exception as error:  # noqa: BLE001  (the test reports it)
                failures.append(error)
                return

    threads = [threading.Thread(target=sync_all_the_time) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(1000):
            catalog.add_queue(QueueRow("/", f"q{number}", arguments={"x": "y" * 100}))
            catalog.commit()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    catalog.sync()
    # A copy of the files as they are now, as a kill would leave them.
    copy = path.parent / "copy"
    copy.mkdir()
    shutil.copy(path, copy)
    shutil.copy(wal(path), copy)
    assert len(names(copy / path.name)) == 1000
    catalog.close()


def test_a_catalog_in_memory_has_nothing_to_sync(disk: Disk) -> None:
    catalog = Catalog(None, sync_file=disk)
    catalog.open()
    catalog.add_queue(QueueRow("/", "q"))
    catalog.commit()
    catalog.sync()
    catalog.close()
    assert disk.synced == []
