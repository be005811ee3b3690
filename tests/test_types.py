"""A specification survives JSON, its hash tells any two apart, and whatever does not fit it is refused by name."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting_policy.types import ArraySpec, ConfigError, ObservationError, PolicySpec, Stats, UserError, check_obs

SPEC = PolicySpec(
    observations={"pose": ArraySpec((3,), unit="m"), "grip": ArraySpec(()), "image": ArraySpec((4, 5, 3), "uint8")},
    action=ArraySpec((2,), unit="px"),
    obs_horizon=2,
    pred_horizon=8,
    exec_horizon=3,
    control_hz=10.0,
)
KEYS = st.text("abcxyz_", min_size=1, max_size=4)
ARRAYS = st.tuples(
    st.lists(st.integers(1, 9), max_size=3).map(tuple), st.sampled_from(["float32", "uint8"]), st.text(max_size=3)
)


def observation(batch: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    numbers = {key: rng.normal(size=(batch, 2, *array.shape)) for key, array in SPEC.observations.items()}
    return numbers | {"image": np.full((batch, 2, 4, 5, 3), 7, np.uint8)}


@settings(max_examples=40, deadline=None)
@given(
    arrays=st.dictionaries(KEYS, ARRAYS, min_size=1, max_size=4),
    d=st.integers(1, 9),
    horizons=st.tuples(*[st.integers(1, 5)] * 3),
    rate=st.floats(1e-3, 1e4),
)
def test_a_specification_survives_json(arrays: dict[str, Any], d: int, horizons: tuple[int, ...], rate: float) -> None:
    to, more, ta = horizons
    observations = {key: ArraySpec(*values) for key, values in arrays.items()}
    spec = PolicySpec(observations, ArraySpec((d,), unit="°"), to, to + ta + more, ta, rate)
    copy = PolicySpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert copy == spec
    assert copy.contract_hash == spec.contract_hash
    assert spec.sample_shape == (to + ta + more, d)
    assert all(array.size == np.zeros(array.shape).size for array in observations.values())


def test_the_hash_forgets_order_and_number_types_but_no_field() -> None:
    changes: dict[str, Any] = {
        "observations": {**SPEC.observations, "more": ArraySpec((1,))},
        "action": ArraySpec((3,), unit="px"),
        "obs_horizon": 1,
        "pred_horizon": 9,
        "exec_horizon": 4,
        "control_hz": 10.000001,
    }
    assert list(changes) == [field.name for field in dataclasses.fields(PolicySpec)]
    others = [dataclasses.replace(SPEC, **{name: value}) for name, value in changes.items()]
    for name, value in {"shape": (4,), "dtype": "float64", "unit": "mm"}.items():
        pose = dataclasses.replace(SPEC.observations["pose"], **{name: value})
        others.append(dataclasses.replace(SPEC, observations={**SPEC.observations, "pose": pose}))
        if name != "shape":
            others.append(dataclasses.replace(SPEC, action=dataclasses.replace(SPEC.action, **{name: value})))
    assert len({spec.contract_hash for spec in [SPEC, *others]}) == len(others) + 1

    whole = dataclasses.replace(SPEC, observations=dict(reversed(SPEC.observations.items())))
    object.__setattr__(whole, "control_hz", 10)  # as a caller without type checks may write it
    assert whole == SPEC
    assert whole.contract_hash == SPEC.contract_hash
    assert SPEC.contract_hash == "561a90df7c0bf854"  # checkpoints hold it: another algorithm would disown them


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"observations": {}}, "at least one observation key"),
        ({"action": ArraySpec(())}, r"vector \(d,\); the specification says \(\)"),
        ({"action": ArraySpec((2, 2))}, r"vector \(d,\); the specification says \(2, 2\)"),
        ({"obs_horizon": 0}, "obs_horizon must be at least 1; got 0"),
        ({"pred_horizon": -1}, "pred_horizon must be at least 1; got -1"),
        ({"exec_horizon": 0}, "exec_horizon must be at least 1; got 0"),
        ({"exec_horizon": 8}, r"exec_horizon = 9 steps must fit into pred_horizon = 8"),
        ({"control_hz": 0.0}, "control_hz must be positive and finite; got 0.0"),
        ({"control_hz": float("nan")}, "control_hz .* got nan"),
        ({"control_hz": float("inf")}, "control_hz .* got inf"),
    ],
)
def test_an_impossible_specification_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(SPEC, **changes)


def test_the_executed_part_just_fits() -> None:
    tight = dataclasses.replace(SPEC, exec_horizon=7)
    assert tight.first_executed + tight.exec_horizon == tight.pred_horizon


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(1, 4), max_size=2), seed=st.integers(0, 99), steps=st.integers(1, 9))
def test_statistics_run_over_steps_in_float64(shape: list[int], seed: int, steps: int) -> None:
    values = (1e4 + np.random.default_rng(seed).normal(size=(steps, *shape))).astype(np.float32)
    stats = Stats.of(values)
    for place in np.ndindex(*shape):
        column = [float(step[place]) for step in values]
        mean = sum(column) / steps
        deviation = (sum((value - mean) ** 2 for value in column) / steps) ** 0.5
        assert (stats.min[place], stats.max[place]) == (min(column), max(column))
        np.testing.assert_allclose([stats.mean[place], stats.std[place]], [mean, deviation], rtol=1e-9, atol=1e-9)
    assert json.loads(json.dumps(stats.to_dict()))["std"] == stats.std.tolist()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint64", "bool"])
@pytest.mark.parametrize("batch", [0, 1, 4])
def test_any_finite_numbers_of_the_right_shape_pass(dtype: str, batch: int) -> None:
    assert (
        check_obs(
            SPEC, {key: np.ones_like(value, "uint8" if key == "image" else dtype) for key, value in observation(batch).items()}
        )
        == batch
    )


@settings(max_examples=60, deadline=None)
@given(
    key=st.sampled_from(["grip", "pose"]),
    value=st.sampled_from([np.nan, np.inf, -np.inf, 1e39, -1e300]),
    data=st.data(),
)
def test_a_number_that_is_none_is_found(key: str, value: float, data: Any) -> None:
    obs = observation()
    place = tuple(data.draw(st.integers(0, n - 1)) for n in obs[key].shape)
    obs[key][place] = value
    obs[key].flat[-1] = np.nan  # a later one, which is not the first
    with pytest.raises(ObservationError) as caught:
        check_obs(SPEC, obs)
    assert f"'{key}' holds NaN or infinity" in str(caught.value)
    assert f"first at index {place}." in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(
    key=st.sampled_from(sorted(SPEC.observations)),
    batch=st.none() | st.integers(0, 5),
    wrong=st.lists(st.integers(0, 5), max_size=5).map(tuple),
)
def test_a_wrong_shape_is_named_with_the_right_one(key: str, batch: int | None, wrong: tuple[int, ...]) -> None:
    expected = (2, *SPEC.observations[key].shape)
    shape = wrong if batch is None else (batch, *expected)
    obs = observation() | {key: np.zeros(shape, SPEC.observations[key].dtype)}
    if shape[1:] == expected and shape[0] == 4:
        assert check_obs(SPEC, obs) == 4
        return
    with pytest.raises(ObservationError) as caught:
        check_obs(SPEC, obs)
    if shape[1:] == expected:
        assert "must share one batch size" in str(caught.value)
        assert f"'{key}': {shape[0]}" in str(caught.value)
    else:
        words = ", ".join(map(str, expected))
        assert str(caught.value) == f"Observation '{key}' must have shape (batch, {words}); got {shape}."


@pytest.mark.parametrize("dtype", ["U3", "S3", "object", "complex64", "datetime64[s]", "timedelta64[s]"])
def test_what_is_no_number_is_refused(dtype: str) -> None:
    obs = observation() | {"pose": np.zeros((4, 2, 3), dtype)}
    with pytest.raises(ObservationError, match="'pose' must be numeric; got dtype"):
        check_obs(SPEC, obs)


@settings(max_examples=30, deadline=None)
@given(keys=st.sets(st.sampled_from([*SPEC.observations, "other", ""])))
def test_keys_must_match_exactly(keys: set[str]) -> None:
    obs = {key: observation().get(key, np.zeros(1)) for key in keys}
    if keys == set(SPEC.observations):
        assert check_obs(SPEC, obs) == 4
        return
    missing, unknown = sorted(set(SPEC.observations) - keys), sorted(keys - set(SPEC.observations))
    with pytest.raises(ObservationError) as caught:
        check_obs(SPEC, obs)
    assert f"exactly the keys ['grip', 'image', 'pose']; missing: {missing}, unknown: {unknown}." in str(caught.value)


def test_every_refusal_is_the_users_to_mend() -> None:
    assert all(issubclass(error, UserError) for error in (ConfigError, ObservationError))
    assert issubclass(UserError, ValueError)


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint16", "bool"])
def test_images_are_bytes_and_nothing_else(dtype: str) -> None:
    assert [key for key, array in SPEC.observations.items() if array.is_image] == ["image"]
    with pytest.raises(ObservationError, match=f"'image' is an image and must be uint8, .* got dtype {dtype}."):
        check_obs(SPEC, observation() | {"image": observation()["image"].astype(dtype)})
