"""Hooks of the ImageTrainer: pictures and checkpoints."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from drifting_policy.checkpoint import checkpoint_path, drop_state, list_checkpoints
from drifting_policy.imagenet.checkpoints import save_network
from drifting_policy.imagenet.images import to_bytes
from drifting_policy.imagenet.kinds import Network
from drifting_policy.imagenet.sheet import write_sheet
from drifting_policy.imagenet.trainer import ImageState
from drifting_policy.training.hooks import remove_checkpoint

RESUMABLE = 2  # newest checkpoints that keep their training state


class PictureHook:
    """Shows what the first average can do, every `every` steps and at the last one, as pictures in a folder."""

    def __init__(self, folder: Path, *, every: int, last_step: int) -> None:
        """Write `step_00001000.png` and so on into `folder`."""
        self.folder, self.every, self.last_step = folder, every, last_step

    def after_step(self, state: ImageState, metrics: dict[str, Tensor]) -> None:
        """Draw when due."""
        if state.step % self.every == 0 or state.step == self.last_step:
            self.draw(state)

    def draw(self, state: ImageState) -> Path:
        """The picture of this moment."""
        images, columns = state.goal.picture(state.averages.main)
        self.folder.mkdir(exist_ok=True)
        return write_sheet(self.folder / f"step_{state.step:08d}.png", to_bytes(visible(images)), columns=columns)


class SaveHook:
    """Saves a checkpoint every `every` steps; keeps the newest `keep`, and training states with two of them."""

    def __init__(
        self, run_dir: Path, *, every: int, last_step: int, keep: int, metadata: Callable[[], Mapping[str, Any]]
    ) -> None:
        """Save under `run_dir`; `metadata` is asked at every save."""
        self.run_dir, self.every, self.last_step, self.keep, self.metadata = run_dir, every, last_step, keep, metadata

    def after_step(self, state: ImageState, metrics: dict[str, Tensor]) -> None:
        """Save when due, and at the last step."""
        if state.step % self.every == 0 or state.step == self.last_step:
            self.save(state)

    def save(self, state: ImageState) -> Path:
        """The checkpoint of this moment, made of the first average; the other averages are saved as runs of their own beside.

        These are ema_0.9999/ and so on in the run directory, each with its newest checkpoint alone.
        """
        about = {"step": state.step, **self.metadata()}
        others = list(state.averages.networks.items())[1:]
        for decay, network in others:
            folder = self.run_dir / f"ema_{decay}"
            save_network(checkpoint_path(folder, state.step), cast("Network", network), metadata=about)
            self._thin(folder, keep=1)
        main = cast("Network", state.averages.main)
        path = save_network(checkpoint_path(self.run_dir, state.step), main, metadata=about, state=state.to_dict())
        self._thin(self.run_dir, keep=self.keep)
        return path

    def _thin(self, run_dir: Path, *, keep: int) -> None:
        checkpoints = list_checkpoints(run_dir)
        for old in checkpoints[:-keep]:
            remove_checkpoint(old)
        for old in checkpoints[-keep:-RESUMABLE]:
            drop_state(old)


def visible(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n rgb h w"]:
    """Images that can be looked at: grey and colour as they are; of latents the first three channels, at a third of their size.

    Latents have unit deviation, so that a third keeps nearly all of them between -1 and 1.
    """
    return images if images.shape[1] in (1, 3) else torch.cat([images, images], dim=1)[:, :3] / 3
