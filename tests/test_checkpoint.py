"""A checkpoint is whole or absent: it loads bit for bit as saved, or its damage is told in one sentence."""

import errno
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting_policy import checkpoint
from drifting_policy.checkpoint import (
    checkpoint_path,
    drop_state,
    list_checkpoints,
    load_policy,
    load_state,
    read_config,
    resolve,
    resumable,
    save_policy,
)
from drifting_policy.policy import DriftingPolicy
from drifting_policy.types import ArraySpec, CheckpointError, PolicySpec, Stats, UserError

SPEC = PolicySpec({"x": ArraySpec((3,), unit="m"), "y": ArraySpec((2, 2))}, ArraySpec((2,)), 2, 4, 2, 10.0)
STATS = {"x": Stats.of(np.eye(3))}
FILES = ["config.json", "model.safetensors", "state.pt", "stats.json"]
RNG = np.random.default_rng(0)
OBS = {"x": RNG.normal(size=(3, 2, 3)), "y": RNG.normal(size=(3, 2, 2, 2))}
NOISE = RNG.normal(size=(3, 4, 2))


def make_policy(seed: int = 0) -> DriftingPolicy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = DriftingPolicy(
            SPEC,
            encoder={"name": "state", "embed_dim": 4},
            generator={"name": "mlp", "width": 8, "depth": 1},
            noise_scale=0.7,
            clip=0.9,
        )
        for value in policy.state_dict().values():  # every weight and every map counts
            value.copy_(torch.rand(value.shape) + 0.1)
    return policy.eval()


def make_state(step: int = 7) -> dict[str, Any]:
    return {"step": step, "policy": make_policy(step).state_dict(), "optimizer": {"state": {0: torch.arange(5)}, "lr": 1e-3}}


def save(path: Path, *, seed: int = 0, policy: DriftingPolicy | None = None, **metadata: Any) -> Path:
    return save_policy(path, policy or make_policy(seed), metadata={"step": 7, **metadata}, stats=STATS, state=make_state())


@functools.cache
def saved_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return {file.name: file.read_bytes() for file in save(Path(folder) / "saved").iterdir()}


def write_files(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def assert_same(policy: DriftingPolicy, expected: DriftingPolicy) -> None:
    weights, others = policy.state_dict(), expected.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
    assert (policy.spec, policy.recipe) == (expected.spec, expected.recipe)
    np.testing.assert_array_equal(policy.act(OBS, noise=NOISE), expected.act(OBS, noise=NOISE))


@contextmanager
def refused(words: str, error: type[UserError] = CheckpointError) -> Iterator[None]:
    with pytest.raises(error, match=words) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")


def test_it_loads_bit_for_bit_as_saved(tmp_path: Path) -> None:
    path = save(tmp_path / "new" / "saved", numbers={9: 1, 10: (2, float("nan"))})
    policy = load_policy(str(path))
    assert_same(policy, make_policy())
    assert not policy.training
    assert not any(parameter.requires_grad for parameter in policy.parameters())
    assert sorted(file.name for file in path.iterdir()) == FILES
    assert list(path.parent.iterdir()) == [path]
    state, expected = load_state(path), make_state()
    assert state["step"] == 7
    assert torch.equal(state["optimizer"]["state"][0], torch.arange(5))
    assert all(torch.equal(value, expected["policy"][name]) for name, value in state["policy"].items())
    config = read_config(path)
    assert (config["step"], config["contract_hash"]) == (7, SPEC.contract_hash)
    assert json.loads((path / "stats.json").read_text()) == {"x": STATS["x"].to_dict()}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["deleted", "emptied", "halved", "one byte short", "one byte long", "a folder"])
