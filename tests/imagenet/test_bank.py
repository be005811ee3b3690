"""The memory bank against the states of the release's, and what must hold of every draw from it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from drifting_policy.imagenet.bank import MemoryBank


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(arrays: dict[str, np.ndarray], bank: MemoryBank) -> None:
    for step in sorted({key.split("/")[1] for key in arrays if key.startswith("bank/add")}):
        samples, labels = (torch.from_numpy(arrays[f"bank/{step}/{name}"]) for name in ("samples", "labels"))
        bank.add(samples[:, :, None, None], labels)
        if f"bank/{step}/bank" in arrays:
            np.testing.assert_array_equal(bank.by_class.samples[..., 0, 0].numpy(), arrays[f"bank/{step}/bank"])
            np.testing.assert_array_equal(bank.by_class.counts.numpy(), arrays[f"bank/{step}/count"])
            np.testing.assert_array_equal((bank.by_class.added % 3).numpy(), arrays[f"bank/{step}/ptr"])


@pytest.fixture
def arrays(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "golden" / "training_pieces.npz") as archive:
        return dict(archive)


def test_states_are_those_of_the_release_after_every_addition(arrays: dict[str, np.ndarray]) -> None:
    bank = MemoryBank(classes=4, per_class=3, overall=5, image_shape=(2, 1, 1))
    filled(arrays, bank)
    everything = np.concatenate([arrays[f"bank/add{i}/samples"] for i in range(5)])
    held = {tuple(row) for row in bank.overall.samples[0, :, :, 0, 0].numpy()}
    assert held == {tuple(row) for row in everything[-5:]}


@pytest.mark.parametrize("case", range(3))
def test_draws_have_the_properties_of_those_of_the_release(arrays: dict[str, np.ndarray], shared: Path, case: int) -> None:
    pieces = json.loads((shared / "golden" / "training_tiny.json").read_text())["pieces"]
    count, labels = pieces[f"bank/sample{case}"]["n_samples"], arrays[f"bank/sample{case}/labels"]
    bank = MemoryBank(classes=4, per_class=3, overall=5, image_shape=(2, 1, 1))
    filled(arrays, bank)
    known = labels != 3  # the class that the release never filled, for which it returns zeros
    ours = bank.positives(torch.from_numpy(labels[known]), count, generator=source(case))[..., 0, 0].numpy()
    theirs = arrays[f"bank/sample{case}/out"][known]
    assert ours.shape == theirs.shape
    for label, *rows in zip(labels[known], ours, theirs, strict=True):
        held = {tuple(row) for row in bank.by_class.samples[label, :, :, 0, 0].numpy()}
        for drawn in rows:
            assert {tuple(row) for row in drawn} <= held
            assert len({tuple(row) for row in drawn}) == count or count > 3
    if not known.all():
        with pytest.raises(ValueError, match=r"no sample of condition\(s\) \[3\]"):
            bank.positives(torch.from_numpy(labels), count, generator=source())


def numbered(count: int) -> Tensor:
    return torch.arange(count).float()[:, None, None, None].expand(count, 1, 2, 2)


def test_every_image_of_a_class_is_drawn_equally_often() -> None:
    bank = MemoryBank(classes=2, per_class=4, overall=6, image_shape=(1, 2, 2))
    bank.add(numbered(8), torch.tensor([0, 1] * 4))
    drawn = bank.positives(torch.ones(3000).long(), 2, generator=source())[:, :, 0, 0, 0]
    assert (drawn[:, 0] != drawn[:, 1]).all()
    shares = torch.bincount(drawn.flatten().long(), minlength=8) / 3000
    torch.testing.assert_close(shares, torch.tensor([0, 0.5] * 4), atol=0.04, rtol=0)
    overall = bank.unconditional(3000, 3, generator=source())[:, :, 0, 0, 0]
    shares = torch.bincount(overall.flatten().long(), minlength=8) / 3000
    torch.testing.assert_close(shares, torch.tensor([0, 0, *[0.5] * 6]), atol=0.04, rtol=0)


def test_no_unconditional_images_are_an_empty_tensor() -> None:
    bank = MemoryBank(classes=1, per_class=1, overall=1, image_shape=(3, 4, 5))
    assert bank.unconditional(7, 0, generator=source()).shape == (7, 0, 3, 4, 5)
    with pytest.raises(ValueError, match="no sample"):
        bank.unconditional(7, 1, generator=source())


def test_bytes_lose_nothing_of_pixels() -> None:
    levels = torch.arange(256).float().reshape(1, 1, 16, 16) / 127.5 - 1
    bank = MemoryBank(classes=1, per_class=1, overall=1, image_shape=(1, 16, 16), as_bytes=True)
    bank.add(levels, torch.zeros(1).long())
    assert torch.equal(bank.positives(torch.zeros(1).long(), 1, generator=source())[0], levels)
    assert bank.by_class.samples.dtype == torch.uint8
    bank.add(torch.full((1, 1, 16, 16), 1.5), torch.zeros(1).long())
    assert (bank.unconditional(1, 1, generator=source()) == 1).all()


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_restored_bank_draws_the_same(as_bytes: bool) -> None:
    banks = [MemoryBank(classes=2, per_class=3, overall=4, image_shape=(1, 2, 2), as_bytes=as_bytes) for _ in range(2)]
    banks[0].add(numbered(9) / 10, torch.tensor([0, 1, 1] * 3))
    banks[1].load_state_dict(banks[0].state_dict())
    for bank in banks:
        bank.add(numbered(2) / 20, torch.tensor([0, 1]))
    labels = torch.tensor([0, 1, 1])
    draws = [(bank.positives(labels, 2, generator=source(5)), bank.unconditional(3, 2, generator=source(6))) for bank in banks]
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))
    with pytest.raises(ValueError, match="must have shape"):
        MemoryBank(classes=2, per_class=2, overall=4, image_shape=(1, 2, 2)).load_state_dict(banks[0].state_dict())
