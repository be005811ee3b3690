"""The drifting loss: a regression of generated samples on their own drifted positions."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack, final

import torch
from jaxtyping import Float
from torch import Tensor

from drifting_policy.drift.blocks import Workspace, worth_blocks
from drifting_policy.drift.definitions import Coupling, Field, Grouping, Kernel
from drifting_policy.drift.field import drift, fold


class DriftOptions(TypedDict, total=False):
    """The keyword options of `drift`, which documents them and holds their defaults."""

    temperatures: Sequence[float]
    gen_weight: Float[Tensor, "b g"] | None
    pos_weight: Float[Tensor, "b p"] | None
    neg_weight: Float[Tensor, "b n"] | None
    kernel: Kernel
    coupling: Coupling
    scale: Grouping
    force: Grouping
    affinity_floor: float
    self_mask: bool
    attraction: float
    repulsion: float
    workspace: Workspace | None


def drift_loss(
    x: Float[Tensor, "b g f"],
    pos: Float[Tensor, "b p f"],
    neg: Float[Tensor, "b n f"] | None = None,
    **options: Unpack[DriftOptions],
) -> tuple[Float[Tensor, " b"], Field]:
    """The loss per condition, mean over g and f of (x/c - stopgrad(x/c + V))^2 with c = field.unit, and the field.

    Eq. 6 with the normalisation of appendix A.6. Its gradient, -2 V / (g f c) for each condition, reaches x alone. Its value
    is the mean of V^2, which the normalised force fixes between about k and k^2 for k temperatures however good the samples
    are: watch `field.rms` instead.

    Args:
        x: generated samples, with gradients.
        pos: real samples of the same condition.
        neg: further negatives.
        **options: see `drift`.

    Raises:
        ValueError: as `drift`.
    """
    field = drift(x, pos, neg, **options)
    scaled = x.to(field.velocity.dtype) / field.unit
    target = scaled.detach() + field.velocity
    return (scaled - target).square().mean(dim=(1, 2)), field


def drift_loss_features(
    features: Mapping[str, tuple[Tensor, Tensor, Tensor | None]], **options: Unpack[DriftOptions]
) -> tuple[Float[Tensor, " b"], dict[str, Field]]:
    """The drifting loss summed over feature maps (eq. 13-14), and the field of each map.

    A map is a triple of generated, positive and (or None) negative features of shape "b g s f", "b p s f" and "b n s f": s
    positions, at each of which the samples are matched separately while the normalisation is shared; "b g f" stands for one
    position. In the fields, conditions and positions are one axis, "(b s)".

    Args:
        features: the maps by name; all with the same b.
        **options: see `drift`; the weights are per sample, for all positions.

    Raises:
        ValueError: no map, or as `drift`.
    """
    if not features:
        raise ValueError("features must hold at least one feature map; got none.")
    losses, fields = [], {}
    options = {"workspace": Workspace(), **options}
    for name, (x, pos, neg) in features.items():
        samples = pos.shape[1] + x.shape[1] + (0 if neg is None else neg.shape[1])
        if x.ndim == 4 and worth_blocks(samples, x.shape[-1], x.device):
            loss, fields[name] = _loss_of_positions(x, drift(x, pos, neg, **options))
        else:
            positions = 1 if x.ndim == 3 else x.shape[2]
            each = {key: _repeat(value, positions) for key, value in options.items()}
            triple = (x, pos, neg) if x.ndim == 3 else (fold(x), fold(pos), None if neg is None else fold(neg))
            loss, fields[name] = drift_loss(*triple, **each)  # type: ignore[arg-type]
            loss = loss.reshape(-1, positions).mean(dim=1)
        losses.append(loss)
    return torch.stack(losses).sum(dim=0), fields


def _repeat(value: object, positions: int) -> object:
    """Weights of conditions become those of all their positions."""
    return value.repeat_interleave(positions, dim=0) if isinstance(value, Tensor) else value


def _loss_of_positions(x: Float[Tensor, "b g s f"], field: Field) -> tuple[Float[Tensor, " b"], Field]:
    """`drift_loss` in the mean over positions, with a few passes less over the numbers."""
    velocity = field.velocity.view(x.shape[0], x.shape[2], *field.velocity.shape[1:])
    value = torch.linalg.vector_norm(velocity.flatten(2), dim=2).square() / velocity[0, 0].numel()
    return Regression.apply(x, velocity, field.unit, value).mean(dim=1), field  # type: ignore[no-untyped-call]


@final
class Regression(torch.autograd.Function):
    """The mean of (x/c - stopgrad(x/c + V))^2 over samples and coordinates: that of V^2, with the gradient -2 V / (g f c)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "b g s f"],
        velocity: Float[Tensor, "b s g f"],
        unit: Float[Tensor, "..."],
        value: Float[Tensor, "b s"],
    ) -> Float[Tensor, "b s"]:
        """The loss, whose `value` is known."""
        ctx.save_for_backward(velocity, unit)
        ctx.dtype = x.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "b s"]) -> tuple[Tensor, None, None, None]:
        """The gradient of x."""
        velocity, unit = ctx.saved_tensors
        factor = grad * (-2 / velocity[0, 0].numel()) / (unit.view_as(grad) if unit.ndim else unit)
        rows = velocity.transpose(1, 2)
        out = torch.empty(rows.shape, dtype=ctx.dtype, device=rows.device)
        return torch.mul(rows, factor[:, None, :, None], out=out), None, None, None
