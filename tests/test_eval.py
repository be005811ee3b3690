"""Scores follow from policy, task, split and count alone; every checkpoint that cannot be judged is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drifting_policy.checkpoint import list_checkpoints
from drifting_policy.eval import load_task
from drifting_policy.types import CheckpointError

Program = Callable[..., Any]
SHORT = ("task=push_t", "task.max_steps=12", "episodes=5", "videos=0")


def scores(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    return values


def test_two_evaluations_give_the_same_bytes(program: Program, run_dir: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        result = program("eval", f"ckpt={run_dir}", *SHORT, f"out={tmp_path / name}")
        assert result.code == 0, result.err
        assert "max score" in result.out
        assert {file.name for file in (tmp_path / name).iterdir()} == {"scores.json", "latency.json", "report.html"}
    assert (tmp_path / "a" / "scores.json").read_bytes() == (tmp_path / "b" / "scores.json").read_bytes()
    told = scores(tmp_path / "a")
    assert (told["checkpoint"], told["step"], told["objective"]["name"]) == (str(run_dir), 20, "drift")


def test_the_number_of_environments_changes_no_episode(program: Program, run_dir: Path, tmp_path: Path) -> None:
    tables = []
    for num_envs in (1, 4, 7):
        out = tmp_path / str(num_envs)
        assert program("eval", f"ckpt={run_dir}", *SHORT, f"num_envs={num_envs}", f"out={out}").code == 0
        tables.append(scores(out))
    assert tables[0] == tables[1] == tables[2]
    assert len({episode["max_score"] for episode in tables[0]["episodes"]}) > 1


def test_worker_processes_change_no_byte(program: Program, run_dir: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        settings = (f"workers={workers}", "num_envs=3", "inference_batch=2", f"out={tmp_path / str(workers)}")
        assert program("eval", f"ckpt={run_dir}", *SHORT, *settings).code == 0
    assert (tmp_path / "0" / "scores.json").read_bytes() == (tmp_path / "2" / "scores.json").read_bytes()


def test_results_lie_in_the_checkpoint_with_a_film(program: Program, run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(list_checkpoints(run_dir)[0], tmp_path / "copy")
    result = program("eval", f"ckpt={copy}", "task=push_t", "task.max_steps=9", "episodes=2", "split=validation")
    assert result.code == 0, result.err
    results = {"scores.json", "latency.json", "episodes.mp4", "exhibits", "report.html"}
    assert {file.name for file in (copy / "eval").iterdir()} == results
    assert f"page         {copy / 'eval' / 'report.html'}" in result.out
    assert scores(copy / "eval")["step"] == 10
    assert [episode["seed"] for episode in scores(copy / "eval")["episodes"]] == [200_000, 200_001]


def test_a_list_of_latencies_gives_a_table(program: Program, run_dir: Path, tmp_path: Path) -> None:
    result = program("eval", f"ckpt={run_dir}", *SHORT, "latency_steps=[0,3]", f"out={tmp_path / 'all'}")
    assert result.code == 0, result.err
    rows = scores(tmp_path / "all")["rows"]
    assert [row["latency_steps"] for row in rows] == [0, 3]
    for row in rows:
        steps = row["latency_steps"]
        assert f"{steps} steps {row['max_score']:.3f} [{row['max_score_low']:.3f}" in result.out
        single = ("videos=0", f"latency_steps={steps}", f"out={tmp_path / str(steps)}")
        assert program("eval", f"ckpt={run_dir}", *SHORT, *single).code == 0
        told = scores(tmp_path / str(steps))
        assert told == scores(tmp_path / "all" / f"latency_{steps}")
        assert (row["success"], row["n_episodes"], row["step"]) == (told["metrics"]["success"]["value"], 5, 20)
    assert rows[0]["final_score"] != rows[1]["final_score"]


def test_a_latency_does_not_overwrite_the_scores_without(
    program: Program, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(list_checkpoints(run_dir)[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    program("eval", "-m", f"ckpt={copy}", *SHORT, "latency_steps=0,2")
    assert scores(copy / "eval")["latency_steps"] == 0
    assert scores(copy / "eval" / "latency_2")["latency_steps"] == 2


def test_another_seam_is_told_and_has_a_folder_of_its_own(program: Program, run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(list_checkpoints(run_dir)[0], tmp_path / "copy")
    short = ("task=push_t", "task.max_steps=20", "episodes=3", "videos=0")
    result = program("eval", f"ckpt={copy}", *short, "seam=fade", "exec_horizon=4", "latency_steps=[8,1]", "held_noise=true")
    assert result.code == 0, result.err
    home = copy / "eval_fade_exec_horizon4_held_noise"
    rows = scores(home)["rows"]
    assert [(row["latency_steps"], row["seam"], row["exec_horizon"]) for row in rows] == [(8, "fade", 4), (1, "fade", 4)]
    for row in rows:
        told = scores(home / f"latency_{row['latency_steps']}")
        jerks = [episode["boundary_jerk"] for episode in told["episodes"]]
        assert row["boundary_jerk"] == pytest.approx(sum(jerks) / 3)
        assert min(jerks) > 0
    assert rows[0]["boundary_jerk"] != rows[1]["boundary_jerk"]
    parts = [f"shard={part}" for part in ("0/2", "1/2", "merge/2")]
    for part in parts:
        out = f"out={tmp_path / 'parts'}"
        result = program(
            "eval", f"ckpt={copy}", *short, "seam=fade", "exec_horizon=4", "latency_steps=1", "held_noise=true", part, out
        )
        assert result.code == 0, result.err
    assert scores(tmp_path / "parts")["episodes"] == scores(home / "latency_1")["episodes"]


def damaged(run_dir: Path, target: Path, how: str) -> Path:
    """A copy of the run's newest checkpoint with something wrong."""
    copy = Path(shutil.copytree(list_checkpoints(run_dir)[-1], target))
    if how == "flipped byte":
        content = bytearray((copy / "model.safetensors").read_bytes())
        content[len(content) // 2] ^= 1
        (copy / "model.safetensors").write_bytes(content)
    elif how == "torn config":
        (copy / "config.json").write_text((copy / "config.json").read_text()[:200])
    elif how == "empty":
        shutil.rmtree(copy)
        copy.mkdir()
    elif how.startswith("no "):
        (copy / how.removeprefix("no ")).unlink()
    return copy


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("flipped byte", "model.safetensors is damaged"),
        ("torn config", "config.json is damaged"),
        ("empty", "has no config.json"),
        ("no config.json", "has no config.json"),
        ("no model.safetensors", "has no model.safetensors"),
    ],
)
def test_a_damaged_checkpoint_is_refused(program: Program, run_dir: Path, tmp_path: Path, how: str, words: str) -> None:
    result = program("eval", f"ckpt={damaged(run_dir, tmp_path / 'copy', how)}", f"out={tmp_path / 'out'}")
    assert words in result.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["ckpt=nowhere"], "There is no checkpoint at nowhere"),
        (["task=push_t_state"], "does not fit task push_t_state: its observations"),
        (["task=push_t", "task.pred_horizon=24"], "its pred_horizon is 16, the task's is 24"),
        (["device=cuda"], "device=cuda cannot be used here"),
        (["device=banana"], "device=banana cannot be used here"),
        (["device=meta"], "device=meta cannot be used here"),
        (["threads=-1"], "threads must be a number of CPU threads"),
        (["split=train"], "Unknown split 'train'"),
        (["episodes=0"], "asked for 0"),
        (["num_envs=0"], "at least 1; got 0"),
        (["workers=-1"], "workers must be at least 0"),
        (["step_timeout=0"], "step_timeout a positive number"),
        (["inference_batch=0"], "inference_batch must be at least 1"),
        (["videos=-1"], "videos must be at least 0"),
        (["latency_steps=8"], "latency_steps must lie between 0 and 7"),
        (["latency_steps=[0,8]"], "latency_steps must lie between 0 and 7"),
        (["latency_steps=8", "exec_horizon=8"], "exec_horizon is 8 (a smaller one makes room)"),
        (["latency_steps=[0,2]", "seam=prefix"], "continues at most 0: train one with max_prefix=2 or more"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(
    program: Program, run_dir: Path, tmp_path: Path, changes: list[str], words: str
) -> None:
    if changes == ["device=cuda"] and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    given = {"ckpt": str(run_dir), "out": str(tmp_path / "out")}
    kept = [f"{key}={value}" for key, value in given.items() if not any(change.startswith(f"{key}=") for change in changes)]
    assert words in program("eval", *kept, *changes).error
    assert not (tmp_path / "out" / "scores.json").exists()


def test_a_place_that_cannot_be_written_is_refused(program: Program, run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = program("eval", f"ckpt={run_dir}", *SHORT, f"out={tmp_path / 'file'}")
    assert "choose another out=DIR" in result.error


def test_a_run_without_checkpoints_says_so(program: Program, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert "has no checkpoint yet" in program("eval", f"ckpt={tmp_path}").error


def test_a_checkpoint_of_an_unknown_task_is_refused() -> None:
    assert load_task("push_t_state").name == "push_t_state"
    with pytest.raises(CheckpointError, match="The task 'chess' is not known here: Unknown task 'chess'; choose one of "):
        load_task("chess")


def test_a_baseline_is_trained_judged_and_judged_again_with_another_sampler(
    program: Program, push_t_data: str, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    tiny = ["trainer=debug", "generator.width=32", "generator.depth=1", "objective=diffusion", "task.max_steps=12"]
    result = program("train", *tiny, "trainer.eval_videos=0", f"data={push_t_data}", f"run_dir={run_dir}")
    assert result.code == 0, result.err
    assert "plans, 100 network evaluations each)" in result.out
    own = scores(run_dir / "eval")
    assert (own["nfe"], own["sampler"]["scheduler"]) == (100, "ddpm")
    assert json.loads((run_dir / "report.json").read_text())["nfe"] == 100

    last = list_checkpoints(run_dir)[-1]
    result = program("eval", f"ckpt={run_dir}", *SHORT, "sampler.scheduler=ddim", "sampler.steps=10")
    assert result.code == 0, result.err
    told = scores(last / "eval_ddim_10")
    assert told["nfe"] == told["sampler"]["steps"] == 10
    assert not (last / "eval").exists()
    assert "between 1 and 100 steps" in program("eval", f"ckpt={run_dir}", *SHORT, "sampler.steps=101").error


def test_noise_of_another_scale_is_judged_beside_that_of_the_policy(program: Program, run_dir: Path) -> None:
    last = list_checkpoints(run_dir)[-1]
    results = [program("eval", f"ckpt={run_dir}", *SHORT, f"sampler.noise_scale={scale}") for scale in ("0", "0.5")]
    assert [result.code for result in results] == [0, 0], results[0].err
    silent, own = (scores(last / f"eval_noise{scale}") for scale in ("0", "0.5"))
    assert silent["sampler"] == {"name": "one_step", "noise_scale": 0.0}
    assert silent["episodes"] != own["episodes"]
    assert "at least 0; got -1" in program("eval", f"ckpt={run_dir}", *SHORT, "sampler.noise_scale=-1").error


def test_the_bundled_policy_is_judged_in_this_folder(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for setting, name in ((), "bundled_eval"), (("sampler.noise_scale=0",), "bundled_eval_noise0"):
        result = program("eval", "ckpt=bundled", *SHORT, *setting)
        assert result.code == 0, result.err
        assert len(scores(tmp_path / "runs" / name)["episodes"]) == 5


def test_one_step_has_no_steps_to_change(program: Program, run_dir: Path) -> None:
    refused = program("eval", f"ckpt={run_dir}", *SHORT, "sampler.steps=10")
    assert "sampler 'one_step' of this policy has no setting ['steps']" in refused.error
