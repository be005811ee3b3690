"""The sampler travels in the checkpoint, and checkpoints from before there were samplers act as they did."""

import sys
from pathlib import Path

import numpy as np
import pytest

from drifting_policy.checkpoint import load_policy, save_policy
from drifting_policy.demonstrations import bundled
from drifting_policy.policy import DriftingPolicy
from drifting_policy.types import ArraySpec, MissingPackage, PolicySpec, Stats

SPEC = PolicySpec({"x": ArraySpec((3,))}, ArraySpec((2,)), 2, 4, 2, 10.0)
RNG = np.random.default_rng(0)
OBS, NOISE = {"x": RNG.normal(size=(3, 2, 3))}, RNG.normal(size=(3, 4, 2))


def test_the_bundled_policy_acts_as_it_did_before_policies_had_samplers() -> None:
    """As recorded by the revision before; float32 sums differ between machines."""
    golden = np.load(Path(__file__).parents[1] / "assets" / "one_step_golden.npz")
    policy, rng = load_policy(bundled("push_t")), np.random.default_rng(0)
    obs = {
        key: rng.uniform(50, 450, (3, 2, *array.shape)).astype(np.float32) for key, array in policy.spec.observations.items()
    }
    noise = rng.standard_normal((3, 16, 2), np.float32)
    np.testing.assert_allclose(policy.act(obs, noise=noise), golden["bundled.drawn"], rtol=1e-4)
    np.testing.assert_allclose(policy.act(obs), golden["bundled.zero"], rtol=1e-4)
    assert policy.evaluations == 1


def test_the_sampler_travels_and_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = {
        "name": "diffusion",
        "scheduler": "ddim",
        "steps": 5,
        "prediction": "sample",
        "timesteps": 50,
        "clip_sample": True,
    }
    mlp = {"name": "mlp", "width": 8, "depth": 1, "time": True}
    policy = DriftingPolicy(SPEC, encoder={"name": "state", "embed_dim": 4}, generator=mlp, sampler=sampler).eval()
    save_policy(tmp_path / "it", policy, metadata={}, stats={"x": Stats.of(np.eye(3))})
    loaded = load_policy(tmp_path / "it")
    assert loaded.recipe["sampler"] == sampler
    np.testing.assert_array_equal(loaded.act(OBS, noise=NOISE), policy.act(OBS, noise=NOISE))
    monkeypatch.setitem(sys.modules, "diffusers.schedulers.scheduling_ddim", None)
    with pytest.raises(MissingPackage, match=r"^Diffusion needs diffusers: pip install 'drifting-policy\[baselines\]'.$"):
        load_policy(tmp_path / "it")
