"""Tests that `make test` runs in a short version, `make long` whole, and `make quick` shorter still."""

import os

import pytest

LONG = "LONG" in os.environ
QUICK = "QUICK" in os.environ

QUICK_EXAMPLES = 50

long = pytest.mark.skipif(not LONG, reason="part of `make long`")


def examples(count: int) -> int:
    """On how many examples a property is tried: on `count`, or on fewer in the daily loop."""
    return min(count, QUICK_EXAMPLES) if QUICK else count
