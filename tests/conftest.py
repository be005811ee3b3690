"""What several tests share."""

import dataclasses
import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch


def pytest_collection_finish() -> None:
    """Set aside what the imports have made: the garbage collections, which robosuite asks for often, need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One CPU thread: the order of a sum, and so its last bits, must not depend on the machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def image_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The image cache of the session, so that tests neither see nor change the user's."""
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRIFTING_POLICY_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the checkout, with data sets and reference values that are too large for it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder}, which does not travel with the repository")
    return folder


@pytest.fixture(scope="session")
def push_t_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of six made-up Push-T demonstrations: an agent that wanders about beside a resting block."""
    from drifting_policy.data.replay_buffer import write_replay

    rng, lengths = np.random.default_rng(0), [25, 30, 18, 40, 22, 35]
    wander = np.clip(256 + np.cumsum(rng.normal(0, 8, (sum(lengths), 2)), axis=0), 50, 450)
    pose = np.repeat(rng.uniform([150, 150, 0], [350, 350, 6], (len(lengths), 3)), lengths, axis=0)
    state = np.concatenate([wander, pose], axis=1).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "push_t.zarr"
    return str(write_replay(path, {"state": state, "action": wander.astype(np.float32)}, np.cumsum(lengths)))


@pytest.fixture(scope="module")
def run_dir(push_t_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run with two checkpoints, for the tests of one file."""
    from drifting_policy import cli, train

    path = tmp_path_factory.mktemp("runs") / "run"
    tiny = ["trainer=debug", "generator.width=32", "generator.depth=1", "trainer.eval_episodes=0", f"run_dir={path}"]
    assert train.run(cli.compose("train", [*tiny, f"data={push_t_data}"])) == 0
    return path


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a program ended and what it printed; `error` is the line that begins with "error: "."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one sentence that a user's mistake must lead to."""
        (line,) = (line for line in self.err.splitlines() if "error: " in line)
        assert line.startswith("error: ")
        assert "Traceback" not in self.err
        assert self.code == 2
        return line


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs `python -m drifting_policy.NAME ARGUMENTS` in this process."""

    def start(name: str, *arguments: str) -> Outcome:
        cli, module = (importlib.import_module(f"drifting_policy.{part}") for part in ("cli", name))
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(name, module.run)
        printed = capfd.readouterr()
        return Outcome(int(ended.value.code or 0), printed.out, printed.err)

    return start
