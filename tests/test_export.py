"""docs/export.md, followed; and the exported policy, which acts without PyTorch and refuses what is not itself."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drifting_policy import ChunkExecutor, OnnxPolicy, export, load_policy
from drifting_policy.control.manifest import FORMAT_VERSION, Manifest
from drifting_policy.demonstrations import bundled
from drifting_policy.parity import Difference, Parity
from drifting_policy.policy import DriftingPolicy
from drifting_policy.types import CheckpointError, ConfigError, MissingPackage, ObservationError

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "export.md").read_text()
BLOCK = re.compile(r"<!-- run -->\n```(\w+)\n(.*?)```", re.DOTALL)
# What a robot computer does not have cannot be imported.
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "hydra", "omegaconf", "zarr", "gymnasium", "safetensors", "einops", "jaxtyping"}:
            raise ImportError(name + " is not installed")
sys.meta_path.insert(0, Absent())
"""
Program = Callable[..., Any]


def call(language: str, text: str, *, cwd: Path) -> str:
    """What a block prints in a process of its own."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    command = [sys.executable, "-c", text] if language == "python" else ["bash", "-euc", text]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page's export was made."""
    folder = tmp_path_factory.mktemp("page")
    (shell,) = (text for language, text in BLOCK.findall(PAGE) if language == "bash")
    printed = call("bash", shell, cwd=folder)
    assert "in network units" in printed
    assert "random" in printed  # and recorded, where the demonstrations lie on this machine
    assert printed.endswith("files        exported\n")
    return folder


@pytest.fixture(scope="module")
def policy(place: Path) -> OnnxPolicy:
    return OnnxPolicy(place / "exported")


@pytest.fixture(scope="module")
def original() -> DriftingPolicy:
    return load_policy(bundled("push_t"))


def observation(batch: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"keypoints": rng.uniform(0, 512, (batch, 2, 9, 2)), "agent_pos": rng.uniform(0, 512, (batch, 2, 2))}


def test_the_page_names_what_is_written(place: Path) -> None:
    written = {path.name for path in (place / "exported").iterdir()}
    assert set(re.findall(r"\n\| `(\S+)` \|", PAGE)) == written
    assert [path.name for path in place.iterdir()] == ["exported"]
    parity = json.loads((place / "exported" / "parity.json").read_text())
    assert parity["holds"]
    assert set(parity["observations"]) - {"recorded"} == {"random"}


def test_the_robot_computer_needs_no_pytorch(place: Path, original: DriftingPolicy) -> None:
    (text,) = (text for language, text in BLOCK.findall(PAGE) if language == "python")
    with pytest.raises(AssertionError, match="torch is not installed"):  # the hook bites
        call("python", WITHOUT + "import torch", cwd=place)
    printed = call("python", f"{WITHOUT}{text}\nprint(*command)", cwd=place)
    assert printed.splitlines()[0] == "dict_keys(['agent_pos', 'keypoints']) 0"
    command = np.array(printed.splitlines()[1].split(), np.float32)
    executor = ChunkExecutor(original)
    executor.reset(seeds=[0])
    obs = {"agent_pos": np.array([[256.0, 400.0]]), "keypoints": np.full((1, 9, 2), 256.0)}
    expected = [executor.step(obs)[0] for _ in range(20)][-1]
    np.testing.assert_allclose(command, expected, atol=5e-3)


def test_act_is_that_of_the_checkpoint(policy: OnnxPolicy, original: DriftingPolicy) -> None:
    noise = np.random.default_rng(1).standard_normal((3, 16, 2))
    for given in (None, noise):
        chunk = policy.act(observation(3), noise=given)
        assert (chunk.shape, chunk.dtype, chunk.flags.writeable) == ((3, 16, 2), np.float32, True)
        np.testing.assert_allclose(chunk, original.act(observation(3), noise=given), atol=5e-3)
    assert policy.act(observation(0)).shape == (0, 16, 2)
    strided = {key: value[::-1].astype(np.float32) for key, value in observation(3).items()}
    np.testing.assert_array_equal(policy.act(strided), policy.act(observation(3))[::-1])


