"""The commands that make a run again."""

import dataclasses
import functools
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from drifting_policy.cli import compose
from drifting_policy.seams import RECEDING
from drifting_policy.types import ConfigError

GROUPS = ("objective", "generator", "encoder")
HORIZONS = ("obs_horizon", "pred_horizon", "exec_horizon", "control_hz")
WORDS = {"null", "true", "false", "nan", "inf"}  # are no text unless quoted
PLAIN = re.compile(r"[A-Za-z_./][\w./:-]*")


def training_command(settings: Mapping[str, Any]) -> str:
    """The command line of the training that `settings` of a checkpoint describe: what is not a default, and nothing else.

    Raises:
        ConfigError: where the settings are those of another version, or incomplete.
    """
    try:
        told = dict(settings) | {"encoder": settings["policy"]["encoder"]} if "policy" in settings else dict(settings)
        chosen = [f"{group}={_name(told[group]['name'])}" for group in GROUPS if group in told]
        changes = list(_changes(told, _defaults(f"task={_name(told['task'])}", *chosen)))
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"The settings are incomplete ({type(error).__name__}: {error}).") from error
    return shlex.join(["python", "-m", "drifting_policy.train", f"task={_name(told['task'])}", *chosen, *changes])


def evaluation_command(about: Mapping[str, Any], *, n_episodes: int, trained: Mapping[str, Any]) -> str:
    """The command line of an evaluation; `trained` is the sampler that the policy was trained for."""
    words = [f"ckpt={_text(about.get('checkpoint', ''))}", f"split={_text(about.get('split'))}", f"episodes={n_episodes}"]
    if about["latency_steps"]:
        words.append(f"latency_steps={about['latency_steps']}")
    usual = dataclasses.asdict(RECEDING)
    words += [f"{name}={_text(about[name])}" for name in usual if about.get(name, usual[name]) != usual[name]]
    sampler = about.get("sampler")
    for name, value in sampler.items() if isinstance(sampler, Mapping) and trained else ():
        if value != trained.get(name) and name in ("scheduler", "steps", "noise_scale"):
            words.append(f"sampler.{name}={_text(value)}")
    return shlex.join(["python", "-m", "drifting_policy.eval", *words])


@functools.cache
def _defaults(*chosen: str) -> Mapping[str, Any]:
    """What a training has that is told nothing but `chosen`; composing it takes its time."""
    return dataclasses.asdict(compose("train", chosen))


def _changes(told: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    """Overrides for what differs from the defaults."""
    told = {"max_prefix": 0} | dict(told)  # checkpoints from before there were prefixes
    for name in ("data", "max_prefix", "seed"):
        if told[name] != defaults[name]:
            yield f"{name}={_text(told[name])}"
    for group in (*GROUPS, "trainer"):
        for name, value in told.get(group, {}).items():
            if name != "name" and value != defaults[group][name]:
                yield f"{group}.{name}={_text(value)}"
    for name in HORIZONS:
        if "spec" in told and told["spec"][name] != defaults["task"][name]:
            yield f"task.{name}={_text(told['spec'][name])}"


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no name")
    return _text(value)


def _text(value: Any) -> str:
    """`value` as Hydra reads it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, str) and (value.lower() in WORDS or not PLAIN.fullmatch(value)):
        value = value.replace("${", "\\${")  # an interpolation, had it been meant
        escaped = re.sub(r"(\\+)(?=')|(\\+)$", lambda match: match[0] * 2, value).replace("'", "\\'")
        return f"'{escaped}'"
    return str(value)
