"""Log lines of a real process: one JSON object, no key, and only the place of a library's warning."""

import json
import subprocess
import sys
from typing import Any

import pytest

KEY = "ghub_sk_live_" + "Ab3" * 10 + "Zz"
HEAD = f"""
import logging, sys, structlog
from config.logs import set_up_logs
set_up_logs("info", sys.stdout)
log, key = structlog.get_logger("test"), {KEY!r}
"""


def lines(script: str) -> list[dict[str, Any]]:
    """Run it, and read what it logged."""
    done = subprocess.run([sys.executable, "-c", HEAD + script], capture_output=True, text=True, check=True)
    assert KEY not in done.stdout + done.stderr and "Ab3Ab3" not in done.stdout + done.stderr
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_key_in_any_field_never_reaches_the_output() -> None:
    """As the event, a value, inside a value, a name, bytes, a nested field, an object's own text, and in a trace."""
    found = lines("""
class Odd:
    def __repr__(self): return f"<odd {key}>"
log.info(key)
log.info("event", value=key)
log.info("event", value=f"Bearer {key}, and {key}.")
log.info("event", **{key: 1})
log.info("event", value=key.encode())
log.info("event", value=[{"deep": (key, {key: key})}])
log.info("event", value=Odd())
log.warning("event %s", key)
structlog.contextvars.bind_contextvars(bound=key)
log.error("event")
structlog.contextvars.clear_contextvars()
try:
    raise ValueError(f"bad key {key}") from KeyError(key)
except ValueError:
    log.exception("failed")
""")
    assert len(found) == 10
    assert all("ghub_sk_[hidden]" in json.dumps(line) for line in found)


def test_a_trace_shows_no_local_variables() -> None:
    """A prompt or a body in one of them stays inside."""
    (line,) = lines("""
def work(prompt):
    raise ValueError("x")
try:
    work("a secret prompt")
except ValueError:
    log.exception("failed")
""")
    assert line["exception"][0]["exc_type"] == "ValueError"
    assert "locals" not in json.dumps(line) and "a secret prompt" not in json.dumps(line)


def test_of_a_librarys_warning_only_its_place_is_logged() -> None:
    """Its text may carry an address or a body."""
    found = lines("""
def speak():
    logging.getLogger("hypercorn.error").warning("from https://internal %s", key)
    logging.getLogger("asyncio").error("from https://internal %s", key)
    logging.getLogger("redis").info("not even this")
speak()
""")
    assert [(line["event"], line["level"], line["logger"]) for line in found] == [
        ("library", "WARNING", "hypercorn.error"),
        ("library", "ERROR", "asyncio"),
    ]
    assert all(line["at"].startswith("speak:") and set(line) == {"event", "level", "logger", "at"} for line in found)


@pytest.mark.parametrize(("level", "heard"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_lines_below_the_level_are_not_written(level: str, heard: int) -> None:
    """From the level upwards, each line is there."""
    found = lines(f"""
set_up_logs({level!r}, sys.stdout)
for name in ("debug", "info", "warning", "error"):
    getattr(log, name)("event")
""")
    assert len(found) == heard
    assert all(line["timestamp"].endswith("Z") for line in found)
