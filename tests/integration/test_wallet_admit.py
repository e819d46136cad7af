"""Admission: each verdict, and that a denial writes nothing at all."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
from redis import Redis as SyncRedis
from redis.exceptions import ResponseError

from metering.limits import LIMITS as KINDS
from metering.money import parse_mxn
from metering.pricing import Quote
from metering.wallet import keys
from metering.wallet.connection import NotProjected, WalletAway
from metering.wallet.projection import Projected
from metering.wallet.script import load_script
from metering.wallet.values import Caller, Close, Verdict, WalletLimits
from tests.kits.books import (
    DAY_US,
    LIFE_S,
    LIMITS,
    NOW_US,
    SECOND_US,
    UNIT,
    Books,
    admit,
    dump,
    expire,
    open_books,
    open_wallets,
    pictures,
    pinned,
    result_of,
    start_worker,
)

TIGHT = WalletLimits(decision_s=10.0, max_open_holds=3, stream_backlog=4, remember_s=60, max_unpaid_micro_mxn=10**12)


Arrange = Callable[[Books, Caller], Awaitable[Quote]]


async def revoked(books: Books, caller: Caller) -> Quote:
    await books.accounts.revoke_key(caller.key_id)
    return pinned()


async def suspended(books: Books, caller: Caller) -> Quote:
    await books.accounts.suspend_org(caller.org_id, "chargeback")
    return pinned()


async def too_poor(books: Books, caller: Caller) -> Quote:
    return pinned(8, unit=10**12)


async def other_day(books: Books, caller: Caller) -> Quote:
    return pinned(now_us=NOW_US - DAY_US)


async def day_to_come(books: Books, caller: Caller) -> Quote:
    return pinned(now_us=NOW_US + DAY_US)


async def too_many_holds(books: Books, caller: Caller) -> Quote:
    for i in range(TIGHT.max_open_holds):
        assert (await books.admit(caller, f"open-{i}")).verdict is Verdict.ADMITTED
    return pinned()


async def backlog(books: Books, caller: Caller) -> Quote:
    for _ in range(TIGHT.stream_backlog):
        await books.redis.xadd(keys.OrgKeys(caller.org_id).events, {"x": "1"})
    return pinned()


async def too_many_requests(books: Books, caller: Caller) -> Quote:
    await books.accounts.set_limits(caller.org_id, {"requests_per_minute": 1})
    assert (await books.admit(caller, "first")).verdict is Verdict.ADMITTED
    return pinned()


async def too_many_images(books: Books, caller: Caller) -> Quote:
    await books.accounts.set_limits(caller.org_id, {"images_per_minute": 4})
    assert (await books.admit(caller, "first", pinned(4))).verdict is Verdict.ADMITTED
    return pinned()


async def more_images_than_the_limit(books: Books, caller: Caller) -> Quote:
    await books.accounts.set_limits(caller.org_id, {"images_per_minute": 4})
    return pinned(5)


DENIALS = [
    (Verdict.REVOKED, revoked),
    (Verdict.SUSPENDED, suspended),
    (Verdict.BALANCE, too_poor),
    (Verdict.QUOTE_OVER, other_day),
    (Verdict.QUOTE_OVER, day_to_come),
    (Verdict.HOLDS, too_many_holds),
    (Verdict.BACKLOG, backlog),
    (Verdict.REQUESTS, too_many_requests),
    (Verdict.IMAGES, too_many_images),
    (Verdict.IMAGES, more_images_than_the_limit),
]


async def lay_expired_hold(books: Books, caller: Caller) -> None:
    """A hold that ran out and that nobody has ended, as after a crash."""
    names = keys.OrgKeys(caller.org_id)
    await books.redis.hset(names.hold("old"), mapping={"amount": UNIT, "images": 1, "admitted_us": 1, "opened": "{}"})
    await books.redis.zadd(names.open, {"old": NOW_US - SECOND_US})
    await books.redis.hincrby(names.wallet, "available", -UNIT)
    await books.redis.hincrby(names.wallet, "held", UNIT)


@pytest.mark.parametrize("with_expired", [False, True], ids=["", "expired-holds-about"])
@pytest.mark.parametrize(("verdict", "arrange"), DENIALS, ids=[act.__name__ for _, act in DENIALS])
async def test_a_denial_writes_nothing_at_all(
    redis_url: str, tmp_path: Path, verdict: Verdict, arrange: Arrange, with_expired: bool
) -> None:
    """Every key of the whole Redis is the same after a denial as before it, expired holds included."""
    async with open_books(redis_url, tmp_path / "l.db", limits=TIGHT) as books:
        caller = await books.org(mxn="100.00")
        price = await arrange(books, caller)
        if with_expired:
            await lay_expired_hold(books, caller)
        before = dump(redis_url)
        denied = await books.admit(caller, "late", price)
        assert denied.verdict is verdict
        assert dump(redis_url) == before
        assert keys.OrgKeys(caller.org_id).wallet.encode() in before
        assert (keys.OrgKeys(caller.org_id).hold("old").encode() in before) == with_expired


async def test_away_and_late_write_nothing(redis_url: str, tmp_path: Path) -> None:
    """A partition without its mark, an organisation or a key that is not projected, and a moment that has passed."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        stranger = Caller("99999999-9999-4999-8999-999999999999", "key_1")
        before = dump(redis_url)
        for unknown in (stranger, Caller(caller.org_id, "key_unknown")):
            with pytest.raises(NotProjected):
                await books.admit(unknown, "r")
        assert dump(redis_url) == before
        await books.redis.delete(keys.OrgKeys(caller.org_id).mark)
        before = dump(redis_url)
        with pytest.raises(NotProjected):
            await books.admit(caller, "r")
        with pytest.raises(NotProjected):
            await books.wallet.read(caller.org_id)
        assert dump(redis_url) == before


