"""DriftGoal: an image generator that learns by drifting."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from drifting_policy.drift.loss import DriftOptions
from drifting_policy.drift.workspace import Workspace
from drifting_policy.imagenet.bank import MemoryBank
from drifting_policy.imagenet.features import Extractor
from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.imagenet.goal import Goal
from drifting_policy.imagenet.guidance import check_scales, draw_scales
from drifting_policy.imagenet.objective import field_metrics, image_loss
from drifting_policy.imagenet.stream import ImageStream
from drifting_policy.training.batches import mix
from drifting_policy.types import ConfigError

CHOICES, NOISE, PREVIEW = 3, 4, 5  # what a seed is mixed with beside the step, so that no two draws begin alike


@dataclass(frozen=True)
class Counts:
    """How many images of each kind meet in a step.

    Attributes:
        labels: Classes of a step, taken without replacement from the batch that has just been added to the bank.
        generated: Images that are generated for each of them, at least 2 to have siblings.
        positives: Real images of each of these classes.
        unconditional: Real images of any class for each label, by which guidance is learned; 0 for none.
        parts: Labels are treated in so many parts, one after another, whose gradients add up, where memory is short. The field
            of a part is normalised over its own labels, so that the parts change the training a little.
    """

    labels: int
    generated: int
    positives: int
    unconditional: int
    parts: int = 1

    def __post_init__(self) -> None:
        for name, low in (("labels", 1), ("generated", 1), ("positives", 1), ("unconditional", 0), ("parts", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"task.batch.{name} must be at least {low}; got {getattr(self, name)}.")
        if self.parts > self.labels:
            raise ConfigError(f"task.batch.parts must be at most task.batch.labels, {self.labels}; got {self.parts}.")


@final
class DriftGoal(Goal):
    """Generated images drift to real ones of their class, in feature space (arXiv 2602.04770, Algorithm 1 and A.8)."""

    network: ImageGenerator

    def __init__(
        self,
        generator: ImageGenerator,
        extractor: Extractor | None,
        stream: ImageStream,
        bank: MemoryBank,
        *,
        counts: Counts,
        scales: Mapping[str, float],
        options: DriftOptions,
        feature_chunk: int | None,
        preview_scale: float,
        seed: int,
        device: torch.device,
    ) -> None:
        """Train `generator`, which is on `device`.

        Args:
            generator: What is trained.
            extractor: A frozen encoder's features, on `device`; None to compare the images themselves alone.
            stream: Real images, added to the bank batch by batch.
            bank: Where positives and unconditional images come from.
            counts: How many images of each kind there are.
            scales: `low`, `high`, `power` and `plain_share` of the guidance; see `draw_scales`.
            options: Of the drifting field, its temperatures among them.
            feature_chunk: How many images are encoded at once; None for all.
            preview_scale: Guidance of the images in a picture.
            seed: Decides, with the step, all draws.
            device: Where networks compute.

        Raises:
            ConfigError: more labels than a batch has images, or guidance that does not exist.
        """
        if counts.labels > stream.epochs.batch_size:
            raise ConfigError(
                f"The {counts.labels} labels of a step (task.batch.labels) come from its batch of "
                f"{stream.epochs.batch_size} images; choose a larger task.data.batch_size."
            )
        check_scales(**scales)
        self.network, self.extractor, self.stream, self.bank = generator, extractor, stream, bank
        self.counts, self.scales, self.options, self.feature_chunk = counts, scales, options, feature_chunk
        if device.type == "cpu":  # elsewhere memory that is given back is there again at once
            self.options = {**options, "workspace": Workspace()}
        self.preview_scale, self.seed, self.device = preview_scale, seed, device

    def fill(self, count: int) -> None:
        """Add `count` images to the bank before the first step, so that the first positives differ."""
        if count:
            self.bank.add(*self.stream.first(count))

    def losses(self, step: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """The drifting loss; its value says nothing about the fit, the metrics `drift_rms_<temperature>` do."""
        counts, choices = self.counts, torch.Generator().manual_seed(mix(self.seed, step, CHOICES))
        images, labels = self.stream.batch(step)
        self.bank.add(images, labels)
        labels = labels[torch.randperm(len(labels), generator=choices)[: counts.labels]]
        scales = draw_scales(counts.labels, **self.scales, generator=choices)
        positives = self.bank.positives(labels, counts.positives, generator=choices)
        unconditional = self.bank.unconditional(counts.labels, counts.unconditional, generator=choices)
        drawn = self._noise(counts.labels * counts.generated, mix(self.seed, step, NOISE))
        noise, style = (rearrange(values, "(b g) ... -> b g ...", b=counts.labels) for values in drawn)
        given = {"labels": labels, "positives": positives, "unconditional": unconditional, "scales": scales}
        given |= {"noise": noise, "style": style}
        for part in torch.arange(counts.labels).tensor_split(counts.parts):
            yield self._share({name: values[part].to(self.device) for name, values in given.items()})

    @torch.no_grad()
    def picture(self, network: nn.Module) -> tuple[Float[Tensor, "n c h w"], int]:
        """Eight images of each of up to ten classes, a class in each column."""
        columns = min(10, self.network.classes)
        labels = torch.linspace(0, self.network.classes - 1, columns, device=self.device).round().long().repeat(8)
        noise, style = self._noise(len(labels), mix(self.seed, 0, PREVIEW))
        scales = torch.full((len(labels),), self.preview_scale, device=self.device)
        return network(noise, labels=labels, cfg_scale=scales, style=style), columns

    def state_dict(self) -> dict[str, Any]:
        """What the bank holds."""
        return {"bank": self.bank.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the bank."""
        self.bank.load_state_dict(state["bank"])

    def _share(self, given: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """What these labels add to the loss; no field outlives the call."""
        losses, fields = image_loss(
            self.network, self.extractor, **cast("Any", given), feature_chunk=self.feature_chunk, **self.options
        )
        share = losses.mean() * (len(losses) / self.counts.labels)
        return share, field_metrics(fields, tuple(self.options["temperatures"]))

    def _noise(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Noise and styles of `count` images, drawn on the device."""
        source = torch.Generator(self.device).manual_seed(seed)
        noise = torch.randn(count, *self.network.image_shape, generator=source, device=self.device)
        return noise, self.network.draw_style(count, source)
