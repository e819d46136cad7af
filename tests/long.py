"""What `make test` runs in a short version, and `make long` whole."""

import os

import pytest

LONG = "LONG" in os.environ

long = pytest.mark.skipif(not LONG, reason="part of `make long`")
