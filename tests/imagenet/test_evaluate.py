"""`evaluate` from end to end: drawing, sharing, resuming and judging, and one sentence for every mistake."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from drifting_policy.imagenet import classifier, config
from drifting_policy.imagenet.checkpoints import save_network
from drifting_policy.imagenet.classifier import ClassifierOptions, ImageClassifier, load_classifier, save_classifier
from drifting_policy.imagenet.config import EvaluateConfig
from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.imagenet.images import open_images
from drifting_policy.imagenet.ranks import Ranks
from drifting_policy.types import ConfigError

ROOT = Path(__file__).resolve().parents[2]
Program = Callable[..., Any]


@pytest.fixture(autouse=True)
def schemas() -> None:
    config.register()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator of noise in the shape of the digits, and a classifier that learnt nothing."""
    folder = tmp_path_factory.mktemp("evaluation")
    sizes = {
        "classes": 10,
        "image_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "patch": 4,
        "width": 16,
        "depth": 1,
        "heads": 2,
    }
    generator = ImageGenerator(**sizes, cond_dim=8, styles=4, style_tokens=2, registers=1, precision="float32")
    source = torch.Generator().manual_seed(0)
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=source)
    save_network(folder / "generator", generator, metadata={})
    save_network(folder / "latents", ImageGenerator(**sizes | {"in_channels": 4, "out_channels": 4}, cond_dim=8), metadata={})
    names = [str(digit) for digit in range(10)]
    model = ImageClassifier(class_names=names, image_shape=(1, 8, 8), width=4).eval()
    save_classifier(folder / "classifier", model, options=ClassifierOptions(), accuracy=0.1, count=500)
    return folder


@pytest.fixture
def evaluate(program: Program, place: Path) -> Program:
    """Runs `evaluate` with the classifier against the digits."""

    def start(*arguments: str) -> Any:
        shared = ["data=digits", "threads=1", "device=cpu", f"extractor=classifier:{place / 'classifier'}"]
        given = {argument.partition("=")[0] for argument in arguments}
        return program("imagenet.evaluate", *(word for word in shared if word.partition("=")[0] not in given), *arguments)

    return start


