"""The drifting loss: a regression of generated samples on their own drifted positions."""

from collections.abc import Mapping, Sequence
from typing import TypedDict, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from drifting_policy.drift.field import Coupling, Field, Grouping, Kernel, drift


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
    for name, (x, pos, neg) in features.items():
        positions = 1 if x.ndim == 3 else x.shape[2]
        repeated = options.copy()
        for key, value in options.items():
            if isinstance(value, Tensor):
                repeated[key] = value.repeat_interleave(positions, dim=0)  # type: ignore[literal-required]
        loss, fields[name] = drift_loss(_fold(x), _fold(pos), None if neg is None else _fold(neg), **repeated)
        losses.append(loss.reshape(-1, positions).mean(dim=1))
    return torch.stack(losses).sum(dim=0), fields


def _fold(features: Tensor) -> Tensor:
    """Positions moved into the condition axis: "b g s f" -> "(b s) g f"."""
    return features if features.ndim == 3 else features.transpose(1, 2).flatten(0, 1)
