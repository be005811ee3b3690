"""Is everything here that training, evaluating and filming Push-T needs? `python -m drifting_policy.doctor`"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path

ENV_ID = "drifting_policy.envs:drifting/PushT-v0"
WORLDS = {"block_push": "BlockPush", "kitchen": "Kitchen", "robomimic": "Lift"}  # an environment of each further extra
READERS = ("h5py", "pyarrow.parquet", "av", "PIL.Image")  # of the extra `formats`
PUBLISHED_DATA = "pusht/pusht_cchi_v7_replay.zarr.zip"
RESTORE = "git checkout datasets/bundled in a checkout; otherwise install the package again"
PURPOSE = "Says whether everything is here that training, evaluating and filming Push-T needs, and how to mend what is not."
EPILOG = "Exit code: 0 if everything needed is there, 1 if not. Optional lines never fail."


@dataclasses.dataclass(frozen=True)
class Check:
    """One finding: what was looked at, whether it is fine, what was found, and how to mend it."""

    name: str
    ok: bool
    detail: str
    fix: str
    required: bool = True


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 if everything needed is there, else 1; prints the findings as a table."""
    parser = argparse.ArgumentParser(prog="python -m drifting_policy.doctor", description=PURPOSE, epilog=EPILOG)
    parser.add_argument("run_dir", nargs="?", default="runs", type=Path, help="where runs are to be written (default: runs)")
    checks = examine(run_dir=parser.parse_args(arguments).run_dir, environment=os.environ)
    print(report(checks))
    return 0 if healthy(checks) else 1


def examine(*, run_dir: Path, environment: Mapping[str, str]) -> list[Check]:
    """All checks, in the order in which to mend what fails."""
    return [
        check_installation(),
        check_python(),
        *check_packages(),
        check_device(),
        check_rendering(),
        *(check_world(extra) for extra in WORLDS),
        check_readers(),
        check_video(),
        check_bundled_data(),
        check_bundled_policy(),
        check_published_data(environment),
        check_run_dir(run_dir),
    ]


def healthy(checks: Sequence[Check]) -> bool:
    """Whether everything that is needed is fine."""
    return all(check.ok or not check.required for check in checks)


