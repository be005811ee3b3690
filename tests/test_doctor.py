"""Every check is seen to pass here and to fail when its cause is taken away."""

import sys
import zipfile
from importlib import metadata, resources
from pathlib import Path

import numpy as np
import pytest

from drifting_policy import doctor
from drifting_policy.doctor import Check

GOOD = Check("good", True, "fine", "nothing to do")
BAD = Check("bad", False, "broken", "mend it")
OPTIONAL = Check("optional", False, "absent", "add it", required=False)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of drifting_policy.bundled."""
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    return tmp_path


def test_only_a_failure_of_something_needed_fails() -> None:
    assert doctor.healthy([GOOD, OPTIONAL])
    assert not doctor.healthy([GOOD, BAD])


def test_the_report_follows_each_failure_with_its_fix() -> None:
    lines = doctor.report([GOOD, BAD, OPTIONAL, GOOD]).splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["ok", "FAIL", "fix:", "--", "optional:", "ok"]
    assert lines[2].strip() == "fix: mend it"
    assert lines[4].strip() == "optional: add it"
    assert lines[-1] == "1 of 4 checks failed."
    assert len({line.index(word) for line, word in zip(lines[:4], ["fine", "broken", "fix", "absent"], strict=True)}) == 1


@pytest.mark.parametrize(("checks", "code"), [([GOOD, OPTIONAL], 0), ([GOOD, BAD], 1)])
def test_the_exit_code_tells(
    checks: list[Check], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda *, run_dir, environment: checks)
    assert doctor.main([]) == code
    assert capsys.readouterr().out == doctor.report(checks) + "\n"


def test_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        doctor.main(["--help"])
    assert "run_dir" in capsys.readouterr().out


def test_this_machine_can_run_the_tests(tmp_path: Path) -> None:
    checks = doctor.examine(run_dir=tmp_path, environment={})
    failed = {check.name: check.detail for check in checks if not check.ok}
    assert set(failed) <= {"published data"}, failed
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.fix and check.detail and "\n" not in check.fix + check.detail for check in checks)


def test_all_requirements_of_push_t_are_checked_and_no_others() -> None:
    names = {check.name for check in doctor.check_packages()}
    assert {"torch", "numpy", "zarr", "gymnasium", "gym-pusht", "pymunk", "av"} <= names
    assert not {"pytest", "matplotlib", "tensorboard", "ruff", "drifting-policy"} & names


@pytest.mark.parametrize(
    ("version", "minimum", "ok"),
    [("2.13.0+cpu", "2.6", True), ("2.6", "2.6", True), ("2.5.9", "2.6", False), ("2.6.0a1", "2.6", True), ("10", "9.9", True)],
)
def test_versions_compare_as_numbers(version: str, minimum: str, ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    check = doctor.check_package(f"torch>={minimum}")
    assert check.ok == ok
    assert version in check.detail
    assert check.fix == f"pip install 'torch>={minimum}'"


def test_a_missing_package_is_named() -> None:
    assert doctor.check_package("no-such-package>=1") == Check(
        "no-such-package", False, "not installed", "pip install 'no-such-package>=1'"
    )


def test_an_unreadable_requirement_is_no_silent_pass() -> None:
    with pytest.raises(ValueError, match="name>=version"):
        doctor.check_package("torch~=2.6")


def test_a_package_that_is_not_installed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setattr(metadata, "requires", missing)
    assert not doctor.check_installation().ok
    assert doctor.check_packages() == []


def test_a_checkout_that_hides_the_installed_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name.endswith(".configs") else object())
    check = doctor.check_installation()
    assert not check.ok
    assert "drifting_policy.configs" in check.detail


@pytest.mark.parametrize(
    ("module", "check"),
    [
        ("torch", doctor.check_device),
        ("gymnasium", doctor.check_rendering),
        ("drifting_policy.rollout.video", doctor.check_video),
    ],
)
def test_a_library_that_cannot_be_imported_is_a_finding(module: str, check: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    found = check()  # type: ignore[operator]
    assert not found.ok
    assert found.required
    assert module in found.detail


@pytest.mark.parametrize(
    ("module", "extra"), [("mujoco", "block_push"), ("gymnasium_robotics", "kitchen"), ("robosuite", "robomimic")]
)
def test_a_world_that_is_missing_is_optional(module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_world(extra).ok
    for name in [name for name in sys.modules if name.startswith("drifting_policy.envs.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    found = doctor.check_world(extra)
    assert not found.ok
    assert not found.required
    assert module in found.detail
    assert f"drifting-policy[{extra}]" in found.fix


def test_a_reader_that_cannot_be_imported_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_readers().ok
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert (doctor.check_readers().ok, doctor.check_readers().required) == (False, False)


def test_an_empty_picture_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind:
        def reset(self, *, seed: int) -> None: ...
        def close(self) -> None: ...
        def render(self) -> np.ndarray:
            return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr("gymnasium.make", lambda env_id: Blind())
    assert not doctor.check_rendering().ok


def test_the_published_data_are_found_only_when_whole(tmp_path: Path) -> None:
    path = tmp_path / doctor.PUBLISHED_DATA
    environment = {"DRIFTING_POLICY_DATA": str(tmp_path)}
    assert "not set" in doctor.check_published_data({}).detail
    assert str(path) in doctor.check_published_data(environment).detail
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(".zgroup", "{}" * 100)
    assert doctor.check_published_data(environment).ok
    path.write_bytes(path.read_bytes()[:-40])
    torn = doctor.check_published_data(environment)
    assert not torn.ok
    assert not torn.required


def test_the_published_data_have_one_name() -> None:
    tasks = (Path(__file__).resolve().parents[1] / "configs" / "task").glob("push_t*.yaml")
    assert any(f"path: {doctor.PUBLISHED_DATA}\n" in task.read_text() for task in tasks)


def test_a_bundle_without_its_files_is_a_finding(bundle: Path) -> None:
    assert not doctor.check_bundled_data().ok
    assert not doctor.check_bundled_policy().ok
    (bundle / "push_t").mkdir()
    (bundle / "push_t" / "config.json").write_text("{")
    broken = doctor.check_bundled_policy()
    assert not broken.ok
    assert "push_t" in broken.detail
    with zipfile.ZipFile(bundle / "push_t.zarr.zip", "w") as archive:
        archive.writestr("zarr.json", "{}")
    assert doctor.check_bundled_data().ok


def test_the_run_directory_must_take_files(tmp_path: Path) -> None:
    assert doctor.check_run_dir(tmp_path).ok
    assert doctor.check_run_dir(tmp_path / "not" / "yet").ok
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").write_text("a file in the place of a folder")
    for folder in (tmp_path / "runs", tmp_path / "runs" / "inside"):
        check = doctor.check_run_dir(folder)
        assert not check.ok
        assert str(tmp_path / "runs") in check.detail
