"""The journal: synced before it is acknowledged, read back whole, torn only in unacknowledged entries (rules 12–15)."""

import asyncio
import errno
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from metering.journal.file import SYNC_S, Journal, JournalFailed, JournalFull, Keep
from metering.journal.frames import PAGE_BYTES, Entry, Folder, JournalError, OldJournal
from tests.conftest import run

SEGMENT = 64 * 1024


def past_of(path: Path) -> list[OldJournal]:
    folder = Folder(path)
    try:
        return folder.past()
    finally:
        folder.close()


def told(entries: Sequence[Entry]) -> list[tuple[int, bytes]]:
    """Numbers and bytes."""
    return [(entry.number, entry.data) for entry in entries]


def only(path: Path) -> OldJournal:
    (past,) = past_of(path)
    return past


async def written(path: Path, count: int, *, at_once: bool = True) -> Journal:
    """A journal with so many entries, whose process is gone."""
    folder = Folder(path)
    journal = Journal(folder, SEGMENT)
    if at_once:
        await asyncio.gather(*(journal.append(data(number)) for number in range(1, count + 1)))
    else:
        for number in range(1, count + 1):
            assert await journal.append(data(number)) == number
    await dead(journal, folder)
    return journal


async def dead(journal: Journal, folder: Folder) -> None:
    """End the process without deleting anything; its claim ends."""
    if journal._allocating is not None:
        await asyncio.wait({journal._allocating})
    for segment in (*journal._segments, *journal._spares):
        segment.file.close()
    journal._disk.shutdown()
    folder.close()


class Disk:
    """Faults of the disk: the next `fails` syncs fail, and what they were to sync may be dropped; or it is `full`, or
    has room in what is allocated alone (`no_files`)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails = 0
        self.full = self.no_files = False
        self.max_files = 1_000_000
        self._lost: list[tuple[int, int, int, int]] = []
        self._writes: dict[int, list[tuple[int, int]]] = {}
        self._sync, self._write, self._allocate = os.fdatasync, os.pwrite, os.posix_fallocate
        monkeypatch.setattr(os, "fdatasync", self._fdatasync)
        monkeypatch.setattr(os, "pwrite", self._pwrite)
        monkeypatch.setattr(os, "posix_fallocate", self._fallocate)

    def drop(self) -> None:
        """Write zeros, as after a failed sync."""
        for inode, at, length, descriptor in self._lost:
            if os.fstat(descriptor).st_ino == inode:
                self._write(descriptor, bytes(length), at)

    def _fdatasync(self, descriptor: int) -> None:
        writes = self._writes.pop(descriptor, [])
        if self.fails:
            self.fails -= 1
            inode = os.fstat(descriptor).st_ino
            kept = os.dup(descriptor)
            self._lost += [(inode, at, length, kept) for at, length in writes]
            raise OSError(errno.EIO, "Input/output error")
        self._sync(descriptor)

    def _pwrite(self, descriptor: int, data: bytes, at: int) -> int:
        if self.full and len(data) <= PAGE_BYTES // 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._write(descriptor, data[: len(data) // 3 if self.full else None], at)
        self._writes.setdefault(descriptor, []).append((at, written))
        return written

    def _fallocate(self, descriptor: int, at: int, length: int) -> None:
        folder = Path(f"/proc/self/fd/{descriptor}").readlink().parent
        if self.full or self.no_files or len(journals(folder)) > self.max_files:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._allocate(descriptor, at, length)


def data(number: int) -> bytes:
    return b"entry %d " % number + b"." * (number % 700)


async def kept_by(journal: Journal) -> list[bytes]:
    """The oldest first."""
    files = [entries async for entries in journal.kept()]
    return [entry for entries in reversed(files) for entry in entries]


def journals(path: Path) -> list[Path]:
    return sorted(path.glob("*.journal"))


@pytest.mark.parametrize("count", [0, 1, 7, 1_000])
@pytest.mark.parametrize("at_once", [True, False])
async def test_what_was_acknowledged_is_read_back(tmp_path: Path, count: int, at_once: bool) -> None:
    """In order, over as many files as it took, with the numbers that were told."""
    journal = await written(tmp_path, count, at_once=at_once)
    past = only(tmp_path)
    assert past.incarnation == journal.incarnation and past.last_number == count == journal.last_number
    assert told(past.entries) == [(number, data(number)) for number in range(1, count + 1)]


async def test_all_who_wait_share_a_sync(tmp_path: Path) -> None:
    """A thousand at once cost a handful of syncs; one after the other, one each."""

    def syncs() -> float:
        return sum(sample.value for sample in next(iter(SYNC_S.collect())).samples if sample.name.endswith("_count"))

    before = syncs()
    await written(tmp_path / "a", 1_000)
    assert syncs() - before < 40  # files of 64 KiB take frames of a quarter of that
    before = syncs()
    await written(tmp_path / "b", 20, at_once=False)
    assert syncs() - before == 21  # one for the first file's beginning


async def test_files_are_deleted_from_the_oldest_on(tmp_path: Path) -> None:
    """Only if nothing in them is needed, so a gap is always damage."""
    folder = Folder(tmp_path)
    journal = Journal(folder, SEGMENT)
    for number in range(1, 1_001):
        await journal.append(data(number))
    files = len(journals(tmp_path))
    assert files > 10
    for number in range(500, 1_001):
        journal.release(number)
    assert len(journals(tmp_path)) == files
    for number in range(1, 500):
        journal.release(number)
    assert len(journals(tmp_path)) == 2  # the one in use, and the spare one
    assert await journal.append(b"last") == 1_001
    journal.release(1_001)
    await journal.close()
    folder.close()
    assert journals(tmp_path) == []


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """With a sentence that names the folder; when the first is gone, however it went, the next may."""
    script = (
        "import time; from pathlib import Path; from metering.journal.frames import Folder;"
        f"folder = Folder(Path({str(tmp_path)!r})); print('ok', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ok\n"
        with pytest.raises(JournalError, match=r"another process uses the journal in .*each gateway needs its own"):
            Folder(tmp_path)
        process.kill()
        process.wait()
    Folder(tmp_path).close()


WRITER = """
import asyncio, sys
from pathlib import Path
from metering.journal.frames import Folder
from metering.journal.file import Journal

