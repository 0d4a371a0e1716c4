"""Run scripts one after the other in one process: loading torch takes longer than scoring with a
mini model.

Usage:
    python -m data.costs.in_one train_small.py FLAGS -- evaluate.py FLAGS

Each runs as by `python SCRIPT FLAGS`; where one ends with an error, the next are not begun.
"""

import itertools
import runpy
import sys


def main(words):
    for between, command in itertools.groupby(words, "--".__eq__):
        if between:
            continue
        sys.argv = list(command)
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise


if __name__ == "__main__":
    main(sys.argv[1:])
