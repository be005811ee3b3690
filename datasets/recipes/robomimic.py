"""`python -m drifting_policy.datasets.robomimic absolute src=FILE dst=FILE`: robomimic's files with absolute actions.

The copy `dst` has one more array per demonstration, `actions_abs`: for each arm the position (m), the first two rows of the
rotation and the gripper that the controllers of robosuite head for when they get the recorded delta in the recorded state.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from drifting_policy.data.robomimic import copy_with_array, read_env_args
from drifting_policy.types import ConfigError, DatasetError, UserError


def main(arguments: Sequence[str]) -> int:
    """Write the copy; exit code 2 on a mistake."""
    parser = argparse.ArgumentParser(prog="python -m drifting_policy.datasets.robomimic", description=__doc__)
    parser.add_argument("command", choices=["absolute"])
    parser.add_argument("files", nargs="*", metavar="src=FILE dst=FILE")
    options = parser.parse_args(arguments)
    try:
        files = dict(file.split("=", 1) for file in options.files if "=" in file)
        if sorted(files) != ["dst", "src"] or len(options.files) != 2:
            raise ConfigError(f"Say which file to copy, and where to: src=FILE dst=FILE; got {' '.join(options.files)!r}.")
        out = add_absolute_actions(files["src"], files["dst"])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out} has actions_abs beside the actions of {files['src']}.")
    return 0


def add_absolute_actions(source: str | Path, target: str | Path) -> Path:
    """The copy `target` of the file `source` with `actions_abs` "n 10a" (float64) beside the delta `actions` "n 7a".

    Raises:
        DatasetError: a file that cannot be read or written, whose task or controller is not known, or that lacks states.
    """
    from drifting_policy.envs.robomimic import RobomimicEnv

    env_args = read_env_args(source)
    try:
        env = RobomimicEnv(env_args=env_args, action="delta")
        env.reset(seed=0)

        def make(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
            missing = {"states", "actions"} - set(arrays)
            if missing:
                raise ValueError(f"a demonstration lacks {', '.join(sorted(missing))}")
            return env.absolute_actions(arrays["states"], arrays["actions"])

        try:
            return copy_with_array(source, target, key="actions_abs", make=make)
        finally:
            env.close()
    except DatasetError:
        raise
    except ValueError as error:
        raise DatasetError(f"{source} cannot be given absolute actions: {error}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
