"""Parts add up to the whole, bit for bit, however often they are put together; what is missing or foreign is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drifting_policy import train
from drifting_policy.cli import compose
from drifting_policy.shards import Shard
from drifting_policy.types import ConfigError

Program = Callable[..., Any]


@pytest.fixture(scope="module")
def checkpoint(push_t_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run."""
    path = tmp_path_factory.mktemp("runs") / "run"
    tiny = ["trainer=debug", "generator.width=32", "generator.depth=1", "trainer.eval_episodes=0", f"run_dir={path}"]
    assert train.run(compose("train", [*tiny, f"data={push_t_data}"])) == 0
    return path


@pytest.fixture
def evaluate(program: Program, checkpoint: Path) -> Callable[..., Any]:
    """Evaluates seven short episodes of it."""
    return lambda *changes: program(
        "eval", f"ckpt={checkpoint}", "task=push_t", "task.max_steps=9", "episodes=7", "videos=0", *changes
    )


@pytest.mark.parametrize("count", [1, 3, 7])
def test_parts_add_up_to_the_whole(evaluate: Callable[..., Any], tmp_path: Path, count: int) -> None:
    assert evaluate(f"out={tmp_path / 'whole'}").code == 0
    parts = tmp_path / "parts"
    for index in reversed(range(count)):
        workers = 2 if (index, count) == (1, 3) else 0
        result = evaluate(f"shard={index}/{count}", f"num_envs={index + 1}", f"workers={workers}", f"out={parts}")
        assert result.code == 0, result.err
        assert not (parts / "scores.json").exists()
    for _ in range(2):
        result = evaluate(f"shard=merge/{count}", f"out={parts}")
        assert result.code == 0, result.err
        assert (parts / "scores.json").read_bytes() == (tmp_path / "whole" / "scores.json").read_bytes()
    plans = sum(len(json.loads(file.read_text())["plan_seconds"]) for file in parts.glob("shard_*"))
    assert json.loads((parts / "latency.json").read_text())["n"] == plans - count
    evaluate(f"shard=0/{count}", f"out={parts}")
    assert evaluate(f"shard=merge/{count}", f"out={parts}").code == 0
    assert (parts / "scores.json").read_bytes() == (tmp_path / "whole" / "scores.json").read_bytes()


def test_lost_and_damaged_parts_are_named(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    for index in range(5):
        assert evaluate(f"shard={index}/5", f"out={tmp_path}").code == 0
    (tmp_path / "shard_1_of_5.json").unlink()
    torn = tmp_path / "shard_3_of_5.json"
    torn.write_text(torn.read_text()[:-20])
    short = json.loads((tmp_path / "shard_0_of_5.json").read_text())
    (tmp_path / "shard_0_of_5.json").write_text(json.dumps(short | {"episodes": short["episodes"][:1]}))
    sentence = evaluate("shard=merge/5", f"out={tmp_path}").error
    assert "lacks 3 of 5 shards, or they are damaged; play them: shard=0/5, 1/5, 3/5." in sentence
    assert "lacks 4 of 4 shards" in evaluate("shard=merge/4", f"out={tmp_path}").error
    assert not (tmp_path / "scores.json").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("split=validation", "with split test, not validation"),
        ("episodes=6", "with episodes 7, not 6"),
        ("latency_steps=2", "with latency_steps 0, not 2"),
        ("inference_batch=2", "with inference_batch 1, not 2"),
        ("task.max_steps=8", "with task_hash"),
        ("ckpt=bundled", "with checkpoint"),
    ],
)
def test_foreign_parts_are_refused(evaluate: Callable[..., Any], tmp_path: Path, change: str, words: str) -> None:
    for index in range(2):
        assert evaluate(f"shard={index}/2", f"out={tmp_path}").code == 0
    assert words in evaluate("shard=merge/2", f"out={tmp_path}", change).error
    assert not (tmp_path / "scores.json").exists()


@pytest.mark.parametrize("text", ["", "1", "1/", "/2", "2/2", "0/0", "-1/2", "1/8", "merge/8", "merge/0", "1.0/2", "all/2"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="shard=i/N plays part i"):
        Shard.parse(text, episodes=7)


def test_a_table_of_latencies_has_no_shards(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    assert "A shard has one latency" in evaluate("shard=0/2", "latency_steps=[0,1]", f"out={tmp_path}").error


def test_every_seed_is_in_one_part() -> None:
    seeds = list(range(100, 123))
    assert sorted(seed for index in range(5) for seed in Shard(index, 5).of(seeds)) == seeds
    assert Shard(None, 5).of(seeds) == seeds
