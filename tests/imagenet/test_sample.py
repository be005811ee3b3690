"""Images follow from seed, class and number alone; sheets show them in their order; latents are decoded by a VAE."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from drifting_policy.imagenet.checkpoints import save_network
from drifting_policy.imagenet.config import register
from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.imagenet.images import to_bytes
from drifting_policy.imagenet.latents import decode_latents, load_vae
from drifting_policy.imagenet.sample import in_rows
from drifting_policy.imagenet.sampling import draw_images, draw_noise
from drifting_policy.imagenet.sheet import GAP, write_sheet
from drifting_policy.types import CheckpointError, ConfigError

PLACES = [(label, index) for label in range(3) for index in range(5)]


def generator(channels: int = 3, **changes: Any) -> ImageGenerator:
    options: dict[str, Any] = {
        "classes": 3,
        "image_size": 4,
        "in_channels": 1,
        "out_channels": channels,
        "patch": 2,
        "width": 16,
    }
    options |= {"depth": 1, "heads": 2, "cond_dim": 8, "styles": 4, "style_tokens": 3, "precision": "float32"}
    network, source = ImageGenerator(**options | changes), torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=source) * 0.3
    return network.eval()


def drawn(network: ImageGenerator, places: Any = PLACES, *, batch: int = 4, seed: int = 0, cfg: float = 1.0) -> torch.Tensor:
    return torch.cat(list(draw_images(network, places, cfg_scale=cfg, seed=seed, batch=batch)))


def test_an_image_depends_on_seed_class_and_number_alone() -> None:
    network = generator()
    whole = drawn(network)
    assert whole.shape == (15, 3, 4, 4)
    for batch in (1, 7, 100):
        torch.testing.assert_close(drawn(network, batch=batch), whole, rtol=1e-4, atol=1e-5)
    chosen = [11, 3, 8]
    torch.testing.assert_close(drawn(network, [PLACES[i] for i in chosen]), whole[chosen], rtol=1e-4, atol=1e-5)
    for other in (drawn(network, seed=1), drawn(network, cfg=3.0)):
        assert (other - whole).abs().amax((1, 2, 3)).min() > 1e-5
    assert torch.pdist(whole.flatten(1)).min() > 1e-2


@settings(max_examples=50, deadline=None)
@given(numbers=st.lists(st.tuples(*[st.integers(0, 2**40)] * 3), min_size=2, max_size=2, unique=True))
def test_noise_is_a_function_of_three_numbers(numbers: list[tuple[int, int, int]]) -> None:
    def noise(seed: int, label: int, index: int) -> torch.Tensor:
        values, style = draw_noise(NETWORK, seed=seed, label=label, index=index)
        assert values.shape == (1, 4, 4)
        assert (style.shape, style.dtype) == ((3,), torch.int64)
        return torch.cat([values.flatten(), style])

    before = torch.get_rng_state()
    assert torch.equal(noise(*numbers[0]), noise(*numbers[0]))
    assert not torch.equal(noise(*numbers[0]), noise(*numbers[1]))
    assert torch.equal(torch.get_rng_state(), before)


NETWORK = generator()


def test_noise_is_standard_normal_and_styles_are_all_drawn() -> None:
    values, styles = zip(*(draw_noise(NETWORK, seed=0, label=0, index=i) for i in range(500)), strict=True)
    assert abs(float(torch.stack(values).mean())) < 0.05
    assert abs(float(torch.stack(values).std()) - 1) < 0.05
    assert torch.bincount(torch.cat(styles)).tolist() == pytest.approx([375] * 4, rel=0.2)


def test_a_generator_that_draws_no_numbers_is_told() -> None:
    network = generator()
    network.output.bias.data[3] = float("nan")
    with pytest.raises(CheckpointError, match="draws NaN or infinity"):
        drawn(network)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny VAE with the interface of SD-VAE."""
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    network = AutoencoderKL(block_out_channels=[4, 8], layers_per_block=1, norm_num_groups=2, **blocks)
    path = tmp_path_factory.mktemp("vae")
    network.save_pretrained(path)
    return path


@pytest.fixture
def sample(program: Callable[..., Any]) -> Callable[..., Any]:
    """Runs the entry point."""
    register()
    return lambda *arguments: program("imagenet.sample", "threads=1", *arguments)


