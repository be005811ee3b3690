"""ImageTrainer: the training loop of generators and encoders. It knows no file and no logger; hooks do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from drifting_policy.imagenet.averages import Averages
from drifting_policy.imagenet.goal import Goal
from drifting_policy.types import CheckpointError, UserError


class NonFiniteLoss(UserError):
    """The loss or its gradient became NaN or infinite."""


@dataclass
class ImageState:
    """Everything that training changes. Randomness is not among it: it is a function of (seed, step)."""

    goal: Goal
    averages: Averages
    optimizer: torch.optim.Optimizer
    step: int = 0

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on from, as tensors and plain values."""
        return {
            "step": self.step,
            "network": self.goal.network.state_dict(),
            "averages": self.averages.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "goal": self.goal.state_dict(),
        }

    def restore(self, values: dict[str, Any]) -> None:
        """Continue from what `to_dict` returned.

        Raises:
            CheckpointError: the state of a run with other settings.
        """
        try:
            self.goal.network.load_state_dict(values["network"])
            self.averages.load_state_dict(values["averages"])
            self.optimizer.load_state_dict(values["optimizer"])
            self.goal.load_state_dict(values["goal"])
            self.step = int(values["step"])
        except (KeyError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"The training state does not fit these settings ({reason}).") from error


@runtime_checkable
class Hook(Protocol):
    """Something that happens beside training."""

    def after_step(self, state: ImageState, metrics: dict[str, Tensor]) -> None:
        """Called after every update; `state.step` counts the updates made."""
        ...


def make_optimizer(
    network: nn.Module, *, learning_rate: float, betas: Sequence[float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW whose decoupled decay acts on every parameter, biases, norms and embeddings among them, as in the release."""
    return torch.optim.AdamW(
        network.parameters(), lr=learning_rate, betas=(betas[0], betas[1]), eps=1e-8, weight_decay=weight_decay, fused=True
    )


class ImageTrainer:
    """Runs updates of one goal."""

    def __init__(
        self, state: ImageState, *, learning_rate: Callable[[int], float], clip_norm: float, hooks: Sequence[Hook] = ()
    ) -> None:
        """Train the network of `state.goal`.

        Args:
            state: What is trained, from where it stands.
            learning_rate: That of a step, counted from 0.
            clip_norm: Largest allowed global norm of the gradient.
            hooks: Called in order after every update.
        """
        self.state, self.learning_rate, self.clip_norm, self.hooks = state, learning_rate, clip_norm, tuple(hooks)

    def run(self, *, until: int, stop: Callable[[], bool] = lambda: False) -> None:
        """Update until step `until`, or until `stop()` says so between two updates.

        Raises:
            NonFiniteLoss: before the weights are touched.
        """
        self.state.goal.network.train()
        while self.state.step < until and not stop():
            metrics = self._update()
            for hook in self.hooks:
                hook.after_step(self.state, metrics)

    def _update(self) -> dict[str, Tensor]:
        state, network = self.state, self.state.goal.network
        rate = self.learning_rate(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.zero_grad(set_to_none=True)
        found: list[dict[str, Tensor]] = []
        for share, metrics in state.goal.losses(state.step):
            share.backward()  # type: ignore[no-untyped-call]
            found.append({"loss": share.detach(), **metrics})
        loss = torch.stack([each.pop("loss") for each in found]).sum()
        norm = nn.utils.clip_grad_norm_(network.parameters(), self.clip_norm)
        if not torch.isfinite(loss + norm):
            raise NonFiniteLoss(
                f"The loss became non-finite at step {state.step}, which changed no weights. Lower "
                "task.optimizer.learning_rate, check the data, and go on with resume=true."
            )
        state.optimizer.step()
        state.step += 1
        state.averages.update(network)
        means = {name: torch.stack([each[name] for each in found]).mean(dim=0) for name in found[0]}
        return {"loss": loss, "gradient_norm": norm, "learning_rate": torch.tensor(rate), **means}