def test_threads_may_share_a_policy(policy: OnnxPolicy) -> None:
    alone = [policy.act(observation(1, seed)) for seed in range(4)]
    together: dict[int, list[np.ndarray]] = {seed: [] for seed in range(4)}

    def act(seed: int) -> None:
        together[seed] = [policy.act(observation(1, seed)) for _ in range(20)]

    threads = [threading.Thread(target=act, args=(seed,)) for seed in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, chunks in together.items():
        assert all(np.array_equal(chunk, alone[seed]) for chunk in chunks)


@pytest.mark.parametrize(
    "wrong",
    [
        {"obs": {"keypoints": np.zeros((1, 2, 9, 2))}},
        {"obs": observation(1) | {"agent_pos": np.full((1, 2, 2), np.nan)}},
        {"obs": observation(1) | {"agent_pos": np.zeros((1, 3, 2))}},
        {"noise": np.zeros((2, 16, 2))},
        {"noise": np.full((1, 16, 2), np.inf)},
        {"prefix": np.zeros((1, 1, 2))},
    ],
)
def test_mistakes_are_told_as_by_the_checkpoint(wrong: dict[str, Any], policy: OnnxPolicy, original: DriftingPolicy) -> None:
    given = {"obs": observation(1)} | wrong
    obs = given.pop("obs")
    with pytest.raises(ObservationError) as ours:
        policy.act(obs, **given)
    with pytest.raises(ObservationError) as theirs:
        original.act(obs, **given)
    assert str(ours.value) == str(theirs.value)


def test_damage_is_refused_wherever_it_is(place: Path, tmp_path: Path) -> None:
    whole, file = (place / "exported" / "policy.onnx").read_bytes(), tmp_path / "policy.onnx"
    rng = np.random.default_rng(0)
    for spot in [*rng.integers(0, len(whole), 12).tolist(), len(whole) - 100, len(whole) - 1000]:
        file.write_bytes(whole[:spot] + bytes([whole[spot] ^ 0x11]) + whole[spot + 1 :])
        with pytest.raises(CheckpointError, match=r"policy\.onnx"):
            OnnxPolicy(file)
    graph = int(json.loads((place / "exported" / "policy.json").read_text())["graph_bytes"])
    for content in (b"", b"no model", whole[: len(whole) // 2], whole[:graph], whole[:-1]):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"policy\.onnx.*[Ee]xport"):
            OnnxPolicy(file)
    with pytest.raises(CheckpointError, match="cannot be read"):
        OnnxPolicy(tmp_path / "absent.onnx")


def sealed(said: dict[str, Any]) -> str:
    """What is said, with a checksum that fits."""
    checksum = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return json.dumps(said | {"manifest_sha256": checksum})


@pytest.mark.parametrize(
    ("change", "seal", "words"),
    [
        ({"format_version": FORMAT_VERSION + 1}, True, "has format version 2; this version of the package reads 1"),
        ({"max_prefix": 3}, False, "checksum of its manifest"),
        ({"contract_hash": "0"}, True, "belongs to the contract 0, but its specification to"),
        ({"spec": {}}, True, "does not describe a policy"),
        ({"spec": 7}, True, "does not describe a policy"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(change: dict[str, Any], seal: bool, words: str, policy: OnnxPolicy) -> None:
    said = json.loads(policy.manifest.to_json())
    checksum = said.pop("manifest_sha256")
    assert Manifest.from_json(sealed(said), place="x") == policy.manifest
    text = sealed(said | change) if seal else json.dumps(said | change | {"manifest_sha256": checksum})
    with pytest.raises(CheckpointError, match=words):
        Manifest.from_json(text, place="x")


@pytest.mark.parametrize("hostile", [None, "", "[]", "{}", "null", "{", "7"])
def test_what_is_no_manifest_is_refused(hostile: str | None) -> None:
    with pytest.raises(CheckpointError, match="x "):
        Manifest.from_json(hostile, place="x")


def test_the_manifest_tells_the_source(policy: OnnxPolicy, place: Path) -> None:
    stored = json.loads((bundled("push_t") / "config.json").read_text())
    assert policy.manifest.about["source"]["sha256"] == stored["sha256"]["model.safetensors"]
    assert policy.manifest.about["noise_scale"] == stored["policy"]["noise_scale"]
    assert policy.spec.contract_hash == stored["contract_hash"]
    assert json.loads((place / "exported" / "policy.json").read_text()) == json.loads(policy.manifest.to_json())


def test_settings_that_cannot_be_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="threads must be at least 1; got 0"):
        OnnxPolicy(place / "exported", threads=0)
    for providers in (["MagicExecutionProvider"], []):
        with pytest.raises(ConfigError, match="ONNX Runtime has the providers"):
            OnnxPolicy(place / "exported", providers=providers)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackage, match=r"pip install 'drifting-policy\[onnx\]'"):
        OnnxPolicy(place / "exported")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("", "Say what to export: ckpt="),
        ("ckpt=bundled format=tensorrt", "Unknown format 'tensorrt'; choose one of onnx, torch_export."),
        ("ckpt=bundled out=policy.onnx", "An export is a folder; give out=policy"),
        ("ckpt=bundled out=mine", "mine holds other things than an export (thesis.tex)"),
        ("ckpt=bundled out=mine/thesis.tex", "is a file"),
        ("ckpt=absent", "There is no checkpoint at absent"),
        ("ckpt=bundled sampler.steps=3", "The sampler 'one_step' of this policy has no setting ['steps']"),
    ],
)
def test_a_mistake_gets_one_sentence(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert words in program("export", *typed.split()).error
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.tex"]


def test_what_differs_is_not_written(program: Program, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(policy: Any, file: Path, **settings: Any) -> Manifest:
        file.write_bytes((place / "exported" / "policy.onnx").read_bytes())
        return OnnxPolicy(file).manifest

    out = tmp_path / "exported"
    monkeypatch.setattr(export, "write_graph", write)
    assert program("export", "ckpt=bundled", f"out={out}").code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    far = Parity((Difference("random", 3, "normal", 0, 2e-5, 1.0, 1e-5), Difference("random", 1, "zero", 0, 1e-5, 1.0, 1e-5)))
    monkeypatch.setattr(export, "compare", lambda *given, **options: far)
    error = program("export", "ckpt=bundled", f"out={out}").error
    assert "Nothing was written" in error
    assert "2.0e-05 in network units and 1.0e-05 of the range of the action, above 1e-05" in error
    assert "most for random observations in batches of 3 with normal noise" in error
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert list(tmp_path.iterdir()) == [out]
