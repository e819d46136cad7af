"""The recipes "a metric" and "an export format" of docs/development.md, followed in a copy of the tree."""

import sys
from pathlib import Path

from tests.kits.tree import Tree

METRIC_TEST = '''\
"""How often upstreams have said that a model is gone."""

from prometheus_client import REGISTRY

from config.catalogue import read_catalogue
from proxy.orders.lifecycle import Lifecycle


def test_each_time_is_counted_by_model() -> None:
    """A model of which nothing was said has no line."""
    model = read_catalogue(None).models["openai/dall-e-3"]
    for _ in range(2):
        Lifecycle().retire("openai/dall-e-3", model)
    assert REGISTRY.get_sample_value("ghub_models_retired_total", {"model": "openai/dall-e-3"}) == 2
    assert REGISTRY.get_sample_value("ghub_models_retired_total", {"model": "xai/grok-2-image"}) is None
'''


def test_a_metric_is_its_place_its_row_and_its_test(tmp_path: Path) -> None:
    """A counter that no page names is refused by a test."""
    tree = Tree(tmp_path / "tree")
    tree.edit(
        "proxy/orders/lifecycle.py",
        ("import structlog\n", "import structlog\nfrom prometheus_client import Counter\n"),
        (
            "REMEMBERED_S = ",
            'RETIRED = Counter("ghub_models_retired_total", "Replies that a model is gone", ["model"])\n\n'
            "REMEMBERED_S = ",
        ),
        (
            "        self._gone_until_s[model_id] =",
            "        RETIRED.labels(model_id).inc()\n        self._gone_until_s[model_id] =",
        ),
    )
    tree.add("tests/unit/test_retired.py", METRIC_TEST)
    assert "ghub_models_retired_total" in tree.failing("tests/unit/test_docs.py")
    tree.edit(
        "docs/operations.md",
        (
            "| `ghub_orders_total{model,reason}` |",
            "| `ghub_models_retired_total{model}` | replies that a model is gone |\n"
            "| `ghub_orders_total{model,reason}` |",
        ),
    )
    assert tree.changed() == ["docs/operations.md", "proxy/orders/lifecycle.py", "tests/unit/test_retired.py"]
    tree.lint()
    tree.tests("tests/unit/test_retired.py", "tests/unit/test_docs.py")


WRITER = '''\
async def write_json_arrays(
    charges: AsyncIterator[Sequence[Charge]], refunds: AsyncIterator[Refunded], file: TextIO
) -> Written:
    """An array a line."""
    rows = charged = refunded = 0
    async for page in charges:
        for charge in page:
            file.write(json.dumps(row(charge)) + "\\n")
            rows, charged = rows + 1, charged + charge.amount_micro_mxn
    async for one in refunds:
        file.write(json.dumps(refund_row(one)) + "\\n")
        rows, refunded = rows + 1, refunded + one.refund.amount_micro_mxn
    return Written(rows, charged, refunded)


async def write_file('''

FORMAT_TEST = '''\
"""Exports of an array a line."""

import json
from pathlib import Path

from metering.export import COLUMNS, FORMATS, write_file
from tests.integration.test_export import charge, stream


async def test_a_line_is_an_array_with_every_column(tmp_path: Path) -> None:
    """Of each charge."""
    out = tmp_path / "out.arrays"
    written = await write_file(stream([charge(3)], [charge()]), stream(), out, FORMATS["arrays"])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert (written.rows, len(lines)) == (2, 2)
    assert [len(line) for line in lines] == [len(COLUMNS)] * 2
'''


def test_an_export_format_is_a_function_and_its_line(tmp_path: Path) -> None:
    """Its command offers it without being told."""
    tree = Tree(tmp_path / "tree")
    tree.edit(
        "metering/export.py",
        ("import io\n", "import io\nimport json\n"),
        ("async def write_file(", WRITER),
        ('"jsonl": write_json_lines}', '"jsonl": write_json_lines, "arrays": write_json_arrays}'),
    )
    tree.add("tests/integration/test_export_arrays.py", FORMAT_TEST)
    assert tree.changed() == ["metering/export.py", "tests/integration/test_export_arrays.py"]
    tree.lint()
    tree.tests("tests/integration/test_export_arrays.py")
    assert "csv, jsonl, arrays" in tree.run(sys.executable, "-m", "proxy.cli", "usage", "export", "--help")
