"""The drifting field: the direction in which generated samples should move, estimated from samples alone.

Paper: "Generative Modeling via Drifting" (arXiv 2602.04770), section 3 and appendix A.6, Algorithm 2. The defaults reproduce
the authors' released loss, which differs from Algorithm 2 in two places: every affinity has a floor, and a sample is masked
from its own negatives by 100 mean distances.

In the functions below `drift` the condition axis comes last ("g f b", "g m b"): reductions over samples and coordinates are
then sums over leading axes of long contiguous rows, which is what makes many small conditions cheap.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

Kernel = Literal["laplace", "gaussian"]
Coupling = Literal["row_column", "row", "none"]
Grouping = Literal["batch", "condition", "none"]

SELF_MASK = 100.0  # added to the normalised distance of a sample to itself
MIN_SCALE = 1e-3  # below this length distances and coordinates are no longer stretched to unit size
MIN_MEAN_SQUARE = 1e-8  # below this the force is no longer stretched to unit size
MIN_SQUARED_DISTANCE = 1e-8
LOG_TINY = -40.0  # exp(-40) beside 1 is nothing even in float64; smaller factors would square to subnormals, which are slow
DIRECT_COORDINATES = 64  # up to here distances are summed coordinate by coordinate: exact for close points, and fast
SMALL_SUM = (32, 512)  # up to so many targets and coordinates, adding one target at a time beats a batched matrix product


@dataclasses.dataclass(frozen=True, eq=False)
class Field:
    """The drift of every generated sample, and the lengths it was measured with. Nothing here carries gradients.

    Attributes:
        velocity: V(x), in multiples of `unit`: `x + unit * velocity` is where the samples should go.
        scale: mean distance between samples and targets, in the units of x; one number, or "b" with scale="condition".
        unit: the length that normalised coordinates, max(scale / sqrt(f), 1e-3); one number, or "b 1 1" with
            scale="condition"; 1 with scale="none".
        rms: root mean square of the force per temperature, before it was normalised; averaged over conditions with
            force="condition". It tells how strong the field is, which the loss, made of normalised forces, does not.
    """

    velocity: Float[Tensor, "b g f"]
    scale: Float[Tensor, "..."]
    unit: Float[Tensor, "..."]
    rms: Float[Tensor, " k"]


@torch.no_grad()
def drift(
    x: Float[Tensor, "b g f"],
    pos: Float[Tensor, "b p f"],
    neg: Float[Tensor, "b n f"] | None = None,
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
) -> Field:
    """The drifting field at generated samples: attraction to data, repulsion from siblings and extra negatives.

    Computed in float32 (float64 if x is float64), whatever the autocast state; memory O(b g m + b m f), m = g + n + p.

    Args:
        x: generated samples; the siblings of one condition are each other's negatives.
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

    Raises:
        ValueError: an unknown option, a temperature or floor out of range, or a shape that does not fit x.
    """
    _check_options(temperatures, kernel, coupling, scale, force, affinity_floor, attraction, repulsion)
    _check_shapes(x, pos, neg, gen_weight, pos_weight, neg_weight)
    parts, dtype = (x, x[:, :0] if neg is None else neg, pos), torch.promote_types(x.dtype, torch.float32)
    generated, negatives = x.shape[1], x.shape[1] + parts[1].shape[1]
    with torch.autocast(device_type=x.device.type, enabled=False):
        points = _centred_targets(parts, dtype)
        weight = _target_weights(parts, (gen_weight, neg_weight, pos_weight), dtype)
        distance = pairwise_distance(points[:generated], points)
        mean_distance, unit = _lengths(distance, weight, coordinates=x.shape[2], grouping=scale)
        if scale != "none":
            distance /= mean_distance.clamp_min(MIN_SCALE)
        if self_mask:
            distance[:, :generated].diagonal().add_(SELF_MASK)
        weights = affinities(distance, temperatures, kernel=kernel, coupling=coupling, floor=affinity_floor)
        balance = attraction, repulsion
        velocity, rms = _total_force(weights, points / unit, weight, negatives=negatives, grouping=force, balance=balance)
    return _field(velocity, mean_distance, unit, rms, grouping=scale)


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


def _centred_targets(parts: tuple[Tensor, ...], dtype: torch.dtype) -> Float[Tensor, "m f b"]:
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


def _target_weights(
    samples: tuple[Tensor, ...], weights: tuple[Tensor | None, ...], dtype: torch.dtype
) -> Float[Tensor, "1 m b"] | None:
    if all(weight is None for weight in weights):
        return None
    filled = [
        torch.ones(points.shape[:2], dtype=dtype, device=points.device) if weight is None else weight.to(dtype)
        for points, weight in zip(samples, weights, strict=True)
    ]
    return torch.cat(filled, dim=1).T.contiguous()[None]


def _check_options(
    temperatures: Sequence[float],
    kernel: str,
    coupling: str,
    scale: str,
    force: str,
    affinity_floor: float,
    attraction: float,
    repulsion: float,
) -> None:
    choices = {
        "kernel": (kernel, Kernel),
        "coupling": (coupling, Coupling),
        "scale": (scale, Grouping),
        "force": (force, Grouping),
    }
    for name, (value, options) in choices.items():
        if value not in get_args(options):
            raise ValueError(f"{name} must be one of {', '.join(get_args(options))}; got {value!r}.")
    if not temperatures or not all(0 < temperature < math.inf for temperature in temperatures):
        raise ValueError(f"temperatures must be one or more positive numbers; got {temperatures!r}.")
    if not 0 <= affinity_floor < 1:
        raise ValueError(f"affinity_floor must lie in [0, 1); got {affinity_floor!r}.")
    for name, factor in (("attraction", attraction), ("repulsion", repulsion)):
        if not 0 <= factor < math.inf:
            raise ValueError(f"{name} must be a finite number of at least 0; got {factor!r}.")
    if not attraction and not repulsion:
        raise ValueError("attraction and repulsion must not both be 0.")


def _check_shapes(
    x: Tensor, pos: Tensor, neg: Tensor | None, gen_weight: Tensor | None, pos_weight: Tensor | None, neg_weight: Tensor | None
) -> None:
    if x.ndim != 3 or 0 in x.shape:
        raise ValueError(f"x must have shape (b, g, f) with no empty axis; got {tuple(x.shape)}.")
    conditions, generated, coordinates = x.shape
    for name, points in (("pos", pos), ("neg", neg)):
        if points is not None and (points.ndim != 3 or points.shape[::2] != x.shape[::2]):
            raise ValueError(f"{name} must have shape ({conditions}, any, {coordinates}) to fit x; got {tuple(points.shape)}.")
    if pos.shape[1] == 0:
        raise ValueError(f"pos must hold at least one sample per condition; got shape {tuple(pos.shape)}.")
    if neg is None and neg_weight is not None:
        raise ValueError("neg_weight was given without neg; pass both or neither.")
    counts = {"gen": generated, "pos": pos.shape[1], "neg": 0 if neg is None else neg.shape[1]}
    for (name, count), weight in zip(counts.items(), (gen_weight, pos_weight, neg_weight), strict=True):
        if weight is not None and weight.shape != (conditions, count):
            raise ValueError(f"{name}_weight must have shape ({conditions}, {count}); got {tuple(weight.shape)}.")
