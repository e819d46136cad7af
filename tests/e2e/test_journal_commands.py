"""`ghub journal` as an operator uses it when a disk or a volume is lost: each test breaks a thing, and repairs it."""

import json
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from metering.journal.frames import Folder, OldJournal, encode_frame, survey
from tests.conftest import LOOPBACK
from tests.e2e.conftest import Prepared
from tests.e2e.test_answered import CLEAN, CREDIT, UNIT, books, start
from tests.kits.system import FLUX, System, bearer, wait_until

NEVER = "00000000-0000-4000-8000-000000000000"


def ordered(system: System, key: str, count: int) -> None:
    """So many orders, one after the other, each answered 200."""
    for place in range(count):
        body = {"model": FLUX, "prompt": f"picture {place}"}
        reply = httpx2.post(f"{system.url}/images/generations", json=body, headers=bearer(key), timeout=30, **LOOPBACK)
        assert reply.status_code == 200


def forgotten(system: System, key: str, count: int) -> Path:
    """Orders that the journal of a dead gateway alone knows: no consumer lived, and Redis has lost its data."""
    system.stop("consumer", signal.SIGKILL)
    ordered(system, key, count)
    system.stop("gateway", signal.SIGKILL)
    system.valkey.stop()
    for path in system.folder.glob("appendonlydir/*"):
        path.unlink()
    system.valkey.start("--appendonly", "yes")
    system.start("consumer", "consume")
    wait_until(lambda: system.ghub("balance", "answered").returncode == 0, "Redis is projected")
    return system.folder / "journal"


def only(folder: Path) -> OldJournal:
    (past,) = survey(folder).incarnations
    return past


def overwrite(past: OldJournal, number: int, frame: bytes) -> None:
    """Overwrite the frame of this entry, which is alone in it."""
    (entry,) = (one for one in past.entries if one.number == number)
    path = past.files[0].parent / entry.file
    content = path.read_bytes()
    at = content.index(encode_frame(past.incarnation, number, [entry.data]))
    path.write_bytes(content[:at] + frame + content[at + len(frame) :])


