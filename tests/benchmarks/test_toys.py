"""The toy benchmarks measure what they say, draw what they name, and keep what is finished."""

import functools
import importlib
import json
import math
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from drifting_policy.envs.obstacle import LEFT, RIGHT
from drifting_policy.rollout.statistics import cluster_bootstrap_mean

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def mixtures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("mixtures")


@pytest.fixture
def obstacle(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("obstacle")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_energy_distance_equals_a_loop(mixtures: ModuleType) -> None:
    x, y = normal(7, 2), 1 + 2 * normal(5, 2, seed=1)
    between = sum(math.dist(a, b) for a in x.tolist() for b in y.tolist()) / 35
    within = sum(math.dist(a, b) for i, a in enumerate(x.tolist()) for j, b in enumerate(x.tolist()) if i != j) / 42
    within += sum(math.dist(a, b) for i, a in enumerate(y.tolist()) for j, b in enumerate(y.tolist()) if i != j) / 20
    assert mixtures.energy_distance(x, y) == pytest.approx(2 * between - within)
    assert mixtures.energy_distance(y, x) == pytest.approx(2 * between - within)


def test_the_energy_distance_of_equal_distributions_is_zero_on_average(mixtures: ModuleType) -> None:
    equal = [mixtures.energy_distance(normal(60, 2, seed=2 * i), normal(60, 2, seed=2 * i + 1)) for i in range(200)]
    assert abs(np.mean(equal)) < 4 * np.std(equal) / math.sqrt(len(equal))
    assert min(equal) < 0 < max(equal)
    assert mixtures.energy_distance(normal(60, 2), normal(60, 2, seed=1) + 1) > max(equal)
    far = mixtures.energy_distance(normal(60, 2), normal(60, 2, seed=1) + 100 / math.sqrt(2))
    assert far == pytest.approx(200, rel=0.05)  # for distant sets: twice the distance


@pytest.mark.parametrize(
    ("modes", "count", "expected"),
    [
        ([0, 0, 1, 1], 2, (1.0, 0.0)),
        ([0, 0, 0, 1], 2, (1.0, 0.0)),  # a quarter is half of the fair share
        ([0] * 9 + [1] * 2, 2, (0.5, 0.0)),
        ([0, -1, -1, -1], 4, (0.25, 0.75)),
        ([-1, -1], 3, (0.0, 1.0)),
    ],
)
def test_modes_are_found_by_half_their_share(
    mixtures: ModuleType, modes: list[int], count: int, expected: tuple[float, float]
) -> None:
    assert mixtures.modes_found(np.array(modes), count) == expected


def test_the_data_find_all_modes_of_their_own_mixture(mixtures: ModuleType) -> None:
    for mixture in mixtures.MIXTURES.values():
        points = mixture.draw(4000, np.random.default_rng(0))
        found, astray = mixtures.modes_found(mixture.mode_of(points), mixture.modes)
        assert found == 1.0
        assert astray < 0.03
        assert (mixture.mode_of(np.array([[9.0, 9.0], [-9.0, 0.1]])) == -1).all()
        assert mixture.mode_of(np.array([mixture.starts["on one mode"]]))[0] >= 0


def test_the_board_is_dark_on_every_other_square(mixtures: ModuleType) -> None:
    board = mixtures.MIXTURES["checkerboard"]
    centres = np.array([(-0.75 + i / 2, -0.75 + j / 2) for i in range(4) for j in range(4)])
    dark = np.array([(i + j) % 2 == 0 for i in range(4) for j in range(4)])
    modes = board.mode_of(centres)
    assert ((modes >= 0) == dark).all()
    assert sorted(modes[dark].tolist()) == list(range(8))


def test_drifting_leaves_the_mean_and_with_the_floor_stays(mixtures: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixtures, "SAMPLES", 128)
    monkeypatch.setattr(mixtures, "JUDGED", 200)
    two = mixtures.MIXTURES["two clusters"]
    free, held = (mixtures.learn(two, (0.0, 0.0), floor=floor, steps=40, every=20, seed=0) for floor in (0.0, mixtures.FLOOR))
    assert free.steps == [0, 20, 40]
    assert free.energy[-1] < 0.1 * free.energy[0]
    assert held.energy[-1] > 0.8 * held.energy[0]
    again = mixtures.learn(two, (0.0, 0.0), floor=0.0, steps=40, every=20, seed=0)
    np.testing.assert_array_equal(again.samples[-1], free.samples[-1])


def test_the_mixtures_are_written_and_drawn(mixtures: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mixtures, "SAMPLES", 16)
    monkeypatch.setattr(mixtures, "JUDGED", 60)
    mixtures.main(["--steps", "4", "--every", "2", "--seeds", "2", "--root", str(tmp_path)])
    rows = json.loads((tmp_path / "results/toy/mixtures.json").read_text())
    assert [(row["mixture"], row["start"]) for row in rows][-1] == ("ring", mixtures.FLOORED)
    assert len(rows) == 10
    assert all(len(row["energy_per_seed"]) == row["n_training_seeds"] == 2 for row in rows)
    assert {row["affinity_floor"] for row in rows} == {0.0, mixtures.FLOOR}
    for name in ("toy_mixtures.png", "toy_mixtures_curves.png", "toy_mixtures.gif"):
        with Image.open(tmp_path / "docs" / name) as image:
            assert image.size[0] > 500
            assert getattr(image, "n_frames", 1) == (3 if name.endswith("gif") else 1)


def test_the_obstacle_rows_come_from_runs_that_are_kept(
    obstacle: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arms = {name: obstacle.ARMS[name] for name in ("drift", "drift, noise 0.5 in use", "regression")}
    monkeypatch.setattr(obstacle, "ARMS", arms)
    monkeypatch.setattr(obstacle, "cluster_bootstrap_mean", functools.partial(cluster_bootstrap_mean, resamples=20))
    tiny = ["trainer.steps=2", "trainer.warmup_steps=1", "trainer.batch_size=8", "generator.width=8", "generator.depth=1"]
    command = ["--runs", str(tmp_path / "runs"), "--seeds", "1", "--observations", "3"]
    command += ["--out", str(tmp_path / "new" / "rows.json"), *tiny]
    obstacle.main(command)
    rows = json.loads((tmp_path / "new" / "rows.json").read_text())
    metrics = ["covered", "rarer_side", "hits", "success"]
    names = [*arms, "drift - regression"]
    assert [(row["objective"], row["metric"]) for row in rows] == [(name, metric) for name in names for metric in metrics]
    assert {(row["n_training_seeds"], row["n"]) for row in rows} == {(1, 3)}
    assert {row["objective"]: row["noise_scale"] for row in rows[:12]} == dict(zip(arms, (1.0, 0.5, 0.0), strict=True))
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)
    runs = sorted(file.name for file in (tmp_path / "runs" / "test").iterdir() if file.is_dir())
    assert runs == ["drift_seed0", "objective_regression_seed0"]

    monkeypatch.setattr(obstacle.train, "run", lambda config: pytest.fail("trained again"))
    monkeypatch.setattr(obstacle, "coverage", lambda *given: pytest.fail("judged again"))
    obstacle.main(command)
    assert json.loads((tmp_path / "new" / "rows.json").read_text()) == rows


def test_baselines_may_have_fewer_seeds(obstacle: ModuleType) -> None:
    arms = {"ours": obstacle.Arm([]), "theirs": obstacle.Arm([], baseline=True)}
    assert obstacle.plan(arms, seeds=2, baseline_seeds=1) == [(0, "ours"), (0, "theirs"), (1, "ours")]
    assert len(obstacle.plan(arms, seeds=2, baseline_seeds=9)) == 4


def test_coverage_of_policies_that_are_known(obstacle: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from drifting_policy import cli
    from drifting_policy.datasets.obstacle import detour

    spec = cli.compose("train", ["task=toy_obstacle"]).task.spec

    class Known:
        """Goes left where the first number of its noise is below `share`, else right, or straight on."""

        max_prefix = 0

        def __init__(self, share: float, *, straight: bool = False) -> None:
            self.share, self.straight, self.spec = share, straight, spec

        def act(self, obs: dict[str, np.ndarray], *, noise: np.ndarray) -> np.ndarray:
            states = np.concatenate([obs[key][:, 0] for key in ("agent_pos", "goal", "obstacle")], axis=1).astype(float)
            if self.straight:
                return np.repeat(states[:, None, 2:4], spec.pred_horizon, axis=1)
            sides = np.where(noise[:, 0, 0] < self.share, LEFT, RIGHT)
            ways = [detour(state, side=side, margin=0.1) for state, side in zip(states, sides.tolist(), strict=True)]
            return np.stack(ways)[:, : spec.pred_horizon]

    def means(policy: Known) -> dict[str, float]:
        return {key: float(values.mean()) for key, values in obstacle.coverage(policy, range(4)).items()}

    assert means(Known(99.0)) == {"covered": 0.0, "rarer_side": 0.0, "hits": 0.0}
    assert means(Known(0.0, straight=True)) == {"covered": 0.0, "rarer_side": 0.0, "hits": 1.0}
    both = means(Known(0.0))
    assert (both["covered"], both["hits"]) == (1.0, 0.0)
    assert 0.35 < both["rarer_side"] <= 0.5


def test_every_arm_has_a_folder_that_a_setting_can_name(obstacle: ModuleType) -> None:
    arms = [*obstacle.STUDY.values(), *obstacle.ARMS.values()]
    names = {tuple(arm.settings): obstacle.folder(arm) for arm in arms}
    assert len(set(names.values())) == len(names)
    assert all(re.fullmatch(r"[\w.]+", name) for name in names.values())
