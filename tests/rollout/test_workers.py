"""Worker processes change the time and nothing else, whatever happens to them, and nothing of them stays behind."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
from worlds import Noisy, Walk

from drifting_policy import evaluation
from drifting_policy.cli import compose
from drifting_policy.policy import DriftingPolicy
from drifting_policy.rollout import memory, workers
from drifting_policy.rollout.environment import open_environment
from drifting_policy.rollout.evaluate import EvalResult, evaluate
from drifting_policy.seams import Execution
from drifting_policy.types import ConfigError, ObservationError, UserError

SEEDS = [*range(9), 2**40]
PUSH_T = functools.partial(open_environment, "drifting_policy.envs:drifting/PushT-v0", {}, task="push_t")


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process and no name of shared memory is left when a test is over."""
    names = []

    class Noted(SharedMemory):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            names.append(self.name)

    monkeypatch.setattr(memory, "SharedMemory", Noted)
    yield
    assert multiprocessing.active_children() == []
    for name in names:
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)


def play(**options: Any) -> EvalResult:
    request: dict[str, Any] = {"policy": Noisy(), "make_env": Walk, "seeds": SEEDS, "max_steps": 8, "num_envs": 4}
    return evaluate(**(request | options))


def troubled(trouble: str, marks: Path, **options: Any) -> Callable[[], Walk]:
    return functools.partial(Walk, trouble=trouble, marks=str(marks), **options)


def same(first: EvalResult, second: EvalResult) -> bool:
    assert first.episodes == second.episodes
    for name in ("frames", "trajectories"):
        kept, other = getattr(first, name), getattr(second, name)
        assert kept.keys() == other.keys()
        for seed in kept:
            np.testing.assert_equal(kept[seed], other[seed])
            assert type(kept[seed]) is type(other[seed])
    return True


@pytest.mark.parametrize(
    ("processes", "num_envs", "options"),
    [
        (2, 2, {"inference_batch": 4}),
        (2, 7, {"latency_steps": 3, "noise_seed": 9}),
        (3, 30, {"max_steps": 3}),
        (2, 7, {"latency_steps": 2, "inference_batch": 3, "execution": Execution("prefix", commit_steps=1)}),
    ],
)
def test_workers_change_nothing(processes: int, num_envs: int, options: dict[str, Any]) -> None:
    options = {"keep_trajectories": True, "video_seeds": [2, 5]} | options
    shuffled = np.random.default_rng(processes).permutation(np.array(SEEDS)).tolist()
    result = play(seeds=shuffled, num_envs=num_envs, workers=processes, **options)
    reference = play(**options)
    assert same(reference, result)
    assert [episode.seed for episode in result.episodes] == SEEDS
    assert 0 < sum(episode.success for episode in result.episodes) < len(SEEDS)
    assert all(type(trajectory["x"]) is np.ndarray for trajectory in result.trajectories.values())
    if not options.get("inference_batch"):
        assert len(result.plan_seconds) == len(reference.plan_seconds)


def test_push_t_is_the_same_in_workers() -> None:
    options = {"policy": Noisy("agent_pos", 2, scale=120.0, centre=256.0), "make_env": PUSH_T, "seeds": range(7)}
    options |= {"max_steps": 30, "keep_trajectories": True}
    reference = play(**options, num_envs=1)
    assert same(reference, play(**options, num_envs=5, workers=2))
    assert len({episode.max_score for episode in reference.episodes}) > 1


def test_one_worker_is_this_process() -> None:
    there = os.getpid()

    def here() -> Walk:
        assert os.getpid() == there
        return Walk()

    for processes, num_envs in ((0, 4), (1, 4), (4, 1)):
        assert same(play(), play(make_env=here, workers=processes, num_envs=num_envs))


@pytest.mark.parametrize("trouble", ["kill", "exit", "raise", "hang"])
def test_a_worker_that_dies_is_replaced_and_its_episodes_are_played_again(
    trouble: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cause = {"kill": "SIGKILL", "exit": "exit code 3", "raise": "RuntimeError: the gears broke"}
    result = play(make_env=troubled(trouble, tmp_path), workers=2, step_timeout=1.0 if trouble == "hang" else 60.0)
    assert same(play(), result)
    assert len(list(tmp_path.glob("process *"))) == 3
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("Worker ")]
    assert len(told) == 1
    assert f"ended in episode 5 ({cause.get(trouble, 'no simulator step within 1 s')}); " in told[0]
    assert "unfinished episodes begin again." in told[0]