def results(out: Path) -> dict[str, Any]:
    (file,) = out.glob("results_*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_the_yaml_names_exactly_the_settings() -> None:
    (file,) = (ROOT / "configs/imagenet").glob("evaluate.yaml")
    written = yaml.safe_load(file.read_text())
    defaults = {field.name: getattr(EvaluateConfig(), field.name) for field in dataclasses.fields(EvaluateConfig)}
    assert {key: value for key, value in written.items() if key not in ("defaults", "hydra")} == defaults


def test_a_generator_is_judged_and_the_result_says_how(evaluate: Program, place: Path, tmp_path: Path) -> None:
    ended = evaluate(f"ckpt={place / 'generator'}", "n=40", "cfg=1.5", f"out={tmp_path}", "cas=true")
    assert ended.code == 0, ended.err
    found = results(tmp_path)
    assert "real images told by a classifier of samples" in ended.out
    assert found["metrics"].pop("classification_accuracy_score")["n"] == 500
    assert {"frechet_distance", "class_accuracy", "precision", "coverage", "copies"} <= set(found["metrics"])
    assert (found["n"], found["seed"], found["cfg"], found["network_evaluations"]) == (40, 0, 1.5, 1)
    assert found["extractor"]["name"].startswith("classifier:")
    assert (found["reference"]["data"], found["reference"]["split"], found["reference"]["n"]) == ("digits", "test", 500)
    assert found["versions"]["torch"] == torch.__version__
    assert found["metrics"]["frechet_distance"]["name"] == "feature distance (own classifier)"
    assert "FID" not in ended.out + json.dumps(found)
    assert "Inception" not in ended.out + json.dumps(found)
    assert "feature distance (own classifier)" in ended.out
    assert (tmp_path / "samples.png").is_file()


def test_shards_add_up_and_nothing_is_drawn_twice(evaluate: Program, place: Path, tmp_path: Path) -> None:
    drawing = [f"ckpt={place / 'generator'}", "n=1100"]  # three blocks
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert evaluate(*drawing, f"out={whole}", "batch_size=100").code == 0
    shared = [*drawing, f"out={parts}", "batch_size=64"]
    first = evaluate(*shared, "shard=0/2")
    assert "600 samples drawn" in first.out
    assert not list(parts.glob("results*"))
    assert "1 of 3 blocks; draw them: shard=1/2" in evaluate(*shared, "shard=merge/2").error
    assert "500 samples drawn" in evaluate(*shared, "shard=1/2").out
    assert "0 samples drawn" in evaluate(*shared, "shard=1/2").out
    assert evaluate(*shared, "shard=merge/2").code == 0
    values = [{name: metric["value"] for name, metric in results(out)["metrics"].items()} for out in (whole, parts)]
    assert values[0] == pytest.approx(values[1], rel=1e-3)
    assert "were drawn with seed 0, not 1" in evaluate(*shared, "seed=1").error


def test_given_samples_are_judged_without_a_generator(evaluate: Program, tmp_path: Path) -> None:
    real = open_images("digits", split="test")
    np.savez(tmp_path / "real.npz", arr_0=real.images[:], arr_1=real.labels)
    assert evaluate(f"samples={tmp_path / 'real.npz'}", f"out={tmp_path}").code == 0
    found = results(tmp_path)
    assert found["metrics"]["frechet_distance"]["value"] == pytest.approx(0, abs=1e-9)
    assert found["metrics"]["coverage"]["value"] == 1
    assert found["n"] == 500
    assert "network_evaluations" not in found
    np.savez(tmp_path / "real.npz", arr_0=real.images[:3], arr_1=real.labels[:3] + 10)
    ended = evaluate(f"samples={tmp_path / 'real.npz'}", f"out={tmp_path}")
    assert "no accuracy is told" in ended.out
    assert "singular" in ended.out
    assert "class_accuracy" not in results(tmp_path)["metrics"]


def test_published_statistics_are_a_reference(evaluate: Program, place: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "reference.npz", mu=np.zeros(16), sigma=np.eye(16))
    ended = evaluate(f"ckpt={place / 'generator'}", "n=40", f"out={tmp_path}", f"data={tmp_path / 'reference.npz'}")
    assert ended.code == 0, ended.err
    assert set(results(tmp_path)["metrics"]) == {"frechet_distance", "class_score", "class_accuracy"}
    assert "file of statistics" in ended.out
    asked = evaluate(f"ckpt={place / 'generator'}", "cas=true", f"out={tmp_path}", f"data={tmp_path / 'reference.npz'}")
    assert "file of statistics. Leave cas out" in asked.error
    np.savez(tmp_path / "reference.npz", mu=np.zeros(5), sigma=np.eye(5))
    ended = evaluate(f"ckpt={place / 'generator'}", "n=40", f"out={tmp_path}", f"data={tmp_path / 'reference.npz'}")
    assert "statistics of 5 numbers; classifier:" in ended.error


def test_the_classifier_is_trained_once_for_a_data_set(
    evaluate: Program, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIFTING_POLICY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(classifier.OPTIONS, "digits", ClassifierOptions(width=4, epochs=1, shift=1, flips=False))
    command = [f"ckpt={place / 'generator'}", "n=30", f"out={tmp_path}", "extractor=classifier", "labels=data"]
    assert evaluate(*command).code == 0
    (folder,) = tmp_path.glob("cache/features/classifier_*")
    model, about = load_classifier(folder)
    assert model.class_names == tuple("0123456789")
    assert 0 <= about["test_accuracy"] <= 1
    monkeypatch.setattr(classifier, "train_classifier", None)  # would fail
    assert evaluate(*command).code == 0
    assert results(tmp_path)["labels"] == "data"


def test_latents_are_decoded_before_they_are_kept(evaluate: Program, place: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    AutoencoderKL(**blocks, block_out_channels=[4, 8], norm_num_groups=2, latent_channels=4).save_pretrained(tmp_path / "vae")
    drawing = [f"ckpt={place / 'latents'}", "n=3", f"vae={tmp_path / 'vae'}", f"out={tmp_path}", "shard=0/1"]
    assert "3 samples drawn" in evaluate(*drawing).out
    assert np.load(tmp_path / "samples" / "block_000000.npy").shape == (3, 16, 16, 3)


def test_results_lie_beside_the_checkpoint(evaluate: Program, place: Path) -> None:
    assert evaluate(f"ckpt={place / 'generator'}", "n=20", "seed=3").code == 0
    assert results(place / "generator" / "evaluation_cfg1_balanced_seed3")["seed"] == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["data=digits"], "Say what to evaluate"),
        (["ckpt={}/generator", "samples=x"], "Say what to evaluate"),
        (["ckpt={}/generator", "data="], "Say what to compare with"),
        (["ckpt={}/generator", "n=0"], "n must be at least 1"),
        (["ckpt={}/generator", "labels=some"], "labels must be one of"),
        (["ckpt={}/generator", "cfg=0"], "cfg must be positive"),
        (["ckpt={}/generator", "seed=-1"], "seed must be at least 0"),
        (["ckpt={}/generator", "split=all"], "split must be one of"),
        (["ckpt={}/generator", "shard=2/2"], "shard '2/2' does not exist"),
        (["samples={}/generator", "shard=0/2"], "without shard="),
        (["ckpt={}/generator", "extractor=fid"], "Unknown extractor 'fid'"),
        (["ckpt={}/generator", "data=nowhere"], "no images at nowhere"),
        (["ckpt={}/nothing"], "nothing"),
        (["ckpt={}/classifier"], "holds no network of the image generator"),
        (["ckpt={}/latents", "n=4", "vae=./nowhere", "out={}/out"], "nowhere"),
        (["ckpt={}/generator", "data=nowhere.npz", "extractor=classifier"], "nothing to train on"),
    ],
)
def test_mistakes_are_one_sentence(evaluate: Program, place: Path, arguments: list[str], told: str) -> None:
    assert told in evaluate(*(argument.format(place) for argument in arguments)).error


