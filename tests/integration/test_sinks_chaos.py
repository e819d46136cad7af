"""Each sink is killed, frozen and made to refuse: without repeats, its sum is the ledger's."""

from pathlib import Path

import pytest

from metering.clock import utc_now
from tests.integration.conftest import Receivers
from tests.kits.sinks import (
    HTTP,
    SHORT_S,
    HttpReceiver,
    NatsReceiver,
    once,
    outgoing,
    sink,
    sum_of,
    until_another_fails,
)
from tests.long import LONG

TURNS = {"sqlite": 50 if LONG else 17, "postgresql": 50 if LONG else 4}
"""Times that a sink is killed, and frozen, and made to refuse; 51 faults in all by default."""

MODES = ("binary", "batched")
"""Other forms of what `structured` sends; both are broken as often only in `make long`."""


@pytest.mark.rule(36)
@pytest.mark.parametrize("profile", [*HTTP, "nats"])
async def test_killed_frozen_and_made_to_refuse(
    profile: str, ledger_url: str, receivers: Receivers, nats_receiver: NatsReceiver, tmp_path: Path
) -> None:
    """(rule 36) While charges and refunds go on."""
    receiver = nats_receiver if profile == "nats" else receivers(profile)
    if isinstance(receiver, NatsReceiver):
        await receiver.make_stream()
    faults = 3 * TURNS["postgresql" if profile in MODES else ledger_url.partition(":")[0]]
    async with outgoing(ledger_url, tmp_path) as out:
        one = sink(tmp_path, profile, receiver.url)
        await out.register(one)
        out.send_s = SHORT_S
        async with out.delivering(one):
            for turn in range(faults):
                await _break(receiver, turn % 3)
                charges = await out.book(3)
                if turn % 5 == 0:
                    await out.refund(charges[0].event_id, 100_000)
                await out.book(2, images=3)
                if turn % 3 == 2 and isinstance(receiver, HttpReceiver):
                    await out.until(profile, lambda state: state.set_aside > 0)
                else:
                    await until_another_fails(profile)
                await _mend(receiver, turn % 3)
                await out.ledger.send_again(profile, utc_now())
                if turn % 10 == 9:
                    await out.until(profile, lambda state: state.pending < 10)
            state = await out.until_empty(profile)
            while state.set_aside:
                await out.ledger.send_again(profile, utc_now())
                state = await out.until_empty(profile)
        taken = await receiver.taken()
        expected = faults * 5 + (faults + 4) // 5
        assert len(once(taken)) == expected
        assert sum_of(taken) == out.ledger_micro_mxn()


async def _break(receiver: HttpReceiver | NatsReceiver, how: int) -> None:
    if how == 0:
        receiver.kill()
    elif how == 1:
        receiver.freeze()
    elif isinstance(receiver, HttpReceiver):
        receiver.mode("refuse")
    else:
        await receiver.make_stream("another.subject")


async def _mend(receiver: HttpReceiver | NatsReceiver, how: int) -> None:
    if how == 0:
        receiver.start()
    elif how == 1:
        receiver.thaw()
    elif isinstance(receiver, HttpReceiver):
        receiver.mode("ok")
    else:
        await receiver.make_stream()
