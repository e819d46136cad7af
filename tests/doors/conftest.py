"""Systems of real processes, as the end-to-end tests have them."""

from tests.e2e.conftest import prepared

__all__ = ["prepared"]
