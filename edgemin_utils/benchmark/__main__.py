"""`python -m edgemin_utils.benchmark [training-speed | edge-bundle] [options]`; without a name, both with their
defaults. `make benchmarks` runs it."""

import sys
from collections.abc import Sequence

from edgemin_utils.benchmark import edge_bundle, training_speed
from edgemin_utils.config import nearest
from edgemin_utils.errors import EdgeMINError, SettingError

BENCHMARKS = {"training-speed": training_speed.main, "edge-bundle": edge_bundle.main}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one benchmark, or all, and gives the exit status: 0 all well, 2 something asked for cannot be (an
    EdgeMINError is printed as one line, as the SettingError of an unknown name)."""
    name, *options = list(sys.argv[1:] if arguments is None else arguments) or [""]
    try:
        if name and name not in BENCHMARKS:
            raise SettingError(f"unknown benchmark {name!r}; {nearest(name, BENCHMARKS)}")
        for chosen in [name] if name else BENCHMARKS:
            BENCHMARKS[chosen](options)
    except EdgeMINError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
