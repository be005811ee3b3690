"""The drifting field: the direction in which generated samples should move, estimated from samples alone.

Paper: "Generative Modeling via Drifting" (arXiv 2602.04770), section 3 and appendix A.6, Algorithm 2. The defaults reproduce
the authors' released loss, which differs from Algorithm 2 in two places: every affinity has a floor, and a sample is masked
from its own negatives by 100 mean distances.

In the functions below `drift` the condition axis comes last ("g f b", "g m b"): reductions over samples and coordinates are
then sums over leading axes of long contiguous rows, which is what makes many small conditions cheap.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from drifting_policy.drift.blocks import field_in_blocks, worth_blocks
from drifting_policy.drift.definitions import (
    DIRECT_COORDINATES,
    LOG_TINY,
    MIN_MEAN_SQUARE,
    MIN_SCALE,
    MIN_SQUARED_DISTANCE,
    SELF_MASK,
    SMALL_SUM,
    Coupling,
    Field,
    FieldOptions,
    Grouping,
    Kernel,
    check_options,
    check_shapes,
    target_weights,
)
from drifting_policy.drift.workspace import Workspace


@torch.no_grad()
def drift(
    x: Float[Tensor, "b g *s f"],
    pos: Float[Tensor, "b p *s f"],
    neg: Float[Tensor, "b n *s f"] | None = None,
    *,
    temperatures: Sequence[float] = (0.02, 0.05, 0.2),
    gen_weight: Float[Tensor, "b g"] | None = None,
    pos_weight: Float[Tensor, "b p"] | None = None,
    neg_weight: Float[Tensor, "b n"] | None = None,
    kernel: Kernel = "laplace",
    coupling: Coupling = "row_column",
    scale: Grouping = "batch",
    force: Grouping = "batch",
    affinity_floor: float = 1e-6,
    self_mask: bool = True,
    attraction: float = 1.0,
    repulsion: float = 1.0,
    groups: int = 1,
    workspace: Workspace | None = None,
) -> Field:
    """The drifting field at generated samples: attraction to data, repulsion from siblings and extra negatives.

    Computed in float32 (float64 if x is float64), whatever the autocast state; memory O(b g m + b m f), m = g + n + p,
    or O(b g m + k b g f) for k temperatures where both samples and coordinates are many.

    Args:
        x: generated samples; the siblings of one condition are each other's negatives. With an axis of s positions they are
            matched at each position separately: positions are then conditions, "(b s)", that share the weights.
        pos: real samples of the same condition.
        neg: further negatives, such as unconditional real samples for guidance (section 3.5).
        temperatures: kernel bandwidths in units of the mean distance; their normalised forces are added (A.6).
        gen_weight: weight of each sample as a negative: multiplies its affinities and its share in the mean distance.
        pos_weight: the same for positives.
        neg_weight: the same for extra negatives; (alpha - 1) (g - 1) / n guides with strength alpha (A.7).
        kernel: "laplace" exp(-D / R) or "gaussian" exp(-(D / R)^2 / 2) of normalised distance D and temperature R.
        coupling: affinity of sample and target (Table 11): "row_column", the geometric mean of the kernel's softmax over
            targets and its softmax over samples; "row", the softmax over targets; "none", the kernel itself.
        scale: one mean distance normalises the "batch", each "condition" has its own, or "none" (D in the units of x).
        force: each temperature's force gets unit mean square over the "batch", over each "condition", or not ("none").
        affinity_floor: lower bound of every squared affinity; 0 for none.
        self_mask: hide every sample from itself: its affinity to itself is then the floor.
        attraction: factor on V+, the pull towards the positives, before the force is normalised (Table 1).
        repulsion: factor on V-, the push away from the negatives; with two factors the field is no longer anti-symmetric.
        groups: the conditions are so many equal parts in a row, and "batch" means each of these parts.
        workspace: memory that large calls use again; without one it is fresh, which takes time.

    Raises:
        ValueError: an unknown option, a temperature or floor out of range, or a shape that does not fit x.
    """
    check_options(temperatures, kernel, coupling, scale, force, affinity_floor, attraction, repulsion)
    options = FieldOptions(temperatures, kernel, coupling, scale, force, affinity_floor, self_mask, attraction, repulsion)
    check_shapes(x, pos, neg, gen_weight, pos_weight, neg_weight, groups)
    parts = x, x[:, :0] if neg is None else neg, pos
    weight = target_weights(parts, (gen_weight, neg_weight, pos_weight), torch.promote_types(x.dtype, torch.float32))
    with torch.autocast(device_type=x.device.type, enabled=False):
        many = worth_blocks(x, sum(part.shape[1] for part in parts))
        matched = parts if x.ndim == 4 else (parts[0][:, :, None], parts[1][:, :, None], parts[2][:, :, None])
        if many or groups > 1:
            return field_in_blocks(matched, weight, options, workspace or Workspace(), groups=groups)
        return field_of_few(matched, weight, options)


def field_of_few(
    parts: tuple[Float[Tensor, "b g s f"], Float[Tensor, "b n s f"], Float[Tensor, "b p s f"]],
    weight: Float[Tensor, "b m"] | None,
    options: FieldOptions,
) -> Field:
    """`field_in_blocks` for few samples or few coordinates: all conditions at once."""
    generated, negatives, positions = parts[0].shape[1], parts[0].shape[1] + parts[1].shape[1], parts[0].shape[2]
    points = _centred_targets(tuple(fold(part) for part in parts))
    columns = None if weight is None else weight.repeat_interleave(positions, dim=0).T.contiguous()[None]
    distance = pairwise_distance(points[:generated], points)
    mean_distance, unit = _lengths(distance, columns, coordinates=points.shape[1], grouping=options.scale)
    if options.scale != "none":
        distance /= mean_distance.clamp_min(MIN_SCALE)
    if options.self_mask:
        distance[:, :generated].diagonal().add_(SELF_MASK)
    weights = affinities(
        distance, options.temperatures, kernel=options.kernel, coupling=options.coupling, floor=options.affinity_floor
    )
    balance = options.attraction, options.repulsion
    velocity, rms = _total_force(weights, points / unit, columns, negatives=negatives, grouping=options.force, balance=balance)
    return _field(velocity, mean_distance, unit, rms, grouping=options.scale)


def pairwise_distance(samples: Float[Tensor, "g f b"], targets: Float[Tensor, "m f b"]) -> Float[Tensor, "g m b"]:
    """Euclidean distances, at least 1e-4, between the samples and the targets of each condition.

    Many coordinates go through dot products, which are accurate where points are not far from the origin compared with
    their distances: centre them.
    """
    if samples.shape[1] > DIRECT_COORDINATES:
        rows, columns = samples.permute(2, 0, 1), targets.permute(2, 0, 1)
        norms = rows.square().sum(dim=2)[:, :, None] + columns.square().sum(dim=2)[:, None, :]
        squared = torch.baddbmm(norms, rows, columns.mT, alpha=-2).permute(1, 2, 0).contiguous()
    else:
        squared = samples.new_zeros(samples.shape[0], *targets.shape[::2])
        difference = torch.empty_like(squared)
        for i in range(samples.shape[1]):
            torch.sub(samples[:, None, i], targets[None, :, i], out=difference)
            squared.addcmul_(difference, difference)
    return squared.clamp_(min=MIN_SQUARED_DISTANCE).sqrt_()


def affinities(
    distance: Float[Tensor, "g m b"], temperatures: Sequence[float], *, kernel: Kernel, coupling: Coupling, floor: float
) -> Iterator[Float[Tensor, "g m b"]]:
    """How strongly each sample attends to each target, for one temperature after the other; the options are `drift`'s."""
    cost = distance if kernel == "laplace" else distance.square()
    target_gap, sample_gap = (cost - cost.amin(dim=dim, keepdim=True) for dim in (1, 0))
    for temperature in temperatures:
        rate = 1 / temperature if kernel == "laplace" else 0.5 / temperature**2
        if coupling == "row_column":
            weights = root_softmax(target_gap, rate, dim=1).mul_(root_softmax(sample_gap, rate, dim=0))
        elif coupling == "row":
            weights = root_softmax(target_gap, rate, dim=1).square_()
        else:
            weights = (cost * -rate).exp_()
        yield weights.clamp_(min=math.sqrt(floor))