async def test_an_admission_opens_a_hold_of_the_worst_case(redis_url: str, tmp_path: Path) -> None:
    """Available goes down, held goes up by price × images; the verdict carries what remains of both limits."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="10.00", requests_per_minute=10, images_per_minute=20)
        admission = await books.admit(caller, "r", pinned(4))
        assert admission.verdict is Verdict.ADMITTED
        assert admission.available_micro_mxn == parse_mxn("6.64")
        assert (admission.requests.limit, admission.requests.remaining) == (10, 9)
        assert (admission.images.limit, admission.images.remaining) == (20, 16)
        assert (admission.requests.reset_us, admission.images.reset_us) == (6 * SECOND_US, 12 * SECOND_US)
        assert (admission.retry_us, admission.now_us) == (0, NOW_US)
        cut = await books.cut(caller)
        assert (cut.available_micro_mxn, cut.held_micro_mxn) == (parse_mxn("6.64"), parse_mxn("3.36"))
        assert (cut.charged_micro_mxn, cut.number, cut.credit_number) == (0, 0, 1)
        assert cut.key_state == "active"


async def test_a_balance_admits_to_its_last_micro(redis_url: str, tmp_path: Path) -> None:
    """Exactly enough is enough; one micro-MXN less is 402."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        enough, short = await books.org("enough", "0.84"), await books.org("short", "0.839999")
        assert (await books.admit(enough, "r1")).verdict is Verdict.ADMITTED
        denied = await books.admit(short, "r2")
        assert (denied.verdict, denied.available_micro_mxn) == (Verdict.BALANCE, UNIT - 1)
        assert (await books.cut(enough)).available_micro_mxn == 0


@pytest.mark.rule(10)
@pytest.mark.parametrize("mxn", ["0.00", "-5.00"])
async def test_nothing_and_less_admit_nothing(redis_url: str, tmp_path: Path, mxn: str) -> None:
    """An organisation at zero, or below it by an adjustment, is refused until it is topped up (rule 10)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="0.00")
        if parse_mxn(mxn):
            await books.accounts.add_credit(caller.org_id, "a", "adjustment", parse_mxn(mxn))
        denied = await books.admit(caller, "r", pinned(unit=1))
        assert (denied.verdict, denied.available_micro_mxn) == (Verdict.BALANCE, parse_mxn(mxn))
        await books.accounts.add_credit(caller.org_id, "b", "recharge", parse_mxn("6.00"))
        assert (await books.admit(caller, "r", pinned(unit=1))).verdict is Verdict.ADMITTED


@pytest.mark.parametrize("limit", ["requests_per_minute", "images_per_minute"])
async def test_a_denial_by_one_limit_does_not_show_the_other_as_used(
    redis_url: str, tmp_path: Path, limit: str
) -> None:
    """Use that was not taken is still shown as free."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org("acme", "100.00", **{"requests_per_minute": 100, "images_per_minute": 100, limit: 1})
        assert (await books.admit(caller, "r1")).verdict is Verdict.ADMITTED
        denied = await books.admit(caller, "r2")
        other = denied.images if limit == "requests_per_minute" else denied.requests
        assert (other.remaining, other.reset_us) == (99, 600_000)
        assert denied.retry_us == 60 * SECOND_US


