"""The drifting field against plain loops, and the symmetries that any such field must have."""

import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_field import assert_close, compare, loop_field, normal, samples
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from drifting_policy.drift import Field, drift
from drifting_policy.drift.blocks import field_in_blocks
from drifting_policy.drift.definitions import FieldOptions
from drifting_policy.drift.field import affinities, balanced_force, pairwise_distance, weighted_sum
from drifting_policy.drift.loss import DriftOptions
from drifting_policy.drift.workspace import Workspace

COUPLINGS = ("row_column", "row", "none")
GROUPINGS = ("batch", "condition", "none")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.fixed_dictionaries(
        {
            "temperatures": st.sampled_from([(0.02, 0.05, 0.2), (0.3,), (2.0, 0.1)]),
            "kernel": st.sampled_from(["laplace", "gaussian"]),
            "coupling": st.sampled_from(COUPLINGS),
            "scale": st.sampled_from(GROUPINGS),
            "force": st.sampled_from(GROUPINGS),
            "affinity_floor": st.sampled_from([0.0, 1e-6, 1e-2]),
            "self_mask": st.booleans(),
            "attraction": st.sampled_from([1.0, 1.0, 2.0, 0.0]),
            "repulsion": st.sampled_from([1.0, 1.0, 1.5]),
        }
    ),
    st.tuples(*[st.integers(1, 3)] * 3, st.integers(0, 2), st.integers(1, 3)),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_equals_plain_loops(options: dict[str, Any], shape: tuple[int, ...], seed: int, weighted: bool) -> None:
    """Few samples, and blocks of any size."""
    b, g, p, n, f = shape
    x, pos, neg = samples(b, g, p, n, f, seed)
    weight = {name: normal(b, count, seed=seed + count).abs() + 0.1 for name, count in (("gen", g), ("pos", p), ("neg", n))}
    passed = {f"{name}_weight": value for name, value in weight.items()} if weighted else {}
    order = torch.cat([weight["gen"], weight["neg"], weight["pos"]], dim=1)
    expected = loop_field(x.numpy(), pos.numpy(), neg.numpy(), (order if weighted else torch.ones_like(order)).numpy(), options)
    compare(drift(x, pos, neg, **options, **passed), expected)

    parts = x[:, :, None], neg[:, :, None], pos[:, :, None]
    for size in (1, 20, 10**6):
        field = field_in_blocks(parts, order if weighted else None, FieldOptions(**options), Workspace(), block_numbers=size)
        compare(field, expected)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("kernel", ["laplace", "gaussian"])
def test_vanishes_where_samples_and_data_coincide(coupling: str, kernel: str) -> None:
    # Without the self mask: with it a sample is repelled by its siblings but attracted by its own copy.
    x, _, _ = samples(g=6)
    shuffled = x[:, torch.randperm(6, generator=torch.Generator().manual_seed(1))]
    options: DriftOptions = {"coupling": coupling, "kernel": kernel}
    assert drift(x, shuffled, **options, self_mask=False).velocity.abs().max() < 1e-9
    assert drift(x, shuffled + 0.1, **options, self_mask=False).velocity.abs().max() > 0.1


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_exchanging_positives_and_negatives_flips_the_sign(coupling: str) -> None:
    x, pos, neg = samples()
    options: DriftOptions = {"coupling": coupling, "gen_weight": torch.zeros(x.shape[:2])}
    field, exchanged = drift(x, pos, neg, **options), drift(x, neg, pos, **options)
    assert_close(field.velocity, -exchanged.velocity)
    assert field.velocity.abs().max() > 0.1


def test_attraction_without_repulsion_does_not_vanish_where_samples_and_data_coincide() -> None:
    x, _, _ = samples(g=6)
    options: DriftOptions = {"self_mask": False, "repulsion": 0.0}
    assert drift(x, x, **options).velocity.abs().max() > 0.1
    twice = drift(*samples(), attraction=2.0, repulsion=2.0)  # nothing is left of a common factor but the length
    assert_close(twice.velocity, drift(*samples()).velocity)
    assert_close(twice.rms, 2 * drift(*samples()).rms)