async def main():
    journal = Journal(Folder(Path(sys.argv[1])), 65536)
    async def one(name):
        for at in range(10**6):
            text = f"{name}:{at}".encode()
            number = await journal.append(text)
            sys.stdout.write(f"{number} {name}:{at}\\n")
            sys.stdout.flush()
    await asyncio.gather(*(one(name) for name in "abcdefgh"))

asyncio.run(main())
"""


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """Five writers killed in the middle of their work: every entry that they told is there under its number."""
    for turn in range(5):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            told = [process.stdout.readline() for _ in range(300 + turn * 50)]
            process.send_signal(signal.SIGKILL)
            told += process.stdout.readlines()
        if not told[-1].endswith(b"\n"):
            told.pop()
        acknowledged = {int(line.split()[0]): line.split()[1] for line in told}
        newest = max(past_of(tmp_path), key=lambda past: past.files[0].stat().st_mtime_ns)
        found = {entry.number: entry.data for entry in newest.entries}
        assert acknowledged.items() <= found.items()
        assert [entry.number for entry in newest.entries] == list(range(1, newest.last_number + 1))
    assert len(past_of(tmp_path)) == 5


@pytest.mark.rule(14)
async def test_the_last_record_may_be_torn(tmp_path: Path) -> None:
    """Wherever it was cut: what came before is read, and what was torn was never acknowledged (rule 14)."""
    await written(tmp_path, 5, at_once=False)
    (file, _) = journals(tmp_path)
    whole = file.read_bytes()
    for cut in [*range(5 * PAGE_BYTES, 6 * PAGE_BYTES, 97), 5 * PAGE_BYTES + 3]:
        file.write_bytes(whole[:cut] + bytes(len(whole) - cut))
        entries = told(only(tmp_path).entries)
        assert entries[:4] == [(number, data(number)) for number in range(1, 5)]
        assert entries[4:] in ([], [(5, data(5))])
        file.write_bytes(whole[:cut])
        assert told(only(tmp_path).entries)[:4] == entries[:4]


@pytest.mark.rule(14)
async def test_damage_elsewhere_stops_the_start(tmp_path: Path) -> None:
    """A flipped bit in any earlier frame, a frame of zeros, a file that is gone: never a silent loss (rule 14)."""
    await written(tmp_path, 60, at_once=False)
    chance = random.Random(7)
    files = journals(tmp_path)
    assert len(files) >= 4
    for _ in range(60):
        file = chance.choice(files[:-2])
        whole = file.read_bytes()
        page = chance.randrange(len(whole) // PAGE_BYTES)
        length = int.from_bytes(whole[page * PAGE_BYTES + 8 : page * PAGE_BYTES + 12], "little")
        at = page * PAGE_BYTES + chance.randrange(40 + length)
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :])
        with pytest.raises(JournalError, match="damaged"):
            only(tmp_path)
        file.write_bytes(whole[: page * PAGE_BYTES] + bytes(PAGE_BYTES) + whole[(page + 1) * PAGE_BYTES :])
        with pytest.raises(JournalError, match="damaged"):
            only(tmp_path)
        file.write_bytes(whole)
    assert only(tmp_path).last_number == 60
    moved = files[1].rename(tmp_path / "elsewhere")
    with pytest.raises(JournalError, match=r"damaged: entries after \d+ are missing"):
        only(tmp_path)
    moved.rename(files[1])
    (tmp_path / "notes.journal").write_text("x")
    with pytest.raises(JournalError, match="no file of a journal"):
        past_of(tmp_path)


async def test_after_a_failed_sync_nothing_more_is_acknowledged_from_that_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entries are refused and never read back; the next go into a new file, under the same numbers."""
    sync = os.fdatasync
    failing: list[int] = []

    def fails_once(descriptor: int) -> None:
        sync(descriptor)  # it may well be on the disk
        if failing:
            failing.pop()
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fails_once)
    folder = Folder(tmp_path)
    journal = Journal(folder, SEGMENT)
    assert await journal.append(b"first") == 1
    failing.append(1)
    for result in await asyncio.gather(*(journal.append(b"lost") for _ in range(3)), return_exceptions=True):
        assert isinstance(result, JournalFailed)
    assert await journal.append(b"second") == 2
    failing.append(1)
    with pytest.raises(JournalFailed):
        await journal.append(b"lost too")
    await dead(journal, folder)
    assert [entry.data for entry in only(tmp_path).entries] == [b"first", b"second"]


