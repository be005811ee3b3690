"""The drifting field of many samples with many coordinates: the features of images.

The formulas are those of `field.py`; what differs is that conditions come first and are treated a block at a time. A block fits
the caches, and only distances, forces and the field exist for all conditions at once: fresh memory costs more than arithmetic.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from drifting_policy.drift.definitions import (
    DIRECT_COORDINATES,
    LOG_TINY,
    MIN_MEAN_SQUARE,
    MIN_SCALE,
    MIN_SQUARED_DISTANCE,
    SELF_MASK,
    SMALL_SUM,
    Field,
    FieldOptions,
    Grouping,
)
from drifting_policy.drift.workspace import Workspace

Block = tuple[slice, slice]  # of the conditions and of their positions
BLOCK_NUMBERS = {"cpu": 2**20}  # coordinates of a block; elsewhere there is nothing to win but less memory
MOST_NUMBERS = 2**28
MAP_COORDINATES = 31  # of feature maps, up to which their positions are better treated all at once
KEPT_NUMBERS = 2**26  # coordinates of all samples that are kept between the two passes; more are gathered again
# One exponential serves both softmaxes where the kernels of nearest targets differ by at most exp(40): that leaves e^47 below
# them before float32 underflows, and with it root affinities of e^-23 < 1e-9.
LARGEST_SPREAD, SMALLEST_FLOOR, TINY = 40.0, 1e-9, 1e-38


def worth_blocks(x: Tensor, targets: int) -> bool:
    """Whether conditions of so many samples, those of `x` among them, are better treated in blocks.

    On a GPU all are: a few large operations instead of many small ones.
    """
    coordinates, direct = x.shape[-1], MAP_COORDINATES if x.ndim == 4 else DIRECT_COORDINATES
    return x.is_cuda or (coordinates > direct and (targets > SMALL_SUM[0] or coordinates > SMALL_SUM[1]))


def field_in_blocks(
    parts: tuple[Float[Tensor, "b g s f"], Float[Tensor, "b n s f"], Float[Tensor, "b p s f"]],
    weight: Float[Tensor, "b m"] | None,
    options: FieldOptions,
    workspace: Workspace,
    *,
    groups: int = 1,
    block_numbers: int | None = None,
) -> Field:
    """The field at the generated samples of every position, one condition each; `drift` documents the options.

    `parts` are the generated samples, the other negatives and the positives, matched at each of s positions separately, and
    `weight` is that of all of them in this order. `block_numbers` is how many coordinates make a block: the field does not
    depend on it.
    """
    x, dtype = parts[0], torch.promote_types(parts[0].dtype, torch.float32)
    (conditions, generated, positions, coordinates), memory = x.shape, workspace
    negatives, targets = generated + parts[1].shape[1], sum(part.shape[1] for part in parts)
    limit = block_numbers or BLOCK_NUMBERS.get(x.device.type, MOST_NUMBERS)
    blocks = list(split(conditions, positions, max(1, limit // (targets * coordinates))))
    kept = len(blocks) == 1 or conditions * positions * targets * coordinates <= KEPT_NUMBERS
    found: list[Tensor] = []  # what is kept of the samples

    distance = memory.empty("distance", (conditions, positions, generated, targets), x, dtype)
    for number, block in enumerate(blocks):
        points = gather(parts, block, memory, dtype, name=f"points {number}" if kept else "points")
        distances(points, distance[block].flatten(0, 1))
        found += [points] if kept else []
    mean, unit = _lengths(distance, weight, coordinates=coordinates, grouping=options.scale, groups=groups)
    stretch = torch.ones_like(mean) if options.scale == "none" else mean.clamp_min(MIN_SCALE)
    if options.self_mask:
        distance.diagonal(dim1=2, dim2=3).add_(SELF_MASK * stretch[..., 0])
    count = len(options.temperatures)
    forces = memory.empty("forces", (conditions, positions, count, generated, coordinates), x, dtype)
    squares = torch.empty(forces.shape[:3], dtype=dtype, device=x.device)
    for number, block in enumerate(blocks):
        points = found[number] if kept else gather(parts, block, memory, dtype)
        shares = None if weight is None else weight[block[0], None].expand(-1, block[1].stop - block[1].start, -1).flatten(0, 1)
        coefficients = signed_affinities(
            distance[block].flatten(0, 1),
            within(stretch, block),
            within(unit, block),
            shares,
            options,
            negatives=negatives,
            memory=memory,
        )
        torch.bmm(coefficients.flatten(1, 2), points, out=forces[block].flatten(0, 1).flatten(1, 2))
        squares[block] = torch.linalg.vector_norm(forces[block].flatten(3), dim=-1).square_() / (generated * coordinates)
    velocity = memory.lend((conditions, positions, generated, coordinates), x, dtype)
    rms = _sum(forces, squares, blocks, velocity, grouping=options.force, groups=groups)
    each = options.scale == "condition" or groups > 1
    return Field(
        velocity=velocity.flatten(0, 1),
        scale=mean.flatten() if options.scale == "condition" else mean.view(groups, -1)[:, 0] if each else mean[0, 0, 0, 0],
        unit=unit.reshape(-1, 1, 1) if each else unit[0, 0, 0, 0],
        rms=rms if groups > 1 else rms[0],
    )


def split(conditions: int, positions: int, size: int) -> Iterator[Block]:
    """Blocks of at most `size` positions, if any is possible: a part of one condition's, or all those of a few conditions."""
    wide = max(1, size // positions)
    for i in range(0, conditions, wide):
        for j in range(0, positions, min(size, positions)):
            yield slice(i, min(conditions, i + wide)), slice(j, min(positions, j + size))


def gather(
    parts: tuple[Tensor, ...], block: Block, memory: Workspace, dtype: torch.dtype, *, name: str = "points"
) -> Float[Tensor, "k m f"]:
    """All samples of each position in a row, seen from the mean of the generated ones: dot products want small numbers."""
    x = parts[0][block[0], :, block[1]]
    centre = x.mean(dim=1, dtype=dtype)[:, :, None]
    shape = (x.shape[0], x.shape[2], sum(part.shape[1] for part in parts), x.shape[3])
    points, first = memory.empty(name, shape, x, dtype), 0
    for part in parts:
        rows = part[block[0], :, block[1]].transpose(1, 2)
        torch.sub(rows, centre, out=points[:, :, first : first + rows.shape[2]])
        first += rows.shape[2]
    return points.flatten(0, 1)


def distances(points: Float[Tensor, "k m f"], out: Float[Tensor, "k g m"]) -> None:
    """Write the distances of the first g points from all, at least 1e-4."""
    generated = out.shape[1]
    if points.shape[-1] <= DIRECT_COORDINATES:  # exact for close points
        exact = torch.cdist(points[:, :generated], points, compute_mode="donot_use_mm_for_euclid_dist")
        torch.clamp(exact, min=math.sqrt(MIN_SQUARED_DISTANCE), out=out)
        return
    squares = torch.linalg.vector_norm(points, dim=-1).square_()
    torch.add(squares[:, :generated, None], squares[:, None], out=out)
    out.baddbmm_(points[:, :generated], points.mT, alpha=-2).clamp_(min=MIN_SQUARED_DISTANCE).sqrt_()


def signed_affinities(
    distance: Float[Tensor, "k g m"],
    stretch: Float[Tensor, "_ 1 1"],
    unit: Float[Tensor, "_ 1 1"],
    weight: Float[Tensor, "k m"] | None,
    options: FieldOptions,
    *,
    negatives: int,
    memory: Workspace,
) -> Float[Tensor, "k t g m"]:
    """The factors by which the positions of the targets add up to the force, in units, for each of t temperatures.

    Equation 11: a positive counts by its affinity times all those of the negatives, a negative by minus its affinity times all
    those of the positives, so that the sum over targets is 0; what unequal attraction and repulsion are short of is the
    sample's own.
    """
    weights = affinities(distance, stretch, options, memory)
    if weight is not None:
        weights.mul_(weight[:, None, None])
    repel, attract = weights[..., :negatives], weights[..., negatives:]
    repulsion, attraction = repel.sum(dim=-1, keepdim=True), attract.sum(dim=-1, keepdim=True)
    repel.mul_(attraction * (-options.repulsion / unit[:, None]))
    attract.mul_(repulsion * (options.attraction / unit[:, None]))
    if options.attraction != options.repulsion:
        own = attraction * repulsion * ((options.repulsion - options.attraction) / unit[:, None])
        weights.diagonal(dim1=-2, dim2=-1).add_(own[..., 0])
    return weights


def affinities(
    distance: Float[Tensor, "k g m"], stretch: Float[Tensor, "_ 1 1"], options: FieldOptions, memory: Workspace
) -> Float[Tensor, "k t g m"]:
    """How strongly each sample attends to each target, for each of t temperatures."""
    floor, power = options.affinity_floor, 1 if options.kernel == "laplace" else 2
    rates = [1 / t if power == 1 else 0.5 / t**2 for t in options.temperatures]
    slope = -torch.tensor(rates, dtype=distance.dtype, device=distance.device)[:, None, None] / stretch[:, None] ** power
    cost = distance if power == 1 else distance.square()
    logits = memory.empty("affinities", (len(cost), len(rates), *cost.shape[1:]), cost, cost.dtype)
    if options.coupling == "row_column" and math.sqrt(floor) > SMALLEST_FLOOR and near(cost, slope):
        gap = torch.sub(cost, cost.amin(dim=(1, 2), keepdim=True), out=memory.empty("gap", tuple(cost.shape), cost, cost.dtype))
        torch.mul(gap[:, None], slope, out=logits).exp_()
        rows, columns = (logits.sum(dim=dim, keepdim=True) for dim in (-1, -2))
        return logits.mul_(rows.rsqrt_()).mul_(columns.clamp_min_(TINY).rsqrt_()).clamp_(min=math.sqrt(floor))
    torch.mul(cost[:, None], slope, out=logits)
    if options.coupling != "none":
        rows = torch.log_softmax(logits, dim=-1)
        logits = rows if options.coupling == "row" else rows.lerp_(torch.log_softmax(logits, dim=-2), 0.5)
    return logits.clamp_(min=max(2 * LOG_TINY, 0.5 * math.log(floor) if floor else -math.inf)).exp_()


def near(cost: Float[Tensor, "k g m"], slope: Float[Tensor, "_ t 1 1"]) -> bool:
    """Whether one exponential serves both softmaxes of a sample and a target: no sample is much farther from all than others.

    The kernels of a condition are then divided by the largest of them. A target that is too far from all for float32 is below
    the floor of its affinity in any case. On a GPU the answer would have to be waited for.
    """
    if cost.is_cuda:
        return False
    nearest = cost.amin(dim=2)
    spread = (nearest.amax(dim=1) - nearest.amin(dim=1))[:, None] * -slope.amin(dim=1)[..., 0]
    return bool((spread <= LARGEST_SPREAD).all())


def _lengths(
    distance: Float[Tensor, "b s g m"],
    weight: Float[Tensor, "b m"] | None,
    *,
    coordinates: int,
    grouping: Grouping,
    groups: int,
) -> tuple[Float[Tensor, "b s 1 1"], Float[Tensor, "b s 1 1"]]:
    """The weighted mean distance, and the unit of length that makes it sqrt(f) (A.6)."""
    sums = distance.sum(dim=2)
    shares = torch.ones_like(sums) if weight is None else weight[:, None].expand_as(sums)

    def pool(values: Float[Tensor, "b s m"]) -> Float[Tensor, " _"]:
        return values.sum(dim=2).flatten() if grouping == "condition" else values.reshape(groups, -1).sum(dim=1)

    mean = pool(sums * shares) / (pool(shares) * distance.shape[2])
    mean = mean.view(len(mean), 1).expand(-1, math.prod(distance.shape[:2]) // len(mean)).reshape(*distance.shape[:2], 1, 1)
    return mean, torch.ones_like(mean) if grouping == "none" else (mean / math.sqrt(coordinates)).clamp_min(MIN_SCALE)


def within(length: Float[Tensor, "b s 1 1"], block: Block) -> Float[Tensor, "_ 1 1"]:
    """The lengths of a block."""
    return length[block].flatten(0, 1)


def _sum(
    forces: Float[Tensor, "b s t g f"],
    squares: Float[Tensor, "b s t"],
    blocks: Sequence[Block],
    out: Float[Tensor, "b s g f"],
    *,
    grouping: Grouping,
    groups: int,
) -> Float[Tensor, "_ t"]:
    """Write the normalised forces of all temperatures together; the root mean square of each in each group."""
    conditions, positions, count = forces.shape[:3]
    mean_square = squares.reshape(groups, -1, count)
    mean_square = mean_square if grouping == "condition" else mean_square.mean(dim=1, keepdim=True)
    factors = torch.ones_like(mean_square) if grouping == "none" else mean_square.clamp_min(MIN_MEAN_SQUARE).rsqrt()
    factors = factors.expand(-1, conditions * positions // groups, -1).reshape(squares.shape)[..., None, None]
    for block in blocks:
        total, terms, share = out[block], forces[block], factors[block]
        torch.mul(terms[:, :, 0], share[:, :, 0], out=total)
        for i in range(1, count):
            total.addcmul_(terms[:, :, i], share[:, :, i])
    return mean_square.sqrt().mean(dim=1)
