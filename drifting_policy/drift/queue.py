"""Memory of recent real samples, from which positives are drawn."""

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


@final
class SampleQueue:
    """A ring buffer of real samples for every condition (appendix A.8).

    Attributes:
        samples: storage "c q *s" for c conditions and q slots each.
        added: how many samples each condition ever received, "c".
    """

    def __init__(
        self,
        *,
        num_conditions: int,
        capacity: int,
        sample_shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """An empty queue of `capacity` samples of `sample_shape` for each of `num_conditions` conditions.

        Raises:
            ValueError: a size below 1.
        """
        if num_conditions < 1 or capacity < 1:
            raise ValueError(f"num_conditions and capacity must be at least 1; got {num_conditions} and {capacity}.")
        self.samples = torch.zeros(num_conditions, capacity, *sample_shape, dtype=dtype, device=device)
        self.added = torch.zeros(num_conditions, dtype=torch.int64, device=device)

    @property
    def capacity(self) -> int:
        """Slots per condition."""
        return self.samples.shape[1]

    @property
    def counts(self) -> Int[Tensor, " c"]:
        """How many samples each condition holds now."""
        return self.added.clamp(max=self.capacity)

    def add(self, samples: Shaped[Tensor, " n *s"], conditions: Int[Tensor, " n"]) -> None:
        """Stores samples in order; a full condition forgets its oldest ones.

        Raises:
            ValueError: samples of another shape, or a condition that does not exist.
        """
        expected = (len(conditions), *self.samples.shape[2:])
        if samples.shape != expected:
            raise ValueError(f"samples must have shape {expected}; got {tuple(samples.shape)}.")
        conditions = self._checked(conditions)
        order = torch.argsort(conditions, stable=True)
        conditions, samples = conditions[order], samples.detach()[order.to(samples.device)]
        arriving = torch.bincount(conditions, minlength=len(self.added))
        first = arriving.cumsum(dim=0) - arriving
        rank = torch.arange(len(conditions), device=conditions.device) - first[conditions]
        # Of more arrivals than slots only the last survive; writing the others too would leave the winner undefined.
        kept = rank >= arriving[conditions] - self.capacity
        slots = (self.added[conditions] + rank) % self.capacity
        self.samples[conditions[kept], slots[kept]] = samples[kept.to(samples.device)].to(self.samples)
        self.added += arriving

    def sample(self, conditions: Int[Tensor, " b"], k: int, *, generator: torch.Generator) -> Shaped[Tensor, "b k *s"]:
        """k random samples of each condition: distinct ones where at least k are held, else drawn with replacement.

        Raises:
            ValueError: a condition that does not exist or holds nothing, or k below 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1; got {k}.")
        conditions = self._checked(conditions)
        counts = self.counts[conditions]
        if (counts == 0).any():
            empty = sorted(set(conditions[counts == 0].tolist()))
            raise ValueError(f"The queue holds no sample of condition(s) {empty}; add some before sampling.")
        keys = self._uniform(len(conditions), self.capacity, generator)
        keys[torch.arange(self.capacity, device=keys.device) >= counts[:, None]] = -1
        repeated = (self._uniform(len(conditions), k, generator) * counts[:, None]).long()
        distinct = keys.topk(min(k, self.capacity), dim=1).indices
        slots = torch.where(counts[:, None] >= k, distinct, repeated) if k <= self.capacity else repeated
        return self.samples[conditions[:, None], slots]

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the stored samples and the numbers added."""
        return {"samples": self.samples.clone(), "added": self.added.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned.

        Raises:
            ValueError: missing or unknown keys, or another queue's shapes.
        """
        own = self.state_dict()
        if set(state) != set(own):
            raise ValueError(f"The state of a queue has the keys {sorted(own)}; got {sorted(state)}.")
        for key, value in own.items():
            if state[key].shape != value.shape:
                raise ValueError(f"{key} must have shape {tuple(value.shape)}; got {tuple(state[key].shape)}.")
        self.samples.copy_(state["samples"])
        self.added.copy_(state["added"])

    def _uniform(self, rows: int, columns: int, generator: torch.Generator) -> Tensor:
        """Doubles, so that u * count stays below count."""
        drawn = torch.rand(rows, columns, generator=generator, dtype=torch.float64, device=generator.device)
        return drawn.to(self.samples.device)

    def _checked(self, conditions: Tensor) -> Tensor:
        if conditions.ndim != 1 or conditions.is_floating_point() or conditions.dtype == torch.bool:
            raise ValueError(
                f"conditions must be a vector of integers; got {conditions.dtype} of shape {tuple(conditions.shape)}."
            )
        conditions = conditions.to(self.added)
        wrong = conditions[(conditions < 0) | (conditions >= len(self.added))]
        if len(wrong):
            raise ValueError(f"Conditions lie in 0..{len(self.added) - 1}; got {sorted(set(wrong.tolist()))}.")
        return conditions