def root_softmax(gap: Float[Tensor, "g m b"], rate: float, *, dim: int) -> Float[Tensor, "g m b"]:
    """sqrt(softmax(-rate * gap)) over `dim`, where the smallest gap is 0."""
    root = (gap * (-0.5 * rate)).clamp_(min=LOG_TINY).exp_()
    return root.mul_(root.square().sum(dim=dim, keepdim=True).rsqrt_())


def balanced_force(weights: Float[Tensor, "g m b"], targets: Float[Tensor, "m f b"], negatives: int) -> Float[Tensor, "g f b"]:
    """The product form of the field (eq. 11), sum over positives j and negatives k of A_j A_k (y_j - y_k).

    The first `negatives` targets repel and the others attract. Total attraction and total repulsion are equal by
    construction, so the sample's own position cancels, and exchanging the two sets flips the sign.
    """
    repel, attract = weights[:, :negatives], weights[:, negatives:]
    towards = weighted_sum(attract, targets[negatives:]) * repel.sum(dim=1, keepdim=True)
    return towards - weighted_sum(repel, targets[:negatives]) * attract.sum(dim=1, keepdim=True)


def attraction_alone(
    weights: Float[Tensor, "g m b"], targets: Float[Tensor, "m f b"], negatives: int
) -> Float[Tensor, "g f b"]:
    """The first half V+ of `balanced_force`, sum over positives j and negatives k of A_j A_k (y_j - x), for samples x.

    The samples are the first targets. V- is what is left of the balanced force, so that any mixture of the two follows.
    """
    repel, attract = weights[:, :negatives], weights[:, negatives:]
    towards = weighted_sum(attract, targets[negatives:]) - targets[: len(weights)] * attract.sum(dim=1, keepdim=True)
    return towards * repel.sum(dim=1, keepdim=True)


