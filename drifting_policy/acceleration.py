"""Faster inference, by request only: `accelerate` returns another policy and leaves the one it is given as it was."""

import copy
import itertools
import time
from collections.abc import Callable, Mapping
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from drifting_policy.models.convolutions import replaceable, replacement
from drifting_policy.policy import DriftingPolicy
from drifting_policy.types import ConfigError, ObservationError, Policy

DTYPES = (None, "bfloat16", "int8")
CAPTURE_WARMUP = 3  # runs on another stream that CUDA graphs want before they are captured


def warm_up(
    policy: Policy, *, batch: int = 1, repetitions: int = 3, clock: Callable[[], float] = time.monotonic
) -> list[float]:
    """Seconds that each of the first plans took: memory, caches and compilers are then as in use.

    The observations are zeros. Do this before a robot moves: the first plan may take a hundred times as long as the second.
    """
    spec, seconds = policy.spec, []
    obs = {key: np.zeros((batch, spec.obs_horizon, *array.shape), array.dtype) for key, array in spec.observations.items()}
    noise = np.zeros((batch, *spec.sample_shape), np.float32)
    for _ in range(repetitions):
        begin = clock()
        policy.act(obs, noise=noise)
        seconds.append(clock() - begin)
    return seconds


def accelerate(
    policy: DriftingPolicy,
    *,
    convolutions: bool = True,
    share_weights: bool = False,
    compile: bool = False,
    cuda_graph: bool = False,
    dtype: str | None = None,
) -> DriftingPolicy:
    """A policy for inference that plans what `policy` plans, to rounding, in less time; what is not replaced is shared.

    It can neither be trained nor saved: keep `policy` for that.

    Args:
        policy: Any policy; it stays as it is.
        convolutions: Compute the convolutions over time of its action head as matrix products, on a CPU. Differences to
            PyTorch's kernels are those of the order of float32 sums.
        share_weights: Leave the weights of convolutions where they are, rather than lay them out once for fast reading:
            half the memory where `policy` is kept, but slower.
        compile: Compile encoder and action head by torch.compile, at the first plan of every batch size; that takes a C++
            compiler and a minute. It goes with convolutions that share their weights, or with none.
        cuda_graph: Capture the whole map, for one observation, as a CUDA graph.
        dtype: "bfloat16" or "int8" weights for the convolutions: they change the chunk by about 1 and 5 percent of its spread.

    Raises:
        ConfigError: a combination that cannot be, or one that the device does not have.
    """
    device = policy.normalizer.get_buffer("scale_action").device
    if dtype not in DTYPES:
        raise ConfigError(f"Unknown dtype '{dtype}'; choose one of {list(DTYPES)}.")
    if dtype and (share_weights or not convolutions):
        raise ConfigError(f"dtype={dtype} gives convolutions weights of their own; drop share_weights, keep convolutions=True.")
    if convolutions and device.type != "cpu":
        raise ConfigError(f"Convolutions as matrix products are for CPUs; say convolutions=False on {device}.")
    if cuda_graph and device.type != "cuda":
        raise ConfigError(f"A CUDA graph needs a policy on a GPU; this one is on {device}.")
    if cuda_graph and policy.evaluations != 1:
        raise ConfigError("A CUDA graph is captured of a one-step policy; this one's sampler takes several steps.")
    faster = _sharing_copy(policy)
    replaced = _replace_convolutions(faster.generator, dtype=dtype, share_weights=share_weights) if convolutions else 0
    if dtype and not replaced:
        raise ConfigError(f"dtype={dtype} is for action heads with convolutions; this one has none.")
    if compile and replaced and not share_weights:
        raise ConfigError("torch.compile cannot read weights that were laid out; say share_weights=True or compile=False.")
    if compile:
        faster.encoder.compile(dynamic=False)
        faster.generator.compile(dynamic=False)
    if cuda_graph:
        faster.forward = StaticForward(faster, capture=capture_graph)  # type: ignore[method-assign]
    return faster


def quicken(policy: DriftingPolicy, *, dtype: str | None = None) -> DriftingPolicy:
    """`accelerate` as it pays where the policy is: convolutions as matrix products on a CPU, a CUDA graph on a GPU.

    Raises:
        ConfigError: as `accelerate`.
    """
    on_gpu = policy.normalizer.device.type == "cuda"
    return accelerate(policy, convolutions=not on_gpu, cuda_graph=on_gpu, dtype=dtype)


def _sharing_copy(policy: DriftingPolicy) -> DriftingPolicy:
    """The same modules anew, around the same parameters and buffers."""
    shared: dict[int, object] = {id(tensor): tensor for tensor in itertools.chain(policy.parameters(), policy.buffers())}
    return copy.deepcopy(policy, shared).eval()


def _replace_convolutions(module: nn.Module, *, dtype: str | None, share_weights: bool) -> int:
    """How many were replaced among all that `module` is made of."""
    count = 0
    for name, child in list(module.named_children()):
        if replaceable(child):
            setattr(module, name, replacement(child, dtype=dtype, share_weights=share_weights))
            count += 1
        else:
            count += _replace_convolutions(child, dtype=dtype, share_weights=share_weights)
    return count


@final
class StaticForward:
    """The forward of a policy for one observation, between buffers that stay where they are, as a captured graph needs it."""

    def __init__(self, policy: DriftingPolicy, *, capture: Callable[[Callable[[], None]], Callable[[], None]]) -> None:
        """`capture` is given the work from buffers to buffer, and returns what repeats it."""
        spec, device = policy.spec, policy.normalizer.get_buffer("scale_action").device
        forward = policy.forward
        self._obs = {
            key: torch.zeros((1, spec.obs_horizon, *a.shape), dtype=torch.uint8 if a.is_image else torch.float32, device=device)
            for key, a in spec.observations.items()
        }
        self._noise = torch.zeros((1, *spec.sample_shape), device=device)
        self._chunk = torch.zeros((1, *spec.sample_shape), device=device)

        def work() -> None:
            self._chunk.copy_(forward(self._obs, self._noise))

        with torch.inference_mode():
            self._repeat = capture(work)

    def __call__(self, obs: Mapping[str, Tensor], noise: Tensor, prefix: Tensor | None = None) -> Tensor:
        """The chunk "1 t d", the caller's own.

        Raises:
            ObservationError: another batch size than the captured one, or a prefix.
        """
        if prefix is not None:
            raise ObservationError("This policy was captured without a prefix; plan without one, or without a CUDA graph.")
        if len(noise) != 1:
            raise ObservationError(f"This policy was captured for one observation at a time; got {len(noise)}.")
        for key, buffer in self._obs.items():
            buffer.copy_(obs[key])
        self._noise.copy_(noise)
        self._repeat()
        return self._chunk.clone()


def capture_graph(work: Callable[[], object]) -> Callable[[], None]:
    """What repeats `work` as one CUDA graph (https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs)."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(CAPTURE_WARMUP):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
