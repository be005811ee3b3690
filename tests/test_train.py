"""A training can be stopped in any way and goes on as if nothing had happened; two runs never mix."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished_runs import assert_same_end, equal, metrics
from safetensors.torch import load_file

from drifting_policy import train
from drifting_policy.checkpoint import list_checkpoints, load_state, read_config
from drifting_policy.cli import compose
from drifting_policy.data.replay_buffer import write_replay
from drifting_policy.objectives import OBJECTIVES
from drifting_policy.types import ConfigError

Program = Callable[..., Any]
TINY = ("trainer=debug", "generator.width=32", "generator.depth=1", "threads=1", "trainer.rehearse_resume=false")
QUIET = (*TINY, "trainer.eval_episodes=0")


def arguments(run_dir: Path, data: str, *more: str) -> list[str]:
    return [*QUIET, f"data={data}", f"run_dir={run_dir}", *more]


def finish(run_dir: Path, data: str, *more: str) -> Path:
    """The run, trained in this process."""
    assert train.run(compose("train", arguments(run_dir, data, *more))) == 0
    return run_dir


@pytest.mark.parametrize("options", [(), ("objective=regression", "trainer.observation_noise=0.1"), ("trainer.bf16=true",)])
def test_training_in_two_goes_equals_one(push_t_data: str, tmp_path: Path, options: tuple[str, ...]) -> None:
    whole = finish(tmp_path / "whole", push_t_data, *options)
    rehearsed = finish(tmp_path / "rehearsed", push_t_data, *options, "trainer.rehearse_resume=true")
    assert_same_end(whole, rehearsed)
    assert [line["step"] for line in metrics(whole)] == [5, 10, 10, 15, 20, 20]
    assert not equal(*(load_state(path)["policy"] for path in list_checkpoints(whole)))


def test_how_often_it_reports_does_not_change_what_it_learns(push_t_data: str, tmp_path: Path) -> None:
    often = ("trainer.log_every=1", "trainer.validate_every=2", "trainer.checkpoint_every=3", "trainer.keep_checkpoints=1")
    often += ("trainer.validation_samples=3", "trainer.validation_chunks=5")
    ends = [finish(tmp_path / "a", push_t_data), finish(tmp_path / "b", push_t_data, *often)]
    assert equal(*(load_state(list_checkpoints(run_dir)[-1]) for run_dir in ends))
    assert equal(*(load_file(list_checkpoints(run_dir)[-1] / "model.safetensors") for run_dir in ends))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_is_held_against_the_data(push_t_data: str, tmp_path: Path, objective: str) -> None:
    run_dir = finish(
        tmp_path, push_t_data, f"objective={objective}", "trainer.validate_every=20", "trainer.validation_chunks=4"
    )
    (figures,) = [line for line in metrics(run_dir) if "val_action_error" in line]
    shares = {"val_spread_to_data", "val_spread_to_error", "val_coverage"}
    lengths = {"val_nearest_demonstration", "val_nearest_sample", "data_nearest_demonstration", "data_mean_error"}
    assert set(figures) == {"step", "val_action_error", "val_spread", *shares, *lengths}
    assert all(math.isfinite(value) and value >= 0 for value in figures.values())
    assert (figures["val_spread_to_data"] < 1e-6) == (objective == "regression")


def test_an_alarm_stands_beside_the_scores(program: Program, push_t_data: str, tmp_path: Path) -> None:
    typed = [*TINY, f"data={push_t_data}", f"run_dir={tmp_path}", "task.max_steps=12", "trainer.eval_videos=0"]
    assert program("train", *typed, "trainer.checkpoint_every=20").code == 0
    assert json.loads((tmp_path / "report.json").read_text())["alarms"] == []
    alarm = {"step": 20, "alarm": "diverged", "message": "At step 20 the policy has diverged."}
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(alarm) + "\n")
    result = program("train", *typed, "trainer.checkpoint_every=20", "resume=true")
    assert "warning      At step 20 the policy has diverged.\n" in result.out
    assert json.loads((tmp_path / "report.json").read_text())["alarms"] == [alarm]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1]) == alarm


def test_the_seed_decides_the_run(push_t_data: str, tmp_path: Path) -> None:
    runs = [finish(tmp_path / name, push_t_data, f"seed={seed}") for name, seed in (("a", 3), ("b", 3), ("c", 4))]
    assert_same_end(runs[0], runs[1])
    losses = [[line["loss"] for line in metrics(run_dir) if "loss" in line] for run_dir in runs]
    assert not set(losses[0]) & set(losses[2])


def test_a_run_from_before_the_forces_had_factors_goes_on(
    push_t_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = finish(tmp_path / "run", push_t_data)

    def without_factors(checkpoint: Path) -> dict[str, Any]:
        stored = read_config(checkpoint)
        known = {name: value for name, value in stored["objective"].items() if name not in ("attraction", "repulsion")}
        return stored | {"objective": known}

    monkeypatch.setattr(train, "read_config", without_factors)
    finish(run_dir, push_t_data, "resume=true", "trainer.steps=25")
    with pytest.raises(ConfigError, match=r"was started with objective=.*'repulsion': 1.0"):
        finish(run_dir, push_t_data, "resume=true", "trainer.steps=30", "objective.repulsion=0.9")


def start(run_dir: Path, data: str, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "drifting_policy.train", *arguments(run_dir, data, *more)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(process: "subprocess.Popen[str]", reached: Callable[[], bool]) -> None:
    """Wait until the run is as far as wanted; it must not have ended before."""
    until = time.monotonic() + 200
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(push_t_data: str, tmp_path: Path) -> None:
    steps = ("trainer.steps=120", "trainer.checkpoint_every=20", "trainer.log_every=1", "trainer.keep_checkpoints=3")
    killed = tmp_path / "killed"
    process = start(killed, push_t_data, *steps)
    wait_for(process, lambda: len(metrics_text(killed).splitlines()) > 45)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(metrics_text(killed).splitlines()) < 120
    finish(killed, push_t_data, *steps, "resume=true")
    assert_same_end(killed, finish(tmp_path / "whole", push_t_data, *steps))
    drafts = [path.name for path in (killed / "checkpoints").iterdir() if path.name.startswith(".")]
    assert all(name.endswith(".draft") for name in drafts)


def metrics_text(run_dir: Path) -> str:
    file = run_dir / "metrics.jsonl"
    return file.read_text() if file.exists() else ""


def test_ctrl_c_saves_and_tells_how_to_go_on(push_t_data: str, tmp_path: Path) -> None:
    # In the first half of a rehearsed run, which must not go on with the second.
    steps = ("trainer.steps=200", "trainer.checkpoint_every=1000", "trainer.log_every=1", "trainer.rehearse_resume=true")
    stopped = tmp_path / "stopped"
    process = start(stopped, push_t_data, *steps)
    wait_for(process, lambda: len(metrics_text(stopped).splitlines()) > 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=200)
    assert process.returncode == train.INTERRUPTED == 130, err
    assert out == f"Interrupted, and saved. To go on, repeat the command with resume=true (run_dir={stopped}).\n"
    assert "Traceback" not in err
    (saved,) = list_checkpoints(stopped)
    assert 2 < read_config(saved)["step"] == metrics(stopped)[-1]["step"] < 100
    finish(stopped, push_t_data, *steps, "resume=true")
    assert_same_end(stopped, finish(tmp_path / "whole", push_t_data, *steps, "trainer.rehearse_resume=false"))


def test_the_second_ctrl_c_is_immediate() -> None:
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore Ctrl-C
    try:
        with train.interruptible() as interrupted:
            signal.raise_signal(signal.SIGINT)
            assert interrupted.is_set()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)


def test_a_training_leaves_everything_that_is_promised(program: Program, push_t_data: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    typed = [*TINY, f"data={push_t_data}", f"run_dir={run_dir}", "task.max_steps=12"]
    result = program("train", *typed)
    assert result.code == 0, result.err
    files = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}
    parts = ("model.safetensors", "config.json", "stats.json", "state.pt")
    saved = {f"checkpoints/step_{step:08d}/{part}" for step in (10, 20) for part in parts}
    results = {f"eval/{name}" for name in ("scores.json", "latency.json", "episodes.mp4")}
    results |= {f"eval/exhibits/{name}" for seed in (100_000, 100_001) for name in (f"{seed}.mp4", f"{seed}_end.png")}
    results |= {f"eval/exhibits/{seed}_{step}.png" for seed in (100_000, 100_001) for step in (1, 6)}
    promised = {"metrics.jsonl", "report.json", "report.html", "eval/exhibits/exhibits.json", *results, *saved}
    assert promised <= files <= promised | {"curves.png"}  # drawn where matplotlib is installed
    report, scores = (json.loads((run_dir / name).read_text()) for name in ("report.json", "eval/scores.json"))
    assert report["metrics"] == scores["metrics"]
    assert (report["step"], report["seed"], report["n_episodes"], report["split"]) == (20, 0, 2, "test")
    assert report["versions"]["torch"] == torch.__version__
    assert report["train_seconds"] > 0
    assert str(run_dir / "checkpoints" / "step_00000020") in result.out

    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    refused = program("train", *typed).error
    assert "resume=true" in refused
    assert "overwrite=true" in refused
    for change in ("seed=1", "objective.samples=5", "generator.width=16", "encoder.embed_dim=8", "task.exec_horizon=4"):
        assert "Resume it with the same settings." in program("train", *typed, "resume=true", change).error
    assert "was started with objective=" in program("train", *typed, "resume=true", "objective=regression", "seed=0").error
    assert "Unknown grouping" in program("train", *typed, "overwrite=true", "objective.grouping=joint").error
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    (run_dir / "stray").write_text("")
    finish(run_dir, push_t_data, "overwrite=true")
    assert {path.name for path in run_dir.iterdir()} == {"checkpoints", "metrics.jsonl"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data=nowhere", "'nowhere' is neither a data set of task push_t (bundled, human) nor a path that exists"),
        ("device=cuda", "device=cuda cannot be used here"),
        ("threads=-1", "threads must be a number of CPU threads"),
        ("resume=true", "to resume; start it without resume=true"),
        ("trainer.batch_size=5000", "fewer than one batch of 5000: choose a smaller trainer.batch_size"),
        ("trainer.validation_fraction=1", "validation_fraction must lie in [0, 1)"),
        ("objective.grouping=joint", "Unknown grouping 'joint'; choose one of"),
        ("task.exec_horizon=20", "The chunk is too short"),
        ("task.action.normalize=none", "choose one of ['range', 'standard', 'identity']"),
    ],
)
def test_a_training_that_cannot_begin_leaves_nothing(
    program: Program, push_t_data: str, tmp_path: Path, change: str, words: str
) -> None:
    if change == "device=cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert words in program("train", *arguments(tmp_path / "run", push_t_data), change).error
    assert not (tmp_path / "run").exists()


def test_a_file_in_the_place_of_the_run_is_refused(program: Program, push_t_data: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("kept")
    for run_dir in (tmp_path / "taken", tmp_path / "taken" / "below"):
        for more in ([], ["overwrite=true"]):
            assert "choose another run_dir" in program("train", *arguments(run_dir, push_t_data, *more)).error
    assert (tmp_path / "taken").read_text() == "kept"


def test_a_damaged_checkpoint_is_passed_over(push_t_data: str, tmp_path: Path) -> None:
    whole, broken = (finish(tmp_path / name, push_t_data) for name in ("whole", "broken"))
    state = list_checkpoints(broken)[-1] / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    finish(broken, push_t_data, "resume=true")
    assert_same_end(whole, broken)


def test_a_run_without_a_whole_checkpoint_is_not_resumed(program: Program, push_t_data: str, tmp_path: Path) -> None:
    run_dir = finish(tmp_path / "run", push_t_data)
    for path in list_checkpoints(run_dir):
        (path / "model.safetensors").unlink()
    assert "Start anew with overwrite=true." in program("train", *arguments(run_dir, push_t_data, "resume=true")).error


def test_a_loss_that_explodes_keeps_its_batch(program: Program, push_t_data: str, tmp_path: Path) -> None:
    explosive = ("trainer.learning_rate=1e30", "trainer.clip_norm=1e30", "trainer.checkpoint_every=1")
    result = program("train", *arguments(tmp_path, push_t_data, *explosive))
    assert "The loss became non-finite at step" in result.error
    assert "go on with resume=true" in result.error
    (file,) = tmp_path.glob("non_finite_batch_step_*.pt")
    batch = torch.load(file, weights_only=True)
    assert set(batch["obs"]) == {"keypoints", "agent_pos"}
    assert batch["action"].shape == (16, 16, 2)
    step = int(file.stem.rpartition("_")[2])
    assert read_config(list_checkpoints(tmp_path)[-1])["step"] == step


def test_a_single_episode_needs_no_validation(program: Program, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"state": rng.normal(size=(30, 5)), "action": rng.normal(size=(30, 2))}
    data = str(write_replay(tmp_path / "one.zarr.zip", arrays, np.array([30])))
    assert "set trainer.validation_fraction=0" in program("train", *arguments(tmp_path / "run", data)).error
    finish(tmp_path / "run", data, "trainer.validation_fraction=0")
    assert {"step", "loss"} <= set(metrics(tmp_path / "run")[0])
    assert not [line for line in metrics(tmp_path / "run") if "val_action_error" in line]
