"""Who lacks a package is told the extra that brings it."""

import re
import tomllib
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import drifting_policy.envs  # registers
from drifting_policy.rollout.environment import EXTRAS, open_environment
from drifting_policy.types import ConfigError

ROOT = Path(__file__).resolve().parents[2]
MODULE = drifting_policy.envs.__name__


def test_every_extra_exists_and_is_of_an_environment() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS.values()) <= set(extras)
    assert set(EXTRAS) <= set(gymnasium.registry)
    others = {name for name in gymnasium.registry if name.startswith("drifting/")} - set(EXTRAS)
    assert others == {"drifting/PushT-v0", "drifting/Obstacle-v0", "drifting/Mixture-v0"}


@pytest.mark.parametrize(
    ("env_id", "extra"), [*EXTRAS.items(), ("drifting/Obstacle-v0", "push_t"), ("elsewhere/Env-v3", "push_t")]
)
def test_a_missing_package_leads_to_its_extra(env_id: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(name: str, **options: Any) -> gymnasium.Env:
        assert name == f"{MODULE}:{env_id}"
        raise ImportError("No module named 'something'")

    monkeypatch.setattr(gymnasium, "make", make)
    with pytest.raises(ConfigError, match=re.escape(f"pip install 'drifting-policy[{extra}]' (No module named 'something')")):
        open_environment(f"{MODULE}:{env_id}", {}, task="some_task")
