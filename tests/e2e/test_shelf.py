"""A model that has ended, mapped on to its successor by the line of docs/models.md, over the whole system."""

import json
import re
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from config.catalogue import read_catalogue
from tests.conftest import LOOPBACK
from tests.kits.system import System, assert_no_key, bearer, prepare

ROOT = Path(__file__).parents[2]
SHIPPED = read_catalogue(None).models

BLOCK = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").partition("### Mapped on to its successor")[2]
LINES = dict(re.findall(r'(?m)^\[models\."(.+)"\]\n(served_by = .+)$', BLOCK.split("```")[1]))
"""By the model."""


@pytest.fixture(scope="module")
def mapped() -> Iterator[System]:
    """The shipped catalogue with each documented line in its table; at the end the books are right."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        system = prepare(Path(folder))
        text = (ROOT / "config" / "models.toml").read_text(encoding="utf-8")
        for model, line in LINES.items():
            text = text.replace(f'[models."{model}"]\n', f'[models."{model}"]\n{line}\n')
        path = system.folder / "models.toml"
        path.write_text(text, encoding="utf-8")
        system.environment["GHUB_MODELS"] = str(path)
        system.start_all()
        yield system
        checked = system.ghub("verify", "--json")
        assert json.loads(checked.stdout) == {"ok": True, "differences": []}, checked.stdout
        system.stop_all()
        assert_no_key(system.keys, system.folder)


@pytest.mark.parametrize("model", sorted(LINES))
def test_the_documented_line_maps_a_model_on_to_its_successor(mapped: System, model: str) -> None:
    """The id stays, for a key that may use it alone, too; images, price, sizes and report are the successor's."""
    other = SHIPPED[model].successor
    assert other is not None
    served = SHIPPED[other]
    org_id, key = mapped.customer(f"mapped {model.replace('/', '.')}", "500.00")
    with httpx2.Client(base_url=mapped.url, headers=bearer(key), **LOOPBACK) as client:
        shown, successors = (client.get(f"/models/{name}").json() for name in (model, other))
    expected = {"status": "retired", "served_by": other, "successor": other, "owned_by": served.provider}
    assert {name: shown[name] for name in expected} == expected
    for name in ("price", "prices", "sizes", "qualities", "takes_s"):
        assert shown[name] == successors[name], name

    with openai.OpenAI(base_url=mapped.url, api_key=key, max_retries=0) as client:
        raw = client.images.with_raw_response.generate(model=model, prompt="Un axolotl", n=2)
    body: dict[str, Any] = json.loads(raw.content)
    assert (body["model"], body["served_model"], len(body["data"])) == (model, served.upstream, 2)
    assert raw.headers["link"] == f'</v1/models/{other}>; rel="successor-version"'
    (event,) = mapped.events(org_id, 1)
    opened = event.opened
    assert (opened.model, opened.provider, opened.upstream) == (model, served.provider, served.upstream)
    listed = served.listed("1024x1024", served.usual_quality)
    assert listed is not None
    assert opened.proof.variant == f"{other} {listed.variant}".rstrip()
    assert Decimal(opened.proof.usd_per_image) == listed.usd_per_image
    charged = Decimal(raw.headers["x-geekhub-cost-mxn"])
    assert Decimal(event.amount_micro_mxn) == charged * 1_000_000
    assert 0 < charged <= 2 * Decimal(shown["price"]["mxn_per_image"])
    assert mapped.jobs(model) == [] and mapped.jobs(other)


def test_a_key_for_the_old_id_alone_may_use_it(mapped: System) -> None:
    """And not the one that serves it."""
    org_id, _ = mapped.customer("one id", "500.00")
    issued = mapped.back(lambda back: back.accounts.create_key(org_id, "one id", models=["xai/grok-2-image"]))
    mapped.keys.append(issued.secret)
    for model, status in (("xai/grok-2-image", 200), ("xai/grok-imagine-image", 403)):
        body = {"model": model, "prompt": "x"}
        reply = httpx2.post(
            f"{mapped.url}/images/generations", headers=bearer(issued.secret), json=body, **LOOPBACK, timeout=60
        )
        assert reply.status_code == status, reply.text


def test_nothing_is_wrong_with_the_shelf_then(mapped: System) -> None:
    """Neither for the command nor in the gateway's log."""
    checked = mapped.ghub("models", "check", "--days", "0")
    assert checked.returncode == 0, checked.stdout
    assert not {"model_past_its_end", "successor_left_out"} & {
        json.loads(line)["event"] for line in mapped.log().splitlines() if line.startswith("{")
    }