def weighted_sum(weights: Float[Tensor, "g m b"], points: Float[Tensor, "m f b"]) -> Float[Tensor, "g f b"]:
    """Sums over the targets of weight times point."""
    if not _is_small(points):
        return torch.bmm(weights.permute(2, 0, 1), points.permute(2, 0, 1)).permute(1, 2, 0)
    total = weights[:, 0, None] * points[0]
    for j in range(1, len(points)):
        total.addcmul_(weights[:, j, None], points[j])
    return total


def fold(features: Float[Tensor, "b n s f"]) -> Float[Tensor, "_ n f"]:
    """Positions moved into the condition axis, "(b s) n f"; nothing is copied where there is one position."""
    return features[:, :, 0] if features.shape[2] == 1 else features.transpose(1, 2).flatten(0, 1)


def _centred_targets(parts: tuple[Tensor, ...]) -> Float[Tensor, "m f b"]:
    dtype = torch.promote_types(parts[0].dtype, torch.float32)
    points = torch.cat([part.to(dtype) for part in parts], dim=1)
    points = (points - points.mean(dim=1, keepdim=True)).permute(1, 2, 0)
    return points.contiguous() if points.shape[1] <= DIRECT_COORDINATES else points


def _lengths(
    distance: Float[Tensor, "g m b"], weight: Float[Tensor, "1 m b"] | None, *, coordinates: int, grouping: Grouping
) -> tuple[Float[Tensor, "1 1 _"], Float[Tensor, "1 1 _"]]:
    """The weighted mean distance, and the unit of length that makes it sqrt(f) (A.6)."""
    mean = _mean(distance, grouping) if weight is None else _mean(distance * weight, grouping) / _mean(weight, grouping)
    return mean, torch.ones_like(mean) if grouping == "none" else (mean / math.sqrt(coordinates)).clamp_min(MIN_SCALE)


def _total_force(
    affinities: Iterable[Float[Tensor, "g m b"]],
    points: Float[Tensor, "m f b"],
    weight: Float[Tensor, "1 m b"] | None,
    *,
    negatives: int,
    grouping: Grouping,
    balance: tuple[float, float],
) -> tuple[Float[Tensor, "g f b"], Float[Tensor, " k"]]:
    """The sum over temperatures of the normalised forces, and the root mean square of each before normalisation."""
    points = points.contiguous() if _is_small(points) else points
    total, rms = torch.zeros((), dtype=points.dtype, device=points.device), []
    for weights in affinities:
        weights = weights if weight is None else weights.mul_(weight)
        force = balanced_force(weights, points, negatives)
        if balance != (1.0, 1.0):  # a V+ - r V- = r (V+ - V-) + (a - r) V+
            surplus = attraction_alone(weights, points, negatives) * (balance[0] - balance[1])
            force = surplus + force * balance[1]
        mean_square = _mean(force.square(), grouping)
        total = total + (force if grouping == "none" else force / mean_square.clamp_min(MIN_MEAN_SQUARE).sqrt())
        rms.append(mean_square.sqrt().mean())
    return total, torch.stack(rms)


def _field(
    velocity: Float[Tensor, "g f b"],
    mean_distance: Float[Tensor, "1 1 _"],
    unit: Float[Tensor, "1 1 _"],
    rms: Float[Tensor, " k"],
    *,
    grouping: Grouping,
) -> Field:
    """The field with its axes as the caller has them."""
    return Field(
        velocity=velocity.permute(2, 0, 1).contiguous(),
        scale=mean_distance.flatten() if grouping == "condition" else mean_distance.reshape(()),
        unit=unit.reshape(-1, 1, 1) if grouping == "condition" else unit.reshape(()),
        rms=rms,
    )


def _is_small(points: Float[Tensor, "m f b"]) -> bool:
    return points.shape[0] <= SMALL_SUM[0] and points.shape[1] <= SMALL_SUM[1]


def _mean(values: Float[Tensor, "i j b"], grouping: Grouping) -> Float[Tensor, "1 1 _"]:
    return values.mean(dim=(0, 1) if grouping == "condition" else (0, 1, 2), keepdim=True)