@pytest.mark.rule(24)
async def test_midnight_belongs_to_the_new_day(redis_url: str, tmp_path: Path) -> None:
    """A quote holds from its day's first microsecond to its last, and not one further (rule 24)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="100.00")
        day = pinned().period
        for now_us, verdict in (
            (day.start_us - 1, Verdict.QUOTE_OVER),
            (day.start_us, Verdict.ADMITTED),
            (day.end_us - 1, Verdict.ADMITTED),
            (day.end_us, Verdict.QUOTE_OVER),
        ):
            books.wallet.at(now_us)
            assert (await books.admit(caller, f"r{now_us}", pinned())).verdict is verdict


def admission(caller: Caller, request: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Keys and arguments of the script that admits, as the wallet calls it."""
    names, day = keys.OrgKeys(caller.org_id), pinned().period
    script_keys = {
        "mark": names.mark,
        "wallet": names.wallet,
        "access": names.access(caller.key_id),
        "open": names.open,
        "hold": names.hold(request),
        "events": names.events,
        "busy": names.busy,
        "closed": names.closed(request),
        "once": names.once("k"),
        "recent": names.recent("key", "f"),
        "retried": names.retried("key", "f"),
    }
    arguments = {
        "now_us": NOW_US,
        "latest_us": NOW_US,
        "from_us": day.start_us,
        "quoted_until_us": day.end_us,
        "org": caller.org_id,
        "key_id": caller.key_id,
        "request": request,
        "images": 1,
        "amount": UNIT,
        "life_us": 70_000_000,
        "max_holds": 10,
        "backlog": 10,
        "remember_s": 60,
        "opened": "{}",
        "fingerprint": "f",
        "keyed": 1,
        "once_s": 60,
        "tries": 0,
        "recent_us": 60_000_000,
        "owner": "owner",
        "trace": "",
        "model": "m",
        "day": day.day,
        "month": day.month,
        "long": "",
        "deadline_us": 0,
        "slow": 0,
        "max_unpaid": 1,
    }
    return script_keys, arguments


