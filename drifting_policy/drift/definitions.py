"""What the drifting field is asked and what it answers: its options, its smallest lengths, the field itself."""

import dataclasses
import math
from collections.abc import Sequence
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
        scale: mean distance between samples and targets, in the units of x; one number, one for each of several groups, or "b"
            with scale="condition".
        unit: the length that normalised coordinates, max(scale / sqrt(f), 1e-3); one number, or "b 1 1" with several groups or
            scale="condition"; 1 with scale="none".
        rms: root mean square of the force per temperature, before it was normalised; averaged over conditions with
            force="condition"; "n k" for n > 1 groups. It tells how strong the field is, which the loss, made of normalised
            forces, does not.
    """

    velocity: Float[Tensor, "b g f"]
    scale: Float[Tensor, "..."]
    unit: Float[Tensor, "..."]
    rms: Float[Tensor, "*n k"]

    def split(self, groups: int, *, scale: Grouping) -> "list[Field]":
        """The fields of the groups that it was computed for, with this option `scale`."""
        if groups == 1:
            return [self]
        velocities, units, scales = self.velocity.chunk(groups), self.unit.chunk(groups), self.scale.chunk(groups)
        parts = [Field(*part) for part in zip(velocities, scales, units, self.rms, strict=True)]
        if scale == "condition":
            return parts
        return [dataclasses.replace(part, scale=part.scale[0], unit=part.unit[0, 0, 0]) for part in parts]


@dataclasses.dataclass(frozen=True)
class FieldOptions:
    """The options of `drift`, which documents them."""

    temperatures: Sequence[float]
    kernel: Kernel
    coupling: Coupling
    scale: Grouping
    force: Grouping
    affinity_floor: float
    self_mask: bool
    attraction: float
    repulsion: float


def check_options(
    temperatures: Sequence[float],
    kernel: str,
    coupling: str,
    scale: str,
    force: str,
    affinity_floor: float,
    attraction: float,
    repulsion: float,
) -> None:
    """Raises ValueError for an option that does not exist or a number out of range."""
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


def check_shapes(
    x: Tensor,
    pos: Tensor,
    neg: Tensor | None,
    gen_weight: Tensor | None,
    pos_weight: Tensor | None,
    neg_weight: Tensor | None,
    groups: int,
) -> None:
    """Raises ValueError for samples, weights or groups that do not fit x."""
    if x.ndim not in (3, 4) or 0 in x.shape:
        raise ValueError(f"x must have shape (b, g, f) or (b, g, s, f) with no empty axis; got {tuple(x.shape)}.")
    conditions, generated, *rest = x.shape
    for name, points in (("pos", pos), ("neg", neg)):
        if points is not None and (points.ndim != x.ndim or points.shape[0] != conditions or [*points.shape[2:]] != rest):
            wanted = ", ".join(str(size) for size in (conditions, "any", *rest))
            raise ValueError(f"{name} must have shape ({wanted}) to fit x; got {tuple(points.shape)}.")
    if groups < 1 or conditions % groups:
        raise ValueError(f"groups must divide the {conditions} conditions of x; got {groups}.")
    if pos.shape[1] == 0:
        raise ValueError(f"pos must hold at least one sample per condition; got shape {tuple(pos.shape)}.")
    if neg is None and neg_weight is not None:
        raise ValueError("neg_weight was given without neg; pass both or neither.")
    counts = {"gen": generated, "pos": pos.shape[1], "neg": 0 if neg is None else neg.shape[1]}
    for (name, count), weight in zip(counts.items(), (gen_weight, pos_weight, neg_weight), strict=True):
        if weight is not None and weight.shape != (conditions, count):
            raise ValueError(f"{name}_weight must have shape ({conditions}, {count}); got {tuple(weight.shape)}.")


def target_weights(
    samples: tuple[Tensor, ...], weights: tuple[Tensor | None, ...], dtype: torch.dtype
) -> Float[Tensor, "b m"] | None:
    """The weights of all samples in a row, 1 where they have none; None where none has any."""
    if all(weight is None for weight in weights):
        return None
    filled = [
        torch.ones(points.shape[:2], dtype=dtype, device=points.device) if weight is None else weight.to(dtype)
        for points, weight in zip(samples, weights, strict=True)
    ]
    return torch.cat(filled, dim=1)
