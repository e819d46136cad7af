"""Statements over real processes: `GET /v1/statements/{month}` and `ghub statement`, from an order to its 0.84 MXN."""

import os
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from metering.clock import next_month, period_at, previous_month, unix_us_at, utc_now
from proxy.api.statements import StatementReply
from tests.conftest import LOOPBACK
from tests.e2e.conftest import Prepared
from tests.kits.processes import executed
from tests.kits.statements import pdf_text
from tests.kits.system import FLUX, System, bearer

MONTH = period_at(unix_us_at(utc_now())).month
STATEMENT = f"/statements/{MONTH}"


@pytest.fixture
def system(prepared: Prepared) -> System:
    system = prepared()
    system.start_all()
    return system


def order(system: System, key: str, **body: str) -> str:
    reply = httpx2.post(
        f"{system.url}/images/generations",
        headers=bearer(key),
        json={"model": FLUX, "prompt": "un faro", **body},
        **LOOPBACK,
        timeout=60,
    )
    assert reply.status_code == 200, reply.text
    return str(reply.json()["id"])


def test_an_organisation_reads_its_statement(system: System) -> None:
    """Spanish without a wish, English by header or query; HTML, JSON or PDF; an order of the price list is 0.84."""
    org_id, key = system.customer("acme", "500.00")
    other_id, other_key = system.customer("competencia", "7.77")
    order_id = order(system, key)
    order(system, other_key)
    system.events(org_id, 1)
    system.events(other_id, 1)
    assert system.ghub("order", "refund", order_id, "--mxn", "0.42", "--reason", "borrosa").returncode == 0
    with httpx2.Client(base_url=system.url, headers=bearer(key), **LOOPBACK) as client:
        html = client.get(STATEMENT)
        assert html.status_code == 200 and html.headers["content-type"] == "text/html; charset=utf-8"
        assert html.headers["content-language"] == "es" and 'lang="es-MX"' in html.text
        assert "Provisional: el mes no está cerrado." in html.text and ">0.84" in html.text
        assert order_id in html.text and "borrosa" in html.text and "580.00" in html.text
        policy = html.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script" not in policy
        assert html.headers["content-disposition"] == f'inline; filename="estado-de-cuenta-{MONTH}.html"'
        for english in (
            client.get(STATEMENT, headers={"accept-language": "en-US, es;q=0.5"}),
            client.get(STATEMENT, params={"lang": "en"}, headers={"accept-language": "es"}),
        ):
            assert "Provisional: the month is not closed." in english.text and 'lang="en"' in english.text
            assert english.headers["content-language"] == "en"
        found = client.get(STATEMENT, headers={"accept": "application/json, text/html;q=0.9"}).json()
        StatementReply.model_validate_json(client.get(STATEMENT, headers={"accept": "application/json"}).content)
        assert (found["opening_mxn"], found["recharges_mxn"], found["refunds_mxn"]) == ("0.00", "500.00", "0.42")
        assert (found["charges_mxn"], found["closing_mxn"], found["provisional"]) == ("0.84", "499.58", True)
        assert [line["cost_mxn"] for line in found["keys"]["data"]] == ["0.84"]
        pdf = client.get(STATEMENT, headers={"accept": "application/pdf"})
        assert pdf.headers["content-type"] == "application/pdf"
        text = pdf_text(pdf.content)
        assert "Estado de cuenta" in text and " 0.84 " in text and "acme" in text
        for reply in (html.text, str(found), text):
            assert not any(foreign in reply for foreign in ("competencia", other_id, "7.77", f"pay-{other_id}"))


def test_a_wish_that_cannot_be_met_is_told(system: System) -> None:
    """Months that are none, not begun, or before the account; languages and parameters that there are not."""
    _, key = system.customer("acme", "500.00")
    with httpx2.Client(base_url=system.url, headers=bearer(key), **LOOPBACK) as client:
        for path, parameters, status, param in (
            ("/statements/2026-13", {}, 400, "month"),
            ("/statements/november", {}, 400, "month"),
            (f"/statements/{next_month(MONTH)}", {}, 404, "month"),
            (f"/statements/{previous_month(MONTH)}", {}, 404, "month"),
            (STATEMENT, {"lang": "de"}, 400, "lang"),
            (STATEMENT, {"language": "es"}, 400, "language"),
        ):
            reply = client.get(path, params=parameters)
            assert (reply.status_code, reply.json()["error"]["param"]) == (status, param), reply.text
        twice = client.get(f"{STATEMENT}?lang=es&lang=en")
        assert (twice.status_code, twice.json()["error"]["param"]) == (400, "lang")
        assert client.get(STATEMENT, headers={"authorization": ""}).status_code == 401