def test_a_sheet_and_its_numbers(sample: Callable[..., Any], tmp_path: Path) -> None:
    network = generator()
    path = save_network(tmp_path / "saved", network, metadata={})
    out = tmp_path / "new" / "sheet.png"
    arguments = [f"ckpt={path}", "classes=[2,0]", "n=3", "cfg=1.5", "seed=4", f"out={out}", "arrays=true"]
    pictures = []
    for batch in (1, 4):
        done = sample(*arguments, f"batch={batch}")
        assert done.code == 0
        assert "3 of each class 2, 0; guidance 1.5, seed 4" in done.out
        pictures.append(np.asarray(Image.open(out)))
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 1
    places = [(2, 0), (2, 1), (2, 2), (0, 0), (0, 1), (0, 2)]
    expected = drawn(network, places, seed=4, cfg=1.5)
    stored = np.load(out.with_suffix(".npz"))
    np.testing.assert_allclose(stored["samples"], expected, rtol=1e-4, atol=1e-5)
    assert list(zip(stored["labels"], stored["indices"], strict=True)) == places
    assert (float(stored["cfg"]), int(stored["seed"])) == (1.5, 4)
    picture, edge = pictures[0], 64 + GAP
    assert picture.shape == (2 * edge - GAP, 3 * edge - GAP, 3)
    for place, image in enumerate(to_bytes(expected)):
        top, left = place // 3 * edge, place % 3 * edge
        tile = picture[top : top + 64, left : left + 64].reshape(4, 16, 4, 16, 3)
        assert np.abs(tile.astype(int) - image[:, None, :, None]).max() <= 1
    assert sorted(file.name for file in out.parent.iterdir()) == ["sheet.npz", "sheet.png"]


def test_latents_are_shown_with_and_without_a_vae(sample: Callable[..., Any], vae: Path, tmp_path: Path) -> None:
    network = generator(4)
    path, out = save_network(tmp_path / "saved", network, metadata={}), tmp_path / "sheet.png"
    arguments = [f"ckpt={path}", "n=1", "classes=[1]", f"out={out}"]
    assert "first three latent channels" in sample(*arguments, "vae=none").out
    latents = drawn(network, [(1, 0)])
    expected = to_bytes(latents[:, :3] / 3)[0].repeat(16, axis=0).repeat(16, axis=1)
    assert np.array_equal(np.asarray(Image.open(out)), expected)
    assert "channels" not in sample(*arguments, f"vae={vae}").out
    expected = decode_latents(load_vae(vae), latents)[0].repeat(8, axis=0).repeat(8, axis=1)
    assert np.abs(np.asarray(Image.open(out)).astype(int) - expected).max() <= 1
    told = sample(*arguments, f"vae={tmp_path / 'absent'}").error
    assert "There is no folder" in told
    assert told.endswith("Or see the latents as they are, by vae=none.")


def test_all_classes_of_a_small_generator_are_drawn_unless_some_are_named(sample: Callable[..., Any], tmp_path: Path) -> None:
    path = save_network(tmp_path / "saved", generator(1), metadata={})
    assert "2 of each class 0, 1, 2;" in sample(f"ckpt={path}", "n=2", f"out={tmp_path / 'sheet.png'}").out


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("classes=[1,3,-1]", r"classes must lie in [0, 3) with this generator; got [3, -1]"),
        ("classes=[]", "at least one class"),
        ("n=0", "n and batch must be at least 1"),
        ("batch=0", "n and batch must be at least 1"),
        ("cfg=0", "cfg must be positive"),
        ("cfg=nan", "cfg must be positive"),
        ("seed=-1", "seed must be at least 0"),
        ("out=sheet.jpg", "must end in .png"),
        ("device=cuda:77", "device=cuda:77 cannot be used"),
        ("ckpt=''", "Say whose images"),
        ("ckpt=absent", "no network in absent"),
        ("clases=[1]", "Did you mean 'classes'"),
    ],
)
def test_mistakes_are_told(argument: str, told: str, sample: Callable[..., Any], tmp_path: Path) -> None:
    path = save_network(tmp_path / "saved", generator(), metadata={})
    assert told in sample(f"ckpt={path}", f"out={tmp_path / 'sheet.png'}", argument).error
    assert sorted(file.name for file in tmp_path.iterdir()) == ["saved"]


def test_rows_are_filled_up_with_white() -> None:
    images = np.arange(2 * 5, dtype=np.uint8).reshape(10, 1, 1, 1)
    assert in_rows(images, count=5, columns=3).flatten().tolist() == [0, 1, 2, 3, 4, 255, 5, 6, 7, 8, 9, 255]
    assert np.array_equal(in_rows(images, count=5, columns=5), images)


@pytest.mark.parametrize(
    ("name", "shape", "columns", "told"),
    [
        ("x.jpg", (1, 4, 4, 3), 1, r"must end in \.png"),
        ("x.png", (0, 4, 4, 3), 1, r"got 1 columns, \(0, 4, 4, 3\)"),
        ("x.png", (1, 4, 4, 2), 1, "grey or RGB"),
        ("x.png", (1, 4, 4, 3), 0, "got 0 columns"),
        ("file/x.png", (1, 4, 4, 3), 1, "could not be written"),
    ],
)
def test_sheets_that_cannot_be_drawn_are_told(
    name: str, shape: tuple[int, ...], columns: int, told: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=told):
        write_sheet(tmp_path / name, np.zeros(shape, np.uint8), columns=columns)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
