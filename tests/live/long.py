"""What only runs when somebody asks for the long tests."""

import os

import pytest

LONG = pytest.mark.skipif(os.environ.get("TIDEGATE_LONG_TESTS") != "1", reason="TIDEGATE_LONG_TESTS=1 runs it (minutes)")
