"""`ghub smoke`: what an operator runs after an installation, and after a roll-out."""

import json

import pytest

from tests.e2e.conftest import Prepared
from tests.kits.ports import free_port
from tests.kits.processes import finished
from tests.kits.system import GPT, System

NO_KEY = "ghub: OPENAI_API_KEY is not set; `ghub key create ORG --name smoke --test` prints one\n"
LIVE = "ghub: OPENAI_API_KEY: is no test key, and orders of any other are charged; create it with --test\n"


@pytest.fixture(scope="module")
def trial(system: System) -> str:
    """A test key of an organisation with money."""
    return trial_of(system)


def trial_of(system: System) -> str:
    org_id, _ = system.customer("smoked", "50.00")
    key = system.back(lambda back: back.accounts.create_key(org_id, "smoke", test=True)).secret
    system.keys.append(key)
    return key


def smoke(system: System, key: str, *arguments: str, url: str | None = None) -> tuple[int, str, str]:
    """Run it as its Job does: with the two names that OpenAI's clients read, and none of our settings."""
    environment = {"PATH": "/usr/bin:/bin", "OPENAI_BASE_URL": url or system.url, "OPENAI_API_KEY": key}
    done = finished(system.begin, ["smoke", *arguments], environment, within_s=60)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_one_order_comes_back_whole_and_costs_nothing(system: System, trial: str) -> None:
    """By the model that is offered first, or by one that is named; no upstream is asked."""
    before = system.jobs()
    code, said, wrong = smoke(system, trial, "--json")
    told = json.loads(said)
    assert (code, wrong) == (0, "")
    assert told["ok"] is True and told["image"] == "image/png" and told["id"].startswith("req_") and told["bytes"] > 500
    code, said, _ = smoke(system, trial, "--json", "--model", GPT)
    assert (code, json.loads(said)["model"]) == (0, GPT)
    assert system.jobs() == before
    assert json.loads(system.ghub("balance", "smoked", "--json").stdout)["available_mxn"] == "50.00"


def test_it_refuses_any_key_that_would_be_charged(system: System, trial: str) -> None:
    """Before it asks anybody."""
    _, live = system.customer("smoked and charged", "50.00")
    nowhere = f"http://127.0.0.1:{free_port()}/v1"
    assert smoke(system, live, url=nowhere) == (1, "", LIVE)
    assert smoke(system, "", url=nowhere) == (1, "", NO_KEY)
    assert smoke(system, trial, url="gateway:8080")[0] == 2


def test_what_is_wrong_is_one_sentence(system: System, trial: str) -> None:
    """A key that nobody knows, a model that is not offered, another page, and nobody at all."""
    unknown = "ghub_sk_test_" + "a" * 32
    assert smoke(system, unknown)[2].startswith(f"ghub: {system.url}: GET /models: 401 invalid_api_key: ")
    assert "POST /images/generations: 404 model_not_found: " in smoke(system, trial, "--model", "x/y")[2]
    elsewhere = system.url.removesuffix("/v1")
    assert smoke(system, trial, url=elsewhere)[2].startswith(f"ghub: {elsewhere}: GET /models: 404 ")
    nowhere = f"http://127.0.0.1:{free_port()}/v1"
    code, _, wrong = smoke(system, trial, "--within", "0m", url=nowhere)
    assert (code, wrong) == (1, f"ghub: {nowhere}: no answer (ConnectError)\n")


def test_it_waits_for_a_gateway_that_is_not_there_yet(prepared: Prepared) -> None:
    """As its Job does after an installation."""
    system = prepared()
    system.start_all()
    trial = trial_of(system)
    assert system.stop("gateway") == 0
    system.start("smoke", "smoke", "--json", OPENAI_BASE_URL=system.url, OPENAI_API_KEY=trial)
    system.start_gateway()
    process = system.processes.pop("smoke")
    assert process.wait(timeout=60) == 0, system.log("smoke")
    assert json.loads(system.log("smoke"))["ok"] is True
