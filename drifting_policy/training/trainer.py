"""Trainer: the one training loop. It knows no environment, no file and no logger; hooks do."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from drifting_policy.models import Ema
from drifting_policy.objectives import Objective
from drifting_policy.policy import DriftingPolicy
from drifting_policy.training.batches import Batch, Batches, mix
from drifting_policy.types import UserError


@dataclass
class TrainState:
    """Everything that training changes. Randomness is not among it: it is a function of (seed, step)."""

    policy: DriftingPolicy
    ema: Ema
    optimizer: torch.optim.Optimizer
    step: int = 0

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold besides the averaged weights, as tensors and plain values."""
        return {"step": self.step, "policy": self.policy.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, values: dict[str, Any], averaged: dict[str, Tensor]) -> None:
        """Continue from what `to_dict` returned and the averaged weights of the same step."""
        self.policy.load_state_dict(values["policy"])
        self.optimizer.load_state_dict(values["optimizer"])
        self.ema.module.load_state_dict(averaged)
        self.step = int(values["step"])


class NonFiniteLoss(UserError):
    """The loss or its gradient became NaN or infinite; `batch` is the one that did it."""

    def __init__(self, step: int, batch: Batch) -> None:
        """Tell the step and keep the batch."""
        super().__init__(f"The loss became non-finite at step {step}.")
        self.step, self.batch = step, batch


@runtime_checkable
class Hook(Protocol):
    """Something that happens beside training."""

    def after_step(self, state: TrainState, metrics: dict[str, Tensor]) -> None:
        """Called after every update; `state.step` counts the updates made."""
        ...


class Trainer:
    """Runs updates of one objective on one policy."""

    def __init__(
        self,
        state: TrainState,
        objective: Objective,
        batches: Batches,
        *,
        seed: int,
        schedule: Callable[[int], float],
        learning_rate: float,
        clip_norm: float,
        bf16: bool = False,
        observation_noise: float = 0.0,
        hooks: Sequence[Hook] = (),
    ) -> None:
        """Train `state.policy`.

        Args:
            state: What is trained, from where it stands.
            objective: What is minimised.
            batches: The demonstrations.
            seed: Decides, with the step, all noise.
            schedule: Factor on the learning rate for a step counted from 0.
            learning_rate: The peak learning rate.
            clip_norm: Largest allowed global norm of the gradient.
            bf16: Run the networks under bfloat16 autocast; the losses stay in float32.
            observation_noise: Deviation of Gaussian noise added to normalised observations.
            hooks: Called in order after every update.
        """
        self.state, self.objective, self.batches, self.seed = state, objective, batches, seed
        self.schedule, self.learning_rate, self.clip_norm = schedule, learning_rate, clip_norm
        self.bf16, self.observation_noise, self.hooks = bf16, observation_noise, tuple(hooks)

    def run(self, *, until: int, stop: Callable[[], bool] = lambda: False) -> None:
        """Update until step `until`, or until `stop()` says so between two updates.

        Raises:
            NonFiniteLoss: before the weights are touched.
        """
        self.state.policy.train()
        while self.state.step < until and not stop():
            metrics = self._update(self.batches.batch(self.state.step))
            for hook in self.hooks:
                hook.after_step(self.state, metrics)

    def _update(self, batch: Batch) -> dict[str, Tensor]:
        state, policy = self.state, self.state.policy
        generator = torch.Generator().manual_seed(mix(self.seed, state.step))
        rate = self.learning_rate * self.schedule(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(batch.action.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            tokens = encode_noisy(policy, batch, self.observation_noise, generator)
            action = policy.normalizer.normalize("action", batch.action)
            cond = commit(policy, tokens, action, generator)
            loss = self.objective.loss(policy.generator, cond, action, generator)
        loss.value.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(trainable(policy), self.clip_norm)
        if not torch.isfinite(loss.value + norm):
            raise NonFiniteLoss(state.step, batch)
        state.optimizer.step()
        state.step += 1
        state.ema.update(policy, state.step)
        return {"loss": loss.value.detach(), "gradient_norm": norm, "learning_rate": torch.tensor(rate), **loss.metrics}


def encode_noisy(policy: DriftingPolicy, batch: Batch, noise: float, generator: torch.Generator) -> Tensor:
    """Tokens of the batch, whose normalised observations are jittered by `noise`, and augmented by the encoder.

    Small jitter keeps a policy from trusting digits that a rollout will not reproduce; images have none of it.
    """
    obs = {key: policy.normalizer.normalize(key, batch.obs[key]) for key in policy.spec.observations}
    if noise > 0:
        obs = {
            key: obs[key]
            if array.is_image
            else obs[key] + noise * torch.randn(obs[key].shape, generator=generator).to(obs[key])
            for key, array in policy.spec.observations.items()
        }
    tokens: Tensor = policy.encoder(policy.encoder.augment(obs, generator))
    return tokens


def commit(policy: DriftingPolicy, tokens: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
    """Conditioning tokens: `tokens` of the observations and, where the policy knows of such, that of commands to continue.

    For each row the first 0 to max_prefix demonstrated commands from now on are committed, their number drawn evenly: the
    delays of training-time real-time chunking (arXiv 2512.05964). `action` "b t d" is in network units.
    """
    if not policy.max_prefix:
        return policy.condition(tokens)
    counts = torch.randint(policy.max_prefix + 1, (len(action),), generator=generator).to(action.device)
    first = policy.spec.first_executed
    return policy.condition(tokens, action[:, first : first + policy.max_prefix], counts)


def trainable(policy: DriftingPolicy) -> Iterable[nn.Parameter]:
    """The parameters of encoders and action head that are not frozen."""
    parts = [policy.encoder, policy.generator, *([policy.prefix_encoder] if policy.prefix_encoder is not None else [])]
    return [each for part in parts for each in part.parameters() if each.requires_grad]
