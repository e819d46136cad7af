"""What holds of every `ghub` command: under a user without a name, at any width, and no traceback where a sentence does.

The commands come from the application itself: a new one is in the table of this file, or the first test fails.
"""

import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from config.settings import unknown_names
from metering.clock import period_at, unix_us_at, utc_now
from proxy.cli.root import commands
from tests.e2e.conftest import Prepared
from tests.e2e.kit import System
from tests.ports import free_port
from tests.processes import Forked, finished
from tests.users import NOBODY, become_nobody

SECRETS = {("key", "create"), ("key", "rotate"), ("token", "create")}
"""What they print once stands alone on standard output."""

RUNNING = {("demo",), ("serve",), ("consume",), ("simulate",)}
"""They end at a signal: started and stopped by tests of their own."""

LOG_LINE = re.compile(r"^\{.*\}$", re.MULTILINE)


@dataclass
class Desk:
    """A system in which every command has something to say, and what stands in for the words of its arguments."""

    system: System
    words: dict[str, str] = field(default_factory=dict)

    def arguments(self, *words: str) -> list[str]:
        return [word.format(**self.words) for word in words]


COMMANDS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("migrate",): (),
    ("org", "create"): ("other {turn}", "--as", "ana"),
    ("org", "show"): ("acme",),
    ("org", "list"): (),
    ("org", "limits"): ("acme", "--in-flight", "7"),
    ("org", "plan"): ("acme", "default"),
    ("org", "suspend"): ("acme", "--reason", "a chargeback"),
    ("org", "resume"): ("acme",),
    ("org", "rename"): ("acme", "acme"),
    ("key", "create"): ("acme", "--name", "a web with a long name for its key"),
    ("key", "rotate"): ("{key}", "--overlap", "24h"),
    ("key", "list"): ("acme",),
    ("key", "limits"): ("{key}", "--images-per-day", "7"),
    ("key", "revoke"): ("{spare}",),
    ("credit", "add"): ("acme", "--mxn", "5.00", "--type", "recharge", "--id", "spei-{digits}"),
    ("balance",): ("acme",),
    ("order", "show"): ("{order}",),
    ("order", "refund"): ("{order}", "--mxn", "0.000001", "--reason", "blurred"),
    ("event", "list"): (),
    ("event", "show"): ("{event}",),
    ("event", "retry"): ("{event}",),
    ("fx", "set"): ("2041-01", "18.4512", "--source", "DOF"),
    ("fx", "list"): (),
    ("usage", "export"): ("--out", "{folder}/month.csv"),
    ("audit",): ("--limit", "100"),
    ("notices",): (),
    ("storage", "sweep"): (),
    ("journal", "inspect"): ("{folder}/old",),
    ("journal", "replay"): ("{folder}/old",),
    ("journal", "salvage"): ("{folder}/old",),
    ("journal", "close"): ("{journal}", "--lost", "--reason", "a disk"),
    ("token", "create"): ("--role", "admin"),
    ("wallet", "rebuild"): ("acme",),
    ("wallet", "accept"): ("acme", "--reason", "restored"),
    ("verify",): ("--no-images",),
}
"""By the words that call it: its arguments."""


def test_every_command_is_here() -> None:
    """As the application itself lists them."""
    assert {words for words, _ in commands()} == COMMANDS.keys() | RUNNING