async def test_what_stands_before_the_script_is_checked_before_the_first_write(redis_url: str, tmp_path: Path) -> None:
    """Every argument of every script, missing or wrong, leaves Redis exactly as it was."""
    bad_numbers = ["", "x", "-1", "1.5", "nan", "inf", "1e400", str(2**53)]
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="100.00")
        assert (await books.admit(caller, "open")).verdict is Verdict.ADMITTED
        books.wallet.at(NOW_US - 600 * SECOND_US)
        other = await books.org("other", "100.00")
        assert (await books.admit(other, "expired")).verdict is Verdict.ADMITTED
        books.wallet.at(NOW_US)
        names = keys.OrgKeys(caller.org_id)
        close = {"mark": names.mark, "wallet": names.wallet, "open": names.open, "hold": names.hold("open")}
        close |= {"events": names.events, "closed": names.closed("open")}
        there, day = keys.partition_of(other.org_id), pinned().period
        both: dict[str, Any] = {"now_us": NOW_US, "org": caller.org_id}
        made: dict[str, Any] = {**both, "request": "new", "images": 1, "model": "m", "fingerprint": "f"}
        made |= {"keyed": 1, "once_s": 60}
        ended: dict[str, Any] = {**both, "request": "open", "remember_s": 60}
        limits: list[Any] = [5, 5, 5, 5, 5, 5, 0, 0, 0, "key_1", "revoked", "m", *[""] * 10, 0, 0, 0]
        calls: dict[str, tuple[type[IntEnum] | None, dict[str, str], dict[str, Any], list[Any]]] = {
            "admit_v5": (Verdict, *admission(caller, "new"), []),
            "sandbox_v1": (
                Verdict,
                {"mark": names.mark, "wallet": names.wallet, "access": names.access(caller.key_id)}
                | {"once": names.sandbox_once("k")},
                made,
                [],
            ),
            "settle_v4": (
                Close,
                close,
                {
                    **{**ended, "latest_us": NOW_US, "quantity": 1, "amount": UNIT, "images": "[]"},
                    **{"usd_measured": "", "result": "{}", "upstream_ids": "", "upstream_usd": "", "route": ""},
                    "owner": "owner",
                },
                [],
            ),
            "void_v4": (
                Close,
                close,
                {
                    **ended,
                    "reason": "test",
                    "frees": 1,
                    "recent_us": 1,
                    "comes_again": 0,
                    "upstream_ids": "",
                    "upstream_usd": "",
                    "owner": "",
                    "unpaid": 0,
                    "route": "",
                },
                [],
            ),
            "expire_v1": (
                None,
                {"mark": keys.mark(there), "busy": keys.busy(there)},
                {"now_us": NOW_US, "most": 10, "remember_s": 60},
                [],
            ),
            "project_v5": (
                Projected,
                {"mark": names.mark, "wallet": names.wallet, "open": names.open, "fence": names.fence},
                {
                    **{
                        **both,
                        "day": day.day,
                        "month": day.month,
                        "revision": 999,
                        "credit_number": 999,
                        "credits": 1,
                        "mode": "follow",
                    },
                    **{"charged": 0, "number": 0, "who": "who", "lost": 0, "low": 0, "suspended": 0},
                    "limits": " ".join(kind.name for kind in KINDS.values()),
                },
                limits,
            ),
        }
        before = dump(redis_url)
        text = {"org", "key_id", "request", "opened", "fingerprint", "owner", "model", "day", "month", "mode"}
        text |= {"who", "reason", "usd_measured", "result", "limits", "upstream_ids", "upstream_usd", "trace", "long"}
        text |= {"route"}
        refused = 0
        for name, (codes, script_keys, arguments, rest) in calls.items():
            script = load_script(books.redis, name, codes)
            whole = script.call(script_keys, rest, **arguments)
            wrong = [whole._replace(args=whole.args[:-1]), whole._replace(keys=whole.keys[:-1])]
            wrong += [] if rest else [whole._replace(args=[*whole.args, 1])]
            for argument in arguments.keys() - text - ({"images"} if name == "settle_v4" else set()):
                # Credits may be negative, and an SDK that counts no tries says -1.
                may = {"-1"} if argument in {"credits", "tries"} else set()
                bads = [bad for bad in bad_numbers if bad not in may]
                wrong += [script.call(script_keys, rest, **arguments | {argument: bad}) for bad in bads]
            for place, value in enumerate(rest):
                if value in (0, 5):  # what was used, and a limit, which may be absent
                    rests = [[*rest[:place], bad, *rest[place + 1 :]] for bad in bad_numbers if bad or not value]
                    wrong += [script.call(script_keys, one, **arguments) for one in rests]
            for attempt in wrong:
                with pytest.raises(ResponseError):
                    await script.each([attempt])
                assert dump(redis_url) == before, (name, attempt)
                refused += 1
        assert refused > 200
        for name, (codes, script_keys, arguments, rest) in calls.items():
            assert await load_script(books.redis, name, codes)(script_keys, rest, **arguments), name
        assert dump(redis_url) != before


async def test_a_script_is_called_by_the_names_that_it_declares(redis_url: str, tmp_path: Path) -> None:
    """One that is missing, and one that it does not know, is told before anything is sent."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        script = load_script(books.redis, "expire_v1")
        names = {"mark": keys.mark(0), "busy": keys.busy(0)}
        arguments: dict[str, Any] = {"now_us": NOW_US, "most": 10, "remember_s": 60}
        assert await script(names, **arguments) == 0
        for wrong_names, wrong, told in (
            (names, {"now_us": NOW_US, "most": 10}, "remember_s"),
            (names, arguments | {"least": 1}, "least"),
            ({"mark": keys.mark(0)}, arguments, "busy"),
            (names | {"open": "x"}, arguments, "open"),
        ):
            with pytest.raises(TypeError, match=f"missing or unknown: {told}$"):
                await script(wrong_names, **wrong)


async def test_a_call_that_is_given_up_before_it_began_leaves_nothing_behind(redis_url: str, tmp_path: Path) -> None:
    """As at the end of a process: no coroutine is left that nobody awaits."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        others = asyncio.all_tasks()
        asking = asyncio.create_task(books.wallet.read(caller.org_id))
        await asyncio.sleep(0)
        begun = asyncio.all_tasks() - others
        assert len(begun) == 2  # it, and the wait for its turn
        for task in begun:
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        del asking, begun, task
        gc.collect()


