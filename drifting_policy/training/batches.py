"""Batches: shuffled chunks of demonstrations as a pure function of (seed, step)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drifting_policy.data.chunks import ChunkIndex
from drifting_policy.data.thumbnails import thumbnails
from drifting_policy.types import DatasetError


@dataclass(frozen=True)
class Batch:
    """Raw observations "b to ...", demonstrated chunks "b t d" and which of their steps are real rather than padding.

    Images are bytes.
    """

    obs: Mapping[str, Tensor]
    action: Tensor
    valid: Tensor


class Epochs:
    """The rows of each batch of a training that shows all rows in shuffled epochs, a pure function of (seed, step).

    What does not fill a batch at the end of an epoch is left out of it.
    """

    def __init__(self, rows: int, *, batch_size: int, seed: int) -> None:
        """Batches of `batch_size` of the rows 0 .. `rows` - 1, of which there must be enough for one."""
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self._shuffled = -1, torch.arange(0)  # the epoch that was asked for last, and its rows; a memory of `order`

    def __len__(self) -> int:
        """Full batches per epoch."""
        return self.rows // self.batch_size

    def order(self, step: int) -> Tensor:
        """The rows in the batch of training step `step`, counted from 0."""
        epoch, place = divmod(step, len(self))
        if self._shuffled[0] != epoch:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch))
            self._shuffled = epoch, torch.randperm(self.rows, generator=generator)
        return self._shuffled[1][place * self.batch_size : (place + 1) * self.batch_size]


class Batches:
    """All chunks of some episodes, held in memory and served in shuffled epochs.

    The batch of a step depends on seed and step alone, so a resumed run needs no saved position. Images stay bytes, and where
    they are mapped from a file, the images of a batch alone are read: in this process, for a copy is all that there is to do.
    """

    def __init__(
        self,
        observations: Mapping[str, np.ndarray],
        action: np.ndarray,
        index: ChunkIndex,
        *,
        obs_horizon: int,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        """Serve the chunks of `index` over step-major arrays.

        Raises:
            DatasetError: where there are fewer chunks than one batch needs.
        """
        if len(index.steps) < batch_size:
            raise DatasetError(
                f"The training episodes hold {len(index.steps)} chunks, fewer than one batch of {batch_size}: "
                "choose a smaller trainer.batch_size or more data."
            )
        self.observations = {
            key: torch.as_tensor(value, dtype=torch.float32, device=device)
            for key, value in observations.items()
            if value.dtype != np.uint8
        }
        self.images = {key: np.asarray(value) for key, value in observations.items() if value.dtype == np.uint8}
        self.device, self._seen = device, np.ascontiguousarray(index.steps[:, :obs_horizon])
        self.action = torch.as_tensor(action, dtype=torch.float32, device=device)
        self.steps = torch.as_tensor(index.steps, device=device)
        self.valid = torch.as_tensor(index.valid, device=device)
        self.episode = torch.as_tensor(index.episode, device=device)
        self.obs_horizon, self.epochs = obs_horizon, Epochs(len(self.steps), batch_size=batch_size, seed=seed)

    def __len__(self) -> int:
        """Full batches per epoch."""
        return len(self.epochs)

    def batch(self, step: int) -> Batch:
        """The batch of training step `step`, counted from 0."""
        return self.rows(self.order(step))

    def order(self, step: int) -> Tensor:
        """The numbers of the chunks in the batch of training step `step`."""
        return self.epochs.order(step)

    def rows(self, rows: Tensor) -> Batch:
        """The chunks with these numbers."""
        steps = self.steps[rows.to(self.steps.device)]
        seen = steps[:, : self.obs_horizon]
        images = {key: self._gather(value, self._seen[rows.numpy()]) for key, value in self.images.items()}
        return Batch(
            obs={key: value[seen] for key, value in self.observations.items()} | images,
            action=self.action[steps],
            valid=self.valid[rows.to(self.valid.device)],
        )

    def searchable(self, rows: Tensor) -> Mapping[str, Tensor]:
        """The observations "b to ..." of the chunks `rows` as a search for similar ones can hold them all.

        In place of images there are thumbnails, in network units.
        """
        seen = self.steps[rows.to(self.steps.device)][:, : self.obs_horizon]
        small = {key: torch.as_tensor(thumbnails(value), device=self.device) for key, value in self.images.items()}
        return {key: value[seen] for key, value in (self.observations | small).items()}

    def _gather(self, images: np.ndarray, steps: np.ndarray) -> Tensor:
        """The images "b to h w c" of `steps` "b to", on the device; NumPy copies them out of the file."""
        if self.device.type != "cuda":
            return torch.from_numpy(images.take(steps, axis=0)).to(self.device)
        pinned = torch.empty((*steps.shape, *images.shape[1:]), dtype=torch.uint8, pin_memory=True)  # a GPU fetches it itself
        images.take(steps, axis=0, out=pinned.numpy(), mode="clip")  # with "raise" it would be copied twice
        return pinned.to(self.device, non_blocking=True)


def mix(seed: int, *counters: int) -> int:
    """A well-spread 63-bit seed for each sequence (seed, counter, ...); zeros at the end of a short one change nothing."""
    state = np.random.SeedSequence([seed, *counters]).generate_state(2, np.uint32)
    return (int(state[0]) << 31) ^ int(state[1])
