"""GET /v1/credits/transactions over real processes: an organisation's money in and out, and nobody else's."""

import httpx2
import pytest

from tests.conftest import LOOPBACK
from tests.e2e.conftest import Prepared
from tests.kits.system import FLUX, System, bearer, wait_until

LIST = "/credits/transactions"


@pytest.fixture
def system(prepared: Prepared) -> System:
    system = prepared()
    system.start_all()
    return system


def test_an_organisation_reads_its_money_in_and_out(system: System) -> None:
    """Latest first, page by page, with what was paid, the order of a refund, and what each left; only its own."""
    org_id, key = system.customer("acme", "500.00")
    _, other_key = system.customer("other", "1.00")
    with httpx2.Client(base_url=system.url, headers=bearer(key), **LOOPBACK) as client:
        order = client.post("/images/generations", json={"model": FLUX, "prompt": "un faro"}).json()
        refund = ("order", "refund", order["id"], "--reason", "blurred")
        wait_until(lambda: system.ghub(*refund).returncode == 0, "it is booked")
        for arguments in (
            (
                *["credit", "add", "acme", "--type", "chargeback", "--mxn", "100.00", "--id", "cb", "--recharge"],
                f"pay-{org_id}",
            ),
            ("credit", "complete", f"pay-{org_id}", "--cfdi", "5f0c7a39-1f5e-4a43-9b6e-7c1de7a9a001"),
        ):
            assert system.ghub(*arguments).returncode == 0
        first = client.get(LIST, params={"limit": 2}).json()
        rest = client.get(LIST, params={"limit": 2, "after": first["next_cursor"]}).json()
        assert (first["has_more"], rest["has_more"], rest["next_cursor"]) == (True, False, None)
        taken, refunded, recharge = rows = [*first["data"], *rest["data"]]
        assert [row["type"] for row in rows] == ["chargeback", "refund", "recharge"]
        assert [row["balance_mxn"] for row in rows] == ["400.00", "500.00", "500.00"]
        assert (recharge["mxn"], recharge["iva_mxn"], recharge["total_mxn"]) == ("500.00", "80.00", "580.00")
        assert recharge["cfdi"] == "5f0c7a39-1f5e-4a43-9b6e-7c1de7a9a001"
        assert (refunded["mxn"], refunded["order"], refunded["reason"]) == (order["cost_mxn"], order["id"], "blurred")
        assert (taken["mxn"], taken["total_mxn"]) == ("-100.00", "-116.00")
        assert taken["recharge"] == recharge["id"]
        for wrong, param in (
            ({"limit": "0"}, "limit"),
            ({"after": first["next_cursor"][:-2]}, "after"),
            ({"after": "x"}, "after"),
            ({"page": "2"}, "page"),
        ):
            reply = client.get(LIST, params=wrong)
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
        others = client.get(LIST, headers=bearer(other_key), params={"after": first["next_cursor"]}).json()
        assert [row["mxn"] for row in others["data"]] == ["1.00"], "a cursor of another organisation shows its own"


@pytest.mark.parametrize("kind", [["--test"], ["--read", "own"]])
def test_a_key_that_reads_its_own_orders_sees_no_money_of_its_organisation(system: System, kind: list[str]) -> None:
    """Nor does a test key; without a key nothing is seen."""
    system.customer("acme", "500.00")
    made = system.ghub("key", "create", "acme", "--name", "try", *kind)
    with httpx2.Client(base_url=system.url, **LOOPBACK) as client:
        reply = client.get(LIST, headers=bearer(made.stdout.strip()))
        assert (reply.status_code, reply.json()["data"]) == (200, [])
        assert client.get(LIST).status_code == 401
