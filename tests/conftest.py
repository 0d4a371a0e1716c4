"""One thread a test process: results repeat, and parallel test processes do not crowd the cores."""

import sys

import pytest


@pytest.fixture(autouse=True)
def one_thread():
    if "torch" in sys.modules:  # the tests of money and tables never load it
        sys.modules["torch"].set_num_threads(1)
