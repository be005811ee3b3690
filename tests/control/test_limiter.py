"""The limiter: no command breaks a limit, and a command that keeps them all passes unchanged."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_limiter import ReferenceLimiter

from drifting_policy.control.braking import Brake, largest_start
from drifting_policy.control.limiter import Limiter
from drifting_policy.control.limits import Limits
from drifting_policy.control.ways import Ways
from drifting_policy.types import ConfigError

HZ = 50.0
ARM = Limits(position_low=-1.0, position_high=1.0, velocity=1.0, acceleration=5.0, jerk=50.0)


def excess(limiter: Limiter, path: np.ndarray) -> float:
    """By which share of a limit the differences of `path` "step d", which begins at rest, exceed it at most."""
    limits, path = limiter.limits, np.concatenate([path[:1], path[:1], path])
    outside = max((path - limits.position_high).max(), (limits.position_low - path).max())
    shares = [outside]
    for order, bound in enumerate((limits.velocity, limits.acceleration, limits.jerk), start=1):
        share = np.abs(np.diff(path, n=order, axis=0)).max(axis=0) * HZ**order / bound
        rounding = 2**order * 1e-15 * np.abs(path).max() * HZ**order / bound
        shares.append(float((share - 1 - rounding).max()))
    return max(shares)


orders = st.lists(
    st.tuples(st.integers(0, 5), st.floats(-3, 3), st.sampled_from([0.0, 1e-3, -1.0, 1e6, np.inf, np.nan])),
    min_size=5,
    max_size=25,
)


def limits_of(rng: np.random.Generator) -> Limits:
    """Limits of two dimensions, some of which have none."""
    bounds = np.full((3, 2), np.inf)
    for dimension, kinds in enumerate(rng.integers(0, 4, 2)):
        values = np.cumprod([rng.uniform(0.05, 20), rng.uniform(0.5, 60), 10 ** rng.uniform(-0.3, 2.3)])
        bounds[:kinds, dimension] = values[:kinds]
    return Limits(-rng.choice([np.inf, 0.01, 0.3, 2.0], 2), rng.choice([np.inf, 0.01, 0.3, 2.0], 2), *bounds)


def commands_of(script: list[tuple[int, float, float]]) -> np.ndarray:
    """Six commands for each order: steady, moving on, not finite or jumping from side to side."""
    commands, steady = [], np.zeros(2)
    for kind, value, other in script:
        for repeat in range(6):
            steady = steady + 0.01 * value if kind == 1 else np.array([value, -value])
            choice = {2: np.array([value, other]), 3: np.array([value, -value]) * (-1) ** repeat * 1e3}
            commands.append(choice.get(kind, steady))
    return np.array(commands)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), orders)
def test_no_sequence_of_commands_breaks_a_limit(seed: int, script: list[tuple[int, float, float]]) -> None:
    rng = np.random.default_rng(seed)
    limits = limits_of(rng)
    limiter = Limiter(limits, control_hz=HZ, dimensions=2)
    assert limiter.reset(np.clip(rng.uniform(-2, 2, 2), limits.position_low, limits.position_high))
    path = [limiter.position.copy()]
    for step, command in enumerate(commands_of(script)):
        if step % 37 == 36:
            limiter.brake()
        else:
            limiter.step(command)
        path.append(limiter.position.copy())
    assert np.isfinite(path).all()
    assert excess(limiter, np.array(path)) < 1e-6


def assert_same(limits: Limits, commands: np.ndarray, *, hz: float, start: np.ndarray) -> list[bool]:
    """The limiter does what the reference does, bit for bit, and brakes now and then; whether it changed each command."""
    ours, reference = (kind(limits, control_hz=hz, dimensions=len(start)) for kind in (Limiter, ReferenceLimiter))
    reference.reset(start)
    assert ours.reset(start)
    changed = []
    for step, command in enumerate(commands):
        if step % 37 == 36:
            ours.brake()
            reference.brake()
        else:
            changed.append(ours.step(command))
            assert changed[-1] == reference.step(command)
        assert np.array_equal(ours.position, reference.position), step
        assert np.array_equal(ours.displacement, reference.displacement), step
    return changed


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), orders)
def test_every_command_is_that_of_the_reference(seed: int, script: list[tuple[int, float, float]]) -> None:
    rng = np.random.default_rng(seed)
    limits = limits_of(rng)
    start = np.clip(rng.uniform(-2, 2, 2), limits.position_low, limits.position_high)
    assert_same(limits, commands_of(script), hz=HZ, start=start)


@pytest.mark.parametrize("dimensions", [1, 7, 14])
@pytest.mark.parametrize("scene", ["jumps at a wall", "jumps", "trembling", "smooth"])
def test_it_is_the_reference_in_the_scenes_of_a_robot(scene: str, dimensions: int) -> None:
    rng, seconds = np.random.default_rng(0), np.arange(300)[:, None] / 100.0
    noise, wave = rng.normal(size=(300, dimensions)), 4 * (1 - np.cos(0.5 * seconds)) * np.ones(dimensions)
    commands = {"jumps at a wall": 15 + 3 * noise, "jumps": 8 * noise, "trembling": wave + 0.05 * noise, "smooth": wave}[scene]
    stiff = rng.uniform(0.5, 2.0, dimensions)  # each dimension has limits of its own
    limits = Limits(-16.0, 16.0, velocity=8 * stiff, acceleration=64 * stiff**2, jerk=640 * stiff**3)
    changed = assert_same(limits, commands, hz=100.0, start=np.full(dimensions, 14.0 if "wall" in scene else 0.0))
    assert np.mean(changed) > 0.9 or scene == "smooth"


def test_the_comparison_with_the_reference_bites() -> None:
    """A limit that is off by an ulp is noticed."""
    commands = np.random.default_rng(0).normal(size=(100, 1))
    positions = []
    for jerk in (50.0, np.nextafter(50.0, 51.0)):
        reference = ReferenceLimiter(dataclasses.replace(ARM, jerk=jerk), control_hz=HZ, dimensions=1)
        reference.reset(np.zeros(1))
        for command in commands:
            reference.step(command)
        positions.append(reference.position)
    assert not np.array_equal(*positions)


def test_the_measure_of_excess_bites() -> None:
    limiter = Limiter(ARM, control_hz=HZ, dimensions=1)
    allowed = np.cumsum(np.cumsum([[0.0], [1.0], [1.0], [1.0]], axis=0), axis=0) * 50.0 / HZ**3
    assert excess(limiter, allowed) < 1e-9
    assert excess(limiter, allowed * 1.01) > 0.005


def test_what_keeps_the_limits_passes_unchanged() -> None:
    limiter = Limiter(ARM, control_hz=HZ, dimensions=2)
    seconds = np.arange(400) / HZ
    wave = 0.9 * (1 - np.cos(seconds))[:, None] * [0.5, -0.4]
    assert limiter.reset(wave[0])
    for command in wave:
        assert limiter.step(command) is False
        assert np.array_equal(limiter.position, command)


@pytest.mark.parametrize("jerk", [None, 20.0, 200.0, 5000.0])
@pytest.mark.parametrize("speed", [0.0, 0.2])
def test_a_command_out_of_reach_is_met_and_followed(jerk: float | None, speed: float) -> None:
    limiter = Limiter(Limits(velocity=1.0, acceleration=5.0, jerk=jerk), control_hz=HZ, dimensions=1)
    assert limiter.reset(np.zeros(1))
    target = 0.4 + speed * np.arange(600) / HZ
    changed, path = [], []
    for command in target:
        changed.append(limiter.step(np.array([command])))
        path.append(limiter.position[0])
    assert changed[0]
    assert not any(changed[300:])
    assert (np.array(path) - target).max() < 0.02


def test_a_wall_is_reached_but_not_passed() -> None:
    limiter = Limiter(ARM, control_hz=HZ, dimensions=1)
    assert limiter.reset(np.zeros(1))
    for _ in range(200):
        assert limiter.step(np.array([50.0]))
    assert limiter.position[0] == pytest.approx(1.0, abs=1e-6)


def test_braking_ends_at_rest_and_stays_there() -> None:
    limiter = Limiter(ARM, control_hz=HZ, dimensions=1)
    assert limiter.reset(np.zeros(1))
    for _ in range(30):
        limiter.step(np.array([50.0]))
    assert limiter.displacement[0] > 0.01
    for _ in range(40):
        limiter.brake()
    rest = limiter.position.copy()
    limiter.brake()
    assert limiter.position == pytest.approx(rest, abs=1e-12)


def test_a_start_outside_the_bounds_is_refused() -> None:
    limiter = Limiter(ARM, control_hz=HZ, dimensions=2)
    assert limiter.reset(np.array([0.5, 0.5]))
    assert not limiter.reset(np.array([0.0, 1.01]))
    assert not limiter.reset(np.array([np.nan, 0.0]))
    assert np.array_equal(limiter.position, [0.5, 0.5])


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 100), st.floats(0.01, 5))
def test_largest_start_is_exact(total: float, step: float) -> None:
    start = largest_start(total, step)
    terms = np.maximum(start - step * np.arange(1 + int(start / step) + 1), 0)
    assert terms.sum() == pytest.approx(total, rel=1e-9, abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(st.floats(1.0, 50.0), st.floats(0.05, 2.0), st.floats(-1, 1), st.floats(0, 1))
def test_the_brake_stops_within_its_bounds(ratio: float, share: float, acceleration: float, place: float) -> None:
    """From anywhere it may be: velocity and acceleration end at zero, no bound is exceeded on the way."""
    A, q = 1.0, share
    p = acceleration * A
    steps = np.arange(1, 1000)
    rise = float(np.sign(p) * np.maximum(abs(p) - steps * q, 0).sum())  # while p is taken back
    V = max(ratio, 1.1 * abs(rise))
    low, high = max(-V, -V - rise), min(V, V - rise)
    w = low + place * (high - low)
    brake = Brake(V, A, q)
    (out,) = Ways([brake], steps=brake.steps).write([brake.way(w, p)])
    way = np.concatenate([[p], out, [0.0]])
    assert w + out.sum() == pytest.approx(0, abs=1e-9 * V)
    assert np.abs(np.diff(way)).max() <= q * (1 + 1e-9)
    assert np.abs(way).max() <= A * (1 + 1e-9)
    assert np.abs(w + np.cumsum(out)).max() <= V * (1 + 1e-9)
    end, slack = w + (w + np.cumsum(out)).sum(), 1e-10 * brake.steps * V
    assert -brake.reach(-w, -p) - slack <= end <= brake.reach(w, p) + slack
    assert brake.reach(w, p) + brake.reach(-w, -p) <= A * (brake.steps + 1)  # one profile beside the other


def test_a_step_allocates_no_arrays() -> None:
    limiter = Limiter(ARM, control_hz=HZ, dimensions=7)
    assert limiter.reset(np.zeros(7))
    commands = np.random.default_rng(0).normal(size=(20, 7))

    def rounds(count: int) -> tuple[int, int]:
        """Bytes that are kept after so many rounds, and the most that was held meanwhile."""
        tracemalloc.start()
        try:
            for _ in range(count):
                for command in commands:
                    limiter.step(command)
                limiter.brake()
            return tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    rounds(1)
    (few, _), (many, peak) = rounds(2), rounds(12)
    assert many <= few + 500
    assert peak < 12_000  # NumPy's own buffers; a step without prepared arrays would need dozens of 1,400 bytes


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        (Limits(jerk=1.0, velocity=1.0), "needs one of the acceleration"),
        (Limits(acceleration=1.0), "needs one of the velocity"),
        (Limits(acceleration=1.0, velocity=[1.0, np.inf]), "needs one of the velocity"),
        (Limits(velocity=0.0), "must be positive"),
        (Limits(velocity=[1.0, 1.0, 1.0]), "one number or 2"),
        (Limits(velocity=np.nan), "one number or 2"),
        (Limits(position_low=1.0, position_high=1.0), "must lie below"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: Limits, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Limiter(limits, control_hz=HZ, dimensions=2)
