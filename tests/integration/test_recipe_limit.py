"""The recipe "a kind of limit" of docs/development.md, followed in a copy of the tree."""

import json
import re
from pathlib import Path

from tests.kits.books import SCHEMA
from tests.kits.tree import Tree
from tests.long import long

MIGRATION = """\
-- What one order may cost.

ALTER TABLE organizations ADD COLUMN micro_mxn_per_order {integer} CHECK (micro_mxn_per_order >= 0);
ALTER TABLE api_keys ADD COLUMN micro_mxn_per_order {integer} CHECK (micro_mxn_per_order > 0);
ALTER TABLE plans ADD COLUMN micro_mxn_per_order {integer} CHECK (micro_mxn_per_order > 0);
"""

PER_ORDER_TEST = '''\
"""MXN per order: what one order of an organisation, or of one of its keys, may cost."""

from dataclasses import replace
from pathlib import Path

import pytest

from metering.ledger import queries
from metering.limits import NONE, Limits
from metering.wallet.inspection import expected
from metering.wallet.values import Verdict
from proxy.errors import Kind
from proxy.orders.refusals import exceeded
from tests.kits.books import ACT, NOON, PLANS, SCHEMA, UNIT, open_books, open_ledger, pinned, snapshot, sql
from tests.kits.limits import counters, nothing_open, open_shop

LIMIT = "micro_mxn_per_order"


async def test_an_order_costs_at_most_what_its_organisation_and_its_key_allow(redis_url: str, tmp_path: Path) -> None:
    """The narrower of both; whose it is, and both amounts are told, and no wait, for none helps. It took nothing."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        shop = await open_shop(books)
        await shop.do(f"org {LIMIT} {3 * UNIT}")
        await shop.do(f"key a {LIMIT} {2 * UNIT}")
        for name, images, whose, limit, told in (
            ("a", 3, "key", 2, "This API key's limit is 1.68 MXN per order, and this order may cost 2.52 MXN."),
            ("b", 4, "org", 3, "Your organisation's limit is 2.52 MXN per order, and this order may cost 3.36 MXN."),
        ):
            refused = await shop.order(f"{name}1", images)
            assert (refused.verdict, refused.whose, refused.limit) == (Verdict.ORDER, whose, limit * UNIT)
            error = exceeded(refused, pinned(images), {})
            assert (error.kind, error.retry_after_s, error.message) == (Kind.BUDGET, None, told)
        assert nothing_open(await counters(books, shop.callers["a"]))
        assert [await shop.do(order) for order in ("a1 2", "b1 3", "b2 3")] == ["ADMITTED"] * 3


async def test_an_organisation_lifts_its_plans(redis_url: str, tmp_path: Path) -> None:
    """What holds reaches Redis as the ledger has it, from a plan too, and is there again when all is made anew."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        shop = await open_shop(books)
        await books.ledger.register_plans({"default": replace(PLANS["default"], micro_mxn_per_order=UNIT)}, NOON)
        await books.projector.round()
        assert (await shop.order("a1", 2)).verdict is Verdict.ORDER
        await books.projector.forget(None)
        await books.projector.round()
        assert (await shop.order("a1", 2)).verdict is Verdict.ORDER
        found = await snapshot(books.ledger, shop.org_id)
        assert await books.projector.inspection.projected([found]) == [expected(found)]
        await shop.do(f"org {LIMIT} {NONE}")
        assert await shop.do("a1 2") == "ADMITTED"


async def test_a_ledger_of_before_has_no_such_limit(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its organisations, keys and plans go on as they were, and may have one from then on."""
    ledger = open_ledger(ledger_url)
    every = queries.migrations
    with monkeypatch.context() as before:
        before.setattr(queries, "migrations", lambda dialect: every(dialect)[:-1])
        assert await ledger.migrate() == SCHEMA - 1
    at = NOON.isoformat()
    sql(ledger_url, f"INSERT INTO organizations (id, name, plan, created_at) VALUES ('o', 'acme', 'default', '{at}')")
    sql(
        ledger_url,
        "INSERT INTO api_keys (id, org_id, name, hash, created_at, in_flight)"
        f" VALUES ('key_1', 'o', 'web', 'h', '{at}', 7)",
    )
    assert await ledger.migrate() == SCHEMA
    assert ((await ledger.org("o")).limits, (await ledger.key("key_1")).limits) == (Limits(), Limits(in_flight=7))
    await ledger.set_key_limits("key_1", {LIMIT: 5}, NOON, ACT)
    assert (await ledger.key("key_1")).limits == Limits(in_flight=7, micro_mxn_per_order=5)
    await ledger.aclose()
'''


