"""`unnormalize` undoes `normalize` in every mode, the maps equal float64 arithmetic, and they travel with the weights."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drifting_policy.normalize import MODES, SMALLEST_SPAN, Normalizer
from drifting_policy.types import ConfigError, Stats

SHAPES = {"pose": (3,), "grip": (), "keypoints": (4, 2)}


def recorded(shape: tuple[int, ...], *, seed: int = 0, centre: float = 50.0, spread: float = 20.0) -> np.ndarray:
    """Steps of one key, each element with its own centre and spread; float32 as in a data set."""
    rng = np.random.default_rng(seed)
    own = centre * rng.normal(size=shape), spread * rng.uniform(0.1, 1, size=shape)
    return (own[0] + own[1] * rng.normal(size=(40, *shape))).astype(np.float32)


def reference(values: np.ndarray, mode: str) -> np.ndarray:
    """The data in network units, in float64, without an affine map."""
    wide = values.astype(np.float64)
    if mode == "range":
        return 2 * (wide - wide.min(0)) / (wide.max(0) - wide.min(0)) - 1
    return (wide - wide.mean(0)) / wide.std(0) if mode == "standard" else wide


def fitted(values: np.ndarray, mode: str) -> Normalizer:
    return Normalizer.fit({"x": Stats.of(values)}, {"x": mode})


@settings(max_examples=30, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    shape=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    seed=st.integers(0, 999),
    centre=st.sampled_from([0.0, 1.0, 300.0]),
    spread=st.sampled_from([0.05, 1.0, 500.0]),
    leading=st.sampled_from([(), (1,), (5, 2)]),
)
def test_it_equals_float64_arithmetic_and_undoes_itself(
    mode: str, shape: tuple[int, ...], seed: int, centre: float, spread: float, leading: tuple[int, ...]
) -> None:
    values = recorded(shape, seed=seed, centre=centre, spread=spread)
    normalizer = fitted(values, mode)
    digits = 1e-6 * (1 + np.abs(reference(values, mode)).max() + np.abs(values).max() / (0.1 * values.std(0).min()))
    normal = normalizer.normalize("x", torch.tensor(values))
    np.testing.assert_allclose(normal.numpy(), reference(values, mode), atol=digits, rtol=0)

    units = torch.randn((*leading, *shape), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(normalizer.normalize("x", normalizer.unnormalize("x", units)), units, atol=digits, rtol=1e-6)
    raw = torch.tensor(values)
    torch.testing.assert_close(normalizer.unnormalize("x", normal), raw, rtol=1e-5, atol=1e-5 * np.abs(values).max().item())


def test_modes_do_what_their_names_say() -> None:
    values = recorded((4, 2))
    spread = fitted(values, "range").normalize("x", torch.tensor(values))
    torch.testing.assert_close((spread.amin(0), spread.amax(0)), (-torch.ones(4, 2), torch.ones(4, 2)), atol=1e-4, rtol=0)
    standard = fitted(values, "standard").normalize("x", torch.tensor(values))
    torch.testing.assert_close(standard.mean(0), torch.zeros(4, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(standard.std(0, correction=0), torch.ones(4, 2), atol=1e-4, rtol=0)
    assert torch.equal(fitted(values, "identity").normalize("x", torch.tensor(values)), torch.tensor(values))


@pytest.mark.parametrize("jitter", [0.0, 0.2 * SMALLEST_SPAN])
@pytest.mark.parametrize("mode", ["range", "standard"])
def test_a_constant_element_is_centred_but_not_stretched(mode: str, jitter: float) -> None:
    values = recorded((2,)).astype(np.float64)
    values[:, 1] = 0.25 + jitter * np.sin(np.arange(len(values)))
    normalizer = fitted(values, mode)
    centre = torch.tensor([0.0, 0.25])
    assert normalizer.normalize("x", centre)[1].abs() < 2 * SMALLEST_SPAN
    moved = normalizer.normalize("x", centre + 0.5) - normalizer.normalize("x", centre)
    torch.testing.assert_close(moved[1], torch.tensor(0.5))
    torch.testing.assert_close(normalizer.unnormalize("x", normalizer.normalize("x", centre)), centre, atol=1e-5, rtol=0)
    alone = fitted(values[:, :1], mode)  # and its neighbour is stretched as if it were alone
    assert torch.equal(normalizer.get_buffer("scale_x")[0], alone.get_buffer("scale_x")[0])


@pytest.mark.parametrize("mode", ["range", "standard"])
def test_just_above_the_smallest_span_data_are_stretched(mode: str) -> None:
    values = np.array([[0.0], [2.1 * SMALLEST_SPAN]])
    torch.testing.assert_close(
        fitted(values, mode).normalize("x", torch.tensor(values, dtype=torch.float32)), torch.tensor([[-1.0], [1.0]])
    )


def test_a_fresh_one_changes_nothing_until_weights_are_loaded() -> None:
    stats = {key: Stats.of(recorded(shape, seed=len(key))) for key, shape in SHAPES.items()}
    source = Normalizer.fit(stats, dict.fromkeys(SHAPES, "range") | {"grip": "standard"})
    copy = Normalizer(SHAPES)
    raw = {key: torch.tensor(recorded(shape, seed=9)) for key, shape in SHAPES.items()}
    assert all(torch.equal(copy.normalize(key, values), values) for key, values in raw.items())
    assert list(copy.parameters()) == []

    copy.load_state_dict(source.state_dict(), strict=True)
    for key, values in raw.items():
        assert torch.equal(copy.normalize(key, values), source.normalize(key, values))
        assert not torch.equal(copy.normalize(key, values), values)
    assert set(source.state_dict()) == {f"{part}_{key}" for part in ("scale", "offset") for key in SHAPES}
    assert all(value.dtype == torch.float32 for value in source.state_dict().values())


def test_each_key_has_its_own_map() -> None:
    stats = {"a": Stats.of(recorded((2,), seed=1)), "b": Stats.of(recorded((2,), seed=2))}
    both = Normalizer.fit(stats, {"b": "standard", "a": "range"})
    for key, mode in (("a", "range"), ("b", "standard")):
        alone = Normalizer.fit({key: stats[key]}, {key: mode})
        for direction in ("normalize", "unnormalize"):
            probe: Tensor = torch.ones(2)
            assert torch.equal(getattr(both, direction)(key, probe), getattr(alone, direction)(key, probe))


def test_gradients_pass_through_the_map_alone() -> None:
    values = torch.ones(2, 3, requires_grad=True)
    normalizer = fitted(recorded((3,)), "range")
    normalizer.normalize("x", values).sum().backward()
    torch.testing.assert_close(values.grad, normalizer.get_buffer("scale_x").expand(2, 3))


@pytest.mark.parametrize(
    ("shapes", "modes", "words"),
    [
        ({"x": (2,)}, {"x": "minmax"}, "'x' asks for normalisation 'minmax'; choose one of .'range', 'standard', 'identity'"),
        ({"x": (2,)}, {"y": "range"}, "exist for .'x'., but normalisation modes for .'y'."),
        ({"x": (2,)}, {}, r"normalisation modes for \[\]"),
        ({"x.y": (2,)}, {"x.y": "range"}, "'x.y' cannot be normalised under that name"),
    ],
)
def test_what_cannot_be_fitted_is_refused(shapes: dict[str, Any], modes: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Normalizer.fit({key: Stats.of(recorded(shape)) for key, shape in shapes.items()}, modes)


@pytest.mark.parametrize("direction", ["normalize", "unnormalize"])
def test_an_unknown_key_raises(direction: str) -> None:
    with pytest.raises(ConfigError, match=r"knows the keys \['grip', 'keypoints', 'pose'\]; it was asked for 'speed'"):
        getattr(Normalizer(SHAPES), direction)("speed", torch.ones(3))