async def test_a_request_id_is_used_once(redis_url: str, tmp_path: Path) -> None:
    """While its hold is open, and after its end; nothing is written for the second."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        await books.admit(caller, "r")
        for _ in range(2):
            before = dump(redis_url)
            with pytest.raises(WalletAway):
                await books.admit(caller, "r")
            assert dump(redis_url) == before
            await books.settle(caller, "r")
        assert len(await books.events(caller)) == 1


@pytest.mark.rule(10)
async def test_race_a_balance_for_ten_admits_ten_of_a_hundred(redis_url: str, tmp_path: Path) -> None:
    """100 at once over 20 clients of their own: exactly 10, five times over, and the balance is 0.00 (rule 10)."""
    async with open_books(redis_url, tmp_path / "l.db") as books, open_wallets(redis_url, 20) as wallets:
        for turn in range(5):
            caller = await books.org(f"acme-{turn}", "8.40")
            answers = await asyncio.gather(*(admit(wallets[i % 20], caller, f"{turn}-{i}") for i in range(100)))
            verdicts = [answer.verdict for answer in answers]
            assert (verdicts.count(Verdict.ADMITTED), verdicts.count(Verdict.BALANCE)) == (10, 90)
            cut = await books.cut(caller)
            assert (cut.available_micro_mxn, cut.held_micro_mxn) == (0, parse_mxn("8.40"))


async def test_race_two_processes_admit_no_more_than_the_balance(redis_url: str, tmp_path: Path) -> None:
    """Two processes with ten connections each share a balance for ten."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="8.40")
        workers = [start_worker("admissions", redis_url, caller.org_id, caller.key_id, name, 60) for name in ("a", "b")]
        assert sum(result_of(worker) for worker in workers) == 10
        assert (await books.cut(caller)).available_micro_mxn == 0


