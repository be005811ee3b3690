"""A chunk depends on its own observation and noise alone, stays in the demonstrated range, and costs the caller nothing."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from drifting_policy.normalize import Normalizer
from drifting_policy.policy import DriftingPolicy
from drifting_policy.types import ArraySpec, ConfigError, ObservationError, Policy, PolicySpec, Stats

SPEC = PolicySpec({"pose": ArraySpec((3,)), "grip": ArraySpec(())}, ArraySpec((2,)), 2, 8, 3, 10.0)
ENCODER = {"name": "state", "embed_dim": 16}
HEADS: dict[str, dict[str, Any]] = {
    "mlp": {"width": 32, "depth": 2},
    "unet": {"channels": [16, 32], "kernel": 5, "groups": 4, "film_dim": 16},
    "transformer": {"width": 32, "depth": 2, "heads": 2},
}
FLOW = {"name": "flow", "steps": 4}
TRAINED = {"prediction": "epsilon", "timesteps": 100, "clip_sample": True}
DDPM = {"name": "diffusion", "scheduler": "ddpm", "steps": 20, **TRAINED}
LOW, HIGH = np.array([-3.0, 100.0]), np.array([5.0, 101.0])


def policy(name: str = "mlp", *, wild: float = 0.0, **options: Any) -> DriftingPolicy:
    """A policy that was fitted to made-up demonstrations; `wild` perturbs its weights, so that noise and pose matter."""
    torch.manual_seed(0)
    timed = {"time": True} if "sampler" in options else {}
    result = DriftingPolicy(SPEC, encoder=ENCODER, generator={"name": name, **HEADS[name], **timed}, **options)
    rng = np.random.default_rng(0)
    data = {key: 10 * rng.normal(size=(50, *array.shape)) for key, array in SPEC.observations.items()}
    data["action"] = np.linspace(LOW, HIGH, 50)
    result.normalizer = Normalizer.fit({key: Stats.of(value) for key, value in data.items()}, dict.fromkeys(data, "range"))
    with torch.no_grad():
        for parameter in result.generator.parameters():
            parameter += wild * torch.randn(parameter.shape)
    return result


def observation(batch: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {key: rng.normal(0, 10, (batch, 2, *array.shape)).astype(np.float32) for key, array in SPEC.observations.items()}


def draw(batch: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, 8, 2)).astype(np.float32)


def rows(obs: Mapping[str, np.ndarray], places: Any) -> dict[str, np.ndarray]:
    return {key: value[places] for key, value in obs.items()}


SHARED = policy(wild=0.1)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_chunks_are_float32_of_the_specified_shape(name: str, batch: int) -> None:
    acting = policy(name, wild=0.1)
    assert isinstance(acting, Policy)
    for noise in (None, draw(batch)):
        chunk = acting.act(observation(batch), noise=noise)
        assert (type(chunk), chunk.shape, chunk.dtype) == (np.ndarray, (batch, 8, 2), np.float32)
        chunk[...] = 0  # it is the caller's own


@pytest.mark.parametrize("name", HEADS)
def test_a_chunk_depends_on_its_own_row_alone(name: str) -> None:
    acting, obs, noise = policy(name, wild=0.1), observation(), draw()
    chunk = acting.act(obs, noise=noise)
    for places in ([2], [3, 2, 1, 0], [1, 1, 1]):
        np.testing.assert_allclose(acting.act(rows(obs, places), noise=noise[places]), chunk[places], rtol=1e-5, atol=1e-5)
    for key in obs:
        other = rows(obs, slice(None))
        other[key] = np.concatenate([other[key][:1] + 5, other[key][1:]])
        changed = np.abs(acting.act(other, noise=noise) - chunk).max(axis=(1, 2))
        assert changed[0] > 1e-3
        assert changed[1:].max() < 1e-4
    changed = np.abs(acting.act(obs, noise=np.concatenate([noise[:1] + 1, noise[1:]])) - chunk).max(axis=(1, 2))
    assert changed[0] > 1e-3
    assert changed[1:].max() < 1e-4


@pytest.mark.parametrize("name", HEADS)
def test_it_remembers_nothing_and_draws_nothing(name: str) -> None:
    acting, obs, noise = policy(name, wild=0.1), observation(), draw()
    first = acting.act(obs, noise=noise)
    weights, randomness = {key: value.clone() for key, value in acting.state_dict().items()}, torch.get_rng_state()
    acting.act(observation(seed=1), noise=draw(seed=1))
    np.testing.assert_array_equal(acting.act(obs, noise=noise), first)
    np.testing.assert_allclose(acting.eval().act(obs, noise=noise), first, rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), randomness)
    assert all(torch.equal(value, weights[key]) for key, value in acting.state_dict().items())


def test_no_noise_is_the_zero_noise_and_noise_scale_multiplies() -> None:
    acting, obs = policy(wild=0.1), observation()
    np.testing.assert_array_equal(acting.act(obs), acting.act(obs, noise=np.zeros((4, 8, 2), np.float32)))
    half, silent = policy(wild=0.1, noise_scale=0.5), policy(wild=0.1, noise_scale=0.0)
    np.testing.assert_array_equal(half.act(obs, noise=draw()), acting.act(obs, noise=0.5 * draw()))
    np.testing.assert_array_equal(silent.act(obs, noise=draw()), acting.act(obs))
    assert np.abs(half.act(obs, noise=draw()) - acting.act(obs, noise=draw())).max() > 1e-3
    assert acting.resample(noise_scale=0.5) == {"name": "one_step", "noise_scale": 0.5}
    np.testing.assert_array_equal(half.act(obs, noise=draw()), acting.act(obs, noise=draw()))
    assert acting.resample() == {"name": "one_step"}
    assert acting.recipe == half.recipe


@pytest.mark.parametrize("scale", [-0.1, float("nan"), float("inf")])
def test_an_impossible_noise_scale_changes_nothing(scale: float) -> None:
    acting = policy()
    with pytest.raises(ConfigError, match="noise_scale must be a finite number"):
        acting.resample(noise_scale=scale)
    assert acting.noise_scale == acting.recipe["noise_scale"] == 1.0


def test_it_is_the_normalised_network() -> None:
    acting, obs, noise = policy(wild=0.1, clip=None), observation(), draw()
    network = {key: acting.normalizer.normalize(key, torch.tensor(value)) for key, value in obs.items()}
    chunk = acting.generator(torch.tensor(noise)[:, None], acting.encoder(network))[:, 0].detach().numpy()
    np.testing.assert_allclose(acting.act(obs, noise=noise), LOW + (chunk + 1) * (HIGH - LOW) / 2, rtol=1e-4, atol=1e-4)
    assert acting.encode({key: torch.tensor(value) for key, value in obs.items()}).shape == (4, 2, 16)


def test_clip_keeps_every_command_in_the_demonstrated_range() -> None:
    obs = rows(observation(), slice(None)) | {"grip": np.full((4, 2), 1e4)}
    free = policy(wild=1.0, clip=None).act(obs, noise=draw())
    chunk = policy(wild=1.0).act(obs, noise=draw())
    np.testing.assert_allclose(chunk, np.clip(free, LOW, HIGH), atol=1e-4)
    assert (free < LOW).any()
    assert (free > HIGH).any()
    middle, half = (LOW + HIGH) / 2, (HIGH - LOW) / 4
    narrow = policy(wild=1.0, clip=0.5).act(obs, noise=draw())
    np.testing.assert_allclose(narrow, np.clip(free, middle - half, middle + half), atol=1e-4)


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "read-only": lambda values: np.frombuffer(values.tobytes(), values.dtype).reshape(values.shape),
    "reversed": lambda values: values[..., ::-1, :] if values.ndim > 2 else values[:, ::-1],
    "strided": lambda values: np.repeat(values, 2, axis=1)[:, ::2],
    "broadcast": lambda values: np.broadcast_to(values[:1], values.shape),
    "fortran": np.asfortranarray,
    "big-endian": lambda values: values.astype(">f4"),
    "float64": lambda values: values.astype(np.float64),
    "integers": lambda values: values.astype(np.int16),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_the_callers_arrays_will_do_and_none_is_touched(layout: str) -> None:
    obs, noise = {key: LAYOUTS[layout](value) for key, value in observation().items()}, LAYOUTS[layout](draw())
    plain = {key: np.array(value, np.float32, order="C") for key, value in obs.items()}
    before = noise.copy()
    chunk = SHARED.act(obs, noise=noise)
    expected = SHARED.act(plain, noise=np.array(noise, np.float32, order="C"))
    np.testing.assert_allclose(chunk, expected, rtol=1e-5)  # the last bits were seen to differ
    np.testing.assert_array_equal(noise, before)
    assert all(np.array_equal(obs[key], value) for key, value in plain.items())


@pytest.mark.parametrize(
    ("change", "noise", "words"),
    [
        ({}, draw(3), r"noise must have shape \(4, 8, 2\); got \(3, 8, 2\)"),
        ({}, draw()[:, None], r"noise must have shape \(4, 8, 2\); got \(4, 1, 8, 2\)"),
        ({}, np.zeros(()), r"noise must have shape \(4, 8, 2\); got \(\)"),
        ({}, np.full((4, 8, 2), np.nan), "noise holds NaN or infinity"),
        ({"extra": np.zeros((4, 2))}, None, "unknown: .'extra'."),
        ({"grip": np.zeros((3, 2))}, None, "share one batch size"),
        ({"pose": np.full((4, 2, 3), 1e300)}, None, "'pose' holds NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, np.ndarray], noise: np.ndarray | None, words: str) -> None:
    with pytest.raises(ObservationError, match=words):
        SHARED.act(observation() | change, noise=noise)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"encoder": {"name": "resnet"}}, r"Unknown encoder 'resnet'; choose one of \['image', 'state', 'vit'\]"),
        ({"generator": {"name": "lstm", "width": 3}}, r"Unknown generator 'lstm'; choose one of \['mlp', .*'unet'\]"),
        ({"generator": {"width": 32}}, "Unknown generator 'None'"),
        ({"sampler": {"name": "euler"}}, r"Unknown sampler 'euler'; choose one of \['diffusion', 'flow', 'one_step'\]"),
        ({"sampler": FLOW}, "sampler 'flow' does not fit the action head"),
        ({"generator": {"name": "mlp", **HEADS["mlp"], "time": True}}, "sampler 'one_step' does not fit the action head"),
    ],
)
def test_unknown_parts_are_named(choice: dict[str, Any], words: str) -> None:
    parts = {"encoder": ENCODER, "generator": {"name": "mlp", **HEADS["mlp"]}}
    with pytest.raises(ConfigError, match=words):
        DriftingPolicy(SPEC, **(parts | choice))


def test_the_recipe_and_the_weights_rebuild_it() -> None:
    source = policy("unet", wild=0.1, noise_scale=0.7, clip=0.9)
    assert source.recipe["generator"]["channels"] is not HEADS["unet"]["channels"]
    copy = DriftingPolicy(SPEC, **source.recipe)
    copy.load_state_dict(source.state_dict(), strict=True)
    assert copy.recipe == source.recipe
    np.testing.assert_array_equal(copy.act(observation(), noise=draw()), source.act(observation(), noise=draw()))
    assert {"normalizer.scale_action", "normalizer.offset_pose"} <= set(source.state_dict())


every_sampler = pytest.mark.parametrize(("settings", "evaluations"), [(FLOW, 4), (DDPM, 20)], ids=["flow", "ddpm"])


@every_sampler
@pytest.mark.parametrize("name", HEADS)
def test_whatever_the_sampler_a_chunk_is_a_function_of_its_row(name: str, settings: dict[str, Any], evaluations: int) -> None:
    acting, obs, noise = policy(name, wild=0.02, sampler=settings), observation(), draw()
    assert acting.evaluations == evaluations
    chunk, randomness = acting.act(obs, noise=noise), torch.get_rng_state()
    np.testing.assert_array_equal(acting.act(obs, noise=noise), chunk)
    for places in ([2], [3, 2, 1, 0]):
        np.testing.assert_allclose(acting.act(rows(obs, places), noise=noise[places]), chunk[places], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(acting.act(obs), acting.act(obs, noise=np.zeros_like(noise)))
    assert np.abs(chunk - acting.act(obs)).max() > 1e-3
    assert torch.equal(torch.get_rng_state(), randomness)
    assert (chunk >= LOW - 1e-4).all()
    assert (chunk <= HIGH + 1e-4).all()
    copy = DriftingPolicy(SPEC, **acting.recipe)
    copy.load_state_dict(acting.state_dict(), strict=True)
    np.testing.assert_array_equal(copy.act(obs, noise=noise), chunk)


def test_a_recipe_without_a_sampler_takes_one_step() -> None:
    older = {key: value for key, value in SHARED.recipe.items() if key != "sampler"}
    copy = DriftingPolicy(SPEC, **older)
    copy.load_state_dict(SHARED.state_dict(), strict=True)
    assert copy.recipe == SHARED.recipe
    assert copy.recipe["sampler"] == {"name": "one_step"}
    assert copy.evaluations == 1
    np.testing.assert_array_equal(copy.act(observation(), noise=draw()), SHARED.act(observation(), noise=draw()))


def test_the_sampler_can_be_changed_and_nothing_else() -> None:
    acting, obs, noise = policy(wild=0.1, sampler=DDPM), observation(), draw()
    weights, before = {key: value.clone() for key, value in acting.state_dict().items()}, acting.act(obs, noise=noise)
    acting.resample(scheduler="ddim", steps=10)
    assert (acting.evaluations, acting.recipe["sampler"]) == (10, DDPM | {"scheduler": "ddim", "steps": 10})
    assert all(torch.equal(value, weights[key]) for key, value in acting.state_dict().items())
    fewer = acting.act(obs, noise=noise)
    assert np.abs(fewer - before).max() > 1e-3
    np.testing.assert_array_equal(policy(wild=0.1, sampler=acting.recipe["sampler"]).act(obs, noise=noise), fewer)
    acting.resample()
    for changes, words in (({"steps": 0}, "between 1 and 100 steps"), ({"order": 2}, r"has no setting \['order'\]")):
        with pytest.raises(ConfigError, match=words):
            acting.resample(**changes)
    assert (acting.evaluations, acting.recipe["sampler"]["steps"]) == (10, 10)
    with pytest.raises(
        ConfigError, match=r"sampler 'one_step' of this policy has no setting \['steps'\]; it has \['noise_scale'\]"
    ):
        policy().resample(steps=2)
