"""The features of an encoder against those of the release, and against loops."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from drifting_policy.imagenet.autoencoder import MaskedAutoencoder
from drifting_policy.imagenet.encoder import ImageEncoder
from drifting_policy.imagenet.features import cell_moments, combine, map_features, map_moments, root_mean_square
from drifting_policy.imagenet.release import autoencoder_options, load_encoder_weights


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, np.ndarray]:
    return dict(np.load(shared / "golden" / "mae_tiny.npz"))


@pytest.fixture(scope="module")
def documents(shared: Path) -> dict[str, dict]:
    return json.loads((shared / "golden" / "mae_tiny.json").read_text())


def build(golden: dict[str, np.ndarray], config: dict, *replaced: str) -> ImageEncoder:
    released = {name.removeprefix("params/"): value for name, value in golden.items() if name.startswith("params/")}
    model = MaskedAutoencoder(**autoencoder_options(config))
    load_encoder_weights(model, released | {name: golden[f"pix/params/{name}"] for name in replaced})
    return model.encoder


def error(ours: torch.Tensor, theirs: np.ndarray) -> float:
    """Largest difference, relative to the largest number."""
    assert tuple(ours.shape) == theirs.shape
    return float(np.abs(ours.detach().numpy() - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize(("case", "size", "every"), [("default", 16, 2), ("input8x8", 8, 2), ("every1", 16, 1)])
def test_features_are_those_of_the_release(
    golden: dict[str, np.ndarray], documents: dict[str, dict], case: str, size: int, every: int
) -> None:
    images = torch.from_numpy(golden["x"][:, :size, :size]).movedim(-1, 1)
    found = build(golden, documents["config"]).features(images, every_block=every)
    order = documents["features_order"][case]
    assert list(found) == list(order)
    assert [list(values.shape) for values in found.values()] == list(order.values())
    stored = {name: values for name, values in found.items() if f"feat/{case}/{name}" in golden}
    assert len(stored) == (5 if case == "every1" else len(order))
    for name, values in stored.items():
        assert error(values, golden[f"feat/{case}/{name}"]) < 5e-5, name


def test_features_of_folded_pixels_are_those_of_the_release(golden: dict[str, np.ndarray], documents: dict[str, dict]) -> None:
    variant = documents["pixel_variant"]
    found = build(golden, variant["config"], *variant["replaced"]).features(torch.from_numpy(golden["pix/x"]).movedim(-1, 1))
    names = [name.removeprefix("pix/feat/") for name in golden if name.startswith("pix/feat/")]
    assert len(names) == 5
    for name in names:
        assert error(found[name], golden[f"pix/feat/{name}"]) < 5e-5, name


def test_the_gradient_of_the_images_is_that_of_the_release(golden: dict[str, np.ndarray], documents: dict[str, dict]) -> None:
    encoder = build(golden, documents["config"]).requires_grad_(False)
    images = torch.from_numpy(golden["x"]).movedim(-1, 1).requires_grad_()
    sum(values.square().mean() for values in encoder.features(images).values()).backward()
    assert error(images.grad.movedim(1, -1), golden["feat/grad_x_of_sum_mean_sq"]) < 1e-4


def test_blocks_and_cells_are_chosen(documents: dict[str, dict]) -> None:
    encoder = ImageEncoder(in_channels=4, width=32, layers=(2, 3, 1, 1))
    found = encoder.features(torch.zeros(3, 4, 16, 16), every_block=0, cells=(2,))
    wanted = documents["features_order"]["noblocks_mean2only"]
    assert {name: list(found[name].shape) for name in wanted} == wanted
    assert not [name for name in found if "blk" in name or "_4" in name]
    assert len(found) == 1 + 5 * 5


def test_moments_are_those_of_a_loop_over_cells() -> None:
    maps = 3 + torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    mean, deviation = cell_moments(maps, 2)
    assert mean.shape == deviation.shape == (2, 6, 3)
    for b, s, e in np.ndindex(2, 6, 3):
        row, column = 2 * (s // 3), 2 * (s % 3)
        cell = maps[b, e, row : row + 2, column : column + 2].double().numpy()
        assert mean[b, s, e] == pytest.approx(cell.mean(), abs=1e-6)
        assert deviation[b, s, e] == pytest.approx(np.sqrt(cell.var() + 1e-6), abs=1e-6)
    mean, deviation = map_moments(maps)
    whole = maps.double().numpy()
    assert np.allclose(mean, whole.mean((2, 3))[:, None], atol=1e-6)
    assert np.allclose(deviation, np.sqrt(whole.var((2, 3)) + 1e-6)[:, None], atol=1e-6)


def test_positions_stand_row_by_row() -> None:
    maps = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    found = map_features("m", maps, cells=(2, 4))
    assert list(found) == ["m", "m_mean", "m_std"]  # neither cell divides five columns
    assert torch.equal(found["m"][1, 2 * 5 + 3], maps[1, :, 2, 3])
    assert torch.allclose(root_mean_square(maps)[:, 0], maps.square().mean(dim=(2, 3)).sqrt())


def test_constant_maps_have_finite_gradients() -> None:
    maps = torch.zeros(1, 2, 4, 4, requires_grad=True)
    sum(values.sum() for values in map_features("m", maps, cells=(1, 2)).values()).backward()
    root_mean_square(maps).sum().backward()
    assert maps.grad.isfinite().all()


def test_extractors_are_combined_in_their_order_and_do_not_hide_each_other() -> None:
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    extract = combine(lambda x: map_features("b", x, cells=()), lambda x: {"a": root_mean_square(x)})
    assert list(extract(images)) == ["b", "b_mean", "b_std", "a"]
    with pytest.raises(ValueError, match=r"\['b', 'b_mean', 'b_std'\]"):
        combine(extract, lambda x: map_features("b", x, cells=()))(images)
