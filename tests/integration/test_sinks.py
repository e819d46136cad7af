"""Delivery to sinks over real receivers: nothing lost, repeats the same, refusals set aside (rule 36)."""

from pathlib import Path

import pytest

from tests.kits.sinks import HTTP, HttpReceiver, outgoing, sink, sum_of


@pytest.mark.rule(36)
@pytest.mark.parametrize("profile", HTTP)
async def test_a_sink_is_told_of_every_charge_and_refund(profile: str, ledger_url: str, tmp_path: Path) -> None:
    """(rule 36) Its sum is the ledger's charges less refunds; voids and what was booked before it are none of its."""
    receiver = HttpReceiver(profile, tmp_path)
    receiver.start()
    async with outgoing(ledger_url, tmp_path) as out:
        await out.book()
        before = out.ledger_micro_mxn()
        one = sink(tmp_path, profile, receiver.url)
        await out.register(one)
        charges = await out.book(20, images=2)
        refund = await out.refund(charges[3].event_id, 100_000)
        async with out.delivering(one):
            state = await out.until_empty(profile)
        taken = await receiver.taken()
        assert {row["id"] for row in taken} == {charge.event_id for charge in charges} | {refund}
        assert sum_of(taken) == out.ledger_micro_mxn() - before
        assert state.delivered_at is not None and state.error is None and state.set_aside == 0
        assert "ana@" not in str(taken) and "png" not in str(taken)
    receiver.kill()
