"""Sinks as an operator has them: a file, a consumer, commands."""

import json
import signal

import httpx2
import pytest

from tests.conftest import LOOPBACK
from tests.e2e.conftest import Prepared
from tests.integration.conftest import Receivers
from tests.integration.conftest import receivers as receivers
from tests.kits.ports import free_port
from tests.kits.sinks import TOKEN, once, table
from tests.kits.system import FLUX, bearer, wait_until


def test_an_order_is_at_the_sink_and_in_its_lag(prepared: Prepared, receivers: Receivers) -> None:
    """From the request to the receiver; metrics and `ghub sink list` say so, and no log has the token."""
    system = prepared()
    receiver = receivers("lago")
    file = system.folder / "sinks.toml"
    file.write_text(table("lago", receiver.url))
    port = free_port()
    system.start_all()
    system.stop("consumer")
    system.start("consumer", "consume", GHUB_METRICS_PORT=str(port), GHUB_SINKS=str(file), RECEIVER_TOKEN=TOKEN)
    org_id, key = system.customer("acme", "50.00")
    order = {"model": FLUX, "prompt": "a secret wish", "user": "ana@example.mx"}
    reply = httpx2.post(f"{system.url}/images/generations", headers=bearer(key), json=order, **LOOPBACK, timeout=60)
    order_id = reply.json()["id"]
    wait_until(lambda: (receiver.folder / "taken").read_text().count("\n") >= 1, "the sink has it")
    system.events(org_id, 1)
    assert system.ghub("order", "refund", order_id, "--reason", "too dark", "--mxn", "0.10").returncode == 0
    wait_until(lambda: (receiver.folder / "taken").read_text().count("\n") >= 2, "the sink has the refund")
    charge, refund = once([json.loads(line) for line in (receiver.folder / "taken").read_text().splitlines()]).values()
    assert (charge["amount_mxn"], refund["amount_mxn"]) == ("0.84", "-0.10")
    assert charge["whole"]["precise_total_amount_cents"] == "84.00"
    assert charge["whole"]["external_subscription_id"] == org_id
    assert not any(word in str((charge, refund)) for word in ("secret wish", "ana@", "too dark", "http"))
    wait_until(
        lambda: 'ghub_sink_pending{sink="lago"} 0.0' in httpx2.get(f"http://127.0.0.1:{port}/metrics", **LOOPBACK).text,
        "the lag is told",
    )
    done = system.ghub("sink", "list", "--json")
    (row,) = json.loads(done.stdout)
    assert (row["name"], row["profile"]) == ("lago", "lago")
    assert (row["pending"], row["set_aside"], row["oldest_age_s"]) == (0, 0, None)
    assert row["last_success"] is not None and "transaction_id" in row["repeats"]
    today = charge["whole"]["properties"]["day"]
    done = system.ghub("sink", "replay", "lago", "--from", today, "--to", today, "--as", "ana", "--json")
    assert json.loads(done.stdout) == {"name": "lago", "from": today, "to": today, "items": 2}
    done = system.ghub("audit", "--json", "--limit", "1")
    assert '"action":"sink.replay"' in done.stdout and '"cli:ana"' in done.stdout
    assert system.stop("consumer", signal.SIGTERM) == 0
    assert TOKEN not in system.log("consumer") + system.log()


@pytest.mark.parametrize(
    ("text", "token", "says"),
    [
        ('[[sinks]]\nname = "x"\nprofile = "kafka"\n', "", "sinks.0: Input tag 'kafka' found using 'profile'"),
        ('[[sinks]]\nname = "x"\nprofile = "lago"\n', "", "sinks.0.lago.code: Field required"),
        ('[[sinks]]\nname = "x"\nprofile = "lago"\ncode = "c"\nbatch = 101\n', "", "sinks.0.lago.batch: "),
        (
            '[[sinks]]\nname = "x"\nprofile = "lago"\ncode = "c"\nsubscription = "all"\n',
            "",
            "subscription: Value",
        ),
        ('[[sinks]]\nname = "x"\nprofile = "lago"\ncode = "c"\n', "", "x: token_env: is needed"),
        (table("lago", "http://127.0.0.1:9"), "", "lago: token_env: RECEIVER_TOKEN is not set"),
        (
            table("lago", "http://127.0.0.1:9"),
            "s3cret\nx",
            "lago: token_env: RECEIVER_TOKEN is not set, or is no token",
        ),
        (table("lago", "http://127.0.0.1:9") * 2, "s3cret", "two sinks have the name 'lago'"),
        ('[[sinks]]\nname = "x"\nprofile = "cloudevents"\nurl = "ftp://x"\n', "", "sinks.0.cloudevents.url: "),
        ("[[sinks]\n", "", "is not TOML"),
    ],
)
def test_a_wrong_file_ends_the_start_with_a_sentence(prepared: Prepared, text: str, token: str, says: str) -> None:
    """It names the variable, the file and the field, and not the token."""
    system = prepared()
    system.valkey.start()
    file = system.folder / "sinks.toml"
    file.write_text(text)
    system.start("consumer", "consume", GHUB_SINKS=str(file), RECEIVER_TOKEN=token)
    assert system.processes.pop("consumer").wait(timeout=20) == 1
    (line,) = system.log("consumer").splitlines()
    assert line.startswith("ghub: GHUB_SINKS: ") and says in line and "s3cret" not in line
