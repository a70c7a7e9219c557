"""`python -m benchmarks` lists the scenarios; `python -m benchmarks NAME` runs one and exits 1 if it misses its aim."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from benchmarks.rooms.load import NodeMissing

SCENARIOS = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0].replace("-", "_") not in SCENARIOS:
        for name in SCENARIOS:
            module = importlib.import_module(f"benchmarks.{name}")
            print(f"{name.replace('_', '-'):16} {(module.__doc__ or '').strip().splitlines()[0]}")
        return 0 if not arguments else 2
    module = importlib.import_module(f"benchmarks.{arguments[0].replace('-', '_')}")
    try:
        return int(module.main(arguments[1:]))
    except NodeMissing as missing:
        print(missing, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
