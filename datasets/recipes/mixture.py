"""`python -m drifting_policy.datasets.mixture`: points of eight clusters on a ring, as demonstrations of one step each."""

import argparse
import shlex
import sys
from collections.abc import Sequence

import numpy as np

from drifting_policy.datasets.card import write_with_card
from drifting_policy.envs.mixture import CLUSTERS, cluster_of, draw_points
from drifting_policy.types import ConfigError, UserError


def main(arguments: Sequence[str]) -> int:
    """Write the data set and its card; exit code 2 on a mistake."""
    parser = argparse.ArgumentParser(prog="python -m drifting_policy.datasets.mixture", description=__doc__)
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="datasets/bundled/mixture.zarr.zip", help="the data set; its card lies beside it")
    options = parser.parse_args(arguments)
    try:
        if options.points < 1 or options.seed < 0:
            raise ConfigError(f"--points must be at least 1 and --seed at least 0; got {options.points}, {options.seed}.")
        points = draw_points(options.points, np.random.default_rng(options.seed)).astype(np.float32)
        out = write_with_card(
            options.out,
            {"nothing": np.zeros((len(points), 1), np.float32), "action": points},
            np.arange(1, len(points) + 1),
            origin="random numbers",
            command=shlex.join(["python", "-m", "drifting_policy.datasets.mixture", *arguments]),
            clusters=np.bincount(cluster_of(points) + 1, minlength=CLUSTERS + 1).tolist()[1:],
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(points)} points: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
