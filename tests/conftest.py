"""One thread a test process: results repeat, and parallel test processes do not crowd the cores.

A make that a test starts is not part of the `make test` that may run it. The two files with
long chains of runs begin first, so that no process is left alone with one at the end.
"""

import os
import sys

import pytest

for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "GNUMAKEFLAGS"):
    os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def one_thread():
    if "torch" in sys.modules:  # the tests of money and tables never load it
        sys.modules["torch"].set_num_threads(1)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in ("test_pins.py", "test_own_task.py"))
