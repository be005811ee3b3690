"""`python benchmarks/robomimic_reader.py FILE ...`: does robomimic itself read the demonstrations that this project writes?

robomimic 0.3.0 is fetched by pip into a folder of its own, without what its networks need, for only its reader is asked: its
`SequenceDataset`, whose every step must hold the numbers that this project reads (in single precision), and its script
`get_dataset_info`. The reader runs beside this project's torch, h5py, tqdm and, of robosuite, termcolor.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timing import RESULTS, record

from drifting_policy.data.robomimic import open_robomimic

ROBOMIMIC = "robomimic==0.3.0"
STEPS = ("actions", "actions_abs", "rewards", "dones", "states")
OBSERVATIONS = ("object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")


def read(file: str, filter_key: str | None) -> dict[str, Any]:
    """What robomimic's SequenceDataset reads of the file, and how far its numbers are from those of this project."""
    importlib.import_module("robomimic.utils.obs_utils").initialize_obs_utils_with_obs_specs(
        {"obs": {"low_dim": list(OBSERVATIONS), "rgb": [], "depth": [], "scan": []}}
    )
    dataset = importlib.import_module("robomimic.utils.dataset").SequenceDataset(
        hdf5_path=file,
        obs_keys=OBSERVATIONS,
        dataset_keys=STEPS,
        hdf5_cache_mode="all",
        filter_by_attribute=filter_key,
    )
    names = [name.removeprefix("demo_") for name in dataset.demos]
    ours = open_robomimic(file, filter_key=filter_key)
    order = [ours.episode(sorted(names, key=int).index(name)) for name in names]
    rows = [dataset[number] for number in range(len(dataset))]
    worst = 0.0
    for key in (*STEPS, *OBSERVATIONS):
        expected = np.concatenate([episode[key] for episode in order])
        theirs = np.concatenate([row["obs"][key] if key in OBSERVATIONS else row[key] for row in rows])
        worst = max(worst, float(np.abs(theirs.astype(np.float32) - expected.astype(np.float32)).max()))
    batch = next(iter(importlib.import_module("torch.utils.data").DataLoader(dataset, batch_size=8)))
    shapes = {key: list(batch[key].shape) for key in STEPS} | {key: list(batch["obs"][key].shape) for key in OBSERVATIONS}
    return {"demonstrations": dataset.n_demos, "sequences": len(dataset), "largest_difference": worst, "batch": shapes}


def asked(file: str, folder: Path) -> dict[str, Any]:
    """The row of one file: what robomimic, which lies in `folder`, answers in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    row: dict[str, Any] = {"file": Path(file).name}
    for filter_key in (None, "train", "valid"):
        command = [sys.executable, __file__, file, "--inside", *([] if filter_key is None else ["--filter-key", filter_key])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        answer = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"error": done.stderr.splitlines()[-1:]}
        row["SequenceDataset" if filter_key is None else f"SequenceDataset({filter_key})"] = answer
    command = [sys.executable, "-m", "robomimic.scripts.get_dataset_info", "--dataset", file]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    said = done.stdout.split("==== Env Meta ====")[0] if done.returncode == 0 else done.stderr
    row["get_dataset_info"] = [line for line in said.splitlines() if line.strip()]
    return row | {"get_dataset_info_succeeded": done.returncode == 0}


def missed(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What robomimic did not read, or read otherwise."""
    found = []
    for row in rows:
        for name, answer in row.items():
            if name.startswith("SequenceDataset") and answer.get("largest_difference", np.inf) > 0:
                found.append(f"{name} of {row['file']}: {answer}")
        if not row["get_dataset_info_succeeded"]:
            found.append(f"get_dataset_info of {row['file']}: {row['get_dataset_info'][-1:]}")
    return found


def main(arguments: Sequence[str]) -> int:
    """Exit code 1 where robomimic does not read what this project wrote."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--folder", type=Path, help="where robomimic lies or shall lie; default a temporary folder")
    parser.add_argument("--out", type=Path, default=RESULTS / "robomimic_reader.json")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--filter-key", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside:
        print(json.dumps(read(options.files[0], options.filter_key)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "robomimic").is_dir():
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), ROBOMIMIC]
            subprocess.run(pip, check=True)
        rows = [asked(str(Path(file).resolve()), folder) for file in options.files]
    for row in rows:
        print(json.dumps(row, indent=1))
    return record(options.out, rows=rows, missed=missed(rows), robomimic=ROBOMIMIC)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
