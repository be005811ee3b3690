"""The wheel holds one package with everything in it, and never stands in the way of another package called `datasets`."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ["drifting_policy", "configs", "envs", "datasets", "pyproject.toml", "README.md", "LICENSE"]


def run(*command: str, cwd: Path, **environment: str) -> str:
    """What the command prints; its error output is shown when it fails."""
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    """The setuptools section of pyproject.toml."""
    tool: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return tool


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build leaves files behind, and files left behind get into the next wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / "source" / name)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "--wheel-dir", str(folder), str(folder / "source"), cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def contents(wheel: Path) -> set[str]:
    """Names of the files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_has_one_top_level_package(contents: set[str]) -> None:
    top = {name.split("/")[0] for name in contents}
    assert {name for name in top if not name.endswith(".dist-info")} == {"drifting_policy"}
    assert len(top) == 2


@pytest.mark.parametrize(
    ("folder", "installed"),
    [
        ("drifting_policy", "drifting_policy"),
        ("configs", "drifting_policy/configs"),
        ("envs", "drifting_policy/envs"),
        ("datasets/bundled", "drifting_policy/bundled"),
        ("datasets/recipes", "drifting_policy/datasets"),
    ],
)
def test_every_file_travels(folder: str, installed: str, contents: set[str]) -> None:
    present = [path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*") if path.is_file()]
    wanted = {f"{installed}/{path.as_posix()}" for path in present if "__pycache__" not in path.parts}
    assert wanted
    assert wanted <= contents


def test_the_wheel_is_typed_and_licensed(contents: set[str]) -> None:
    assert "drifting_policy/py.typed" in contents
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in contents)


def test_the_wheel_holds_no_leftovers(contents: set[str]) -> None:
    assert not [name for name in contents if "__pycache__" in name or "/tests/" in name or name.endswith((".pyc", ".pt"))]


def test_the_declared_packages_are_those_of_the_tree(settings: dict[str, Any]) -> None:
    found = set()
    for package, folder in settings["package-dir"].items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([package, *init.parent.relative_to(ROOT / folder).parts]))
    assert sorted(found) == sorted(settings["packages"])


def test_an_unpacked_wheel_imports_its_own_parts(wheel: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    parts = [name for name in settings["packages"] if name in settings["package-dir"]]
    code = f"from importlib import import_module\nfor name in {parts}: print(import_module(name).__file__)"
    files = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site")).splitlines()
    assert len(files) == len(parts)
    assert all(Path(file).is_relative_to(tmp_path / "site") for file in files)


def test_the_datasets_folder_hides_nobody_elses_datasets(tmp_path: Path) -> None:
    assert not (ROOT / "datasets" / "__init__.py").exists()
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("")
    file = run(sys.executable, "-c", "import datasets; print(datasets.__file__)", cwd=ROOT, PYTHONPATH=str(tmp_path))
    assert Path(file) == tmp_path / "datasets" / "__init__.py"