def test_force_is_balanced() -> None:
    weights, targets = normal(4, 7, 3).abs(), normal(7, 2, 3, seed=1)
    flipped = balanced_force(weights.roll(3, 1), targets.roll(3, 0), 3)
    assert_close(balanced_force(weights, targets, 4), -flipped)
    assert_close(balanced_force(weights, targets + 5, 4), balanced_force(weights, targets, 4))


@pytest.mark.parametrize("f", [1, 3, 100])
def test_translation_and_scaling_leave_the_normalised_velocity_alone(f: int) -> None:
    parts = [part * 1e4 for part in samples(f=f)]
    field = drift(*parts)
    moved = drift(*(part + 7 for part in parts))
    grown = drift(*(part * 3 for part in parts))  # the samples' distance to themselves is 1e-4, whatever their size
    assert_close(moved.velocity, field.velocity)
    assert_close(grown.velocity, field.velocity, 1e-6)
    assert_close(grown.scale, 3 * field.scale, 1e-6)
    assert_close(grown.unit, 3 * field.unit, 1e-6)
    assert_close(grown.rms, field.rms, 1e-6)


@pytest.mark.parametrize("f", [2, 100])
def test_rotates_with_the_samples(f: int) -> None:
    parts, rotation = samples(f=f), torch.linalg.qr(normal(f, f, seed=9))[0]
    assert_close(drift(*(part @ rotation for part in parts)).velocity, drift(*parts).velocity @ rotation)


def test_order_of_samples_is_irrelevant() -> None:
    x, pos, neg = samples()
    velocity = drift(x, pos, neg).velocity
    assert_close(drift(x.flip(1), pos, neg).velocity, velocity.flip(1))
    assert_close(drift(x, pos.flip(1), neg.flip(1)).velocity, velocity)
    assert_close(drift(x.flip(0), pos.flip(0), neg.flip(0)).velocity, velocity.flip(0))


def test_absent_negatives_are_empty_negatives() -> None:
    x, pos, neg = samples(n=0)
    assert torch.equal(drift(x, pos, neg).velocity, drift(x, pos).velocity)


def test_conditions_are_independent_only_where_every_grouping_is() -> None:
    parts = samples()
    alone = drift(*(part[:1] for part in parts), scale="condition", force="condition")
    together = drift(*parts, scale="condition", force="condition")
    assert_close(together.velocity[:1], alone.velocity)
    assert_close(together.scale[:1], alone.scale)
    assert together.scale.shape == (3,)
    for scale, force in (("batch", "condition"), ("condition", "batch")):
        coupled = drift(*parts, scale=scale, force=force)
        assert (coupled.velocity[:1] - alone.velocity).abs().max() > 1e-3


@pytest.mark.parametrize("force", ["batch", "condition"])
def test_force_of_one_temperature_has_unit_mean_square(force: str) -> None:
    velocity = drift(*samples(), temperatures=(0.1,), force=force).velocity
    axes = (1, 2) if force == "condition" else (0, 1, 2)
    assert_close(velocity.square().mean(dim=axes), torch.ones_like(velocity.mean(dim=axes)))


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("floor", [0.0, 1e-6])
@pytest.mark.parametrize("force", GROUPINGS)
def test_degenerate_samples_give_finite_fields(coupling: str, floor: float, force: str) -> None:
    one, same = normal(2, 1, 3, dtype=torch.float32), torch.full((2, 4, 3), 0.25)
    many = normal(2, 6, 3, dtype=torch.float32)
    cases = [(one, one + 1), (one, one), (same, same), (same, one), (many.repeat(1, 2, 1), many), (many * 1e4, many - 1e4)]
    for x, pos in cases:
        field = drift(x, pos, coupling=coupling, affinity_floor=floor, force=force)
        assert all(value.isfinite().all() for value in (field.velocity, field.scale, field.unit, field.rms))
    assert drift(same, same, affinity_floor=floor).velocity.abs().max() == 0


def test_exponents_of_thousands_do_not_underflow() -> None:
    distance = (10 + normal(8, 9, 4) / 1000).float()
    (single,) = affinities(distance, (1e-3,), kernel="laplace", coupling="row_column", floor=0.0)
    logits = -distance.double() / 1e-3
    assert_close(single.double(), (logits.softmax(dim=0) * logits.softmax(dim=1)).sqrt(), 1e-5)