def ghub(system: System, *arguments: str, code: int = 0) -> Any:
    """A command's JSON."""
    done = system.ghub(*arguments, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def refused(system: System, *arguments: str) -> str:
    """The one sentence of a command that failed."""
    done: subprocess.CompletedProcess[str] = system.ghub(*arguments)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def audited(system: System) -> list[tuple[str, str]]:
    """Rows of the audit log about journals: action and target."""
    rows = system.back(lambda back: back.ledger.audits(None, 2**53, 100))
    return [(row.action, row.target) for row in reversed(rows) if row.action.startswith("journal.")]


@pytest.mark.rule(15)
def test_the_journal_of_a_pod_that_was_scaled_away_is_replayed_by_its_job(prepared: Prepared) -> None:
    """It crashed with an answered order, and no pod of its name comes back: named, and replayed by the Job's words."""
    system, org_id, key = start(prepared)
    folder = forgotten(system, key, 1)
    found: list[dict[str, str]] = []

    def named() -> bool:
        found[:] = ghub(system, "journal", "orphans")
        return bool(found)

    wait_until(named, "its last beat is over")
    (orphan,) = found
    assert (orphan["pod"], orphan["incarnation"]) == (socket.gethostname(), str(only(folder).incarnation))
    job = json.loads(system.ghub("journal", "job", "gateway-3", "--image", "x").stdout)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    words = [word.replace("/journal", str(folder)) for word in container["args"]]
    assert ghub(system, *words)["charged_now"] == 1
    assert [event.end for event in system.events(org_id, 1)] == ["charge"]
    assert ghub(system, "journal", "orphans") == []
    assert ghub(system, "verify")["ok"]


@pytest.mark.rule(14)
def test_a_damaged_journal_is_salvaged_and_what_is_lost_is_given_up(prepared: Prepared) -> None:
    """The start is refused; two orders of three are saved, the third is named; at last `verify` is clean (rule 14)."""
    system, org_id, key = start(prepared)
    folder = forgotten(system, key, 3)
    past = only(folder)
    journal = str(past.incarnation)
    found = ghub(system, "journal", "inspect", str(folder))
    assert (found["in_use"], found["ledger"]) == (False, "asked")
    (one,) = found["incarnations"]
    assert (one["incarnation"], one["in_ledger"], one["entries"], one["missing"]) == (journal, "open", 3, [])
    assert [(row["org"], row["mxn"], row["in_ledger"]) for row in one["orders"]] == [(org_id, "0.84", "not there")] * 3
    overwrite(past, 2, b"\xff" * 64)
    system.start("gateway", "serve")
    assert system.processes.pop("gateway").wait(timeout=20) == 1
    assert f"`ghub journal salvage {folder}`" in system.log().splitlines()[-1]
    assert "`ghub journal salvage" in refused(system, "journal", "replay", str(folder))
    (one,) = ghub(system, "journal", "inspect", str(folder))["incarnations"]
    assert one["missing"] == [[2, 2]] and len(one["orders"]) == 2 and len(one["damage"]) == 1
    done = ghub(system, "journal", "salvage", str(folder), code=1)
    assert (done["incarnations"], done["orders"], done["charged_now"]) == (1, 2, 2)
    (saved,) = done["damaged"]
    assert (saved["incarnation"], saved["closed"], saved["missing"]) == (journal, False, [[2, 2]])
    assert saved["damage"][0]["from_byte"] < saved["damage"][0]["to_byte"]
    assert {event.end for event in system.events(org_id, 2)} == {"charge"}
    assert sorted(path.name for path in Path(done["moved_to"]).iterdir()) == sorted(path.name for path in past.files)
    again = ghub(system, "journal", "salvage", str(folder))
    assert (again["incarnations"], again["charged_now"]) == (0, 0)
    (row,) = ghub(system, "verify", code=1)["differences"]
    assert journal in row["what"] and "not provable" in row["found"]
    system.start_gateway()
    closed = ghub(system, "journal", "close", journal, "--lost", "--reason", "page 2 of the disk is gone")
    assert closed["closed_now"] and closed["lost_reason"] == "page 2 of the disk is gone"
    assert books(system) == CLEAN
    wait_until(lambda: system.cut(org_id).available_micro_mxn == CREDIT - 2 * UNIT, "the two are charged")
    assert audited(system) == [("journal.salvage", journal), ("journal.close", journal)]


def test_damage_that_hides_nothing_is_salvaged_and_closed(prepared: Prepared) -> None:
    """The page that a file begins with is no order: all numbers are there, so the journal is closed."""
    system, org_id, key = start(prepared)
    folder = forgotten(system, key, 2)
    first = only(folder).files[0]
    content = first.read_bytes()
    first.write_bytes(b"\xff" * 64 + content[64:])
    done = ghub(system, "journal", "salvage", str(folder))
    assert done["charged_now"] == 2 and done["damaged"][0]["closed"] and done["damaged"][0]["missing"] == []
    assert {event.end for event in system.events(org_id, 2)} == {"charge"}
    assert books(system) == CLEAN


@pytest.mark.rule(12)
def test_a_journal_whose_volume_is_lost_is_given_up_by_name(prepared: Prepared) -> None:
    """Not while its gateway lives, and no other; once, with a reason; a second time says that it is so (rule 12)."""
    system, _, key = start(prepared)
    ordered(system, key, 1)
    folder = system.folder / "journal"
    journal = str(only(folder).incarnation)
    give_up = ("journal", "close", journal, "--lost", "--reason", "the volume was deleted")
    wait_until(lambda: "lives" in refused(system, *give_up), "the gateway says that it lives")
    assert "there is no journal" in refused(system, "journal", "close", NEVER, "--lost", "--reason", "x")
    assert "--reason" in refused(system, "journal", "close", journal, "--lost", "--reason", "two\nlines")
    assert system.ghub("journal", "close", journal, "--reason", "x").returncode == 2
    system.stop("gateway", signal.SIGKILL)
    shutil.rmtree(folder)
    system.start_gateway()
    (row,) = ghub(system, "verify", code=1)["differences"]
    assert journal in row["what"] and "not provable" in row["found"]
    wait_until(lambda: system.ghub(*give_up).returncode == 0, "the last sign of life is over")
    assert books(system) == CLEAN
    again = ghub(system, *give_up[:-1], "another reason")
    assert (again["closed_now"], again["lost_reason"]) == (False, "the volume was deleted")
    assert audited(system) == [("journal.close", journal)]


def test_a_wrong_folder_is_refused_and_stays_as_it_is(prepared: Prepared) -> None:
    """For every command that takes one; an empty journal is no wrong folder."""
    system, _, _ = start(prepared)
    wrong = system.folder / "images"
    wrong.mkdir(exist_ok=True)
    for command in ("replay", "salvage", "inspect"):
        assert refused(system, "journal", command, str(wrong)).startswith(f"ghub: there is no journal in {wrong}: ")
    assert not (wrong / "lock").exists()
    Folder(system.folder / "empty").close()
    assert ghub(system, "journal", "replay", str(system.folder / "empty"))["incarnations"] == 0


def test_a_journal_in_use_is_inspected_and_not_touched(prepared: Prepared) -> None:
    """It shows answered and unbooked orders; without a ledger the rest is shown anyway."""
    system, org_id, key = start(prepared)
    system.stop("consumer", signal.SIGKILL)
    ordered(system, key, 2)
    folder = str(system.folder / "journal")
    found = ghub(system, "journal", "inspect", folder)
    assert found["in_use"] and [row["org"] for row in found["incarnations"][0]["orders"]] == [org_id] * 2
    assert "another process uses the journal" in refused(system, "journal", "salvage", folder)
    system.environment["GHUB_LEDGER_URL"] = "sqlite:////proc/none/x.db"
    found = ghub(system, "journal", "inspect", folder)
    assert found["ledger"].startswith("not asked: GHUB_LEDGER_URL") and len(found["incarnations"][0]["orders"]) == 2
    assert {row["in_ledger"] for row in found["incarnations"][0]["orders"]} == {"not asked"}
    shown = system.ghub("journal", "inspect", folder)
    assert shown.returncode == 0 and "0.84" in shown.stdout and "in_use  yes" in shown.stdout


@pytest.mark.rule(13)
def test_a_roll_back_refuses_a_later_journal_in_one_sentence(prepared: Prepared) -> None:
    """It names file, entry and version; the journal stays, and the later version brings it (rule 13)."""
    system, org_id, key = start(prepared)
    folder = forgotten(system, key, 1)
    past = only(folder)
    ours, later = past.entries[0].data, orjson.dumps({"v": 99, "answered": {}})
    overwrite(past, 1, encode_frame(past.incarnation, 1, [later]))
    system.start("gateway", "serve")
    assert system.processes.pop("gateway").wait(timeout=20) == 1
    last = system.log().splitlines()[-1]
    assert last.startswith(f"ghub: entry 1 in {past.files[0].name} was written by another version of ghub (version 99)")
    assert "Traceback" not in system.log()
    for command in ("replay", "salvage"):
        assert "another version of ghub (version 99)" in refused(system, "journal", command, str(folder))
    overwrite(only(folder), 1, encode_frame(past.incarnation, 1, [ours]))
    system.start_gateway()
    assert {event.end for event in system.events(org_id, 1)} == {"charge"}
    wait_until(lambda: "journal_replayed" in system.log(), "the journal is replayed")
    assert books(system) == CLEAN