def test_every_damaged_file_is_told_by_whoever_needs_it(name: str, damage: str, tmp_path: Path) -> None:
    path = write_files(tmp_path / "saved", saved_files())
    content = (path / name).read_bytes()
    (path / name).unlink()
    parts = {
        "emptied": b"",
        "halved": content[: len(content) // 2],
        "one byte short": content[:-2],
        "one byte long": content + b"x",
    }
    if damage in parts:
        (path / name).write_bytes(parts[damage])
    elif damage == "a folder":
        (path / name).mkdir()
    for load, needed in ((load_policy, FILES[:2]), (load_state, [FILES[0], FILES[2]])):
        if name in needed:
            with refused("saved"):
                load(path)
        elif load is load_policy:
            assert_same(load_policy(path), make_policy())
        else:
            assert load_state(path)["step"] == 7


@pytest.mark.parametrize("name", FILES[:3])
def test_a_flipped_byte_never_changes_what_is_loaded(name: str) -> None:
    expected = make_policy()

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
    def flip(place: float, change: int) -> None:
        content = bytearray(saved_files()[name])
        content[int(place * len(content))] ^= change
        with tempfile.TemporaryDirectory() as folder:
            path = write_files(Path(folder) / "saved", saved_files() | {name: bytes(content)})
            load: Callable[[Path], Any] = load_state if name == "state.pt" else load_policy
            try:
                loaded = load(path)
            except CheckpointError as error:
                loaded, message = None, str(error)
        if loaded is None:
            assert "\n" not in message
        else:
            assert name == "config.json"  # where spaces may change
            assert json.loads(content) == json.loads(saved_files()[name])
            assert_same(loaded, expected)

    flip()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"noise_scale": 0.7', '"noise_scale": 0.1'),
        ('"clip": 0.9', '"clip": 9.0'),
        ('"control_hz": 10.0', '"control_hz": 20.0'),
        ('"exec_horizon": 2', '"exec_horizon": 1'),
        ('"unit": "m"', '"unit": "n"'),
        ('"step": 7', '"step": 8'),
        ('"config_sha256"', '"config_sha257"'),
    ],
)
def test_an_edited_config_is_refused(old: str, new: str, tmp_path: Path) -> None:
    text = saved_files()["config.json"].decode()
    assert text.count(old) == 1
    path = write_files(tmp_path / "saved", saved_files() | {"config.json": text.replace(old, new).encode()})
    with refused("damaged or was edited"):
        load_policy(path)
    (path / "config.json").write_text(json.dumps(json.loads(text), indent=7))  # another layout says the same
    assert_same(load_policy(path), make_policy())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"format_version": 2}', "has format version 2; this version of the package reads 1"),
        (b"{}", "damaged"),
        (b"[1]", "damaged"),
        (b'"format_version"', "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"null", "damaged"),
        (b"[" * 100, "damaged"),
    ],
)
def test_configs_of_another_kind_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    path = write_files(tmp_path / "saved", saved_files() | {"config.json": content})
    for load in (load_policy, load_state, read_config):
        with refused(words):
            load(path)


def test_weights_must_fit_exactly(tmp_path: Path) -> None:
    policy = make_policy()
    policy.register_buffer("extra", torch.zeros(2))
    with refused("does not describe a policy of this version"):
        load_policy(save(tmp_path / "extra", policy=policy))
    policy = make_policy()
    del policy.generator.output
    with refused("does not describe a policy of this version"):
        load_policy(save(tmp_path / "missing", policy=policy))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"policy": make_policy().recipe | {"generator": {"name": "os.system", "width": 8}}}, "Unknown generator 'os.system'"),
        ({"policy": make_policy().recipe | {"encoder": {"name": "vision"}}}, "Unknown encoder 'vision'"),
        ({"policy": make_policy().recipe | {"generator": {"name": "mlp", "width": 9, "depth": 1}}}, "does not describe"),
        ({"policy": make_policy().recipe | {"generator": {"name": "mlp", "size": 9}}}, "does not describe"),
        ({"policy": make_policy().recipe | {"temperature": 1.0}}, "does not describe"),
        ({"spec": SPEC.to_dict() | {"pred_horizon": "long"}}, "does not describe"),
        ({"spec": SPEC.to_dict() | {"pred_horizon": 1}}, "too short"),
        ({"spec": []}, "does not describe"),
    ],
)
def test_recipes_that_this_version_does_not_know_are_refused(metadata: dict[str, Any], words: str, tmp_path: Path) -> None:
    with refused(words):
        load_policy(save_policy(tmp_path / "saved", make_policy(), metadata=metadata, stats=STATS))