@pytest.mark.parametrize("kind", [["--test"], ["--read", "own"]])
def test_a_key_that_reads_its_own_orders_gets_no_statement(system: System, kind: list[str]) -> None:
    """Nor does a test key: 403, in Spanish too, and no amount of the organisation."""
    system.customer("acme", "512.34")
    made = system.ghub("key", "create", "acme", "--name", "try", *kind)
    with httpx2.Client(base_url=system.url, headers=bearer(made.stdout.strip()), **LOOPBACK) as client:
        for accept in ("text/html", "application/json", "application/pdf"):
            reply = client.get(STATEMENT, headers={"accept": accept, "accept-language": "es"})
            assert (reply.status_code, reply.json()["error"]["code"]) == (403, "not_allowed")
            assert "estado de cuenta" in reply.json()["error"]["message"] and "512" not in reply.text


def test_statements_have_a_rate(system: System) -> None:
    """Sixty in a minute for an organisation; another has its own."""
    _, key = system.customer("acme")
    _, other_key = system.customer("other")
    with httpx2.Client(base_url=system.url, headers=bearer(key), **LOOPBACK) as client:
        codes: Counter[int] = Counter()
        while not codes[429] and codes.total() < 200:  # on a busy machine Redis is late for some, which do not count
            codes[client.get(STATEMENT, headers={"accept": "application/json"}).status_code] += 1
        assert 60 <= codes[200] < 120 and set(codes) <= {200, 429, 503}
        limited = client.get(STATEMENT, headers={"accept-language": "es"})
        assert limited.status_code == 429 and "estados de cuenta" in limited.json()["error"]["message"]
        assert client.get(STATEMENT, headers=bearer(other_key)).status_code == 200


def test_the_command_writes_a_statement(system: System, tmp_path: Path) -> None:
    """HTML and PDF, to a file or a pipe, in both languages; wrong use is told, and leaves no file."""
    org_id, key = system.customer("acme", "500.00")
    order(system, key)
    system.events(org_id, 1)
    page, pdf = tmp_path / "s.html", tmp_path / "s.pdf"
    written = system.ghub("statement", "acme", "--month", MONTH, "--out", str(page), "--json")
    assert written.returncode == 0, written.stderr
    assert '"charges_mxn":"0.84"' in written.stdout and '"provisional":true' in written.stdout
    assert "Estado de cuenta" in page.read_text() and ">0.84" in page.read_text()
    assert system.ghub("statement", "acme", "--format", "pdf", "--lang", "en", "--out", str(pdf)).returncode == 0
    assert "Account statement" in pdf_text(pdf.read_bytes())
    piped = system.ghub("statement", org_id, "--out", "-", "--lang", "en")
    assert piped.stdout.startswith("<!DOCTYPE html>") and piped.stdout.endswith("</html>\n")
    assert "charges_mxn" in piped.stderr
    for wrong, status, said in (
        (("acme", "--month", "2026-13"), 2, "--month"),
        (("acme", "--format", "doc"), 2, "--format"),
        (("acme", "--lang", "de"), 2, "--lang"),
        (("nobody",), 1, "nobody"),
        (("acme", "--month", next_month(MONTH)), 1, "has not begun"),
        (("acme", "--month", previous_month(MONTH)), 1, "began after"),
    ):
        refused = system.ghub("statement", *wrong, "--out", str(tmp_path / "none.html"))
        assert (refused.returncode, said in refused.stderr) == (status, True), refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.html", "s.pdf"]
    system.environment["GHUB_REDIS_URL"] = "redis://127.0.0.1:1"
    unsure = system.ghub("statement", "acme", "--out", str(page))
    assert unsure.returncode == 3 and "nobody can say" in unsure.stderr and ">0.84" in page.read_text()


def test_without_the_extra_there_is_html(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway without Typst answers 406 where PDF is preferred, and the command says what to install."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "found = util.find_spec\n"
        "util.find_spec = lambda name, package=None: None if name == 'typst' else found(name, package)\n"
    )
    paths = os.pathsep.join(filter(None, (str(blocked), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", paths)
    system = prepared()
    system.begin = executed  # a fork of a process that runs already would not load it
    system.start_all()
    _, key = system.customer("acme")
    with httpx2.Client(base_url=system.url, headers=bearer(key), **LOOPBACK) as client:
        refused = client.get(STATEMENT, headers={"accept": "application/pdf"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (406, "not_acceptable")
        assert client.get(STATEMENT).status_code == 200
    done = system.ghub("statement", "acme", "--format", "pdf", "--out", str(tmp_path / "s.pdf"))
    assert done.returncode == 1 and "geekhub-gateway[pdf]" in done.stderr and not (tmp_path / "s.pdf").exists()
