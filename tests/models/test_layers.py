"""The averaged weights follow their formula, computed in float64 loops; fresh layers start where they promise."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from drifting_policy.models import Ema
from drifting_policy.models.layers import small_init, zero_init


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@settings(max_examples=30, deadline=None)
@given(
    power=st.floats(0.3, 1.0), max_decay=st.floats(0.0, 0.9999), updates=st.lists(st.integers(1, 10**6), min_size=1, max_size=5)
)
def test_the_schedule_is_a_power_law_with_a_ceiling(power: float, max_decay: float, updates: list[int]) -> None:
    module = nn.Linear(1, 1)
    ema = Ema(module, copy.deepcopy(module), power=power, max_decay=max_decay)
    shares = [ema.decay(update) for update in sorted(updates)]
    for update, share in zip(sorted(updates), shares, strict=True):
        assert share == pytest.approx(min(max_decay, 1 - 1 / (1 + update) ** power), abs=1e-12)
    assert shares == sorted(shares)
    assert ema.decay(10**15) == pytest.approx(max_decay, abs=1e-4)


def test_the_copy_starts_equal_apart_and_frozen() -> None:
    module, other = network(), network(seed=1).train()
    ema = Ema(module, other, power=0.75, max_decay=0.9999)
    assert ema.module is other
    assert not ema.module.training
    assert module.training
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
    assert all(parameter.requires_grad for parameter in module.parameters())
    for key, value in module.state_dict().items():
        assert torch.equal(ema.module.state_dict()[key], value)
        assert ema.module.state_dict()[key].data_ptr() != value.data_ptr()


def test_updates_equal_a_loop_and_leave_the_module_alone() -> None:
    module = network()
    ema = Ema(module, network(), power=0.75, max_decay=0.8)
    expected = [parameter.detach().double() for parameter in module.parameters()]
    for update in range(1, 21):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += torch.randn(parameter.shape)
        before = [parameter.detach().clone() for parameter in module.parameters()]
        ema.update(module, update)
        share = min(0.8, 1 - (1 + update) ** -0.75)
        expected = [share * old + (1 - share) * new.double() for old, new in zip(expected, before, strict=True)]
        assert all(torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    for average, value in zip(ema.module.parameters(), expected, strict=True):
        torch.testing.assert_close(average.double(), value, rtol=1e-5, atol=1e-5)
        assert not average.requires_grad


@pytest.mark.parametrize("bias", [True, False])
def test_zero_init_answers_zero_and_can_still_learn(bias: bool) -> None:
    layer = nn.Linear(3, 2, bias=bias)
    assert zero_init(layer) is layer
    layer(torch.randn(5, 3)).sum().backward()
    assert torch.equal(layer(torch.randn(5, 3)), torch.zeros(5, 2))
    assert all(parameter.grad is not None and parameter.grad.abs().min() > 0 for parameter in layer.parameters())


def test_small_init_is_small_but_not_zero() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(200, 100)
    assert small_init(layer) is layer
    assert layer.weight.std().item() == pytest.approx(1e-3, rel=0.05)
    assert layer.weight.mean().abs() < 1e-4
    assert torch.equal(layer.bias, torch.zeros(100))