def report(checks: Sequence[Check]) -> str:
    """The checks as a table for people; below each failure a line that says how to mend it."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        mark = "ok  " if check.ok else "FAIL" if check.required else "--  "
        lines.append(f"{mark}  {check.name:<{width}}  {check.detail}")
        if not check.ok:
            lines.append(f"{'':6}{'':{width}}  {'fix' if check.required else 'optional'}: {check.fix}")
    failures = sum(not check.ok and check.required for check in checks)
    verdict = f"{failures} of {len(checks)} checks failed." if failures else "Everything needed is there."
    return "\n".join([*lines, "", verdict])


def check_installation() -> Check:
    """Whether this package is installed with the folders that live beside it in a checkout."""

    def probe() -> str:
        for part in ("envs", "configs", "bundled"):
            if importlib.util.find_spec(f"drifting_policy.{part}") is None:
                raise ModuleNotFoundError(f"drifting_policy.{part} is not part of {Path(__file__).parent}")
        return f"{importlib.metadata.version('drifting-policy')} in {Path(__file__).parent}"

    return _check("drifting-policy", probe, fix="pip install -e '.[push_t]' in the checkout, or run from another folder")


def check_python() -> Check:
    """Whether this Python is recent enough."""

    def probe() -> str:
        minimum = importlib.metadata.metadata("drifting-policy")["Requires-Python"]
        return _at_least(platform.python_version(), minimum.removeprefix(">="))

    return _check("python", probe, fix="make an environment with a newer Python: uv venv --python 3.12")


def check_packages() -> list[Check]:
    """One check per requirement of the package and of its extra `push_t`, against the minimum it declares."""
    try:
        requirements = importlib.metadata.requires("drifting-policy") or []
    except importlib.metadata.PackageNotFoundError:
        return []  # check_installation says so
    pairs = [line.partition(";")[::2] for line in requirements]
    push_t = re.compile(r"\bpush[-_]t\b")  # build tools disagree on how to spell an extra
    return [check_package(name.strip()) for name, marker in pairs if "extra" not in marker or push_t.search(marker)]


def check_package(requirement: str) -> Check:
    """Whether `requirement`, a line such as "torch>=2.6", is installed."""
    match = re.fullmatch(r"([\w.-]+)(?:>=([\d.]+))?", requirement)
    if match is None:
        raise ValueError(f"A requirement must read name>=version; got {requirement!r}.")
    name, minimum = match[1], match[2] or "0"
    return _check(name, lambda: _at_least(importlib.metadata.version(name), minimum), fix=f"pip install '{requirement}'")


def check_device() -> Check:
    """Where PyTorch computes: the device that `device=auto` takes must multiply two matrices."""

    def probe() -> str:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        square = torch.ones(8, 8, device=device)
        if (square @ square).sum().item() != 8.0**3:
            raise ArithmeticError(f"{device} multiplies matrices wrongly")
        name = torch.cuda.get_device_properties(0).name if device == "cuda" else device
        return f"{name}, {torch.get_num_threads()} CPU threads"

    return _check("device", probe, fix="install the PyTorch that fits this machine's driver: https://pytorch.org/get-started")


def check_rendering() -> Check:
    """Whether the simulator of Push-T draws a picture without a screen."""
    return _check("rendering", lambda: _draw(ENV_ID), fix="pip install 'drifting-policy[push_t]'")


def check_world(extra: str) -> Check:
    """Whether the worlds of an extra run and draw without a screen; they are needed by their tasks alone."""
    env_id = f"drifting_policy.envs:drifting/{WORLDS[extra]}-v0"
    return _check(extra, lambda: _draw(env_id), fix=f"pip install 'drifting-policy[{extra}]'", required=False)


def check_readers() -> Check:
    """Whether the formats of others can be read; zarr always can."""

    def probe() -> str:
        for name in READERS:
            importlib.import_module(name)
        return "HDF5, Parquet, films and pictures can be read"

    return _check("formats", probe, fix="pip install 'drifting-policy[formats]' (beside NumPy 1: pyarrow<26)", required=False)


def check_video() -> Check:
    """Whether films can be written as H.264."""

    def probe() -> str:
        import numpy as np

        from drifting_policy.rollout.video import write_video

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "film.mp4"
            write_video(path, [np.full((64, 64, 3), level, np.uint8) for level in (0, 255)], fps=10.0)
            return f"H.264 ({path.stat().st_size} bytes written)"

    fix = "pip install --upgrade av; or go without films: eval videos=0, train trainer.eval_videos=0"
    return _check("video", probe, fix=fix)


def check_bundled_data() -> Check:
    """Whether the demonstrations that travel with the package are there and whole."""

    def probe() -> str:
        with resources.as_file(resources.files("drifting_policy.bundled") / "push_t.zarr.zip") as path:
            return _whole_zip(path)

    return _check("bundled data", probe, fix=RESTORE)


def check_bundled_policy() -> Check:
    """Whether the policy that travels with the package loads."""

    def probe() -> str:
        from drifting_policy.checkpoint import load_policy

        with resources.as_file(resources.files("drifting_policy.bundled") / "push_t") as path:
            return f"push_t, contract {load_policy(path).spec.contract_hash}"

    return _check("bundled policy", probe, fix=RESTORE)


def check_published_data(environment: Mapping[str, str]) -> Check:
    """Whether DRIFTING_POLICY_DATA leads to the published demonstrations."""

    def probe() -> str:
        root = environment.get("DRIFTING_POLICY_DATA")
        if not root:
            raise FileNotFoundError("DRIFTING_POLICY_DATA is not set")
        return _whole_zip(Path(root) / PUBLISHED_DATA)

    fix = f"export DRIFTING_POLICY_DATA=FOLDER with FOLDER/{PUBLISHED_DATA}; without it the bundled data serve"
    return _check("published data", probe, fix=fix, required=False)


def check_run_dir(run_dir: Path) -> Check:
    """Whether files can be made in `run_dir`, or where it will be made."""

    def probe() -> str:
        absolute = run_dir.absolute()
        existing = next(folder for folder in (absolute, *absolute.parents) if folder.exists())
        try:
            with tempfile.NamedTemporaryFile(dir=existing):
                free = shutil.disk_usage(existing).free
        except OSError as error:
            raise RuntimeError(f"{existing} takes no files: {error.strerror}") from error
        return f"{absolute} is writable, {free / 1e9:.1f} GB free"

    return _check("run directory", probe, fix="make it writable, or choose another one: train run_dir=FOLDER, eval out=FOLDER")


def _check(name: str, probe: Callable[[], str], *, fix: str, required: bool = True) -> Check:
    """Fine with what `probe` returns, or failed with what it raises."""
    try:
        return Check(name, True, probe(), fix, required)
    except Exception as error:  # noqa: BLE001 (whatever goes wrong in a foreign library is the finding)
        return Check(name, False, _sentence(error), fix, required)


def _sentence(error: Exception) -> str:
    if isinstance(error, importlib.metadata.PackageNotFoundError):
        return "not installed"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _draw(env_id: str) -> str:
    """The size of a picture at the beginning of an episode; an empty one raises."""
    import gymnasium
    import numpy as np

    env = gymnasium.make(env_id)
    try:
        env.reset(seed=0)
        picture = env.render()
    finally:
        env.close()
    if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.min() == picture.max():
        raise RuntimeError("the picture is empty")
    return f"{picture.shape[1]} x {picture.shape[0]} px without a screen"


def _at_least(version: str, minimum: str) -> str:
    """`version`; compared by its release numbers, so that 2.13.0+cpu is at least 2.6."""
    release = tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0]))
    if release < tuple(int(number) for number in minimum.split(".")):
        raise RuntimeError(f"{version} is older than {minimum}")
    return version


def _whole_zip(path: Path) -> str:
    """Path and size of a zip file; its directory stands at the end, so a torn download has none."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if not zipfile.is_zipfile(path):
        raise RuntimeError(f"{path} is no whole zip file ({path.stat().st_size} bytes)")
    return f"{path} ({path.stat().st_size / 1e6:.1f} MB)"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
