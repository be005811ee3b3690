"""Trainings of image generators and encoders: they resume bit for bit, two never mix, and mistakes get one sentence."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished_runs import assert_same_end, equal, metrics
from PIL import Image

from drifting_policy import cli
from drifting_policy.checkpoint import list_checkpoints, load_state, read_config
from drifting_policy.imagenet import drifting, masking, train
from drifting_policy.imagenet.bank import MemoryBank
from drifting_policy.imagenet.checkpoints import load_encoder, load_generator
from drifting_policy.imagenet.config import register
from drifting_policy.imagenet.drifting import Counts, DriftGoal
from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.imagenet.images import ImageSet
from drifting_policy.imagenet.stream import ImageStream

Program = Callable[..., Any]
COMMON = ("device=cpu", "threads=1", "task.data.batch_size=6", "task.trainer.steps=4", "task.trainer.log_every=1")
COMMON += ("task.trainer.checkpoint_every=2", "task.trainer.picture_every=2", "task.optimizer.warmup_steps=1")
SIZES = {"width": 16, "depth": 1, "heads": 2, "cond_dim": 16, "registers": 1, "styles": 2, "style_tokens": 1}
COUNTS = {"labels": 3, "generated": 3, "positives": 4, "unconditional": 2}
DRIFT = ("task=digits", *(f"task.generator.{name}={value}" for name, value in SIZES.items()))
DRIFT += tuple(f"task.batch.{name}={value}" for name, value in COUNTS.items())
DRIFT += ("task.bank.prefill=20", "task.trainer.averages=[0.5,0.9]")
ALONE = (*DRIFT, "task.encoder=none")
MASK = ("task=mae_digits", "task.masking.last_steps=2", "task.masking.ramp_steps=2")


def finish(run_dir: Path, *settings: str, code: int = 0) -> Path:
    """The run, trained in this process."""
    register()
    assert train.run(cli.compose("imagenet.train", [*COMMON, *settings, f"run_dir={run_dir}"])) == code
    return run_dir


@pytest.fixture(scope="module")
def encoder_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(tmp_path_factory.mktemp("runs") / "mae", *MASK)


@pytest.fixture(scope="module")
def generator_run(tmp_path_factory: pytest.TempPathFactory, encoder_run: Path) -> Path:
    return finish(tmp_path_factory.mktemp("runs") / "digits", *DRIFT, f"task.encoder={encoder_run}")


@pytest.mark.parametrize("kind", ["generator_run", "encoder_run"])
def test_a_run_that_lost_its_end_ends_the_same(
    kind: str, request: pytest.FixtureRequest, encoder_run: Path, tmp_path: Path
) -> None:
    whole = request.getfixturevalue(kind)
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    shutil.rmtree(list_checkpoints(broken)[-1])
    settings = MASK if kind == "encoder_run" else (*DRIFT, f"task.encoder={encoder_run}")
    finish(broken, *settings, "resume=true")
    assert_same_end(whole, broken)
    before, after = (load_state(path) for path in list_checkpoints(whole))
    assert not equal(before["network"], after["network"])
    assert not equal(after["network"], after["averages"][next(iter(after["averages"]))])


@pytest.mark.parametrize(("settings", "module"), [(ALONE, drifting.DriftGoal), (MASK, masking.MaskGoal)])
def test_ctrl_c_saves_and_tells_how_to_go_on(
    settings: tuple[str, ...], module: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = module.losses  # type: ignore[attr-defined]

    def interrupted(goal: Any, step: int) -> Any:
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        return losses(goal, step)

    with monkeypatch.context() as patch:
        patch.setattr(module, "losses", interrupted)
        stopped = finish(tmp_path / "stopped", *settings, "task.trainer.checkpoint_every=100", code=130)
    assert (
        f"Interrupted, and saved. To go on, repeat the command with resume=true (run_dir={stopped})." in capsys.readouterr().out
    )
    assert [read_config(path)["step"] for path in list_checkpoints(stopped)] == [3]
    finish(stopped, *settings, "resume=true", "task.trainer.checkpoint_every=100")
    assert_same_end(stopped, finish(tmp_path / "whole", *settings, "task.trainer.checkpoint_every=100"))


def test_the_seed_decides_the_run(tmp_path: Path) -> None:
    runs = [finish(tmp_path / name, *ALONE, f"seed={seed}") for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert_same_end(runs[0], runs[1])
    rms = [[line["drift_rms_0.2"] for line in metrics(run)] for run in runs]
    assert not set(rms[0]) & set(rms[2])


def test_a_run_leaves_everything_that_is_promised(generator_run: Path, encoder_run: Path) -> None:
    files = {str(path.relative_to(generator_run)) for path in generator_run.rglob("*") if path.is_file()}
    parts = ("model.safetensors", "config.json", "state.pt")
    promised = {f"checkpoints/step_{step:08d}/{part}" for step in (2, 4) for part in parts}
    promised |= {f"ema_0.9/checkpoints/step_00000004/{part}" for part in parts[:2]}
    promised |= {f"pictures/step_{step:08d}.png" for step in (2, 4)} | {"metrics.jsonl"}
    assert files == promised
    generator, other = load_generator(generator_run), load_generator(generator_run / "ema_0.9")
    assert (generator.recipe["width"], generator.classes) == (16, 10)
    state = load_state(list_checkpoints(generator_run)[-1])["averages"]
    assert equal(dict(generator.state_dict()), dict(state["0.5"]))
    assert equal(dict(other.state_dict()), dict(state["0.9"]))
    about = read_config(list_checkpoints(generator_run)[-1])
    assert (about["step"], about["data"], about["seed"]) == (4, "digits", 0)
    assert about["task"]["encoder"] == str(encoder_run)
    assert about["task"]["batch"] == COUNTS | {"parts": 1}
    lines = metrics(generator_run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {"loss", "gradient_norm", "learning_rate", "drift_rms_0.2", "drift_rms_0.05", "drift_rms_0.02"} < set(lines[0])
    names = {"classification", "reconstruction", "accuracy", "hidden", "classification_weight"}
    assert names < set(metrics(encoder_run)[0])
    assert [line["classification_weight"] for line in metrics(encoder_run)] == pytest.approx([0, 0, 0, 0.05])
    assert load_encoder(encoder_run).widths == (32, 64, 128, 256)
    picture = np.asarray(Image.open(generator_run / "pictures" / "step_00000004.png"))
    assert picture.shape == (8 * 66 - 2, 10 * 66 - 2, 3)


def test_two_runs_never_mix(program: Program, generator_run: Path, encoder_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(generator_run, run_dir)
    register()
    typed = [*COMMON, *DRIFT, f"task.encoder={encoder_run}", f"run_dir={run_dir}"]
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    assert "already holds a run. Continue it with resume=true" in program("imagenet.train", *typed).error
    for change, name in (
        ("seed=1", "seed=0"),
        ("task.encoder=none", f"task.encoder={encoder_run}"),
        ("task.batch.labels=2", "task.batch="),
        ("task.optimizer.learning_rate=1", "task.optimizer="),
        ("task.drift.attraction=2", "task.drift="),
    ):
        assert f"was started with {name}" in program("imagenet.train", *typed, "resume=true", change).error
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    (run_dir / "stray").write_text("")
    assert program("imagenet.train", *typed, "overwrite=true").code == 0
    assert not (run_dir / "stray").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ((*ALONE, "resume=true"), "to resume; start it without resume=true"),
        ((*ALONE, "device=nowhere"), "device=nowhere cannot be used here"),
        ((*ALONE, "data=nowhere"), "There are no images at nowhere"),
        ((*ALONE, "task.generator.classes=7"), r"The task is for images of shape (1, 8, 8) in 7 classes; the data set has 10"),
        ((*ALONE, "task.generator.image_size=4"), "images of shape (1, 4, 4) in 10 classes"),
        ((*ALONE, "task.generator.out_channels=2"), "of the channels of its noise"),
        ((*ALONE, "task.generator.patch=3"), "8 is no multiple of 3"),
        ((*ALONE, "task.batch.labels=7"), "The 7 labels of a step (task.batch.labels) come from its batch of 6 images"),
        ((*ALONE, "task.batch.positives=0"), "task.batch.positives must be at least 1; got 0"),
        ((*ALONE, "task.batch.parts=9"), "task.batch.parts must be at most task.batch.labels"),
        ((*ALONE, "task.guidance.high=0.5"), "0 < low <= high"),
        ((*ALONE, "task.drift.temperatures=[0]"), "task.drift: temperatures must be"),
        ((*ALONE, "task.drift.attraction=-1"), "task.drift: attraction must be"),
        ((*ALONE, "task.trainer.averages=[]"), "one or more different decays"),
        ((*ALONE, "task.optimizer.schedule=linear"), "Unknown schedule 'linear'"),
        ((*ALONE, "task.data.batch_size=5000"), "a batch of 5000 cannot be made"),
        ((*DRIFT, "task.encoder=nowhere"), "There is no network in nowhere"),
        ((*DRIFT, "task.encoder=''"), "Say which encoder compares the images: task.encoder=RUN, or task.encoder"),
        ((*MASK, "encoder=none"), "Unknown setting 'encoder'"),
        ((*DRIFT, "encoder=none"), "Unknown setting 'encoder'. Did you mean 'task.encoder'?"),
        ((*MASK, "task.autoencoder.mask_cell=3"), "8 is no multiple of 3"),
        ((*MASK, "task.masking.low=0.9"), "a share between low and high"),
        ((*MASK, "task.autoencoder.in_channels=3"), "images of shape (3, 8, 8) in 10 classes"),
    ],
)
def test_a_training_that_cannot_begin_leaves_nothing(
    program: Program, tmp_path: Path, settings: tuple[str, ...], words: str
) -> None:
    register()
    assert words in program("imagenet.train", *COMMON, *settings, f"run_dir={tmp_path / 'run'}").error
    assert not (tmp_path / "run").exists()


def test_features_that_are_left_out_must_exist(program: Program, encoder_run: Path, tmp_path: Path) -> None:
    register()
    typed = [*COMMON, *DRIFT, f"task.encoder={encoder_run}", f"run_dir={tmp_path / 'run'}"]
    result = program("imagenet.train", *typed, "task.features.left_out=[conv2]")
    assert "left_out names ['conv2'], which are no features; there are norm_x, conv1, conv1_mean" in result.error


def test_a_loss_that_explodes_changes_no_weights(program: Program, tmp_path: Path) -> None:
    register()
    explosive = ("task.optimizer.learning_rate=1e30", "task.optimizer.clip_norm=1e30", "task.trainer.checkpoint_every=1")
    result = program("imagenet.train", *COMMON, *MASK, *explosive, f"run_dir={tmp_path}")
    assert "The loss became non-finite at step" in result.error
    state = load_state(list_checkpoints(tmp_path)[-1])
    assert all(value.isfinite().all() for value in state["network"].values())


def test_every_field_of_a_study_can_be_trained(tmp_path: Path) -> None:
    runs = [
        finish(tmp_path / str(i), *ALONE, *settings)
        for i, settings in enumerate(
            [
                (),
                ("task.drift.attraction=2.0",),
                ("task.drift.repulsion=0.0",),
                ("task.batch.unconditional=0",),
                ("task.batch.generated=2", "task.batch.positives=1"),
                ("task.batch.parts=2",),
            ]
        )
    ]
    ends = [(list_checkpoints(run)[-1] / "model.safetensors").read_bytes() for run in runs]
    assert len(set(ends)) == len(ends)


def coloured() -> ImageSet:
    """Images of class k have the brightness 60 k or one level more."""
    labels = np.arange(30, dtype=np.int64) % 3
    images = (60 * labels + np.arange(30) % 2).astype(np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    return ImageSet(images=images, labels=labels, class_names=("a", "b", "c"), kind="pixels")


def coloured_goal(*, parts: int = 1) -> DriftGoal:
    """Four labels of `coloured` in each step."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = ImageGenerator(
            classes=3, image_size=4, in_channels=1, out_channels=1, patch=2, precision="float32", **SIZES
        )  # fmt: skip
    return DriftGoal(
        generator,
        None,
        ImageStream(coloured(), batch_size=5, seed=0, flips=False),
        MemoryBank(classes=3, per_class=4, overall=7, image_shape=(1, 4, 4), as_bytes=True),
        counts=Counts(labels=4, generated=2, positives=6, unconditional=3, parts=parts),
        scales={"low": 1.0, "high": 4.0, "power": 3.0, "plain_share": 0.5},
        options={"temperatures": (0.1,)},
        feature_chunk=None,
        preview_scale=1.0,
        seed=0,
        device=torch.device("cpu"),
    )


