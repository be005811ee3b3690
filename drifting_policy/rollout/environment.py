"""Environments by their Gymnasium id. Worker processes load this: it knows no network."""

from collections.abc import Mapping
from typing import Any

import gymnasium

from drifting_policy.types import ConfigError

# What to install for an environment of this project; the others need what pictures and films need.
EXTRAS = {"drifting/Kitchen-v0": "kitchen", "drifting/Conveyor-v0": "conveyor", "drifting/BlockPush-v0": "block_push"}
EXTRAS |= {f"drifting/{name}-v0": "robomimic" for name in ("Lift", "Can", "Square", "Transport", "ToolHang")}


def open_environment(env_id: str, options: Mapping[str, Any], *, task: str) -> gymnasium.Env[Any, Any]:
    """A fresh environment `env_id`, which may be "module:id" of a module that registers it.

    Raises:
        ConfigError: a package that it needs is missing; names the `task`.
    """
    try:
        return gymnasium.make(env_id, disable_env_checker=True, **options)
    except ImportError as error:
        extra = EXTRAS.get(env_id.rpartition(":")[2], "push_t")
        raise ConfigError(
            f"Task {task} needs a package that is missing: pip install 'drifting-policy[{extra}]' ({error})."
        ) from error
