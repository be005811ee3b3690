"""The latency benchmark at tiny sizes: its parts run, its rows say what they compare, and a missed bar is told."""

import importlib
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = [
    "--channels",
    "8",
    "16",
    "--heads",
    "mlp",
    "--encoders",
    "image_small",
    "--repetitions",
    "1",
    "--rows",
    "--threads",
    "1",
]


@pytest.fixture
def latency(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("latency")


@pytest.fixture
def measured(latency: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every call is made once; the first of a pair then "takes" 2 ms, the second 1 ms. Returns the names in their order."""
    called: list[str] = []

    def interleaved(calls: dict[str, Any], **_: Any) -> dict[str, list[float]]:
        for name, call in calls.items():
            call()
            called.append(name)
        return dict(zip(calls, ([2.0], [1.0]), strict=True))

    monkeypatch.setattr(latency, "interleaved", interleaved)
    monkeypatch.setattr(latency, "onnx_session", lambda policy: None)
    return called


def test_every_part_runs_and_its_ratio_is_held_against_its_bar(
    latency: ModuleType, measured: list[str], tmp_path: Path
) -> None:
    parts = ["--parts", "heads", "backbone", "images"]
    assert latency.main([*TINY, *parts, "--out", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    found = {(row["comparison"], row["policy"]): (row["ratio"], row["met"]) for row in rows}
    assert found["act / forward", "mlp"] == (2.0, "no")
    assert found["forward / reading weights", "unet, packed"] == (2.0, "yes")
    assert found["accelerated / plain", "unet, int8"] == (2.0, "yes")
    assert found["image policy / ACT", "image_small, 1 decoders"] == (2.0, "no")
    assert measured[:2] == ["act", "network"]
    assert all(row["threads"] == 1 for row in rows)
    assert len(latency.missed(rows)) == sum(row["met"] == "no" for row in rows) == 4
    assert "act / forward of mlp with 1 threads is 2.00, not <= 1.1." in latency.missed(rows)


def test_several_steps_are_held_against_one(latency: ModuleType, measured: list[str]) -> None:
    pytest.importorskip("diffusers")
    rows = latency.diffusion("unet", [8, 16], repetitions=1, device=latency.CPU)
    assert [(row["comparison"], row["met"]) for row in rows] == [("DDPM-100 / one step", "no"), ("DDIM-10 / one step", "no")]
    assert measured == ["many", "one"] * 2


def test_reading_touches_every_weight(latency: ModuleType) -> None:
    module = torch.nn.Linear(3, 2)
    assert [tensor.shape for tensor in latency.reading(module)()] == [torch.Size([])] * 2
    torch.testing.assert_close(latency.reading(module)()[0], module.weight.sum().detach())


def test_the_transformer_has_the_size_of_acts(latency: ModuleType) -> None:
    act = latency.ActTransformer(tokens=2, embed_dim=8, steps=16, action=2, decoders=7)
    assert act(torch.zeros(1, 2, 8)).shape == (1, 16, 2)
    attention, hidden = 4 * 512 * (512 + 1), 2 * 512 * 3200 + 3200 + 512
    assert 4 * (attention + hidden) < sum(p.numel() for p in act.body.encoder.parameters()) < 4 * (attention + hidden + 3000)
    assert len(act.body.decoder.layers) == 7


def test_a_process_measures_each_number_of_threads(
    latency: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = []

    def run(command: list[str], *, check: bool) -> None:
        started.append(command[command.index("--rows") :][:3])
        row = {"comparison": "act / forward", "policy": "mlp", "threads": 1, "ratio": 1.0, "bar": "<= 1.1", "met": "yes"}
        Path(command[-1]).write_text(json.dumps([row]))

    monkeypatch.setattr(latency, "subprocess", SimpleNamespace(run=run))
    assert latency.main(["--threads", "1", "2", "--out", str(tmp_path / "latency.json")]) == 0
    written = json.loads((tmp_path / "latency.json").read_text())
    assert started == [["--rows", "--threads", "1"], ["--rows", "--threads", "2"]]
    assert (written["benchmark"], written["met"], len(written["rows"])) == ("latency", True, 2)