@pytest.mark.rule(6)
async def test_a_latest_moment_that_passed_writes_nothing(redis_url: str, tmp_path: Path) -> None:
    """The last microsecond still admits, the next one is LATE and leaves Redis as it was (rule 6)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        script = load_script(books.redis, "admit_v5", Verdict)

        async def ask(request: str, latest_us: int) -> int:
            script_keys, arguments = admission(caller, request)
            reply: Any = await script(script_keys, **arguments | {"latest_us": latest_us, "keyed": 0, "life_us": 1})
            return int(reply["code"])

        before = dump(redis_url)
        assert await ask("r1", NOW_US - 1) == Verdict.LATE
        assert dump(redis_url) == before
        assert await ask("r1", NOW_US) == Verdict.ADMITTED


@pytest.mark.rule(7)
async def test_the_maximum_of_open_holds_counts_living_ones_only(redis_url: str, tmp_path: Path) -> None:
    """Holds that ran out make room by themselves (rule 7)."""
    async with open_books(redis_url, tmp_path / "l.db", limits=TIGHT) as books:
        caller = await books.org(mxn="100.00")
        for i in range(3):
            assert (await books.admit(caller, f"r{i}")).verdict is Verdict.ADMITTED
        assert (await books.admit(caller, "r3")).verdict is Verdict.HOLDS
        books.wallet.at(NOW_US + int(LIFE_S) * SECOND_US)
        assert (await books.admit(caller, "r3")).verdict is Verdict.ADMITTED
        assert await books.redis.zcard(keys.OrgKeys(caller.org_id).open) == 1


@pytest.mark.rule(28)
async def test_settlement_goes_on_where_a_backlog_stops_admission(redis_url: str, tmp_path: Path) -> None:
    """There is room left for the end of what was begun (rule 28)."""
    async with open_books(redis_url, tmp_path / "l.db", limits=TIGHT) as books:
        caller = await books.org(mxn="100.00")
        for i in range(3):
            await books.admit(caller, f"r{i}")
        for _ in range(TIGHT.stream_backlog):
            await books.redis.xadd(keys.OrgKeys(caller.org_id).events, {"x": "1"})
        assert (await books.settle(caller, "r0")).close is Close.CHARGED
        assert (await books.wallet.void(caller.org_id, "r1", "test")).close is Close.VOIDED
        assert (await books.admit(caller, "r3")).verdict is Verdict.BACKLOG


@pytest.mark.rule(7)
async def test_an_expired_hold_counts_nowhere(redis_url: str, tmp_path: Path) -> None:
    """Its money is there for the next admission and for every figure, before anybody wrote its end down (rule 7)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="1.68")
        await books.admit(caller, "r1", life_s=10)
        await books.admit(caller, "r2", life_s=20)
        books.wallet.at(NOW_US + 10 * SECOND_US - 1)
        assert (await books.cut(caller)).held_micro_mxn == 2 * UNIT
        denied = await books.admit(caller, "r3")
        assert (denied.verdict, denied.available_micro_mxn) == (Verdict.BALANCE, 0)

        books.wallet.at(NOW_US + 10 * SECOND_US)
        before = dump(redis_url)
        cut = await books.cut(caller)
        assert (cut.available_micro_mxn, cut.held_micro_mxn) == (UNIT, UNIT)
        denied = await books.admit(caller, "r3", pinned(2))
        assert (denied.verdict, denied.available_micro_mxn) == (Verdict.BALANCE, UNIT)
        assert dump(redis_url) == before
        settled = await books.settle(caller, "r2")
        assert (settled.close, settled.available_micro_mxn) == (Close.CHARGED, UNIT)
        assert (await books.admit(caller, "r3")).verdict is Verdict.ADMITTED
        assert (await books.cut(caller)).available_micro_mxn == 0
        ends = [(event.event_id, event.end, event.reason) for event in await books.events(caller)]
        assert ends == [("r2", "charge", "delivered"), ("r1", "expiry", "hold_expired")]


@pytest.mark.rule(7)
@pytest.mark.parametrize("how", ["void", "settle"])
async def test_no_reply_counts_an_expired_hold_of_another_order(redis_url: str, tmp_path: Path, how: str) -> None:
    """The balance that a customer is told after settlement or void has the money of expired holds in it (rule 7)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="8.40")
        await books.admit(caller, "dies", life_s=1)
        await books.admit(caller, "lives")
        books.wallet.at(NOW_US + 2 * SECOND_US)
        for _ in range(2):
            if how == "void":
                closing = await books.wallet.void(caller.org_id, "lives", "test")
            else:
                closing = await books.settle(caller, "lives")
            assert closing.available_micro_mxn == (await books.cut(caller)).available_micro_mxn
        late = await books.wallet.settle(caller.org_id, "dies", UNIT, pictures(1), latest_us=NOW_US)
        assert late.available_micro_mxn == (await books.cut(caller)).available_micro_mxn
        dead = await books.wallet.void(caller.org_id, "dies", "too_late")
        assert dead.available_micro_mxn == (await books.cut(caller)).available_micro_mxn


@pytest.mark.rule(4)
async def test_race_the_expiry_of_a_hold_is_written_exactly_once(redis_url: str, tmp_path: Path) -> None:
    """Admissions, voids of the owners and three sweeps at once: each of 30 orders has one event (rule 4)."""
    async with open_books(redis_url, tmp_path / "l.db") as books, open_wallets(redis_url, 6) as wallets:
        caller = await books.org(mxn="100.00")
        for i in range(30):
            assert (await books.admit(caller, f"r{i}", life_s=1 + i / 30)).verdict is Verdict.ADMITTED
        for wallet in wallets:
            wallet.at(NOW_US + 3 * SECOND_US)
        await asyncio.gather(
            *(admit(wallet, caller, f"new-{i}") for i, wallet in enumerate(wallets)),
            *(wallets[i % 6].void(caller.org_id, f"r{i}", "owner") for i in range(30)),
            *(expire(books.redis, caller.org_id, NOW_US + 3 * SECOND_US) for _ in range(3)),
        )
        ended = [event.event_id for event in await books.events(caller)]
        assert sorted(ended) == sorted(f"r{i}" for i in range(30))
        books.wallet.at(NOW_US + 3 * SECOND_US)
        assert (await books.cut(caller)).held_micro_mxn == 6 * UNIT


@pytest.mark.rule(4)
async def test_expiry_is_written_down_for_organisations_that_nobody_asks_for(redis_url: str, tmp_path: Path) -> None:
    """The sweep ends what ran out, leaves what lives, and finds nothing the second time (rule 4)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        await books.admit(caller, "r1", life_s=10)
        await books.admit(caller, "r2", life_s=30)
        names = keys.OrgKeys(caller.org_id)
        counts = [await expire(books.redis, caller.org_id, NOW_US + second * SECOND_US) for second in (9, 29, 30, 31)]
        assert counts == [0, 1, 1, 0]
        assert [event.end for event in await books.events(caller)] == ["expiry", "expiry"]
        assert await books.redis.exists(names.busy, names.open) == 0