def test_ranks_are_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ranks.here() == Ranks(0, 1, 0)
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="MASTER_ADDR and MASTER_PORT"):
        Ranks.here()
    monkeypatch.setenv("MASTER_PORT", "1")
    assert (Ranks.here(), Ranks.here().first) == (Ranks(1, 4, 1), False)
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(ConfigError, match="no rank 4 among 4"):
        Ranks.here()
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ConfigError, match="not numbers"):
        Ranks.here()
    assert Ranks(0, 2, 1).device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [Ranks(1, 2, 1).device(name) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    assert Ranks(0, 1, 0).device("cuda") == "cuda"


def test_two_ranks_share_the_work(evaluate: Program, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    command = [f"ckpt={place / 'generator'}", "n=600", f"out={tmp_path}", "data=digits", "device=cpu", "threads=1"]
    extractor = f"extractor=classifier:{place / 'classifier'}"
    other = subprocess.Popen(
        [sys.executable, "-m", "drifting_policy.imagenet.evaluate", *command, extractor],
        env=os.environ | meeting | {"RANK": "1", "LOCAL_RANK": "1"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for name, value in (meeting | {"RANK": "0", "LOCAL_RANK": "0"}).items():
            monkeypatch.setenv(name, value)
        ended = evaluate(*command, extractor)
        printed, _ = other.communicate(timeout=100)
    finally:
        other.kill()
    assert (ended.code, other.returncode, printed) == (0, 0, "")
    assert results(tmp_path)["n"] == 600
    assert "leave out shard=" in evaluate(*command, extractor, "shard=0/2").error