def test_an_episode_that_always_ends_its_worker_ends_the_evaluation(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Episode 5 ended its worker process 3 times, last by exit code 3; workers=0"):
        play(make_env=troubled("exit", tmp_path, times=99), workers=2)
    assert len(list(tmp_path.glob("trouble *"))) == 3


def test_an_environment_that_cannot_be_made_ends_the_evaluation(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"outside of its episodes, last by RuntimeError: no display; workers=0"):
        play(make_env=functools.partial(Walk, trouble="no environment"), workers=2)
    assert "RuntimeError: no display" in capfd.readouterr().err  # with its traceback


@pytest.mark.parametrize(("trouble", "kind"), [("mistake", ConfigError), ("not a number", ObservationError)])
def test_a_mistake_of_the_user_arrives_as_it_is(trouble: str, kind: type[UserError]) -> None:
    told = []
    for processes in (0, 2):
        with pytest.raises(kind) as caught:
            play(make_env=functools.partial(Walk, trouble=trouble), workers=processes)
        told.append(str(caught.value).partition("(")[0])
    assert told[0] == told[1]


def test_observations_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ObservationError, match="sees 'image', but the environment gives only"):
        play(policy=Noisy("image"), workers=2)
    with pytest.raises(UserError, match=r"commands shape \(2,\); the environment takes shape \(1,\)"):
        play(policy=Noisy("x", 2), workers=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workers": -1}, "workers must be at least 0"),
        ({"step_timeout": 0.0}, "step_timeout a positive number"),
        ({"step_timeout": float("inf")}, "step_timeout a positive number"),
        ({"make_env": lambda: Walk()}, "give a function at the top of a module"),
    ],
)
def test_bad_requests_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        play(**({"workers": 2} | changes))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the policy broke")], ids=repr)
def test_workers_end_when_the_evaluation_does(error: BaseException) -> None:
    def interrupt(call: int) -> None:
        if call == 6:
            assert len(multiprocessing.active_children()) == 2
            raise error

    with pytest.raises(type(error)):
        play(policy=Noisy(on_plan=interrupt), workers=2)


def test_killed_workers_do_not_change_the_scores(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    task = compose("train", ["task=push_t", "task.max_steps=40"]).task
    network = {"encoder": {"name": "state", "embed_dim": 4}, "generator": {"name": "mlp", "width": 8, "depth": 1}}
    policy = DriftingPolicy(task.spec, **network).eval()
    request: dict[str, Any] = {"split": "test", "episodes": 6, "num_envs": 4, "inference_batch": 1, "videos": 2, "about": {}}
    evaluation.evaluate_policy(policy, task, **request, out=tmp_path / "here")
    act, calls = policy.act, []

    def act_and_kill(obs: Any, *, noise: Any) -> np.ndarray:
        calls.append(len(calls))
        if len(calls) in (7, 19):
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        return act(obs, noise=noise)

    policy.act = act_and_kill  # type: ignore[method-assign]
    evaluation.evaluate_policy(policy, task, **request, workers=2, out=tmp_path / "there")
    assert capfd.readouterr().err.count("(SIGKILL)") == 2
    assert len(calls) > 6 * 5
    assert (tmp_path / "here" / "scores.json").read_bytes() == (tmp_path / "there" / "scores.json").read_bytes()
    assert (tmp_path / "there" / "episodes.mp4").exists()


def script(tmp_path: Path, body: str) -> list[str]:
    """A command that runs `body` with the names of this test."""
    path = tmp_path / "script.py"
    head = f"import functools, sys\nsys.path.insert(0, {str(Path(worlds.__file__).parent)!r})\n"
    path.write_text(head + "from drifting_policy.rollout.evaluate import evaluate\nfrom worlds import Noisy, Walk\n" + body)
    return [sys.executable, str(path)]


def test_a_worker_loads_neither_pytorch_nor_the_script(tmp_path: Path) -> None:
    body = """
import torch
make_env = functools.partial(Walk, trouble="PyTorch")
print(len(evaluate(Noisy(), make_env, range(6), num_envs=4, max_steps=5, workers=2).episodes))
"""
    done = subprocess.run(script(tmp_path, body), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("6\n", "")


def test_the_environment_may_be_defined_in_the_script(tmp_path: Path) -> None:
    body = """
class Own(Walk):
    pass
if __name__ == "__main__":
    print(len(evaluate(Noisy(), Own, range(6), num_envs=4, max_steps=5, workers=2).episodes))
"""
    done = subprocess.run(script(tmp_path, body), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("6\n", "")


def test_workers_do_not_outlive_their_parent(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    body = f"""
make_env = functools.partial(Walk, trouble="hang", seed=None, times=9, marks={str(marks)!r})
evaluate(Noisy(), make_env, range(1, 7), num_envs=2, max_steps=9, workers=2)
"""
    parent = subprocess.Popen(script(tmp_path, body), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while len(list(marks.glob("trouble *"))) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    told = parent.communicate(timeout=60)[1]  # in vain, while a worker lives: it holds the other end of stderr
    assert told == ""
    assert len(list(marks.glob("process *"))) == 2


def test_the_default_is_one_worker_for_each_cpu_and_ten_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    given = {(1000, 10): 8, (1000, 4): 4, (59, 10): 5, (19, 10): 0, (50, 1): 0}
    for (episodes, num_envs), count in given.items():
        assert workers.choose_workers(None, episodes=episodes, num_envs=num_envs) == count
    assert workers.choose_workers(3, episodes=1, num_envs=1) == 3
