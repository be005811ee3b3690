"""Controller configurations of robomimic's files in the form that robosuite 1.5 takes: one composite with a part per arm.

Three forms were published. Files of robosuite 1.2 to 1.4 hold one flat OSC_POSE controller, with `control_delta`, and move
and turn along the axes of the world. Files of robosuite 1.5 hold a composite "BASIC" whose part `right` serves every robot; it
says `input_ref_frame`, and either `input_type` or, ignored by robosuite 1.5, still `control_delta`.
"""

from collections.abc import Mapping
from typing import Any

ARM = "OSC_POSE"
# What a part may say, by the names of robosuite 1.5, and its value where it says nothing.
DEFAULTS: dict[str, Any] = {
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}
OLD_NAMES = {"damping": "damping_ratio", "damping_limits": "damping_ratio_limits"}
READ_APART = {"type", "control_delta", "input_type", "input_ref_frame", "gripper"}
ONLY = {"impedance_mode": "fixed", "interpolation": None, "position_limits": None, "orientation_limits": None}


def composite(config: Mapping[str, Any], *, version: str, absolute: bool) -> dict[str, Any]:
    """The composite controller of robosuite 1.5 that does what `config` did where it was written.

    Args:
        config: a flat or composite configuration.
        version: of the robosuite that wrote it, as in the env_args of a file.
        absolute: actions are goals in the world, whatever `config` says; else they are its deltas.

    Raises:
        ValueError: a type or an option that this project does not know, by name, or a configuration without deltas.
    """
    part = _arm_part(config)
    unknown = sorted(set(part) - set(DEFAULTS) - set(OLD_NAMES) - READ_APART)
    if unknown:
        raise ValueError(f"The controller has options that are not known here: {unknown}.")
    if part.get("type", ARM) != ARM:
        raise ValueError(f"The controller of an arm must be {ARM}; got {part['type']!r}.")
    known = {OLD_NAMES.get(name, name): value for name, value in part.items() if name not in READ_APART}
    arm = {"type": ARM, **DEFAULTS, **known, "gripper": {"type": "GRIP"}}
    for name, value in ONLY.items():
        if arm[name] not in (value, "null"):
            raise ValueError(f"The controller's {name} must be {value!r}; got {arm[name]!r}.")
        arm[name] = value
    if not absolute and not _is_delta(part):
        raise ValueError("The controller takes absolute actions, not deltas.")
    arm["input_type"] = "absolute" if absolute else "delta"
    arm["input_ref_frame"] = "world" if absolute else reference_frame(part, version=version)
    return {"type": "BASIC", "body_parts": {"right": arm}}


def is_delta(config: Mapping[str, Any]) -> bool:
    """Whether the actions of a flat or composite configuration are deltas."""
    return _is_delta(_arm_part(config))


def delta_scale(config: Mapping[str, Any]) -> tuple[float, float]:
    """What an action of 1 moves and turns the goal by, in m and rad.

    Raises:
        ValueError: limits that are not the same in both directions and along all axes.
    """
    part = {**DEFAULTS, **_arm_part(config)}
    high, low = list(part["output_max"]), list(part["output_min"])
    if (part["input_max"], part["input_min"]) != (1, -1) or low != [-value for value in high]:
        raise ValueError("The controller's limits must be symmetric, with inputs from -1 to 1.")
    if len(high) != 6 or len(set(high[:3])) != 1 or len(set(high[3:])) != 1:
        raise ValueError(f"The controller's output_max must be three equal numbers and three equal numbers; got {high}.")
    return float(high[0]), float(high[3])


def reference_frame(config: Mapping[str, Any], *, version: str) -> str:
    """The axes of actions: as `config` says, else those of the "world" before robosuite 1.5 and those of the "base" since.

    Raises:
        ValueError: it says something else.
    """
    frame = _arm_part(config).get("input_ref_frame", "world" if before(version, (1, 5)) else "base")
    if frame not in ("world", "base"):
        raise ValueError(f"The controller's input_ref_frame must be 'world' or 'base'; got {frame!r}.")
    return str(frame)


def before(version: str, bound: tuple[int, int]) -> bool:
    """Whether a version such as "1.4.1" comes before the first of (major, minor).

    Raises:
        ValueError: it does not begin with two numbers.
    """
    parts = version.split(".")
    if len(parts) < 2 or not all(part.isdigit() for part in parts[:2]):
        raise ValueError(f"A version of robosuite looks like 1.4.1; got {version!r}.")
    return (int(parts[0]), int(parts[1])) < bound


def _arm_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the arm alone, whichever form it comes in."""
    if "body_parts" not in config:
        return dict(config)
    if config.get("type", "BASIC") != "BASIC":
        raise ValueError(f"The composite controller must be BASIC; got {config['type']!r}.")
    parts = config["body_parts"]
    arms = parts.get("arms", parts)
    if "right" not in arms:
        raise ValueError(f"The composite controller has no part 'right'; it has {sorted(arms)}.")
    return dict(arms["right"])


def _is_delta(part: Mapping[str, Any]) -> bool:
    if part.get("input_type", "delta") not in ("delta", "absolute"):
        raise ValueError(f"The controller's input_type must be 'delta' or 'absolute'; got {part['input_type']!r}.")
    return bool(part.get("control_delta", True)) and part.get("input_type", "delta") == "delta"
