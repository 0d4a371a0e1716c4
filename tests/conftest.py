"""One thread a test process: results repeat, and parallel test processes do not crowd the cores.

A make that a test starts is not part of the `make test` that may run it. The two files with
long chains of runs begin first and those of few tests last, so that no process is left alone.
"""

import os
import sys
from collections import Counter

import pytest

for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "GNUMAKEFLAGS", "MAKE_PID"):
    os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def one_thread():
    if "torch" in sys.modules:  # the tests of money and tables never load it
        sys.modules["torch"].set_num_threads(1)


def pytest_collection_modifyitems(items):
    long, tests = ("test_pins.py", "test_own_task.py"), Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.name not in long, -tests[item.path]))