def watch(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What every call of `image_loss` will be given."""
    seen: list[dict[str, Any]] = []
    original = drifting.image_loss

    def watched(*arguments: Any, **named: Any) -> Any:
        seen.append(named)
        return original(*arguments, **named)

    monkeypatch.setattr(drifting, "image_loss", watched)
    return seen


def test_parts_of_a_step_add_up_over_the_same_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(monkeypatch)
    whole, parted = coloured_goal(), coloured_goal(parts=3)
    for step in range(3):
        seen.clear()
        ((all_of_it, _),) = whole.losses(step)
        named, loss = seen.pop(), torch.zeros(())
        parted.network.zero_grad()
        for share, _ in parted.losses(step):
            share.backward()  # type: ignore[no-untyped-call]
            loss = loss + share.detach()
        assert [len(each["labels"]) for each in seen] == [2, 1, 1]
        for name in ("labels", "positives", "unconditional", "scales", "noise", "style"):
            assert torch.equal(torch.cat([each[name] for each in seen]), named[name]), name
        found = [weight.grad for weight in parted.network.parameters()]
        parted.network.zero_grad()
        parts = [drifting.image_loss(parted.network, None, **each)[0] for each in list(seen)]
        expected = torch.cat(parts).mean()  # every label counts the same
        expected.backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(found, [weight.grad for weight in parted.network.parameters()])
        assert all_of_it.isfinite()
        with torch.no_grad():  # as a step would
            for network in (whole.network, parted.network):
                network.output.weight.add_(0.1)


def test_positives_are_of_the_class_and_labels_of_the_newest_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    goal = coloured_goal()
    stream, generator, seen = goal.stream, goal.network, watch(monkeypatch)
    for step in range(20):
        for loss, values in goal.losses(step):
            assert loss.isfinite()
            assert list(values) == ["drift_rms_0.1"]
    for step, named in enumerate(seen):
        labels = named["labels"]
        newest = stream.batch(step)[1].tolist()
        assert all(labels.tolist().count(label) <= newest.count(label) for label in labels.tolist())
        classes = ((named["positives"] + 1) * 127.5).round().long() // 60
        assert (classes == labels[:, None, None, None, None]).all()
        assert named["unconditional"].shape == (4, 3, 1, 4, 4)
    scales = torch.cat([named["scales"] for named in seen])
    assert 0.3 < (scales == 1).float().mean() < 0.7
    noises = torch.stack([named["noise"] for named in seen])
    assert len(noises.unique()) == noises.numel()
    assert torch.equal(goal.picture(generator)[0], goal.picture(generator)[0])
