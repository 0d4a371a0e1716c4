"""A `make table2` killed on the way ends in the same bytes; tests/kill_make.py does it often."""

from kill_make import run
from tiny import slow


@slow
def test_a_killed_make_ends_in_the_same_table(tmp_path):
    found = run(tmp_path, 3)
    assert found["same"] == found["grids"] and found["kills"] == 3 and found["runs_a_grid"] > 5
