"""Prints one example of early-signal in three lines: the version, the row as JSON, the probability expected.

    python sample_row.py STORE

The highest version that has an example of a single row is taken.
"""

import json
import sys
from pathlib import Path


def number_of(version):
    return [int(number) for number in version.removeprefix("v").split(".")]


def main(store):
    paths = sorted((store / "early-signal").glob("*/example.json"), key=lambda path: number_of(path.parent.name), reverse=True)
    for path in paths:
        for example in json.loads(path.read_text())["examples"]:
            rows = example["request"].get("rows", [])
            if len(rows) == 1:
                print(path.parent.name, json.dumps(rows[0]), example["response"]["outputs"][0]["data"][0], sep="\n")
                return
    sys.exit(f"{store}/early-signal has no example of a single row")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