@pytest.mark.rule(14)
async def test_two_failed_syncs_in_a_row_and_a_lost_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file whose write or sync failed is ever written again: what is acknowledged then is there (rule 14)."""
    disk = Disk(monkeypatch)
    folder = Folder(tmp_path)
    journal = Journal(folder, SEGMENT)
    assert await journal.append(b"first") == 1
    for _ in range(2):
        disk.fails = 2  # the commit's, and that of the look at a fresh file after it
        with pytest.raises(JournalFailed):
            await journal.append(b"lost")
        assert journal.failed
    assert await journal.append(b"second") == 2 and not journal.failed
    disk.drop()  # pages whose sync failed are gone, as the kernel may have it
    await dead(journal, folder)
    assert [entry.data for entry in only(tmp_path).entries] == [b"first", b"second"]


@pytest.mark.rule(14)
async def test_a_write_that_is_cut_short_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, no spare file, half a frame written: what is acknowledged afterwards is read back (rule 14)."""
    disk = Disk(monkeypatch)
    folder = Folder(tmp_path)
    journal = Journal(folder, SEGMENT)
    assert await journal.append(b"first") == 1
    disk.full = True
    for _ in range(3):
        with pytest.raises(JournalFailed):
            await journal.append(b"lost")
    for full in (True, False):  # there is no room still, and then there is
        disk.full = full
        await journal.probe()
        assert journal.failed is full
    assert [await journal.append(b"second"), await journal.append(b"third")] == [2, 3]
    await dead(journal, folder)
    assert [entry.data for entry in only(tmp_path).entries] == [b"first", b"second", b"third"]


@pytest.mark.rule(14)
@pytest.mark.parametrize("loses", ["first file", "middle file"])
def test_a_file_of_zeros_is_a_spare_one_only_at_the_end(tmp_path: Path, loses: str) -> None:
    """A file that was in use begins with a frame: without it, its entries would be missed in silence (rule 14)."""
    run(written(tmp_path, 60 if loses == "middle file" else 3, at_once=False))
    file = journals(tmp_path)[1 if loses == "middle file" else 0]
    file.write_bytes(bytes(SEGMENT))
    with pytest.raises(JournalError, match="damaged"):
        only(tmp_path)


@pytest.mark.rule(14)
async def test_files_are_allocated_as_orders_open(tmp_path: Path) -> None:
    """Room that is set aside is there; when the orders are over, spare files go again (rule 14)."""
    folder = Folder(tmp_path)
    journal = Journal(folder, SEGMENT)
    await asyncio.gather(*(journal.reserve(8_000) for _ in range(100)))
    assert journal.room_bytes >= 800_000 and len(journals(tmp_path)) >= 800_000 / SEGMENT
    await asyncio.gather(*(journal.append(bytes([65]) * 7_000) for _ in range(100)))
    for _ in range(100):
        journal.give_back(8_000)
    for number in range(1, 101):
        journal.release(number)
    assert len(journals(tmp_path)) <= 3
    await journal.close()
    folder.close()


