"""Images become keypoints and tokens: closed forms, and what must not matter."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drifting_policy.models.augment import center_crop
from drifting_policy.models.image_encoder import ImageEncoder
from drifting_policy.models.resnet import ResNet, SpatialSoftmax, expected_position
from drifting_policy.types import ArraySpec, ConfigError

CAMERA = ArraySpec((24, 20, 3), "uint8")
OBSERVATIONS = {"wrist": CAMERA, "pose": ArraySpec((3,)), "front": CAMERA, "grip": ArraySpec(())}
OPTIONS = {"embed_dim": 7, "width": 8, "blocks": [1, 1], "keypoints": 4, "share": False, "crop": 0.8}
OPTIONS |= dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0)


def encoder(observations: dict[str, ArraySpec] = OBSERVATIONS, **options: Any) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(observations=observations, obs_horizon=2, **(OPTIONS | options))


def observation(b: int = 3, *, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: 2 * torch.rand(b, 2, *array.shape, generator=generator) - 1 for key, array in OBSERVATIONS.items()}


def test_there_is_one_token_per_step_and_the_order_of_keys_is_irrelevant() -> None:
    network, obs = encoder(), observation()
    tokens = network(obs)
    assert tokens.shape == (3, network.tokens, network.embed_dim) == (3, 2, 7)
    backwards = encoder(dict(reversed(OBSERVATIONS.items())))(dict(reversed(obs.items())))
    assert torch.equal(tokens, backwards)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("key", OBSERVATIONS)
def test_every_key_of_a_step_changes_its_token_and_no_other(key: str, share: bool) -> None:
    network, obs = encoder(share=share), observation()
    changed = {name: value.clone() for name, value in obs.items()}
    changed[key][1, 1] = observation(seed=2)[key][1, 1]
    differs = (network(changed) - network(obs)).abs().amax(dim=-1) > 1e-4
    assert differs.nonzero().tolist() == [[1, 1]]


def test_cameras_share_a_network_only_where_asked() -> None:
    obs = observation()
    obs["wrist"] = obs["front"]
    for share, count in ((True, 1), (False, 2)):
        network = encoder(share=share)
        assert len(network.networks) == count
        front, wrist = (network._keypoints(key, obs[key]) for key in ("front", "wrist"))
        assert torch.equal(front, wrist) == share


def test_features_depend_neither_on_the_batch_nor_on_the_mode() -> None:
    network, obs = encoder(), observation(b=6)
    together = network(obs)
    torch.testing.assert_close(together[2:3], network({key: value[2:3] for key, value in obs.items()}))
    assert torch.equal(together, network.eval()(obs))
    assert not list(network.buffers())


def test_use_sees_the_middle_and_training_a_part_of_equal_size() -> None:
    network, obs = encoder(), observation()
    middle = obs | {key: center_crop(obs[key], 19, 16) for key in ("front", "wrist")}
    assert torch.equal(network(obs), network(middle))
    border = obs | {key: obs[key].clone() for key in ("front", "wrist")}
    border["front"][:, :, 0] = border["front"][:, :, :, -1] = 9.0  # outside of the middle
    assert torch.equal(network(obs), network(border))
    first, again, other = (network.augment(obs, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    for key in ("front", "wrist"):
        assert first[key].shape == (3, 2, 19, 16, 3)
        assert torch.equal(first[key], again[key])
        assert not torch.equal(first[key], other[key])
    assert first["pose"] is obs["pose"]
    whole = encoder(crop=1.0)
    assert torch.equal(whole.augment(obs, torch.Generator())["front"], obs["front"])


def test_jitter_keeps_network_units() -> None:
    obs = observation()
    jittered = encoder(crop=1.0, brightness=0.5, hue=0.2).augment(obs, torch.Generator().manual_seed(0))["front"]
    assert not torch.allclose(jittered, obs["front"], atol=0.1)
    assert jittered.min() >= -1 - 1e-5
    assert jittered.max() <= 1 + 1e-5


def test_spatial_softmax_finds_a_bright_dot() -> None:
    maps = torch.zeros(2, 1, 5, 9)
    maps[0, 0, 1, 6] = maps[1, 0, 4, 0] = 60.0
    torch.testing.assert_close(expected_position(maps), torch.tensor([[6 / 4 - 1, 1 / 2 - 1], [-1.0, 1.0]]))
    assert torch.equal(expected_position(torch.zeros(1, 2, 5, 9)).round(decimals=5).abs(), torch.zeros(1, 4))
    assert torch.equal(expected_position(torch.ones(1, 2, 1, 1)), torch.zeros(1, 4))
    network = SpatialSoftmax(channels=2, keypoints=2)
    with torch.no_grad():
        network.maps.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]])[..., None, None])
        network.maps.bias.zero_()
    features = torch.cat([maps[:1], maps[1:]], dim=1)  # two maps of one image: x of both, then y of both
    torch.testing.assert_close(network(features), torch.tensor([[0.5, -1.0, -0.5, 1.0]]))


def test_position_moves_with_the_image() -> None:
    """What is read out of an image is where things are: four pixels more on a map of a quarter of the resolution."""
    torch.manual_seed(0)
    network = ResNet(channels=3, width=8, blocks=[1])
    image = torch.zeros(1, 3, 64, 64)
    image[:, :, 28:36, 24:32] = 1.0
    features = network(image) - network(torch.zeros_like(image))
    strength = features.square().sum(1, keepdim=True)
    moved = network(image.roll(8, dims=3)) - network(torch.zeros_like(image))
    before, after = (expected_position(each / strength.max() * 50) for each in (strength, moved.square().sum(1, keepdim=True)))
    torch.testing.assert_close(after - before, torch.tensor([[2 * 2 / 15, 0.0]]), atol=0.02, rtol=0)


def test_resnet_18_has_its_size() -> None:
    network = ResNet(channels=3, width=64, blocks=[2, 2, 2, 2])
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_176_512  # torchvision's, without its last layer
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 20
    assert network(torch.zeros(1, 3, 84, 84)).shape == (1, 512, 3, 3)


@pytest.mark.parametrize(
    ("observations", "options", "words"),
    [
        ({"pose": ArraySpec((3,))}, {}, "needs an observation of dtype uint8"),
        ({"front": ArraySpec((24,), "uint8")}, {}, "'front' must be 'h w c'"),
        ({"front": CAMERA, "depth": ArraySpec((24, 20, 1), "uint8")}, {"share": True}, "equally many channels"),
        ({"front": ArraySpec((24, 20, 1), "uint8")}, {"hue": 0.1}, "RGB images only"),
        (OBSERVATIONS, {"crop": 0.0}, r"in \(0, 1\]; got 0.0"),
        (OBSERVATIONS, {"crop": 0.5}, "12 x 10 px would be seen; at least 16"),
        (OBSERVATIONS, {"hue": 0.7}, r"encoder.hue must lie in \[0, 0.5\]; got 0.7"),
        (OBSERVATIONS, {"contrast": -0.1}, r"encoder.contrast must lie in \[0, 1\]"),
        (OBSERVATIONS, {"blocks": []}, "stages of at least one block"),
        (OBSERVATIONS, {"blocks": [1, 0]}, "stages of at least one block"),
        (OBSERVATIONS, {"width": 40}, "a multiple of 16; got 40"),
        (OBSERVATIONS, {"keypoints": 0}, "keypoints must be at least 1"),
    ],
)
def test_impossible_options_are_named(observations: dict[str, ArraySpec], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        encoder(observations, **options)


def test_many_channels_of_different_cameras_have_their_own_networks() -> None:
    network = encoder({"front": CAMERA, "depth": ArraySpec((24, 20, 1), "uint8")})
    assert network({"front": torch.zeros(1, 2, 24, 20, 3), "depth": torch.zeros(1, 2, 24, 20, 1)}).shape == (1, 2, 7)
