"""Accelerated policies plan what the policies plan that they come from."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from drifting_policy import acceleration
from drifting_policy.acceleration import StaticForward, accelerate, quicken, warm_up
from drifting_policy.models.convolutions import replaceable, replacement
from drifting_policy.normalize import Normalizer
from drifting_policy.policy import DriftingPolicy
from drifting_policy.types import ArraySpec, ConfigError, ObservationError, PolicySpec

SPEC = PolicySpec(
    observations={"grip": ArraySpec(()), "pose": ArraySpec((3,))},
    action=ArraySpec((2,)),
    obs_horizon=2,
    pred_horizon=8,
    exec_horizon=3,
    control_hz=10.0,
)
UNET = {"name": "unet", "channels": [16, 32, 64], "kernel": 5, "groups": 4, "film_dim": 16}
MLP = {"name": "mlp", "width": 16, "depth": 1}


def policy(generator: dict[str, Any] = UNET, **options: Any) -> DriftingPolicy:
    result = DriftingPolicy(SPEC, encoder={"name": "state", "embed_dim": 8}, generator=generator, clip=None, **options)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=drawn) / max(parameter[0].numel(), 4) ** 0.5)
    return result.requires_grad_(False).eval()


def inputs(batch: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    obs = {key: rng.standard_normal((batch, 2, *array.shape), dtype=np.float32) for key, array in SPEC.observations.items()}
    return {"obs": obs, "noise": rng.standard_normal((batch, 8, 2), dtype=np.float32)}


def refuse_without_instructions(dtype: str | None, work: Callable[[], object]) -> None:
    """Some CPUs have no products in bfloat16: that they are refused, in a sentence, is then all there is to see."""
    if dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        with pytest.raises(ConfigError, match="no instructions for products in bfloat16"):
            work()
        pytest.skip("this CPU has no products in bfloat16")


CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "kernel 5": lambda: nn.Conv1d(6, 10, 5, padding=2),
    "kernel 1": lambda: nn.Conv1d(6, 10, 1, bias=False),
    "strided": lambda: nn.Conv1d(6, 6, 3, stride=2, padding=1),
    "stride 3, no padding": lambda: nn.Conv1d(6, 4, 4, stride=3),
    "transposed": lambda: nn.ConvTranspose1d(6, 10, 4, stride=2, padding=1),
    "transposed, gaps": lambda: nn.ConvTranspose1d(6, 10, 2, stride=3, bias=False),
}
LAYOUTS: dict[str, tuple[dict[str, Any], float]] = {
    "packed": ({"dtype": None, "share_weights": False}, 2e-6),
    "shared": ({"dtype": None, "share_weights": True}, 2e-6),
    "bfloat16": ({"dtype": "bfloat16", "share_weights": False}, 0.05),
    "int8": ({"dtype": "int8", "share_weights": False}, 0.1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
@torch.inference_mode()
def test_a_replacement_computes_the_convolution(name: str, layout: str) -> None:
    options, tolerance = LAYOUTS[layout]
    conv, drawn = CONVOLUTIONS[name](), torch.Generator().manual_seed(1)
    refuse_without_instructions(options["dtype"], lambda: replacement(conv, **options))
    for batch, steps in ((1, 4), (3, 16)):
        x = torch.randn(batch, 6, steps, generator=drawn)
        found, exact = replacement(conv, **options)(x), conv.double()(x.double()).float()
        conv.float()
        assert found.shape == exact.shape
        assert (found - exact).abs().max() < tolerance


def test_only_plain_convolutions_over_time_are_replaced() -> None:
    assert all(replaceable(make()) for make in CONVOLUTIONS.values())
    others = [nn.Conv1d(4, 4, 3, groups=2), nn.Conv1d(4, 4, 3, dilation=2), nn.Conv1d(4, 4, 3, padding="same"), nn.Linear(4, 4)]
    others += [nn.Conv1d(4, 4, 3, padding_mode="circular"), nn.Conv2d(4, 4, 3)]
    others += [nn.ConvTranspose1d(4, 4, 3, stride=2, output_padding=1)]
    assert not any(map(replaceable, others))


@pytest.mark.parametrize("share_weights", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_an_accelerated_policy_plans_the_same_and_leaves_the_old_one_alone(batch: int, share_weights: bool) -> None:
    slow = policy()
    before, weights = slow.act(**inputs(batch)), {key: value.clone() for key, value in slow.state_dict().items()}
    fast = accelerate(slow, share_weights=share_weights)
    np.testing.assert_allclose(fast.act(**inputs(batch)), before, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(slow.act(**inputs(batch)), before)
    assert not any(isinstance(module, nn.Conv1d | nn.ConvTranspose1d) for module in fast.modules())
    assert any(isinstance(module, nn.Conv1d) for module in slow.modules())
    assert {key: value.tolist() for key, value in slow.state_dict().items()} == {k: v.tolist() for k, v in weights.items()}
    assert fast.encoder.project.weight is slow.encoder.project.weight


@pytest.mark.parametrize("share_weights", [False, True])
def test_shared_weights_follow_and_laid_out_ones_do_not(share_weights: bool) -> None:
    slow = policy()
    fast = accelerate(slow, share_weights=share_weights)
    before = fast.act(**inputs())
    with torch.no_grad():
        slow.generator.last.conv.weight.zero_()
    assert np.array_equal(fast.act(**inputs()), before) != share_weights


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 0.05), ("int8", 0.15)])
def test_fewer_bits_change_the_chunk_a_little(dtype: str, share: float) -> None:
    slow = policy()
    refuse_without_instructions(dtype, lambda: accelerate(slow, dtype=dtype))
    exact = slow.act(**inputs(8))
    difference = np.abs(accelerate(slow, dtype=dtype).act(**inputs(8)) - exact).mean()
    assert 0 < difference < share * exact.std()


def test_a_sampler_of_several_steps_and_a_head_without_convolutions_go_along() -> None:
    flow = policy(UNET | {"time": True}, sampler={"name": "flow", "steps": 3})
    np.testing.assert_allclose(accelerate(flow).act(**inputs()), flow.act(**inputs()), atol=1e-5)
    plain = policy(MLP)
    np.testing.assert_array_equal(accelerate(plain).act(**inputs()), plain.act(**inputs()))


@pytest.mark.parametrize(
    ("generator", "options", "sentence"),
    [
        (UNET, {"dtype": "float16"}, "Unknown dtype 'float16'"),
        (UNET, {"dtype": "int8", "share_weights": True}, "drop share_weights"),
        (UNET, {"dtype": "int8", "convolutions": False}, "keep convolutions=True"),
        (MLP, {"dtype": "bfloat16"}, "this one has none"),
        (UNET, {"compile": True}, "say share_weights=True"),
        (MLP, {"cuda_graph": True}, "needs a policy on a GPU; this one is on cpu"),
    ],
)
def test_what_cannot_be_is_refused(generator: dict[str, Any], options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        accelerate(policy(generator), **options)


def test_a_captured_forward_goes_through_its_buffers() -> None:
    plain, runs = policy(), []

    def capture(work: Callable[[], None]) -> Callable[[], None]:
        work()
        return lambda: runs.append(work())

    captured = accelerate(plain, convolutions=False)
    captured.forward = StaticForward(captured, capture=capture)
    first = captured.act(**inputs())
    np.testing.assert_array_equal(first, plain.act(**inputs()))
    other = inputs()
    other["obs"]["pose"] = other["obs"]["pose"] + 1
    second = captured.act(**other)
    np.testing.assert_array_equal(second, plain.act(**other))
    np.testing.assert_array_equal(first, plain.act(**inputs()))  # the buffer was not handed out
    assert len(runs) == 2
    assert not np.array_equal(first, second)
    with pytest.raises(ObservationError, match="one observation at a time; got 2"):
        captured.act(**inputs(2))


def test_warming_up_plans_as_often_as_told() -> None:
    ticks = iter(range(100))
    assert warm_up(policy(MLP), repetitions=3, clock=lambda: float(next(ticks))) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_pays_depends_on_where_the_policy_is(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(acceleration, "accelerate", lambda policy, **options: asked.append(options) or policy)
    monkeypatch.setattr(Normalizer, "device", property(lambda _: torch.device(device)))
    quicken(policy())
    assert asked == [{"convolutions": device == "cpu", "cuda_graph": device == "cuda", "dtype": None}]
