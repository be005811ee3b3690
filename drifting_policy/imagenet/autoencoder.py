"""MaskedAutoencoder: how an ImageEncoder is trained, by filling in what is hidden from it and, at the end, naming the class."""

from collections.abc import Sequence
from typing import Any

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from drifting_policy.imagenet.encoder import COMPUTE, CastConv, ChannelNorm, ImageEncoder, NormedConv, lecun_init
from drifting_policy.imagenet.layers import CastLinear
from drifting_policy.types import ConfigError


class UpStep(nn.Module):
    """A map at the size of the encoder's map beside it, joined with that one."""

    def __init__(self, inputs: int, beside: int, outputs: int, *, compute: torch.dtype) -> None:
        """From `inputs` channels and those of the map beside it to `outputs` channels."""
        super().__init__()
        self.norm = ChannelNorm(inputs + beside)
        self.project = NormedConv(inputs + beside, outputs, compute=compute)
        self.refine = NormedConv(outputs, outputs, compute=compute)

    def forward(self, x: Float[Tensor, "b f h w"], beside: Float[Tensor, "b g h2 w2"]) -> Float[Tensor, "b e h2 w2"]:
        """The joint map, nowhere negative."""
        larger = functional.interpolate(x, beside.shape[2:], mode="bilinear", align_corners=False)
        joint = self.norm(torch.cat([larger, beside], dim=1))
        return functional.relu(self.refine(functional.relu(self.project(joint))))


class Decoder(nn.Module):
    """From the smallest map of the encoder back to the folded image, past all larger ones (Ronneberger et al. 2015, U-Net)."""

    def __init__(self, widths: Sequence[int], channels: int, *, compute: torch.dtype) -> None:
        """For stages of `widths` channels and a folded image of `channels`."""
        super().__init__()
        self.bridge = NormedConv(widths[-1], widths[-1], compute=compute)
        sides = [*widths[-2::-1], widths[0]]
        inputs = [widths[-1], *sides[:-1]]
        self.steps = nn.ModuleList(UpStep(a, b, b, compute=compute) for a, b in zip(inputs, sides, strict=True))
        self.output = CastConv(widths[0], channels, edge=1, bias=True, compute=compute)

    def forward(self, maps: dict[str, Tensor]) -> Float[Tensor, "b c h w"]:
        """The folded image, in the type of the network."""
        x = functional.relu(self.bridge(maps["layer4"]))
        for step, name in zip(self.steps, ("layer3", "layer2", "layer1", "conv1"), strict=True):
            x = step(x, maps[name])
        image: Tensor = self.output(x)
        return image


class MaskedAutoencoder(nn.Module):
    """An ImageEncoder that sees part of an image, a decoder that draws the whole, and a linear classifier beside it.

    Args:
        classes: Number of classes.
        mask_cell: Edge of the squares of positions that are hidden together.
        width: As of ImageEncoder; a multiple of 32.
        in_channels, layers, fold, precision, checkpointing: As of ImageEncoder.
    """

    def __init__(
        self,
        *,
        classes: int,
        mask_cell: int,
        in_channels: int,
        width: int,
        layers: Sequence[int] = (3, 4, 6, 3),
        fold: int = 1,
        precision: str = "float32",
        checkpointing: bool = False,
    ) -> None:
        """A fresh auto-encoder.

        Raises:
            ConfigError: sizes of which no such network can be built.
        """
        super().__init__()
        if width % 32:
            raise ConfigError(f"The width of a masked auto-encoder must be a multiple of 32; got {width}.")
        if min(classes, mask_cell) < 1:
            raise ConfigError(f"classes and mask_cell must be at least 1; got {classes} and {mask_cell}.")
        self.encoder = ImageEncoder(
            in_channels=in_channels, width=width, layers=layers, fold=fold, precision=precision, checkpointing=checkpointing
        )
        self.recipe: dict[str, Any] = {"classes": classes, "mask_cell": mask_cell} | self.encoder.recipe
        self.mask_cell, compute = mask_cell, COMPUTE[precision]
        self.decoder = Decoder(self.encoder.widths, in_channels * fold**2, compute=compute)
        self.classifier = CastLinear(self.encoder.widths[-1], classes, compute=compute)
        lecun_init(self.classifier)

    def forward(
        self, images: Float[Tensor, "b c h w"], mask: Float[Tensor, "b 1 h2 w2"]
    ) -> tuple[Float[Tensor, "b f h2 w2"], Float[Tensor, "b classes"]]:
        """The reconstruction of the folded images and the logits of their classes, float32; both from what is not hidden.

        Args:
            images: Images in the units of the training data.
            mask: 1 at positions of the folded images that are hidden, which the encoder sees as zeros; 0 elsewhere.

        Raises:
            ConfigError: images that the encoder does not take.
        """
        maps = self.encoder.maps(self.encoder.folded(images) * (1 - mask))
        logits = self.classifier(maps["layer4"].mean(dim=(2, 3)))
        return self.decoder(maps).float(), logits.float()