def test_single_sample_is_pulled_straight_to_the_data() -> None:
    x, pos, _ = samples(g=1, p=1)
    field = drift(x, pos, temperatures=(0.05,), force="condition")
    direction = torch.nn.functional.normalize(pos - x, dim=2)
    assert_close(torch.nn.functional.normalize(field.velocity, dim=2), direction)
    assert drift(x, pos, affinity_floor=0.0).velocity.abs().max() < 1e-9


@pytest.mark.parametrize("f", [3, 100])
def test_reduced_precision_does_not_reach_the_field(f: int) -> None:
    x, pos, neg = (part.float() for part in samples(f=f))
    plain = drift(x, pos, neg)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(drift(x, pos, neg).velocity, plain.velocity)
    rounded = drift(x.bfloat16(), pos.half(), neg)
    assert torch.equal(rounded.velocity, drift(x.bfloat16().float(), pos.half().float(), neg).velocity)
    assert drift(x.double(), pos, neg).velocity.dtype == torch.float64


@pytest.mark.parametrize("f", [1, 64, 65, 300])
def test_distances_and_sums_do_not_depend_on_how_they_are_computed(f: int) -> None:
    for targets in (9, 40):
        x, y = normal(2, 3, f), normal(2, targets, f, seed=1)
        distance = pairwise_distance(x.permute(1, 2, 0), y.permute(1, 2, 0))
        assert_close(distance.permute(2, 0, 1), torch.cdist(x, y))
        total = weighted_sum(distance, y.permute(1, 2, 0))
        assert_close(total.permute(2, 0, 1), torch.cdist(x, y) @ y)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest storage that any operation returned."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize(("g", "f"), [(8, 32), (40, 32), (40, 700), (8, 700)])
def test_memory_never_holds_every_difference_vector(g: int, f: int) -> None:
    x, pos, _ = samples(b=4, g=g, p=g, f=f)
    with LargestTensor() as largest:
        drift(x, pos)
    assert 0 < largest.nbytes <= x.element_size() * 4 * 3 * max(g * 2 * g, g * f)  # three temperatures


