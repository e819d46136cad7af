"""`ghub storage sweep`: only what is proven to be nobody's goes, and only when it is told to (rule 32)."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import jwt
import pytest

from tests.conftest import LOOPBACK
from tests.e2e.conftest import Prepared
from tests.e2e.test_store_outage import storing_in
from tests.kits.system import FLUX, System, bearer, wait_until
from tests.stores.running import BUCKET, SECRET, SupabaseProcess

DAY_S = 24 * 3600
KINDS = {
    "charged": "a charged image",
    "young": "younger than the sweep age",
    "foreign": "not a path of ours",
    "unproven": "its order may still reach the ledger",
    "void": "its order ended without a charge",
    "extra": "its order was charged without it",
    "lost": "no order of the books knows it",
    "probe": "a leftover of the gateway's probe",
}


def order(system: System, key: str) -> httpx2.Response:
    body = {"model": FLUX, "prompt": "x"}
    return httpx2.post(f"{system.url}/images/generations", json=body, headers=bearer(key), **LOOPBACK, timeout=60)


def place(system: System, path: str, age_s: float) -> Path:
    """A file in the store, so old."""
    file = system.folder / "images" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x" * 100)
    age(file, age_s)
    return file


def age(file: Path, age_s: float) -> None:
    os.utime(file, (time.time() - age_s, time.time() - age_s))


def sweep(system: System, *arguments: str) -> dict[str, Any]:
    done = system.ghub("storage", "sweep", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def counts(report: dict[str, Any]) -> dict[str, int]:
    by_text = {text: kind for kind, text in KINDS.items()}
    return {by_text[row["what"]]: row["objects"] for row in report["findings"] if row["objects"]}


@pytest.mark.rule(32)
def test_a_sweep_deletes_what_is_proven_to_be_nobodys_and_nothing_else(prepared: Prepared) -> None:
    """Old images of voids, of charged orders that did not deliver them, of no order at all; a dry run deletes none."""
    system = prepared()
    system.start_all()
    org_id, key = system.customer("sweep", "50.00")
    charged = order(system, key).json()
    system.behave(FLUX, "content_policy_422")
    void = order(system, key).headers["x-request-id"]
    system.events(org_id, 2)
    (delivered,) = [system.folder / "images" / path for path in system.images()]
    age(delivered, 10 * DAY_S)
    charged_id, void_id = delivered.parent.name, uuid_of(void)
    old = {
        "void": place(system, f"{org_id}/{void_id}/0.png", 2 * DAY_S),
        "extra": place(system, f"{org_id}/{charged_id}/1.png", 2 * DAY_S),
        "lost": place(system, f"{org_id}/{uuid4()}/0.jpg", 2 * DAY_S),
        "probe": place(system, f"_probe/{uuid4()}.png", 2 * DAY_S),
    }
    kept = {
        "young": place(system, f"{org_id}/{uuid4()}/0.png", 0.5 * DAY_S),
        "young probe": place(system, f"_probe/{uuid4()}.png", 0.5 * DAY_S),
        "foreign": place(system, "notes/readme.txt", 9 * DAY_S),
        "upper": place(system, f"{org_id.upper()}/{uuid4()}/0.png", 9 * DAY_S),
        "unproven": place(system, f"{uuid4()}/{uuid4()}/0.png", 9 * DAY_S),
        "charged": delivered,
    }
    dry = sweep(system)
    expected = {"charged": 1, "young": 2, "foreign": 2, "unproven": 1, "void": 1, "extra": 1, "lost": 1, "probe": 1}
    assert (counts(dry), dry["orphans"], dry["deleted"]) == (expected, 4, False)
    assert all(path.exists() for path in [*old.values(), *kept.values()])
    swept = sweep(system, "--delete")
    assert (counts(swept), swept["orphans"], swept["deleted"]) == (expected, 4, True)
    assert {row["path"] for row in swept["paths"]} == {
        str(path.relative_to(system.folder / "images")) for path in old.values()
    }
    assert not any(path.exists() for path in old.values()) and all(path.exists() for path in kept.values())
    assert counts(sweep(system, "--delete")) == {"charged": 1, "young": 2, "foreign": 2, "unproven": 1}
    assert httpx2.get(charged["data"][0]["url"], **LOOPBACK).status_code == 200
    assert json.loads(system.ghub("verify", "--json").stdout) == {"ok": True, "differences": []}


@pytest.mark.rule(32)
def test_what_may_still_be_charged_stays_and_it_says_why(prepared: Prepared) -> None:
    """With events that are not booked, and with Redis away; a younger age than fifteen minutes is refused."""
    system = prepared()
    system.start_all()
    org_id, key = system.customer("unproven", "50.00")
    assert order(system, key).status_code == 200
    system.events(org_id, 1)
    lost = place(system, f"{org_id}/{uuid4()}/0.png", 2 * DAY_S)
    system.stop("consumer", signal.SIGKILL)
    assert order(system, key).status_code == 200
    behind = sweep(system, "--delete")
    assert behind["refused"] == [{"why": "1 of its events are not booked yet", "objects": 1}] and lost.exists()
    system.valkey.stop()
    away = sweep(system, "--delete")
    assert away["refused"] == [{"why": "1 journals of gateways are not replayed", "objects": 1}] and lost.exists()
    system.valkey.start("--appendonly", "yes", "--appendfsync", "everysec")
    system.start("consumer", "consume")
    wait_until(lambda: not sweep(system, "--delete")["refused"], "everything is booked again")
    assert not lost.exists()
    refused: subprocess.CompletedProcess[str] = system.ghub("storage", "sweep", "--older-than", "0.1")
    assert refused.returncode == 2 and "older-than" in refused.stderr


NOTHING_TO_SEE = {
    "missing bucket": ({"GHUB_STORAGE_URL": "nope"}, "GHUB_STORAGE_URL: there is no bucket 'nope'"),
    "anonymous key": ({"GHUB_STORAGE_KEY": "anon"}, ".*GHUB_STORAGE_KEY is not one of a service role"),
    "wrong key": ({"GHUB_STORAGE_KEY": "sb_secret_wrong"}, "GHUB_STORAGE_KEY: the store does not accept it"),
}


@pytest.mark.parametrize("case", NOTHING_TO_SEE)
def test_a_store_that_shows_nothing_is_an_error_and_not_clean(
    prepared: Prepared, supabase: SupabaseProcess, case: str
) -> None:
    """A bucket that is not there, or not to be seen with that key, is listed as empty."""
    changed, sentence = NOTHING_TO_SEE[case]
    settings = storing_in(supabase)
    if bucket := changed.get("GHUB_STORAGE_URL"):
        settings["GHUB_STORAGE_URL"] = settings["GHUB_STORAGE_URL"].replace(BUCKET, bucket)
    if key := changed.get("GHUB_STORAGE_KEY"):
        settings["GHUB_STORAGE_KEY"] = jwt.encode({"role": "anon"}, SECRET, "HS256") if key == "anon" else key
    system = prepared(**settings)
    system.valkey.start()
    done = system.ghub("storage", "sweep", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.match(f"ghub: {sentence}", done.stderr), done.stderr


def test_a_sweep_of_sixty_thousand_objects_takes_seconds(prepared: Prepared, supabase: SupabaseProcess) -> None:
    """They belong to a thousand organisations that no book knows, in pages of a thousand."""
    system = prepared(**storing_in(supabase))
    system.valkey.start()
    supabase.behave(listed=60_000)
    began_s = time.monotonic()
    assert counts(sweep(system)) == {"unproven": 60_000}
    assert time.monotonic() - began_s < 40


def test_a_store_that_is_away_is_a_sentence_that_says_how(prepared: Prepared, supabase: SupabaseProcess) -> None:
    """Which host, which request, and what went wrong."""
    system = prepared(**storing_in(supabase))
    system.valkey.start()
    supabase.kill()
    done = system.ghub("storage", "sweep")
    words = rf"ghub: the store for images does not answer: check GHUB_STORAGE_URL \(.*at GET {supabase.url}/bucket/"
    assert done.returncode == 1 and re.match(words, done.stderr), done.stderr


@pytest.fixture
def supabase(tmp_path: Path) -> Iterator[SupabaseProcess]:
    one = SupabaseProcess(tmp_path)
    one.start()
    yield one
    one.kill()


def uuid_of(public_id: str) -> str:
    digits = public_id.removeprefix("req_")
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