@pytest.mark.rule(14)
async def test_a_full_disk_gives_up_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than an order: what nobody needs goes first, the oldest before the others (rule 14)."""
    disk = Disk(monkeypatch)
    folder = Folder(tmp_path)
    journal = Journal(folder, SEGMENT, Keep(3600, 100 * SEGMENT))
    for number in range(1, 201):
        journal.release(await journal.append(data(number)))
    kept = len(journals(tmp_path))
    disk.max_files = kept
    await journal.reserve(3 * SEGMENT)
    assert len(journals(tmp_path)) <= kept
    await dead(journal, folder)


@pytest.mark.rule(14)
@pytest.mark.parametrize("keep", [Keep(), Keep(3600, 100 * SEGMENT)], ids=["nothing is kept", "kept"])
async def test_a_full_disk_leaves_the_last_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: Keep) -> None:
    """Nobody else says that this journal ever was: without a file its end would be told by nobody (rule 14)."""
    disk = Disk(monkeypatch)
    folder = Folder(tmp_path)
    journal = Journal(folder, SEGMENT, keep)
    journal.release(await journal.append(b"first"))
    disk.full = True
    for _ in range(3):
        with pytest.raises(JournalFailed):
            await journal.append(b"lost")
        with pytest.raises(JournalFull):
            await journal.reserve(2 * SEGMENT)
        journal.tidy()
    await dead(journal, folder)
    assert only(tmp_path).incarnation == journal.incarnation
    assert only(tmp_path).why_not_whole is None


@pytest.mark.rule(14)
async def test_without_room_an_order_is_refused_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full: who has room set aside writes, who has none is told before anything is bought (rule 14)."""
    disk = Disk(monkeypatch)
    folder = Folder(tmp_path)
    journal = Journal(folder, SEGMENT)
    await journal.reserve(20_000)
    disk.no_files = True
    with pytest.raises(JournalFull):
        await journal.reserve(200_000)
    assert await journal.append(b"who had room") == 1
    disk.no_files = False
    await journal.reserve(200_000)
    await dead(journal, folder)


def test_without_any_room_there_is_no_journal(tmp_path: Path) -> None:
    """The start ends with the system's own word."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    folder = Folder(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SEGMENT // 2, hard))
    try:
        with pytest.raises(OSError, match="large"):
            Journal(folder, SEGMENT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        folder.close()


async def test_an_entry_is_read_back_from_its_file(tmp_path: Path) -> None:
    """Nobody has to keep what the disk has."""
    folder = Folder(tmp_path)
    journal = Journal(folder, SEGMENT)
    await asyncio.gather(*(journal.append(data(number)) for number in range(1, 301)))
    for number in (1, 2, 150, 299, 300):
        assert await journal.read(number) == data(number)
    await dead(journal, folder)


@pytest.mark.rule(30)
async def test_what_is_released_is_kept_for_a_while(tmp_path: Path) -> None:
    """Within an age and a space; a restored ledger is fed from it (rule 30)."""
    folder = Folder(tmp_path)
    journal = Journal(folder, SEGMENT, Keep(age_s=3600, max_bytes=4 * SEGMENT))
    for number in range(1, 201):
        await journal.append(data(number))
        if number != 150:
            journal.release(number)
    kept = await kept_by(journal)
    assert len(kept) > 50 and kept == [data(number) for number in range(201 - len(kept), 201)]
    journal.release(150)
    for number in range(201, 301):
        journal.release(await journal.append(data(number)))
    kept = await kept_by(journal)
    assert 50 < len(kept) < 150 and kept == [data(number) for number in range(301 - len(kept), 301)]
    await journal.close()
    folder.close()
    assert [entry.data for entry in only(tmp_path).entries] == kept


@pytest.mark.rule(30)
async def test_an_entry_that_alone_keeps_its_file_is_named(tmp_path: Path) -> None:
    """Written again, it frees the file and all behind it (rule 30)."""
    folder = Folder(tmp_path)
    journal = Journal(folder, SEGMENT)
    for number in range(1, 201):
        await journal.append(data(number))
        if number != 2:
            journal.release(number)
    files = len(journals(tmp_path))
    assert files > 10 and journal.stuck == [2]
    again = await journal.append(await journal.read(2))
    journal.release(2)
    assert len(journals(tmp_path)) <= 3 and journal.stuck == []
    assert await journal.read(again) == data(2)
    await dead(journal, folder)


async def test_whoever_stops_waiting_stops_nobody_else(tmp_path: Path) -> None:
    """Cancelled callers among others: the others are acknowledged, and numbers have no gap."""
    folder = Folder(tmp_path)
    journal = Journal(folder, SEGMENT)
    tasks = [asyncio.create_task(journal.append(data(number))) for number in range(200)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    numbers = [result for result in results if isinstance(result, int)]
    assert len(numbers) == 133 and len(set(numbers)) == 133
    await dead(journal, folder)
    assert [entry.number for entry in only(tmp_path).entries] == list(range(1, 201))
