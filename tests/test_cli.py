"""Whatever is typed, the answer is a result or one sentence; nothing is left behind by a mistake."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from drifting_policy import cli
from drifting_policy.types import ConfigError

Program = Callable[..., Any]
CONFIGS = Path(str(files("drifting_policy.configs")))
TASKS = sorted(file.stem for file in (CONFIGS / "task").glob("*.yaml") if not file.stem.endswith("_base"))
TINY = ("trainer=debug", "generator.width=32", "generator.depth=1", "threads=1", "task.max_steps=5", "trainer.eval_videos=0")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("train sead=1", "Unknown setting 'sead'. Did you mean 'seed'?"),
        ("train trainer.stepz=3", "Unknown setting 'trainer.stepz'. Did you mean 'trainer.steps'?"),
        ("train generator=unet generator.chanels=[8]", "Did you mean 'generator.channels'?"),
        ("train objectve=drift", "Did you mean 'objective'?"),
        ("train zzzzzz=1", "Unknown setting 'zzzzzz'. Top-level settings: task, encoder,"),
        ("train +extra=1", "Unknown setting 'extra': nothing reads it"),
        ("train ++trainer.stepz=1", "Unknown setting 'trainer.stepz': nothing reads it"),
        ("train generator=ml", "Unknown generator 'ml'; choose one of mlp, transformer, unet."),
        (
            "train task=push_t_base2",
            f"Unknown task 'push_t_base2'; choose one of {', '.join(TASKS)}.",
        ),
        ("train trainer=fast", "Unknown trainer 'fast'; choose one of debug, default, toy."),
        ("train seed=abc", "seed=abc: Value 'abc' of type 'str' could not be converted to Integer"),
        ("train seed=", "Value '' of type 'str' could not be converted to Integer"),
        ("train resume=maybe", "Value 'maybe' is not a valid bool"),
        ("train trainer.steps=1.5", "Value '1.5' of type 'float' could not be converted to Integer"),
        ("train trainer.betas=3", "trainer.betas=3"),
        ("train seed=1,2", "To sweep over it, add --multirun"),
        ("train seed", "'seed' is not a setting; write name=value, as in seed=1."),
        ("train task=1", "A choice takes a name, as in task=push_t; among 'task=1' is one with a number"),
        ("train seed 1", "'seed' is not a setting; write name=value"),
        ("train generator.width=[1", "'generator.width=[1' cannot be read"),
        ("train a=b=c", "'a=b=c' cannot be read"),
        ("train --frobnicate", "Unknown flag '--frobnicate'; settings are written name=value"),
        ("train --frobnicate seed=1", "Unknown flag '--frobnicate'"),
        ("train -x", "Unknown flag '-x'"),
        ("train --seed=1", "Unknown flag '--seed=1'"),
        ("train seed=1 --seed 2", "Unknown flag '--seed'"),
        ("train -m sead=1,2", "Did you mean 'seed'?"),
        ("train --multirun seed=0,abc", "Value 'abc' of type 'str' could not be converted to Integer"),
        ("train -m generator=mlp,ml", "Unknown generator 'ml'"),
        ("train -m generator.width=[1", "'generator.width=[1' cannot be read"),
        ("train -m ++trainer.stepz=1,2", "Unknown setting 'trainer.stepz'"),
        ("train -m seed=-1,0", "seed must be at least 0"),
        ("eval", "Say what to evaluate: ckpt="),
        ("eval generator.width=1", "Unknown setting 'generator.width'."),
        ("eval x.y=1", "Unknown setting 'x.y'. Top-level settings: ckpt, task"),
        ("eval sampler.stepz=1", "Did you mean 'sampler.steps'?"),
        ("eval sampler.steps=ten", "Value 'ten' of type 'str' could not be converted to Integer"),
        ("eval task.max_steps=1", "A part of an empty setting cannot be changed (task.max_steps=1)"),
        ("eval task=push_t task.max_stepz=1", "Did you mean 'task.max_steps'?"),
        ("eval ckpt=", "Say what to evaluate"),
        ("eval latency_steps=-1", "latency_steps must be a number of control steps or a list of them; got -1."),
        ("eval latency_steps=1.5", "latency_steps must be a number of control steps or a list of them; got 1.5."),
        ("eval latency_steps=[]", "latency_steps must be a number of control steps or a list of them; got []."),
        ("serve", "Say what to serve: ckpt="),
        ("serve ckpt=bundled host=0.0.0.0", "clients must know a token: give token_file=FILE"),
        ("serve ckpt=bundled token_file=nowhere", "The token file nowhere cannot be read"),
        ("serve ckpt=bundled deadline=0", "deadline must be positive and finite; got 0.0."),
        ("serve ckpt=bundled port=70000", "port must lie between 0 and 65535; got 70000."),
        ("serve ckpt=nothing", "There is no checkpoint at nothing."),
        ("eval seam=jump", "Unknown seam 'jump'; choose one of ['snap', 'fade', 'prefix', 'prefix_fade']."),
        ("eval commit_steps=1", "commit_steps=1 is for seam=prefix and seam=prefix_fade alone; got seam=snap."),
        ("eval latency_steps=[0,fast]", "latency_steps must be a number of control steps or a list of them; got"),
    ],
)
def test_a_mistake_gets_one_sentence(program: Program, tmp_path: Path, typed: str, words: str) -> None:
    result = program(*typed.split())
    assert words in result.error
    assert result.out == ""
    assert result.err == result.error + "\n"
    assert list(tmp_path.iterdir()) == []


def test_compose_raises_the_sentence() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'seed'"):
        cli.compose("train", ["sead=1"])
    assert cli.compose("train", ["seed=3", "+task.env_options.angle=1"]).task.env_options == {"angle": 1}


@pytest.mark.parametrize(
    ("name", "flag", "setting"), [("train", "--help", "rehearse_resume: false"), ("eval", "-h", "inference_batch: 1")]
)
def test_help_names_the_settings(program: Program, tmp_path: Path, name: str, flag: str, setting: str) -> None:
    result = program(name, flag)
    assert result.code == 0
    assert result.err == ""
    assert setting in result.out
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_can_be_shown(program: Program) -> None:
    result = program("train", "--cfg", "job", "seed=7")
    assert result.code == 0
    assert "seed: 7" in result.out


def test_a_sweep_runs_every_job(program: Program, push_t_data: str) -> None:
    result = program("train", "-m", f"data={push_t_data}", *TINY, "trainer.rehearse_resume=false", "seed=0,1")
    assert result.code == 0, result.err
    for seed in (0, 1):
        assert Path(f"runs/push_t/data_drift_mlp_seed{seed}/report.json").is_file()


def test_a_failing_job_ends_the_sweep(program: Program, push_t_data: str) -> None:
    result = program("train", "-m", f"data={push_t_data}", *TINY, "trainer.batch_size=100000,16")
    assert "fewer than one batch of 100000" in result.error
    assert [path.name for path in Path("runs").iterdir()] == [".sweeps"]


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (ConfigError, 2)])
@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_exit_codes(error: type[BaseException], code: int, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: Any) -> None:
        raise error("told")

    monkeypatch.setattr(sys, "argv", ["train", "seed=1", *flags])
    with pytest.raises(SystemExit) as ended:
        cli.main("train", run)
    assert ended.value.code == code


@pytest.mark.parametrize("returned", [None, 0, 130])
@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_the_program_decides_its_exit_code(returned: int | None, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *flags])
    with pytest.raises(SystemExit) as ended:
        cli.main("train", lambda config: returned)
    assert (ended.value.code or 0) == (returned or 0)


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_a_reader_that_goes_away_is_no_error(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "drifting_policy.train", *arguments]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
