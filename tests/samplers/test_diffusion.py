"""DDPM and DDIM against oracles, a float64 loop and the DDPM scheduler of diffusers; the noise on the way follows its row."""

import math
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_ddpm
from torch import Tensor

from drifting_policy.models import Generator
from drifting_policy.samplers.diffusion import DiffusionSampler, noise_schedule, step_noise
from drifting_policy.types import MissingPackage

COND = torch.zeros(1, 1, 1)
TRAINED: dict[str, Any] = {"timesteps": 100, "clip_sample": True}


class Oracle(Generator):
    """A head that is a given function of sample and signal share (the square root of alpha-bar)."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.alphas = torch.tensor(alpha_bars())

    def forward(self, noise: Tensor, cond: Tensor, time: Tensor | None = None) -> Tensor:
        assert time is not None
        alpha = self.alphas[(100 * time).round().long()].to(noise)
        return self.function(noise, alpha.sqrt()[:, None, None, None])


def alpha_bars() -> list[float]:
    """The squared-cosine schedule, written out (Nichol and Dhariwal 2021, equation 17, with beta at most 0.999)."""
    shares = [math.cos((t / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(101)]
    betas = [min(1 - after / before, 0.999) for before, after in pairwise(shares)]
    return np.cumprod(1 - np.array(betas)).tolist()


def knows(data: Tensor, prediction: str) -> Oracle:
    """The head that predicts without error where `data` is all the data there is."""
    if prediction == "sample":
        return Oracle(lambda x, signal: data.expand_as(x))
    return Oracle(lambda x, signal: (x - signal * data) / (1 - signal**2).sqrt())


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_schedule_is_the_squared_cosine() -> None:
    schedule = noise_schedule(prediction="epsilon", **TRAINED)
    np.testing.assert_allclose(schedule.alphas_cumprod, alpha_bars(), rtol=1e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize(
    ("scheduler", "steps"), [("ddpm", 100), ("ddpm", 10), ("ddim", 100), ("ddim", 16), ("ddim", 10), ("ddim", 1)]
)
def test_an_oracle_recovers_its_datum(scheduler: str, steps: int, prediction: str) -> None:
    data, noise = draw(1, 1, 4, 2, seed=1).clamp(-1, 1), draw(1, 6, 4, 2)
    sampler = DiffusionSampler(scheduler=scheduler, steps=steps, prediction=prediction, **TRAINED)
    for start in (noise, torch.zeros_like(noise)):
        chunk = sampler(knows(data, prediction), COND, start)
        torch.testing.assert_close(chunk, data.expand_as(noise), rtol=0, atol=1e-3 if prediction == "epsilon" else 1e-6)


@pytest.mark.parametrize("clip_sample", [True, False])
@pytest.mark.parametrize("steps", [100, 16, 10])
def test_ddim_is_its_formula(steps: int, clip_sample: bool) -> None:
    """Song et al. 2021, equation 12 with sigma = 0, in float64."""
    alphas, stride, noise = [*alpha_bars(), 1.0], 100 // steps, draw(1, 3, 4, 2)
    head = Oracle(lambda x, signal: torch.tanh(2 * x + signal))
    x = noise
    for step in reversed(range(0, steps * stride, stride)):
        now, then = alphas[step], alphas[max(step - stride, -1)]
        epsilon = torch.tanh(2 * x + now**0.5)
        data = (x - (1 - now) ** 0.5 * epsilon) / now**0.5
        data = data.clamp(-1, 1) if clip_sample else data
        x = then**0.5 * data + (1 - then) ** 0.5 * epsilon
    options = TRAINED | {"clip_sample": clip_sample}
    chunk = DiffusionSampler(scheduler="ddim", steps=steps, prediction="epsilon", **options)(head, COND, noise)
    torch.testing.assert_close(chunk, x, rtol=5e-3, atol=1e-3)  # diffusers keeps the schedule in float32


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("clip_sample", [True, False])
@pytest.mark.parametrize("steps", [100, 10])
def test_ddpm_is_that_of_diffusers(monkeypatch: pytest.MonkeyPatch, steps: int, clip_sample: bool, prediction: str) -> None:
    options = TRAINED | {"clip_sample": clip_sample}
    head, noise = Oracle(lambda x, signal: torch.tanh(2 * x + signal)), draw(1, 3, 4, 2)
    chunk = DiffusionSampler(scheduler="ddpm", steps=steps, prediction=prediction, **options)(head, COND, noise)
    draws = iter(step_noise(noise, steps=steps))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **options: next(draws))
    theirs = scheduling_ddpm.DDPMScheduler(
        num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", clip_sample=clip_sample, prediction_type=prediction
    )
    theirs.set_timesteps(steps)
    x = noise
    for step in theirs.timesteps:
        x = theirs.step(head(x, COND, step[None] / 100), step, x).prev_sample
    assert len(list(draws)) == 1  # the last step adds none
    torch.testing.assert_close(chunk, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim"])
def test_the_exact_noise_estimate_of_a_gaussian_reproduces_it(scheduler: str) -> None:
    """For data from N(m, s^2), E[noise | x] = sigma (x - alpha m) / (alpha^2 s^2 + sigma^2)."""
    m, s = 0.3, 0.5
    head = Oracle(lambda x, a: (1 - a**2).sqrt() * (x - a * m) / (a**2 * s**2 + 1 - a**2))
    options = TRAINED | {"clip_sample": False}
    chunk = DiffusionSampler(scheduler=scheduler, steps=100, prediction="epsilon", **options)(head, COND, draw(1, 4000, 2, 1))
    assert chunk.mean().item() == pytest.approx(m, abs=0.02)
    assert chunk.std().item() == pytest.approx(s, rel=0.06)


def test_only_ddpm_adds_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    module, head, noise = sys.modules[DiffusionSampler.__module__], Oracle(lambda x, signal: x / 2), draw(1, 2, 4, 2)
    options = {"steps": 100, "prediction": "epsilon", **TRAINED}
    before = {name: DiffusionSampler(scheduler=name, **options)(head, COND, noise) for name in ("ddpm", "ddim")}
    monkeypatch.setattr(module, "step_noise", lambda noise, steps: torch.ones(steps, *noise.shape))
    after = {name: DiffusionSampler(scheduler=name, **options)(head, COND, noise) for name in ("ddpm", "ddim")}
    assert torch.equal(after["ddim"], before["ddim"])
    assert not torch.allclose(after["ddpm"], before["ddpm"])


def test_the_noise_on_the_way_follows_the_row_alone() -> None:
    noise = draw(3, 2, 4, 2).float()
    steps = step_noise(noise, steps=5)
    assert (steps.shape, steps.dtype) == ((5, 3, 2, 4, 2), torch.float32)
    assert torch.equal(step_noise(noise, steps=5), steps)
    assert torch.equal(step_noise(noise[[2, 1]], steps=5), steps[:, [2, 1]])
    assert torch.equal(step_noise(noise.flatten(0, 1)[:, None], steps=5), steps.flatten(1, 2)[:, :, None])
    assert torch.equal(step_noise(noise.transpose(0, 1), steps=5), steps.transpose(1, 2))
    assert torch.equal(step_noise(noise.double(), steps=5), steps.double())
    moved = noise.clone()
    moved[1, 0, 3, 1] = torch.nextafter(moved[1, 0, 3, 1], torch.tensor(9.0))
    differs = (step_noise(moved, steps=5) != steps).flatten(3).all(dim=3)
    assert differs[:, 1, 0].all()
    differs[:, 1, 0] = False
    assert not differs.any()
    assert step_noise(noise[:0], steps=5).shape == (5, 0, 2, 4, 2)


def test_no_noise_has_none_on_its_way_and_knows_no_sign() -> None:
    noise = torch.zeros(1, 3, 4, 2)
    noise[0, 1] = -0.0
    noise[0, 2, 0, 0] = 1.0
    steps = step_noise(noise, steps=7)
    assert steps[:, :, :2].abs().max() == 0
    assert steps[:, :, 2].abs().min() > 0
    assert torch.equal(step_noise(torch.where(noise == 0, -noise, noise), steps=7), steps)


def test_the_noise_on_the_way_is_standard_normal_and_fresh() -> None:
    noise = draw(50, 1, 16, 2).float()
    steps = step_noise(noise, steps=100)
    assert abs(steps.mean().item()) < 0.01
    assert steps.std().item() == pytest.approx(1, abs=0.01)
    pairs = [(steps[0], noise), (steps[0], steps[1]), (steps[:, 0], steps[:, 1]), (steps[..., 0], steps[..., 1])]
    for one, other in pairs:
        assert abs(np.corrcoef(one.flatten(), other.flatten())[0, 1]) < 0.08


def test_it_is_the_same_on_every_machine() -> None:
    row = torch.arange(8.0).reshape(1, 1, 4, 2)
    recorded = [[1.005186, -1.414704], [0.0628937, 0.4688957]]
    np.testing.assert_allclose(step_noise(row, steps=2)[:, 0, 0, 0], recorded, rtol=1e-5)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers.schedulers.scheduling_ddim", None)
    with pytest.raises(MissingPackage, match=r"pip install 'drifting-policy\[baselines\]'"):
        noise_schedule(prediction="epsilon", **TRAINED)