def draw_mask(
    count: int, *, size: int, cell: int, low: float, high: float, generator: torch.Generator
) -> Float[Tensor, "b 1 h w"]:
    """`count` masks of `size` by `size` positions of folded images from `generator`, on its device; 1 is hidden.

    Each image draws a probability between `low` and `high`, and each of its cells of `cell` by `cell` positions is hidden with
    it, independently of the others; so the hidden share varies.

    Raises:
        ConfigError: cells that do not divide the size, or probabilities that are none.
    """
    if cell < 1 or size < 1 or size % cell:
        raise ConfigError(f"The cells of a mask must divide the folded image: {size} is no multiple of {cell}.")
    if not 0 <= low <= high <= 1:
        raise ConfigError(f"A mask hides a share between low and high, in [0, 1]; got {low} and {high}.")
    shares = low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator, device=generator.device)
    cells = torch.rand(count, 1, size // cell, size // cell, generator=generator, device=generator.device) < shares
    mask: Tensor = repeat(cells.float(), "b 1 h w -> b 1 (h p) (w q)", p=cell, q=cell)
    return mask


def masked_loss(
    model: MaskedAutoencoder,
    images: Float[Tensor, "b c h w"],
    labels: Int[Tensor, " b"],
    mask: Float[Tensor, "b 1 h2 w2"],
    *,
    weight: float,
) -> tuple[Float[Tensor, " b"], dict[str, Tensor]]:
    """The loss of each image and what it consists of: weight * classification + (1 - weight) * reconstruction.

    The reconstruction error is the squared distance of a position, summed over channels, in the mean over hidden positions; the
    classification error is the cross-entropy. The metrics " b" are these two, `accuracy` (0 or 1) and `hidden`, the share of
    positions.
    """
    drawn, logits = model(images, mask)
    distances = (drawn - model.encoder.folded(images)).square().sum(dim=1, keepdim=True)
    reconstruction = (distances * mask).sum(dim=(1, 2, 3)) / (mask.sum(dim=(1, 2, 3)) + 1e-8)
    classification = functional.cross_entropy(logits, labels, reduction="none")
    loss = weight * classification + (1 - weight) * reconstruction
    metrics = {
        "classification": classification.detach(),
        "reconstruction": reconstruction.detach(),
        "accuracy": (logits.argmax(dim=1) == labels).float(),
        "hidden": mask.mean(dim=(1, 2, 3)),
    }
    return loss, metrics


def classification_weight(step: int, *, total_steps: int, last_steps: int, ramp_steps: int, highest: float) -> float:
    """The weight of the classification in the loss of `step`, counted from 0 (arXiv 2602.04770, appendix A.3).

    It is zero until the last `last_steps` of `total_steps`, then rises to `highest` within `ramp_steps`.
    """
    since = step - (total_steps - last_steps)
    if since < 0:
        return 0.0
    return highest * min(1.0, since / ramp_steps) if ramp_steps else highest
