"""A control loop as it runs on a robot computer: NumPy and an exported policy, no PyTorch. `without_torch.py` starts it.

Replays recorded observations through `ChunkExecutor` and stores the commands; prints what it ran with as JSON.
"""

import json
import platform
import sys
from pathlib import Path

import numpy as np
import onnxruntime

from drifting_policy import ChunkExecutor, OnnxPolicy

HEAVY = ("torch", "hydra", "omegaconf", "zarr", "gymnasium", "safetensors")


def main(folder: Path) -> None:
    """Read recording.npz, write commands.npy, both "steps ..." in `folder`; the policy lies in its folder `policy`."""
    policy = OnnxPolicy(folder / "policy", threads=1)
    policy.warm_up()
    with np.load(folder / "recording.npz") as recording:
        observations = dict(recording)
    executor = ChunkExecutor(policy)
    executor.reset(seeds=[0])
    steps = len(next(iter(observations.values())))
    commands = [executor.step({key: value[step : step + 1] for key, value in observations.items()})[0] for step in range(steps)]
    np.save(folder / "commands.npy", np.stack(commands))
    told = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "steps": steps,
        "plan_p50_ms": 1000 * float(np.median(executor.plan_seconds)),
        "loaded": [name for name in HEAVY if name in sys.modules],
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
