"""The recipes "a metric" and "an export format" of docs/development.md, followed in a copy of the tree."""

import sys
from pathlib import Path

from tests.kits.tree import Tree
from tests.long import long

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


@long
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
            "| `ghub_models_retired_total{model}` | counter | replies | that a model is gone |\n"
            "| `ghub_orders_total{model,reason}` |",
        ),
    )
    assert tree.changed() == ["docs/operations.md", "proxy/orders/lifecycle.py", "tests/unit/test_retired.py"]
    tree.lint()
    tree.tests("tests/unit/test_retired.py", "tests/unit/test_docs.py")


WRITER = '''\
"""Export as JSON arrays, one a line."""

import json
from typing import BinaryIO

from metering.exports.rows import Written, pages
from metering.exports.writing import Source, Tell


async def write(source: Source, file: BinaryIO, tell: Tell) -> Written:
    """Write an array for each row. Raises LedgerAway, OSError."""
    total = Written()
    async for page in pages(source.ledger, source.scope):
        file.write("".join(json.dumps(row) + "\\n" for row in page.rows).encode())
        total = total.plus(page.written)
        tell(page.written.rows)
    return total
'''

FORMAT_TEST = '''\
"""Exports of an array a line."""

import json

from metering.exports.rows import COLUMNS
from tests.integration.test_export import charge
from tests.kits.exports import exported, source


async def test_a_line_is_an_array_with_every_column() -> None:
    """Of each charge."""
    data, written = await exported(source([[charge(3)], [charge()]]), "arrays")
    lines = [json.loads(line) for line in data.splitlines()]
    assert (written.rows, len(lines)) == (2, 2)
    assert [len(line) for line in lines] == [len(COLUMNS)] * 2
'''


@long
def test_an_export_format_is_a_module_and_its_line(tmp_path: Path) -> None:
    """Its command offers it without being told."""
    tree = Tree(tmp_path / "tree")
    tree.add("metering/exports/json_arrays.py", WRITER)
    line = '    "jsonl": Offered("metering.exports.json_lines:write", sealed=True),\n'
    tree.edit("metering/exports/formats.py", (line, line + line.replace("jsonl", "arrays").replace("lines", "arrays")))
    tree.add("tests/integration/test_export_arrays.py", FORMAT_TEST)
    assert tree.changed() == [
        "metering/exports/formats.py",
        "metering/exports/json_arrays.py",
        "tests/integration/test_export_arrays.py",
    ]
    tree.lint()
    tree.tests("tests/integration/test_export_arrays.py")
    assert "arrays" in tree.run(sys.executable, "-m", "proxy.cli", "usage", "export", "--help")
