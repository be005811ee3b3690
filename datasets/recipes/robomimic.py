"""`python -m drifting_policy.datasets.robomimic absolute src=FILE dst=FILE`: absolute actions, or images, for robomimic files.

`absolute`: the copy `dst` has one more array per demonstration, `actions_abs`: for each arm the position (m), the first two
rows of the rotation and the gripper that robosuite's controllers head for, given the recorded delta in the recorded state.

`images`: the copy has the observations of robomimic's cameras in every recorded state, such as `agentview_image`.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from drifting_policy.data.robomimic import copy_with_arrays, read_env_args
from drifting_policy.types import ConfigError, DatasetError, UserError


def main(arguments: Sequence[str]) -> int:
    """Write the copy; exit code 2 on a mistake."""
    parser = argparse.ArgumentParser(prog="python -m drifting_policy.datasets.robomimic", description=__doc__)
    parser.add_argument("command", choices=["absolute", "images"])
    parser.add_argument("files", nargs="*", metavar="src=FILE dst=FILE")
    options = parser.parse_args(arguments)
    try:
        files = dict(file.split("=", 1) for file in options.files if "=" in file)
        if sorted(files) != ["dst", "src"] or len(options.files) != 2:
            raise ConfigError(f"Say which file to copy, and where to: src=FILE dst=FILE; got {' '.join(options.files)!r}.")
        out = add_arrays(files["src"], files["dst"], images=options.command == "images")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out} has what {files['src']} has, and {'images' if options.command == 'images' else 'actions_abs'}.")
    return 0


def add_arrays(source: str | Path, target: str | Path, *, images: bool) -> Path:
    """The copy `target` of the file `source` with `actions_abs` "n 10a" (float64), or with `images` "n h w c" (uint8).

    Raises:
        DatasetError: a file that cannot be read or written, whose task or controller is not known, or that lacks states.
    """
    from drifting_policy.envs.robomimic import RobomimicEnv

    env_args = read_env_args(source)
    try:
        env = RobomimicEnv(env_args=env_args, action="delta")
        env.reset(seed=0)

        def make(arrays: Mapping[str, np.ndarray], model: str | None) -> Mapping[str, np.ndarray]:
            missing = {"states", "actions"} - set(arrays)
            if missing:
                raise ValueError(f"a demonstration lacks {', '.join(sorted(missing))}")
            if images:
                return {f"obs/{key}": values for key, values in env.images(arrays["states"], model=model).items()}
            return {"actions_abs": env.absolute_actions(arrays["states"], arrays["actions"])}

        try:
            return copy_with_arrays(source, target, make=make)
        finally:
            env.close()
    except DatasetError:
        raise
    except ValueError as error:
        raise DatasetError(f"{source} cannot be completed: {error}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