def test_nothing_in_a_state_is_unpickled(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[Any, tuple[Path]]:
            return Path.touch, (tmp_path / "executed",)

    path = save_policy(tmp_path / "saved", make_policy(), metadata={}, stats=STATS, state={"step": 1, "x": Touch()})
    with refused("state.pt holds more than tensors and plain values"):
        load_state(path)
    assert not (tmp_path / "executed").exists()


def fail_with(error: BaseException, *, after: Callable[..., object] = lambda *args, **kwargs: None) -> Callable[..., None]:
    def fail(*args: Any, **kwargs: Any) -> None:
        after(*args, **kwargs)
        raise error

    return fail


FULL = OSError(errno.ENOSPC, "No space left on device")
ENFORCE = RuntimeError("[enforce fail at inline_container.cc:662] . unexpected pos 64 vs 0\nframe #0: c10::Throw")


@pytest.mark.parametrize("error", [FULL, ENFORCE, KeyboardInterrupt()], ids=["full", "torch", "^C"])
@pytest.mark.parametrize("method", ["save_file", "torch.save", "Path.write_text", "Path.rename"])
def test_a_failed_save_leaves_the_earlier_checkpoint_and_nothing_else(
    method: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = save(tmp_path / "saved"), Path.rename

    def rename_draft(self: Path, target: Path) -> Path:
        if self.suffix == ".draft":
            raise error
        return rename(self, target)  # the earlier checkpoint, put aside and back

    with monkeypatch.context() as patch:
        owner, name = {"save_file": (checkpoint, method), "torch.save": (torch, "save")}.get(method, (Path, method[5:]))
        real = {"save_file": checkpoint.save_file, "torch.save": torch.save}.get(method, lambda *args, **kwargs: None)
        patch.setattr(owner, name, rename_draft if method == "Path.rename" else fail_with(error, after=real))
        if isinstance(error, Exception):
            with refused("could not be written .*(No space left|enforce fail).*earlier checkpoints are untouched"):
                save(path, seed=1)
        else:
            with pytest.raises(KeyboardInterrupt):
                save(path, seed=1)
    assert list(tmp_path.iterdir()) == [path]
    assert_same(load_policy(path), make_policy())
    assert load_state(path)["step"] == 7
    assert_same(load_policy(save(path, seed=1)), make_policy(1))
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_way_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for target in (tmp_path / "mine", tmp_path / "mine" / "saved"):
        with refused("could not be written"):
            save(target)
    assert [(path, path.read_text()) for path in tmp_path.iterdir()] == [(tmp_path / "mine", "mine")]


def make_run(path: Path, *steps: int) -> list[Path]:
    return [write_files(checkpoint_path(path, step), saved_files()) for step in steps]


def test_a_run_means_its_newest_checkpoint(tmp_path: Path) -> None:
    old, new = make_run(tmp_path, 900, 1000)
    for name in (".step_00002000.17.draft", ".step_00002000.17.old", ".step_00000100.doomed", "notes"):
        (tmp_path / "checkpoints" / name).mkdir()
    (tmp_path / "checkpoints" / "step_00003000").write_text("no folder")
    assert list_checkpoints(tmp_path) == [old, new]
    assert (resolve(tmp_path), resolve(old), resolve(str(new))) == (new, old, new)
    save(new, seed=1)
    assert_same(load_policy(tmp_path), make_policy(1))


def test_absent_checkpoints_are_told(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name, words in (
        ("run", "has no checkpoint yet"),
        ("absent", "no checkpoint at .*absent"),
        ("file", "no checkpoint at"),
    ):
        with refused(words):
            load_policy(tmp_path / name)
    (tmp_path / "empty").mkdir()
    for load in (load_policy, load_state):
        with refused("empty is no checkpoint: it has no config.json"):
            load(tmp_path / "empty")
    with refused("cannot be resumed. No checkpoint was saved"):
        resumable(tmp_path / "absent")


def test_damaged_checkpoints_are_not_resumed_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, *damaged = make_run(tmp_path, 1, 2, 3, 4, 5)
    drop_state(damaged[0])
    (damaged[1] / "config.json").write_text("{")
    for path, name in ((damaged[2], "model.safetensors"), (damaged[3], "state.pt")):
        (path / name).write_bytes(saved_files()[name][:-1])
    assert resumable(tmp_path) == whole
    real = Path.open

    def broken_disk(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> IO[Any]:
        if self.parent == whole and mode == "rb":
            raise OSError(errno.EIO, "Input/output error")
        return real(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", broken_disk)
    told = r"step_00000005/state.pt is damaged.*04/model.*03/config.json is damaged.*02 has no state.pt.*01.*Input/output"
    with refused(f"cannot be resumed.*{told}.*Start anew with overwrite=true"):
        resumable(tmp_path)


def test_without_its_state_a_checkpoint_remains_a_policy(tmp_path: Path) -> None:
    path = write_files(tmp_path / "saved", saved_files())
    for _ in range(2):
        drop_state(path)
        assert sorted(file.name for file in path.iterdir()) == [name for name in FILES if name != "state.pt"]
    assert_same(load_policy(path), make_policy())
    with refused("has no state.pt"):
        load_state(path)
    bare = save_policy(tmp_path / "bare", make_policy(), metadata={}, stats=STATS)
    shutil.copy(tmp_path / "saved" / "stats.json", bare / "state.pt")  # a state that the config does not vouch for
    with refused("has no state.pt"):
        load_state(bare)


@pytest.mark.parametrize("device", ["cuda", "hpu", "gpu", ""])
def test_devices_that_are_not_there_are_told(device: str, tmp_path: Path) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has the device")
    path = write_files(tmp_path / "saved", saved_files())
    with refused(f"device={device} cannot be used here .*try device=cpu", UserError):
        load_policy(path, device=device)