@long
def test_a_kind_of_limit_is_seven_files_of_code_two_documents_and_its_test(tmp_path: Path) -> None:
    """`mxn_per_order`: its row, its column in both databases, its decision, what is told of it."""
    tree = Tree(tmp_path / "tree")
    tree.edit(
        "metering/limits.py",
        (
            "\n    def over(",
            "    micro_mxn_per_order: Annotated[int | None, LimitKind(MAX_MICRO_MXN, money=True)] = None\n"
            "\n    def over(",
        ),
    )
    tree.add(f"metering/ledger/sql/sqlite_{SCHEMA + 1:04}.sql", MIGRATION.format(integer="INTEGER"))
    tree.add(f"metering/ledger/sql/postgres_{SCHEMA + 1:04}.sql", MIGRATION.format(integer="BIGINT"))
    tree.edit(
        "metering/wallet/admit_v5.lua",
        ("'images_per_month', 'mxn_per_month')", "'images_per_month', 'mxn_per_month', 'mxn_per_order')"),
        ("budget = v[20] and v[20] + 0 }", "budget = v[20] and v[20] + 0, order = v[21] and v[21] + 0 }"),
        ("amount > (s.budget or NEVER)", "amount > math.min(s.budget or NEVER, s.order or NEVER)"),
        (
            "elseif by_quota(BUDGET,",
            "elseif by_quota(ORDER, 'order', 0, 0, amount) then\nelseif by_quota(BUDGET,",
        ),
    )
    tree.edit("metering/wallet/values.py", ("    SUSPENDED = 19\n", "    SUSPENDED = 19\n    ORDER = 20\n"))
    tree.edit(
        "proxy/messages.py",
        (
            "QUOTA = Text(",
            "PER_ORDER = Text(\n"
            '    "{whose} limit is {limit} MXN per order, and this order may cost {cost} MXN.",\n'
            '    "El límite {whose} es de {limit} MXN por pedido, y este pedido puede costar {cost} MXN.",\n'
            ")\nQUOTA = Text(",
        ),
    )
    tree.edit(
        "proxy/orders/refusals.py",
        ("    NEXT_PERIOD,\n", "    NEXT_PERIOD,\n    PER_ORDER,\n"),
        (
            "        case Verdict.BUDGET:\n",
            "        case Verdict.ORDER:\n"
            "            kind, cost = Kind.BUDGET, format_mxn(order.total_micro_mxn)\n"
            "            message = PER_ORDER.of(whose=whose, limit=format_mxn(limit), cost=cost)\n"
            "        case Verdict.BUDGET:\n",
        ),
    )
    tree.edit(
        "docs/limits.md",
        (
            "| balance | |",
            "| MXN per order | `mxn_per_order` | what the order may cost | a smaller order fits |\n| balance | |",
        ),
        ("| budget | 402", "| MXN per order | 402 `budget_exceeded` | – | false |\n| budget | 402"),
    )
    tree.edit("docs/operations.md", ("| `balance`, `budget` | 402", "| `balance`, `budget`, `order` | 402"))
    tree.add("tests/integration/test_mxn_per_order.py", PER_ORDER_TEST)
    assert tree.changed() == [
        "docs/limits.md",
        "docs/operations.md",
        f"metering/ledger/sql/postgres_{SCHEMA + 1:04}.sql",
        f"metering/ledger/sql/sqlite_{SCHEMA + 1:04}.sql",
        "metering/limits.py",
        "metering/wallet/admit_v5.lua",
        "metering/wallet/values.py",
        "proxy/messages.py",
        "proxy/orders/refusals.py",
        "tests/integration/test_mxn_per_order.py",
    ]
    tree.lint()
    tree.tests(
        "tests/integration/test_mxn_per_order.py",
        *("tests/unit/test_docs.py", "tests/unit/test_openapi.py", "tests/unit/test_messages.py"),
        *("tests/unit/test_catalogue.py", "tests/integration/test_accounts.py"),
        "tests/integration/test_ledger.py::test_migrating_twice_changes_nothing",
    )
    plans = tree.root / "plans.toml"
    rates = "requests_per_minute = 1\nimages_per_minute = 1"
    plans.write_text(f'[plans.default]\n{rates}\nmxn_per_order = "1.50"\n', encoding="utf-8")
    described = tree.python(
        "import json",
        "from pathlib import Path",
        "from metering.plans import read_plans",
        "from proxy.api.openapi import document",
        "from tests.kits.surface import operations",
        "models = document(operations())['components']['schemas']",
        "takes = {name: models[name]['properties']['mxn_per_order'] for name in",
        "    ('OrgLimits', 'KeyLimits', 'OrgRow', 'KeyRow', 'Effective')}",
        "print(json.dumps([takes, read_plans(Path('plans.toml'))['default'].micro_mxn_per_order]))",
    )
    models, of_the_plan = json.loads(described)
    assert of_the_plan == 1_500_000
    assert models["OrgLimits"]["description"] == 'an amount such as "500.00", "none", or null for the plan\'s'
    assert models["KeyLimits"]["description"] == 'an amount such as "500.00", or null'
    for noun in ("org", "key"):
        said = tree.python("from proxy.cli.root import app", f"app(['{noun}', 'limits', '--help'])")
        assert re.search(r"--mxn-per-order +MXN +Such as 500\.00", said), said
