"""Changes to organisations: SQL first, then Redis, and a sentence for every refusal."""

import sqlite3
from contextlib import closing
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from metering.accounts import KEY, Accounts, hash_key
from metering.ledger.sqlite import SqliteLedger
from metering.ports import LedgerError, WrongField
from metering.pricing import FxRate
from metering.wallet import keys
from metering.wallet.connection import NotProjected, open_redis
from metering.wallet.projection import Projector
from metering.wallet.values import Verdict
from tests.conftest import run
from tests.kits.books import IVA, MODELS, PLANS, UNIT, dump, open_books


async def test_an_account_is_usable_at_once(redis_url: str, tmp_path: Path) -> None:
    """The key is known and the credit is there as soon as the commands return."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        org = await books.accounts.create_org("acme", "default")
        issued = await books.accounts.create_key("acme", "main")
        assert await books.accounts.add_credit("acme", "spei-1", "recharge", 2 * UNIT)
        assert not await books.accounts.add_credit("acme", "spei-1", "recharge", 2 * UNIT)
        caller = await books.wallet.key(hash_key(issued.secret))
        assert caller is not None
        assert (caller.org_id, caller.key_id) == (org.org_id, issued.key_id)
        admission = await books.admit(caller, "r1")
        assert (admission.verdict, admission.available_micro_mxn) == (Verdict.ADMITTED, UNIT)


def test_a_key_is_kept_as_its_hash_only(redis_url: str, tmp_path: Path) -> None:
    """Neither the ledger's files nor Redis hold the secret; two keys are never the same."""

    async def work() -> str:
        async with open_books(redis_url, tmp_path / "l.db") as books:
            await books.accounts.create_org("acme", "default")
            issued = [await books.accounts.create_key("acme", "main") for _ in range(5)]
            assert len({key.secret for key in issued}) == len({key.key_id for key in issued}) == 5
            assert all(KEY.fullmatch(key.secret) for key in issued)
            found = dump(redis_url)
            dumped, names = repr(found).encode(), b"".join(found)
            secret = issued[0].secret
            assert secret.encode() not in dumped + names
            assert hash_key(secret).encode() in names
            return secret

    secret = run(work())
    files = list(tmp_path.iterdir())
    assert any(hash_key(secret).encode() in file.read_bytes() for file in files)
    assert not any(secret.encode() in file.read_bytes() for file in files)


@pytest.mark.rule(2)
async def test_a_key_whose_state_redis_does_not_know_is_away_and_not_revoked(redis_url: str, tmp_path: Path) -> None:
    """Until the projection has told it, what only reads is 503 and no 401 (rule 2), as an order is."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        await books.redis.delete(keys.OrgKeys(caller.org_id).access(caller.key_id))
        with pytest.raises(NotProjected):
            await books.admit(caller, "r")
        with pytest.raises(NotProjected):
            await books.wallet.read(caller.org_id, caller.key_id)


async def test_a_revoked_key_is_refused_from_the_next_request_on(redis_url: str, tmp_path: Path) -> None:
    """The other key of the organisation goes on; revoking twice changes nothing."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        other = await books.accounts.create_key(caller.org_id, "other")
        first = await books.accounts.revoke_key(caller.key_id)
        assert await books.accounts.revoke_key(caller.key_id) == first
        assert (await books.admit(caller, "r1")).verdict is Verdict.REVOKED
        assert (await books.cut(caller)).key_state == "revoked"
        still = await books.wallet.key(hash_key(other.secret))
        assert still is not None
        assert (await books.admit(still, "r2")).verdict is Verdict.ADMITTED


@pytest.mark.parametrize("name", ["", " x", "x ", "-x", "a" * 65, "a\nb", "a/b", "a'b", "="])
async def test_a_bad_name_is_refused(redis_url: str, tmp_path: Path, name: str) -> None:
    """The name of an organisation or of a key; the refusal is a sentence."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        await books.accounts.create_org("acme", "default")
        with pytest.raises(LedgerError, match="is no name"):
            await books.accounts.create_org(name, "default")
        with pytest.raises(LedgerError, match="is no name"):
            await books.accounts.create_key("acme", name)


async def test_a_name_that_could_be_anothers_is_refused_and_one_that_is_there_goes_on(
    redis_url: str, tmp_path: Path
) -> None:
    """Of an organisation or of a key; one from an earlier version is found, gets credit, and its key is rotated."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        await books.accounts.create_org("acme", "default")
        with pytest.raises(WrongField, match="mixes letters"):
            await books.accounts.create_org("\u0430cme", "default")
        with pytest.raises(WrongField, match="mixes letters"):
            await books.accounts.create_key("acme", "\u0430cme")
        issued = await books.accounts.create_key("acme", "web")
        for table in ("organizations", "api_keys"):
            with closing(sqlite3.connect(tmp_path / "l.db", isolation_level=None)) as database:
                database.execute(f"UPDATE {table} SET name = '\u0430cme'")
        assert await books.accounts.add_credit("\u0430cme", "p", "recharge", 1_000_000)
        rotated = await books.accounts.rotate_key(issued.key_id, timedelta(hours=1))
        assert (await books.ledger.key(rotated.key_id)).name == "\u0430cme"


