"""The tables of baselines: every arm can be trained on the data it names, and the runs of different arms stay apart."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from drifting_policy import cli
from drifting_policy.config import arguments
from drifting_policy.objectives import OBJECTIVES
from drifting_policy.types import ConfigError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def suites(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("suites").SUITES


def test_every_arm_composes(suites: dict[str, Any]) -> None:
    for name, suite in suites.items():
        assert name.split("/")[0] == suite.task
        for arm in suite.arms.values():
            config = cli.compose("train", [f"task={suite.task}", *arm.overrides, *suite.overrides])
            assert suite.data in config.task.data
            count = config.trainer.steps // config.trainer.checkpoint_every
            assert min(count, config.trainer.keep_checkpoints) >= (arm.checkpoints or suite.checkpoints)
            sampler = OBJECTIVES[config.objective.name](**arguments(config.objective)).sampler
            assert set(arm.sampler) <= {*sampler, "noise_scale"}


def test_arms_share_a_run_only_where_they_train_alike(suites: dict[str, Any]) -> None:
    for suite in suites.values():
        trained: dict[str, tuple[str, ...]] = {}
        for arm in suite.arms.values():
            assert trained.setdefault(arm.run, arm.overrides) == arm.overrides
        assert len(set(trained.values())) == len(trained)
        assert {"drift", "regression"} <= set(suite.arms)


def test_the_controls_have_the_budget_of_drift(suites: dict[str, Any]) -> None:
    suite = suites["push_t/human_unet"]
    configs = [cli.compose("train", [*arm.overrides, *suite.overrides]) for arm in suite.arms.values()]
    assert all(config.trainer == configs[0].trainer and config.generator == configs[0].generator for config in configs)
    assert {getattr(config.objective, "samples", 4) for config in configs} == {4}


def test_a_suite_that_does_not_exist_is_no_task(suites: dict[str, Any]) -> None:
    assert "push_t/human_mlp" in suites
    with pytest.raises(ConfigError, match="Unknown task"):
        cli.compose("train", ["task=juggling"])


def test_pictures_can_be_timed(suites: dict[str, Any]) -> None:
    baselines = importlib.import_module("baselines")
    suite = suites["push_t_image/human_small"]
    settings = [f"task={suite.task}", *suite.arms["regression"].overrides, *suite.overrides, "trainer.batch_size=2"]
    baselines.one_step(settings)()
    policy = importlib.import_module("latency").build_policy(settings)
    (observation,) = baselines.one_observation(policy)
    assert observation["image"].dtype == "uint8"
    assert policy.act(observation).shape[0] == 1
