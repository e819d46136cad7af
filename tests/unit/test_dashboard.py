"""The dashboard as Grafana reads it."""

import json
import re
from typing import Any

from grafana_foundation_sdk.models import units

from docs.dashboard import FULL, PAGE, PANELS, ROWS

DASHBOARD: dict[str, Any] = json.loads(PAGE.read_text())
DRAWN = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
UNITS = {value for name, value in vars(units).items() if isinstance(value, str) and not name.startswith("_")}


def test_every_panel_says_what_it_shows_in_which_unit() -> None:
    """A title of its own, a sentence, a unit that Grafana knows, and queries that can be told apart."""
    assert [panel["title"] for panel in DRAWN] == [panel.title for panel in PANELS]
    assert len({panel.title for panel in PANELS}) == len(PANELS)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in DRAWN:
        assert panel["description"].endswith("."), panel["title"]
        unit = panel["fieldConfig"]["defaults"]["unit"]
        assert unit in UNITS or re.fullmatch(r"currency:\w+ ?", unit), unit
        names = [target["refId"] for target in panel["targets"]]
        assert len(set(names)) == len(names) and all(names), panel["title"]


def test_every_row_is_full_and_every_variable_is_there() -> None:
    """No panel hangs over the edge, and each query uses only what can be chosen."""
    for row in ROWS:
        across = 0
        for panel in row.panels:
            across = (across + panel.width) % FULL
        assert across == 0, row.title
    variables = {one["name"] for one in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "namespace", "provider", "model", "pod"}
    for panel in PANELS:
        for query in panel.queries:
            used = set(re.findall(r"\$(\w+)", query.expr)) - {"__rate_interval"}
            assert used <= variables and "namespace" in used, query.expr
