"""The drifting loss: a regression of generated samples on their own drifted positions."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack, final

import torch
from jaxtyping import Float
from torch import Tensor

from drifting_policy.drift.blocks import worth_blocks
from drifting_policy.drift.definitions import Coupling, Field, Grouping, Kernel
from drifting_policy.drift.field import drift, fold
from drifting_policy.drift.workspace import Workspace

Triple = tuple[Tensor, Tensor, Tensor | None]  # generated, positive and negative samples
SMALL_MAP = {"cpu": 2**17}  # numbers up to which joining the maps of one shape costs less than treating them one by one
SMALL_MAP_ELSEWHERE = 2**26


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
    groups: int
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
    features: Mapping[str, Triple], **options: Unpack[DriftOptions]
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
    workspace = options.get("workspace") or Workspace()
    options = {**options, "workspace": workspace}
    losses: dict[str, Tensor] = {}
    fields: dict[str, Field] = {}
    for names in _alike(features):
        x, pos, neg = triple = _join([features[name] for name in names])
        if _in_blocks(triple):
            each = {key: _repeat(value, len(names)) for key, value in options.items()}
            loss, field = _loss_of_positions(x, drift(x, pos, neg, groups=len(names), **each), workspace)  # type: ignore[arg-type]
            fields |= dict(zip(names, field.split(len(names), scale=options.get("scale", "batch")), strict=True))
        else:
            positions = 1 if x.ndim == 3 else x.shape[2]
            each = {key: _repeat_each(value, positions) for key, value in options.items()}
            few = triple if x.ndim == 3 else (fold(x), fold(pos), None if neg is None else fold(neg))
            loss, fields[names[0]] = drift_loss(*few, **each)  # type: ignore[arg-type]
            loss = loss.reshape(-1, positions).mean(dim=1)
        losses |= dict(zip(names, loss.chunk(len(names)), strict=True))
    return torch.stack([losses[name] for name in features]).sum(dim=0), {name: fields[name] for name in features}


def _in_blocks(triple: Triple) -> bool:
    """Whether the field of a feature map is computed in blocks."""
    x, *others = triple
    samples = x.shape[1] + sum(part.shape[1] for part in others if part is not None)
    return x.ndim == 4 and worth_blocks(x, samples)


def _alike(features: Mapping[str, Triple]) -> list[list[str]]:
    """The names of the maps that are better treated together: small ones of one shape, which differ in nothing but numbers."""
    groups: dict[object, list[str]] = {}
    for name, triple in features.items():
        x = triple[0]
        alone = not _in_blocks(triple) or x.numel() > SMALL_MAP.get(x.device.type, SMALL_MAP_ELSEWHERE)
        kind = name if alone else tuple((part.shape, part.dtype, part.device) for part in triple if part is not None)
        groups.setdefault(kind, []).append(name)
    return list(groups.values())


def _join(triples: Sequence[Triple]) -> Triple:
    """The maps one after the other along the axis of conditions; nothing is copied where there is one."""
    if len(triples) == 1:
        return triples[0]
    x, pos, neg = zip(*triples, strict=True)
    return torch.cat(x), torch.cat(pos), None if neg[0] is None else torch.cat(neg)


def _repeat(value: object, times: int) -> object:
    """Weights of conditions become those of all maps."""
    return value.repeat(times, 1) if isinstance(value, Tensor) and times > 1 else value


def _repeat_each(value: object, positions: int) -> object:
    """Weights of conditions become those of all their positions."""
    return value.repeat_interleave(positions, dim=0) if isinstance(value, Tensor) else value


def _loss_of_positions(x: Float[Tensor, "b g s f"], field: Field, workspace: Workspace) -> tuple[Float[Tensor, " b"], Field]:
    """`drift_loss` in the mean over positions, with a few passes less over the numbers."""
    velocity = field.velocity.view(x.shape[0], x.shape[2], *field.velocity.shape[1:])
    value = torch.linalg.vector_norm(velocity.flatten(2), dim=2).square() / velocity[0, 0].numel()
    return Regression.apply(x, velocity, field.unit, value, workspace).mean(dim=1), field  # type: ignore[no-untyped-call]


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
        workspace: Workspace,
    ) -> Float[Tensor, "b s"]:
        """The loss, whose `value` is known; the gradient will lie in memory of the workspace."""
        ctx.save_for_backward(velocity, unit)
        ctx.dtype, ctx.workspace = x.dtype, workspace
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "b s"]) -> tuple[Tensor, None, None, None, None]:
        """The gradient of x."""
        velocity, unit = ctx.saved_tensors
        factor = grad * (-2 / velocity[0, 0].numel()) / (unit.view_as(grad) if unit.ndim else unit)
        rows = velocity.transpose(1, 2)
        out = ctx.workspace.lend(tuple(rows.shape), rows, ctx.dtype)
        return torch.mul(rows, factor[:, None, :, None], out=out), None, None, None, None
