"""The loss of the image generator: the drifting loss on every feature of its images (arXiv 2602.04770, A.5 to A.7)."""

from collections.abc import Mapping
from typing import Unpack

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from drifting_policy.drift import Field, drift_loss_features
from drifting_policy.drift.loss import DriftOptions
from drifting_policy.imagenet.features import Extractor
from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.imagenet.guidance import negative_weight

RAW = "global"  # the name of the image itself among its features


def image_loss(
    generator: ImageGenerator,
    extractor: Extractor | None,
    *,
    labels: Int[Tensor, " b"],
    positives: Float[Tensor, "b p c h w"],
    unconditional: Float[Tensor, "b n c h w"],
    scales: Float[Tensor, " b"],
    noise: Float[Tensor, "b g c h w"],
    style: Int[Tensor, "b g m"],
    feature_chunk: int | None = None,
    **options: Unpack[DriftOptions],
) -> tuple[Float[Tensor, " b"], dict[str, Field]]:
    """The loss of each label, summed over features, and the drifting field of each feature.

    The g generated images of a label are compared with its positives at every position of a feature by itself, while the scale
    of the field and the length of its force are those of all labels and positions of that feature together. Gradients reach
    the generator through the extractor, whose own parameters must be frozen.

    Args:
        generator: What is trained.
        extractor: Images to feature vectors; without one the images themselves are all that is compared.
        labels: Classes of the step.
        positives: Real images of each class.
        unconditional: Real images of any class, which repel as strongly as the guidance of the label asks; n may be 0.
        scales: Guidance of each label, at least 1.
        noise: Standard normal, for g images of each label.
        style: Integers for each of these images.
        feature_chunk: How many images are encoded at once; what happens inside the extractor is then computed again in the
            backward pass instead of being kept. None encodes all at once and keeps it.
        **options: Of the field; see `drifting_policy.drift.drift`.
    """
    generated, real = noise.shape[1], positives.shape[1]
    with torch.no_grad():
        known = extract(extractor, torch.cat([positives, unconditional], dim=1).flatten(0, 1), chunk=feature_chunk)
    images = generator(
        noise.flatten(0, 1),
        labels=labels.repeat_interleave(generated),
        cfg_scale=scales.repeat_interleave(generated),
        style=style.flatten(0, 1),
    )
    made = extract(extractor, images, chunk=feature_chunk)
    triples: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}
    for name, vectors in made.items():
        own, others = (rearrange(values, "(b n) s e -> b n s e", b=len(labels)) for values in (vectors, known[name]))
        triples[name] = own, others[:, :real], others[:, real:] if unconditional.shape[1] else None
    if unconditional.shape[1]:
        weight = negative_weight(scales, generated=generated, unconditional=unconditional.shape[1])
        options["neg_weight"] = weight[:, None].expand(-1, unconditional.shape[1])
    return drift_loss_features(triples, **options)


def extract(
    extractor: Extractor | None, images: Float[Tensor, "n c h w"], *, chunk: int | None = None
) -> dict[str, Float[Tensor, "n s e"]]:
    """The features of all images, `chunk` of them at a time, the images themselves ("global") last."""
    found: dict[str, list[Tensor]] = {}
    for part in torch.split(images, chunk or len(images)) if extractor else ():
        again = chunk is not None and torch.is_grad_enabled()
        features = checkpoint(extractor, part, use_reentrant=False, preserve_rng_state=False) if again else extractor(part)
        for name, vectors in features.items():
            found.setdefault(name, []).append(vectors)
    return {name: torch.cat(parts) for name, parts in found.items()} | {RAW: images.flatten(1)[:, None]}


def field_metrics(fields: Mapping[str, Field], temperatures: tuple[float, ...]) -> dict[str, Tensor]:
    """`drift_rms_<temperature>`: the length of the field before it was normalised, in the mean over features.

    It tells how far the images are from where they should be, which the loss, made of normalised fields, does not.
    """
    rms = torch.stack([field.rms for field in fields.values()]).mean(dim=0)
    return {f"drift_rms_{temperature:g}": value for temperature, value in zip(temperatures, rms, strict=True)}
