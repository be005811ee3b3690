"""One of several drawn chunks is chosen by a rule that says what it does, and a chosen chunk was always drawn."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting_policy.chunking import ChunkExecutor
from drifting_policy.control.candidates import CandidatePolicy, candidate_noise, choose, distances, excess, spread, tile
from drifting_policy.types import ArraySpec, ConfigError, ObservationError, PolicySpec


@dataclasses.dataclass
class Box:
    """Limits that are infinite unless they are given."""

    position_low: np.ndarray = dataclasses.field(default_factory=lambda: np.full(1, -np.inf))
    position_high: np.ndarray = dataclasses.field(default_factory=lambda: np.full(1, np.inf))
    velocity: np.ndarray = dataclasses.field(default_factory=lambda: np.full(1, np.inf))
    acceleration: np.ndarray = dataclasses.field(default_factory=lambda: np.full(1, np.inf))
    jerk: np.ndarray = dataclasses.field(default_factory=lambda: np.full(1, np.inf))


class Bimodal:
    """Walks up or down from the newest observation, as the sign of its noise says."""

    max_prefix = 0

    def __init__(self) -> None:
        self.spec = PolicySpec({"x": ArraySpec((1,))}, ArraySpec((1,)), 2, 8, 2, 10.0)
        self.calls = 0

    def act(self, obs: Mapping[str, np.ndarray], *, noise: np.ndarray | None = None, prefix: object = None) -> np.ndarray:
        assert noise is not None
        assert prefix is None
        self.calls += 1
        side = np.sign(noise[:, :1])
        return np.asarray(obs["x"][:, -1:] + side * np.arange(-1, 7)[:, None] + 0.01 * noise, np.float32)


def modes(up: int, down: int, *, seed: int = 0) -> np.ndarray:
    """Chunks "k 6 1" of two modes, the upper ones first."""
    noise = 0.05 * np.random.default_rng(seed).normal(size=(up + down, 6, 1))
    return np.r_[np.ones(up), -np.ones(down)][:, None, None] * np.arange(1, 7)[:, None] + noise


def test_the_medoid_is_a_member_of_the_larger_mode() -> None:
    for up, down in ((5, 3), (3, 5)):
        chosen = choose(modes(up, down), rule="medoid")
        assert (chosen < up) == (up > down)
    assert abs(modes(4, 4).mean(axis=0)).max() < 0.1  # their mean is in neither


@settings(max_examples=30, deadline=None)
@given(k=st.integers(1, 6), t=st.integers(1, 5), seed=st.integers(0, 99))
def test_medoid_and_spread_agree_with_brute_force(k: int, t: int, seed: int) -> None:
    chunks = np.random.default_rng(seed).normal(size=(k, t, 3))
    scale = np.array([1.0, 2.0, 0.5])
    sums = [
        np.mean([np.mean([np.sqrt(sum(((p - q) / scale) ** 2)) for p, q in zip(a, b, strict=True)]) for b in chunks])
        for a in chunks
    ]
    assert choose(chunks, rule="medoid", scale=scale) == int(np.argmin(sums))
    assert spread(chunks, scale=scale) == pytest.approx(min(sums))
    assert spread(chunks, scale=10.0) == pytest.approx(spread(chunks) / 10)
    np.testing.assert_allclose(distances(chunks), distances(chunks).T)


def test_two_modes_are_spread_and_one_is_not() -> None:
    assert spread(modes(8, 0)) < 0.1
    assert spread(modes(4, 4)) > 20 * spread(modes(8, 0))


def test_the_closest_continues_what_is_committed() -> None:
    chunks = modes(3, 5)
    assert choose(chunks, rule="closest", prefix=np.array([[1.0], [2.0]])) < 3
    assert choose(chunks, rule="closest", prefix=np.array([[-1.0], [-2.0]])) >= 3
    assert choose(chunks, rule="closest") == choose(chunks, rule="closest", prefix=np.empty((0, 1))) == 0
    assert choose(chunks[::-1], rule="first", prefix=np.array([[1.0]])) == 0


def test_limits_are_kept_or_exceeded_least() -> None:
    steps = np.arange(5.0)[:, None]
    chunks = np.stack([4 * steps, 2 * steps, 0 * steps])
    assert choose(chunks, rule="within_limits", limits=Box(velocity=np.array([25.0])), control_hz=10.0) == 1
    assert choose(chunks, rule="within_limits", limits=Box(velocity=np.array([50.0])), control_hz=10.0) == 0
    assert choose(chunks[:2], rule="within_limits", limits=Box(velocity=np.array([1.0])), control_hz=10.0) == 1
    assert choose(chunks, rule="within_limits", limits=Box(position_high=np.array([1.0]))) == 2
    np.testing.assert_allclose(excess(chunks, Box(velocity=np.array([10.0])), control_hz=10.0), [3, 1, 0])
    assert (excess(chunks, Box(acceleration=np.array([1e-9]), jerk=np.array([1e-9])), control_hz=10.0) == 0).all()
    kinked = np.array([0.0, 0, 1, 1, 1])[None, :, None]
    bounds = {"acceleration": 50.0, "jerk": 1000.0}
    found = [excess(kinked, Box(**{name: np.array([bound])}), control_hz=10.0)[0] for name, bound in bounds.items()]
    np.testing.assert_allclose(found, [1.0, 1.0])  # 100 per s² and 2000 per s³
    # Where it is continued from far away, the way there counts.
    assert choose(chunks, rule="within_limits", limits=Box(velocity=np.array([45.0])), control_hz=10.0) == 0
    jumped = choose(
        chunks[[0, 2]], rule="within_limits", limits=Box(velocity=np.array([45.0])), prefix=-steps[:1] - 3, control_hz=10.0
    )
    assert jumped == 1


def test_candidates_are_told_apart_by_their_own_noise_alone() -> None:
    noise = np.random.default_rng(0).normal(size=(3, 8, 1)).astype(np.float32)
    draws = candidate_noise(noise, 400)
    assert draws.shape == (3, 400, 8, 1)
    np.testing.assert_array_equal(draws[:, 0], noise)
    np.testing.assert_array_equal(candidate_noise(noise[[2, 0]], 400), draws[[2, 0]])
    np.testing.assert_array_equal(candidate_noise(-0.0 * noise[:1], 3), candidate_noise(0.0 * noise[:1], 3))
    assert abs(draws[:, 1:].mean()) < 0.05
    assert abs(draws[:, 1:].std() - 1) < 0.05
    np.testing.assert_array_equal(tile({"x": np.array([1, 2])}, 2)["x"], [1, 1, 2, 2])


def test_a_policy_of_candidates_keeps_to_its_mode() -> None:
    """Drawn freely, half of the plans change sides; chosen as the closest, none do."""

    def sides(policy: Bimodal | CandidatePolicy, **options: object) -> np.ndarray:
        executor = ChunkExecutor(policy, 20, latency_steps=2, **options)  # type: ignore[arg-type]
        executor.reset(seeds=range(20))
        commands = np.stack([executor.step({"x": np.zeros((20, 1), np.float32)})[:, 0] for _ in range(12)])
        return np.sign(commands[3::2])

    free, kept = sides(Bimodal()), sides(CandidatePolicy(Bimodal(), candidates=12, rule="closest"), seam="prefix")
    assert (free != free[0]).any(axis=0).mean() > 0.6
    assert (kept == kept[0]).all()
    assert 0.1 < (kept[0] > 0).mean() < 0.9  # and both sides are taken


def test_a_policy_of_candidates_answers_row_by_row_in_one_call() -> None:
    inner = Bimodal()
    policy = CandidatePolicy(inner, candidates=5, rule="medoid")
    rng = np.random.default_rng(0)
    obs, noise = {"x": rng.normal(size=(4, 2, 1)).astype(np.float32)}, rng.normal(size=(4, 8, 1)).astype(np.float32)
    chunks = policy.act(obs, noise=noise)
    assert inner.calls == 1
    for row in range(4):
        np.testing.assert_array_equal(policy.act({"x": obs["x"][[row]]}, noise=noise[[row]])[0], chunks[row])
    np.testing.assert_array_equal(
        CandidatePolicy(inner, candidates=1, rule="first").act(obs, noise=noise), inner.act(obs, noise=noise)
    )
    closest = CandidatePolicy(inner, candidates=5, rule="closest")
    assert (policy.max_prefix, closest.max_prefix, closest.spec) == (0, 6, inner.spec)
    prefix = rng.normal(size=(4, 3, 1)).astype(np.float32)
    np.testing.assert_array_equal(closest.act(obs, noise=noise, prefix=prefix)[:, 1:4], prefix)
    with pytest.raises(ObservationError, match="at most 0 committed commands"):
        policy.act(obs, noise=noise, prefix=prefix)
    with pytest.raises(ObservationError, match="noise must have shape"):
        policy.act(obs, noise=noise[:2])
    np.testing.assert_array_equal(policy.act(obs), policy.act(obs, noise=np.zeros_like(noise)))


def test_what_cannot_be_chosen_is_told() -> None:
    with pytest.raises(ConfigError, match="Unknown rule 'best'"):
        choose(modes(1, 1), rule="best")
    with pytest.raises(ConfigError, match="needs limits"):
        CandidatePolicy(Bimodal(), candidates=2, rule="within_limits")
    with pytest.raises(ConfigError, match="at least 1; got 0"):
        CandidatePolicy(Bimodal(), candidates=0, rule="first")
    for chunks in (np.zeros((0, 2, 1)), np.full((1, 2, 1), np.nan), np.zeros((2, 1))):
        with pytest.raises(ValueError, match="finite chunks of shape"):
            choose(chunks, rule="first")
    with pytest.raises(ValueError, match="at most 6 commands of 1"):
        choose(modes(1, 1), rule="closest", prefix=np.zeros((7, 1)))