@pytest.mark.parametrize(
    ("credit_id", "kind", "micro", "sentence"),
    [
        ("c", "gift", 1, "is none of"),
        ("c", "consumption", -1, "is none of"),
        ("", "bonus", 1, "visible ASCII"),
        ("a b", "bonus", 1, "visible ASCII"),
        ("á", "bonus", 1, "visible ASCII"),
        ("x" * 129, "bonus", 1, "visible ASCII"),
        ("c", "recharge", 0, "changes nothing"),
        ("c", "adjustment", 0, "changes nothing"),
        ("c", "recharge", -1, "only an adjustment"),
        ("c", "refund", -1, "only an adjustment"),
    ],
)
async def test_a_bad_credit_is_refused(
    redis_url: str, tmp_path: Path, credit_id: str, kind: str, micro: int, sentence: str
) -> None:
    """With a sentence, and the balance stays."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org(mxn="1.00")
        with pytest.raises(LedgerError, match=sentence):
            await books.accounts.add_credit(caller.org_id, credit_id, kind, micro)
        assert (await books.cut(caller)).credits_micro_mxn == 1_000_000


@pytest.mark.parametrize(
    "changes",
    [
        {"requests_per_minute": 0},
        {"images_per_minute": -1},
        {"images_per_minute": 1_000_001},
        {"requests_per_minute": 2**63},
        {"requests_per_hour": 5},
    ],
)
async def test_a_bad_limit_is_refused(redis_url: str, tmp_path: Path, changes: dict[str, int]) -> None:
    """A limit is a whole number from 1 to 1,000,000: a wrong one would stop the projection of everybody."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        with pytest.raises(LedgerError, match="per_"):
            await books.accounts.set_limits(caller.org_id, changes)
        assert (await books.ledger.org("acme")).limits.requests_per_minute is None
        assert (await books.admit(caller, "r")).verdict is Verdict.ADMITTED


@pytest.mark.parametrize("source", ["", " ", "a\nb", "\x1b[2J", " DOF", "x" * 201])
async def test_a_bad_source_of_a_rate_is_refused(redis_url: str, tmp_path: Path, source: str) -> None:
    """By commands as over HTTP: it stands in every event of its month, and in what finance takes away."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        before = await books.ledger.rates()
        with pytest.raises(WrongField, match="source: must be 1 to 200"):
            await books.accounts.add_rate(FxRate("2041-01", Decimal("18.5"), source))
        assert await books.ledger.rates() == before
        assert await books.accounts.add_rate(FxRate("2041-01", Decimal("18.5"), "DOF 2040-12-31, ñ"))


async def test_own_limits_stand_above_the_plan(redis_url: str, tmp_path: Path) -> None:
    """Limits that are not named stay as they were."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        await books.accounts.set_limits(caller.org_id, {"images_per_minute": 9})
        org = await books.accounts.set_limits(caller.org_id, {"requests_per_minute": 7})
        assert (org.limits.requests_per_minute, org.limits.images_per_minute) == (7, 9)
        admission = await books.admit(caller, "r")
        assert (admission.requests.limit, admission.images.limit) == (7, 9)


async def test_what_is_not_there_is_a_sentence(redis_url: str, tmp_path: Path) -> None:
    """Unknown organisation, key or plan; a name that is taken."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        await books.accounts.create_org("acme", "default")
        with pytest.raises(LedgerError, match="there is no organisation 'nobody'"):
            await books.accounts.create_key("nobody", "main")
        with pytest.raises(LedgerError, match="there is no key 'key_x'"):
            await books.accounts.revoke_key("key_x")
        with pytest.raises(LedgerError, match="there is no plan 'gold'"):
            await books.accounts.create_org("other", "gold")
        with pytest.raises(LedgerError, match="exists already"):
            await books.accounts.create_org("acme", "default")


@pytest.mark.rule(2)
async def test_a_change_is_of_record_though_redis_is_away(redis_url: str, tmp_path: Path) -> None:
    """The command succeeds, and the next look of any projector brings it to Redis (rule 2)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        caller = await books.org()
        nowhere = open_redis(f"unix://{tmp_path}/nobody.sock", connections=1, call_timeout_s=0.1)
        for projector in (Projector(nowhere, books.ledger), None):
            accounts = Accounts(books.ledger, projector, PLANS, MODELS, IVA, "test")
            await accounts.add_credit(caller.org_id, f"c-{projector is None}", "recharge", UNIT)
        await accounts.revoke_key(caller.key_id)
        assert (await books.admit(caller, "r1")).verdict is Verdict.ADMITTED
        await books.projector.round()
        assert (await books.admit(caller, "r2")).verdict is Verdict.REVOKED
        assert (await books.cut(caller)).credits_micro_mxn == 12 * UNIT
        await nowhere.aclose()


async def test_a_new_key_is_not_lost_when_the_record_cannot_be_read_again(redis_url: str, tmp_path: Path) -> None:
    """It was committed, so its secret is shown; any process that can brings it to Redis."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        await books.accounts.create_org("acme", "default")
        unreadable = SqliteLedger(tmp_path / "other.db")
        accounts = Accounts(books.ledger, Projector(books.redis, unreadable), PLANS, MODELS, IVA, "test")
        issued = await accounts.create_key("acme", "main")
        await unreadable.aclose()
        assert await books.wallet.key(hash_key(issued.secret)) is None
        await books.projector.round()
        assert await books.wallet.key(hash_key(issued.secret)) is not None


@pytest.mark.rule(2)
async def test_an_unknown_key_is_unknown_only_where_redis_is_projected(redis_url: str, tmp_path: Path) -> None:
    """Before the projection it is "away", and never 401 (rule 2)."""
    async with open_books(redis_url, tmp_path / "l.db", projected=False) as books:
        with pytest.raises(NotProjected):
            await books.wallet.key(hash_key("nobody's"))
        await books.projector.round()
        assert await books.wallet.key(hash_key("nobody's")) is None
