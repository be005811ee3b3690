"""Averages and learning rates against their closed forms and the numbers of the release."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from drifting_policy.imagenet.averages import Averages
from drifting_policy.imagenet.schedule import learning_rate
from drifting_policy.types import CheckpointError, ConfigError


def test_every_average_follows_with_its_own_memory() -> None:
    network = nn.Linear(2, 3)
    start = network.weight.detach().clone()
    averages = Averages(network, [0.5, 0.9])
    assert torch.equal(averages.main.weight, start)
    for step in (1, 2, 3):
        with torch.no_grad():
            network.weight.copy_(start + step)
        averages.update(network)
    for decay, average in averages.networks.items():
        expected = (1 - decay) * (decay**2 * 1 + decay * 2 + 3)
        torch.testing.assert_close(average.weight, start + expected)
        assert not average.weight.requires_grad
    assert averages.main is averages.networks[0.5]


def test_averages_go_on_from_their_state() -> None:
    networks = [nn.Linear(2, 3), nn.Linear(2, 3)]
    averages = [Averages(network, [0.5, 0.9]) for network in networks]
    averages[1].load_state_dict({name: {k: v.clone() for k, v in s.items()} for name, s in averages[0].state_dict().items()})
    for each in averages:
        each.update(networks[0])
    for decay in (0.5, 0.9):
        assert torch.equal(averages[0].networks[decay].weight, averages[1].networks[decay].weight)
    with pytest.raises(CheckpointError, match=r"have the decays \[0.5\]; the state holds \['0.5', '0.9'\]"):
        Averages(networks[0], [0.5]).load_state_dict(averages[0].state_dict())


@pytest.mark.parametrize("decays", [[], [0.5, 0.5], [1.0], [-0.1]])
def test_impossible_decays_are_refused(decays: list[float]) -> None:
    with pytest.raises(ConfigError, match="one or more different decays"):
        Averages(nn.Linear(1, 1), decays)


@pytest.mark.parametrize("case", range(4))
def test_learning_rates_are_those_of_the_release(shared: Path, case: int) -> None:
    arrays = np.load(shared / "golden" / "training_pieces.npz")
    entry = json.loads((shared / "golden" / "training_tiny.json").read_text())["pieces"][f"lr/{case}"]
    shape = {"const": "constant", "cosine": "cosine"}[entry["lr_schedule"]]
    for step, expected in zip(arrays[f"lr/{case}/steps"], arrays[f"lr/{case}/values"], strict=True):
        rate = learning_rate(
            int(step),
            peak=entry["learning_rate"],
            warmup_steps=entry["warmup_steps"],
            total_steps=entry["total_steps"],
            shape=shape,
        )
        assert rate == pytest.approx(float(expected), rel=1e-5, abs=1e-7 * entry["learning_rate"])


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ConfigError, match="Unknown schedule 'linear'; choose one of"):
        learning_rate(0, peak=1.0, warmup_steps=0, total_steps=1, shape="linear")