def test_particles_that_follow_the_field_find_both_modes() -> None:
    modes = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    pos = (modes.repeat(32, 1) + 0.05 * normal(64, 2, dtype=torch.float32))[None]
    x = normal(1, 64, 2, seed=1, dtype=torch.float32)
    start = drift(x, pos, affinity_floor=0.0).rms
    for _ in range(100):
        field = drift(x, pos, affinity_floor=0.0)
        x = x + 0.05 * field.unit * field.velocity
    gap, nearest = torch.cdist(x[0], modes).min(dim=1)
    assert gap.median() < 0.2
    assert 0.4 < nearest.float().mean() < 0.6
    assert (drift(x, pos, affinity_floor=0.0).rms < 0.5 * start).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "cauchy"}, "laplace, gaussian"),
        ({"coupling": "column"}, "row_column, row, none"),
        ({"scale": "sample"}, "batch, condition, none"),
        ({"force": "all"}, "batch, condition, none"),
        ({"temperatures": ()}, "temperatures"),
        ({"temperatures": (0.1, 0.0)}, "temperatures"),
        ({"temperatures": (math.nan,)}, "temperatures"),
        ({"affinity_floor": -1e-6}, "affinity_floor"),
        ({"attraction": -1.0}, "attraction must be a finite number"),
        ({"repulsion": math.inf}, "repulsion must be a finite number"),
        ({"attraction": 0.0, "repulsion": 0.0}, "must not both be 0"),
        ({"gen_weight": torch.ones(3, 4)}, r"gen_weight must have shape \(3, 5\); got \(3, 4\)"),
        ({"pos_weight": torch.ones(4)}, r"pos_weight must have shape \(3, 4\)"),
        ({"neg_weight": torch.ones(3, 2)}, "neg_weight was given without neg"),
        ({"neg": torch.ones(3, 2, 9)}, r"neg must have shape \(3, any, 3\) to fit x; got \(3, 2, 9\)"),
        ({"pos": torch.ones(2, 4, 3)}, r"pos must have shape \(3, any, 3\) to fit x; got \(2, 4, 3\)"),
        ({"pos": torch.ones(3, 0, 3)}, "pos must hold at least one sample"),
        ({"x": torch.ones(3, 5)}, r"x must have shape \(b, g, f\)"),
        ({"groups": 2}, "groups must divide the 3 conditions of x; got 2"),
        ({"x": torch.ones(3, 0, 3)}, r"x must have shape \(b, g, f\)"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    x, pos, _ = samples()
    unchecked = inspect.unwrap(drift)  # without the test run's own checks of annotations, which users do not have
    with pytest.raises(ValueError, match=message):
        unchecked(**({"x": x, "pos": pos} | options))


def test_loss_accepts_exactly_the_options_of_the_field() -> None:
    keywords = [name for name, p in inspect.signature(drift).parameters.items() if p.kind is p.KEYWORD_ONLY]
    assert list(DriftOptions.__annotations__) == keywords


def test_field_carries_no_gradient() -> None:
    field: Field = drift(*(part.requires_grad_() for part in samples()))
    assert not any(value.requires_grad for value in (field.velocity, field.scale, field.unit, field.rms))


@pytest.mark.parametrize("options", [{}, {"scale": "condition", "force": "condition"}, {"neg_weight": True, "coupling": "row"}])
@pytest.mark.parametrize("f", [3, 70])
def test_positions_are_conditions(options: dict[str, Any], f: int) -> None:
    """Blocks that end amid the positions of a condition or hold several conditions included."""
    x, pos, neg = normal(2, 20, 5, f), normal(2, 14, 5, f, seed=1), normal(2, 3, 5, f, seed=2)
    weight = normal(2, 3, seed=3).abs()
    folded = drift(
        *(part.transpose(1, 2).flatten(0, 1) for part in (x, pos, neg)),
        **options | ({"neg_weight": weight.repeat_interleave(5, 0)} if "neg_weight" in options else {}),
    )
    own = options | ({"neg_weight": weight} if "neg_weight" in options else {})
    workspace = Workspace()
    for field in (drift(x, pos, neg, **own), drift(x, pos, neg, **own, workspace=workspace)):
        for name in ("velocity", "scale", "unit", "rms"):
            assert_close(getattr(field, name), getattr(folded, name))
    again = drift(x, pos, neg, **own, workspace=workspace).velocity
    drift(2 * x, pos, neg, **own, workspace=workspace)
    assert_close(again, folded.velocity)  # no part of it was memory that is used again


@pytest.mark.parametrize(("repulsion", "widens"), [(1.0, True), (0.75, False)])
def test_many_coordinates_let_balanced_siblings_of_one_positive_part(repulsion: float, widens: bool) -> None:
    """All are equally far then, and each is pushed from the mean of the others: (g - 1) / g is what that is too much."""
    x, pos = normal(100, 4, 144), torch.zeros(100, 1, 144, dtype=torch.float64)
    velocity = drift(x, pos, repulsion=repulsion).velocity
    middle = x.mean(dim=1, keepdim=True)
    assert ((velocity * (x - middle)).sum() > 0) == widens
    assert (velocity * middle).sum() < 0


@pytest.mark.parametrize("count", [2, 4, 7])
def test_equally_far_siblings_around_their_positive_stand_still_where_the_sample_counts_as_a_sibling(count: int) -> None:
    """Attraction takes the deviation, the mean of the others gives g / (g - 1) times as much: 1 - 1/g balances the two."""
    x = torch.eye(count, dtype=torch.float64)[None]
    pos = x.mean(dim=1, keepdim=True)
    options: DriftOptions = {"force": "none", "affinity_floor": 0.0}
    pushed = [drift(x, pos, repulsion=factor, **options).velocity for factor in (1.0, 1 - 1 / count, 0.5 - 1 / count)]
    outwards = [(velocity * (x - pos)).sum(dim=-1) for velocity in pushed]
    assert (outwards[0] > 0).all()
    assert_close(pushed[1], torch.zeros_like(x))
    assert (outwards[2] < 0).all()
