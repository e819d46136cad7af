"""The documents under docs/ and next to the code describe what is built."""

import ast
import hashlib
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from config.catalogue import Model, read_catalogue
from config.settings import Settings
from docs import dashboard, errors, prometheusrule, runbooks
from docs import map as map_of_files
from metering.limits import LIMITS
from proxy.orders.denials import REASONS

ROOT = Path(__file__).parents[2]
APACHE_2_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def named(requirement: str) -> str:
    """A requirement's package, as registries spell it."""
    (name,) = re.findall(r"^[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_has_a_row_and_no_row_is_stale() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    of_the_project = project["project"]["dependencies"]
    extras = project["project"]["optional-dependencies"]
    groups = project["dependency-groups"]
    expected = {(named(one), "") for one in of_the_project}
    expected |= {(named(one), extra) for extra, members in extras.items() for one in members}
    expected |= {(named(one), group) for group, members in groups.items() for one in members if isinstance(one, str)}
    text = (ROOT / "docs/dependencies.md").read_text()
    rows = re.findall(r"(?m)^\| `([^`]+)` \|(?: `(\w+)` \|)?", text)
    assert len(rows) == len(set(rows))
    assert set(rows) == expected


def test_every_dependency_has_its_reason_cost_and_upkeep() -> None:
    for line in (ROOT / "docs/dependencies.md").read_text().splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert all(cells), line
            assert re.match(r"\d+\.\d MB, \d+( with \d+\.\d MB|$)", cells[-2]), line


@pytest.mark.parametrize(
    "printed", [errors, map_of_files, dashboard, prometheusrule, runbooks], ids=lambda one: one.__name__
)
def test_a_page_is_printed_from_the_code(printed: ModuleType) -> None:
    assert printed.PAGE.read_text(encoding="utf-8") == printed.page(), f"run .venv/bin/python -m {printed.__name__}"


def test_every_room_stands_in_the_architecture() -> None:
    """Each is named as a folder with its path; the files are on the map."""
    told = (ROOT / "docs" / "architecture.md").read_text()
    rooms = [f"{room.relative_to(ROOT)}/" for room in map_of_files.rooms()]
    assert [room for room in rooms if f"`{room}`" not in told and f"`{room.removeprefix('proxy/')}`" not in told] == []


def test_the_license_is_apache_2_to_the_letter() -> None:
    text = (ROOT / "LICENSE").read_text()
    original = text.replace("Copyright 2026 GeekHub", "Copyright [yyyy] [name of copyright owner]")
    assert text != original
    assert hashlib.sha256(original.encode()).hexdigest() == APACHE_2_SHA256


def test_the_script_for_ci_stops_at_the_first_failure_and_reads_no_input() -> None:
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    assert "set -euo pipefail" in script.read_text()
    assert "make --no-print-directory test </dev/null" in script.read_text()
    subprocess.run(["bash", "-n", script], check=True)


def test_every_setting_is_documented() -> None:
    """Each variable that the settings read has its place in docs/operations.md."""
    page = (ROOT / "docs" / "operations.md").read_text()
    assert [name for name in Settings.model_fields if f"`GHUB_{name.upper()}`" not in page] == []


def test_every_limit_is_documented() -> None:
    """Each kind has its row in docs/limits.md, under the name by which it is set."""
    page = (ROOT / "docs" / "limits.md").read_text()
    assert re.findall(r"(?m)^\| [^|]+ \| `(\w+)` \|", page) == [kind.name for kind in LIMITS.values()]


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call in the code that is shipped, with the name of what is called."""
    for path in (one for folder in ("proxy", "metering", "config") for one in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield getattr(node.func, "attr", getattr(node.func, "id", "")), node


def text_of(node: ast.expr | None) -> str:
    """A text that is written in a call; empty for anything else."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def metrics() -> dict[str, str]:
    """Every metric, with its labels as on the page, and its type."""
    found = {}
    for name, call in calls():
        metric = text_of(call.args[0]) if call.args else ""
        kind = name.removesuffix("MetricFamily").lower()
        if metric.startswith("ghub_") and kind in {"counter", "gauge", "histogram", "summary"}:
            labels = [text_of(one) for node in call.args[2:3] if isinstance(node, ast.List) for one in node.elts]
            found[metric + (f"{{{','.join(labels)}}}" if labels else "")] = kind
    return found


def alarms() -> set[str]:
    """Every event of the log above `info`, and every name that is given to repeated work for when it waits."""
    found = set()
    for name, call in calls():
        if name in {"warning", "error", "exception", "critical"} and call.args:
            found |= {text_of(one) for one in ast.walk(call.args[0]) if isinstance(one, ast.Constant)}
        if name == "every":
            found |= {text_of(one.value) for one in call.keywords if one.arg == "name"}
    return found - {""}


def section(title: str) -> str:
    """A section of docs/operations.md, without those below it."""
    page = (ROOT / "docs" / "operations.md").read_text()
    (found,) = re.findall(rf"(?ms)^#+ {title}$(.*?)(?=^#+ )", page)
    return str(found)


def test_every_metric_is_documented_and_no_row_is_stale() -> None:
    """Each has its row in docs/operations.md with its labels and its type, its unit and what it is for."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section("Metrics").splitlines()]
    told = [row for row in rows if row[0].startswith("`ghub_")]
    assert {row[0].strip("`"): row[1] for row in told} == metrics()
    assert len(told) == len(metrics())
    assert [row for row in told if len(row) != 4 or not all(row)] == []


def test_every_alarm_is_documented_and_no_row_is_stale() -> None:
    """Every log line above `info` is in the table of what to watch, and the table names no other line or metric."""
    cells = [line.split(" | ")[0] for line in section("What to watch").splitlines() if line.startswith("| `")]
    named = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert len(alarms()) > 60
    assert {name for name in named if not name.startswith("ghub_")} == alarms()
    known = {name.partition("{")[0] for name in metrics()}
    assert {name for name in named if name.startswith("ghub_") and name.partition("{")[0] not in known} == set()


def test_every_reason_of_a_denial_is_documented_and_no_row_is_stale() -> None:
    """In docs/operations.md."""
    cells = [line.split(" | ")[0] for line in section("Reasons of a denial").splitlines() if line.startswith("| `")]
    named = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert sorted(named) == sorted(REASONS)


@pytest.mark.parametrize("name", ["README.md", "README.es.md"])
def test_the_readme_says_which_models_have_been_shut_down(name: str) -> None:
    """With the day; what the catalogue says of a day that has come."""
    text = " ".join((ROOT / name).read_text().split())
    over = {model_id: model.shutdown_date for model_id, model in read_catalogue(None).models.items()}
    assert {found for found in over if over[found] and f"`{found}` ({over[found]})" not in text} == set()


def test_the_toml_in_the_docs_is_toml_of_the_catalogue() -> None:
    """Every block of docs/models.md parses; its first example is the catalogue's own, its last the demo's price."""
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "models.md").read_text(), re.DOTALL)
    example, *others, priced = (tomllib.loads(block)["models"] for block in blocks)
    routes = {name: table for other in others for name, table in other.items() if "second" in table}
    (name,) = example
    shipped = read_catalogue(None).models[name]
    assert shipped.model_copy(update={"sizes": example[name]["sizes"]}) == Model.model_validate(example[name])
    assert routes
    for name, table in routes.items():
        whole = tomllib.loads((ROOT / "config" / "models.toml").read_text())["models"][name]
        assert Model.model_validate(whole | table).second is not None
    for name, table in priced.items():
        row = read_catalogue(None).models[name]
        assert not row.priced and Model.model_validate(row.model_dump() | table).priced, name


LATER: set[int] = set()
"""Rules of what is not built yet."""

CITED = re.compile(r"\brules? (\d+(?:(?:, | and |–)\d+)*)")
CODE = ("proxy", "metering", "config", "simulator", "tests", "bench", "docs", "k8s")


def rules() -> set[int]:
    """Those that docs/rules.md has."""
    return {int(number) for number in re.findall(r'(?m)^<a id="(\d+)"></a>$', (ROOT / "docs" / "rules.md").read_text())}


def test_every_rule_that_is_cited_exists() -> None:
    """In code, scripts, statements, tests and documents."""
    assert rules() == set(range(1, 39))
    for folder in CODE:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".lua", ".sql", ".md", ".toml", ".yaml"}:
                for cited in CITED.findall(path.read_text(encoding="utf-8")):
                    assert {int(number) for number in re.findall(r"\d+", cited)} <= rules(), f"{path}: {cited}"


def test_every_rule_is_marked_on_a_test_that_proves_it() -> None:
    """But those of what is not built yet, which say so."""
    proven: set[int] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for marked in re.findall(r"@pytest\.mark\.rule\(([\d, ]+)\)", path.read_text()):
            proven |= {int(number) for number in marked.split(",")}
    assert rules() - LATER <= proven <= rules()
    later = set(map(int, re.findall(r"\*\*(\d+)\.\*\* \*\(Not built yet", (ROOT / "docs" / "rules.md").read_text())))
    assert later == LATER