async def test_an_expiry_waits_for_no_later_one(redis_url: str, tmp_path: Path) -> None:
    """A model with a shorter deadline, or a clock that was set back: each expiry is written when it is due."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        await books.admit(caller, "long", life_s=300)
        await books.admit(caller, "short", life_s=10)
        ended = [await expire(books.redis, caller.org_id, NOW_US + second * SECOND_US) for second in (9, 10, 299, 300)]
        assert ended == [0, 1, 0, 1]
        books.wallet.at(NOW_US + DAY_US)
        await books.admit(caller, "ahead", life_s=10)
        books.wallet.at(NOW_US)
        await books.admit(caller, "right", life_s=10)
        assert await expire(books.redis, caller.org_id, NOW_US + 10 * SECOND_US) == 1


async def test_the_sweep_invents_no_wallet(redis_url: str, tmp_path: Path) -> None:
    """If only a wallet was lost, its holds wait for the rebuild: half a wallet would be worse than none."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        await books.admit(caller, "r1", life_s=10)
        names = keys.OrgKeys(caller.org_id)
        await books.redis.delete(names.wallet)
        await expire(books.redis, caller.org_id, NOW_US + DAY_US)
        assert await books.redis.exists(names.wallet, names.events) == 0
        with pytest.raises(NotProjected):
            await books.admit(caller, "r2")


async def test_the_sweep_does_a_bounded_piece_of_work(redis_url: str, tmp_path: Path) -> None:
    """It stops after the orders that it was asked for, organisation by organisation, and comes back for the rest."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        callers: list[Caller] = []
        while len(callers) < 3:
            caller = await books.org(f"org-{await books.redis.dbsize()}", "100.00")
            if not callers or keys.partition_of(caller.org_id) == keys.partition_of(callers[0].org_id):
                callers.append(caller)
        for caller in callers:
            for i in range(10):
                await books.admit(caller, f"{caller.org_id}-{i}", life_s=10)
        counts = [await expire(books.redis, caller.org_id, NOW_US + DAY_US, most=15) for _ in range(3)]
        assert counts == [20, 10, 0]


async def test_production_takes_the_time_from_redis(redis_url: str, tmp_path: Path) -> None:
    """A wallet that nobody scripted sends 0, and the verdict's moment lies between two readings of `TIME`."""
    async with open_books(redis_url, tmp_path / "l.db", now_us=0) as books:
        caller = await books.org()
        with SyncRedis.from_url(redis_url) as clock:

            def moment() -> int:
                seconds, micro = clock.time()
                return int(seconds * SECOND_US + micro)

            for i in range(3):
                before = moment()
                admission = await books.admit(caller, f"r{i}", pinned(now_us=before))
                assert admission.verdict is Verdict.ADMITTED
                assert before <= admission.now_us <= moment()
            for closing in (await books.settle(caller, "r0"), await books.wallet.void(caller.org_id, "r1", "x")):
                assert before <= closing.now_us <= moment()
            assert before <= (await books.cut(caller)).now_us <= moment()
            assert before <= (await books.events(caller))[-1].ended_us <= moment()
            assert LIMITS.decision_s > 0
