"""Convolutions over few steps as one matrix product each, for inference: on a CPU, at batch 1, PyTorch's own kernels are slow.

A convolution is the product of its weights, laid out as a matrix, with the windows that it sees, laid out as rows; a transposed
one spreads the rows of a product over overlapping windows. Both hold the same sums in another order.
"""

import warnings
from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from drifting_policy.types import ConfigError

ROWS = 8  # rows that oneDNN lays weights out for; it computes any number


class Matrix(nn.Module, ABC):
    """The map x -> W x + b on rows, with weights in some layout. Inference only."""

    @abstractmethod
    def forward(self, rows: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        """One result for every row."""


@final
class SharedMatrix(Matrix):
    """Weights that stay where they are."""

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None) -> None:
        """A view of `weight` takes no memory of its own."""
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, rows: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        """One result for every row."""
        return functional.linear(rows, self.weight, self.bias)


@final
class PackedMatrix(Matrix):
    """Weights laid out once as oneDNN reads them, in float32 or bfloat16; results are float32."""

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None, *, dtype: torch.dtype) -> None:
        """Memory of its own for all weights."""
        super().__init__()
        self.dtype = dtype
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous(), ROWS)
        self.bias = None if bias is None else bias.detach().to(dtype)

    def forward(self, rows: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        """One result for every row."""
        product = torch.ops.mkldnn._linear_pointwise(rows.to(self.dtype), self.packed, self.bias, "none", [], "")
        return product.to(rows.dtype)


@final
class ByteMatrix(Matrix):
    """Weights in 8 bits with one scale per output; every call rounds its rows to 8 bits with a scale of their own.

    A CPU without VNNI adds two products in 16 bits, where those of 8 by 8 bits overflow: rows get 7 bits there.
    """

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None) -> None:
        """Weights are rounded to 255 levels, symmetric around 0, the outermost at the largest of each output."""
        super().__init__()
        scale = (weight.detach().abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny).double()
        zeros = torch.zeros(len(weight), dtype=torch.long)
        with warnings.catch_warnings():  # PyTorch means to move these tensors to another package one day
            warnings.filterwarnings("ignore", ".*quantize_per_channel", UserWarning)
            rounded = torch.quantize_per_channel(weight.detach().contiguous(), scale, zeros, 0, torch.qint8)
        self.reduce_range = not torch.cpu._is_vnni_supported()
        self.packed = torch.ops.quantized.linear_prepack(rounded, None if bias is None else bias.detach())

    def forward(self, rows: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        """One result for every row."""
        product: Tensor = torch.ops.quantized.linear_dynamic(rows, self.packed, reduce_range=self.reduce_range)
        return product


def lay_out(
    weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None, *, dtype: str | None, share_weights: bool
) -> Matrix:
    """The matrix in the layout asked for; `dtype` is None, "bfloat16" or "int8".

    Raises:
        ConfigError: where this build of PyTorch has no such layout, or this CPU not the instructions for it.
    """
    if share_weights:
        return SharedMatrix(weight, bias)
    if dtype == "int8":
        if not hasattr(torch, "quantize_per_channel"):
            raise ConfigError("This version of PyTorch has no 8-bit matrices any more; choose dtype=bfloat16.")
        return ByteMatrix(weight, bias)
    if not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        raise ConfigError("This build of PyTorch lacks oneDNN, which lays weights out; say share_weights=True.")
    if dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise ConfigError("This CPU has no instructions for products in bfloat16 (AVX-512); choose dtype=int8, or none.")
    return PackedMatrix(weight, bias, dtype=torch.bfloat16 if dtype else torch.float32)


@final
class WindowedConv1d(nn.Module):
    """What a Conv1d computes: windows as rows, then one product."""

    def __init__(self, conv: nn.Conv1d, *, dtype: str | None, share_weights: bool) -> None:
        """The same map as `conv`, for which `replaceable` holds."""
        super().__init__()
        (self.kernel,), (self.stride,), self.padding = conv.kernel_size, conv.stride, int(conv.padding[0])
        self.matrix = lay_out(conv.weight.flatten(1), conv.bias, dtype=dtype, share_weights=share_weights)

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b c2 t2"]:
        """Features; a row holds all steps of its window, channel by channel, as the weights do."""
        windows = functional.pad(x, (self.padding, self.padding)).unfold(2, self.kernel, self.stride).transpose(1, 2)
        batch, steps = windows.shape[:2]
        result: Tensor = self.matrix(windows.reshape(batch * steps, -1)).view(batch, steps, -1).transpose(1, 2)
        return result


@final
class SpreadConv1d(nn.Module):
    """What a ConvTranspose1d computes: one product, whose rows are spread over the windows and added up."""

    def __init__(self, conv: nn.ConvTranspose1d, *, dtype: str | None, share_weights: bool) -> None:
        """The same map as `conv`, for which `replaceable` holds. Its weights are laid out anew in any case."""
        super().__init__()
        (self.kernel,), (self.stride,), self.padding = conv.kernel_size, conv.stride, int(conv.padding[0])
        self.bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        weight = conv.weight.detach().permute(2, 1, 0).flatten(0, 1).contiguous()
        self.matrix = lay_out(weight, None, dtype=dtype, share_weights=share_weights)

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b c2 t2"]:
        """Features; tap k of step i adds to step stride * i - padding + k."""
        batch, _, steps = x.shape
        parts = self.matrix(x.transpose(1, 2).reshape(batch * steps, -1)).view(batch, steps, self.kernel, -1)
        reach = self.stride * (steps - 1) + 1
        spread = self.bias.expand(batch, reach + self.kernel - 1, -1).clone()
        for tap in range(self.kernel):
            spread[:, tap : tap + reach : self.stride] += parts[:, :, tap]
        return spread[:, self.padding : reach + self.kernel - 1 - self.padding].transpose(1, 2)


def replaceable(module: nn.Module) -> bool:
    """Whether it is a convolution over time of the kind that the U-Net is made of: all channels, zeros outside, no gaps."""
    if not isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
        return False
    plain = module.groups == 1 and module.dilation == (1,) and module.padding_mode == "zeros"
    return plain and not isinstance(module.padding, str) and module.output_padding == (0,)


def replacement(module: nn.Module, *, dtype: str | None, share_weights: bool) -> nn.Module:
    """The module that computes what the convolution `module` does.

    Raises:
        ConfigError: where this build of PyTorch has no such layout, or this CPU not the instructions for it.
    """
    if isinstance(module, nn.ConvTranspose1d):
        return SpreadConv1d(module, dtype=dtype, share_weights=share_weights)
    assert isinstance(module, nn.Conv1d)
    return WindowedConv1d(module, dtype=dtype, share_weights=share_weights)
