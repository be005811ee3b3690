"""Versions of what a result was made with."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SIMULATORS = ("gym-pusht", "pymunk", "mujoco", "robosuite", "gymnasium-robotics")
ABSENT = "not installed"
PACKAGES = ("drifting-policy", "torch", "numpy", "zarr", "gymnasium", *SIMULATORS, "diffusers")


def versions() -> dict[str, str]:
    """Python, the packages that decide a number, and the git revision of a checkout."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ABSENT
    found["git"] = _revision()
    return found


def _revision() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
