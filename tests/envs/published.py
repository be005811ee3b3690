"""Controller configurations and env_args as the published files of robomimic hold them."""

from typing import Any

LIMITS = [0.05, 0.05, 0.05, 0.5, 0.5, 0.5]
FLAT: dict[str, Any] = {  # as in the files of robosuite 1.2 and 1.4
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": LIMITS,
    "output_min": [-limit for limit in LIMITS],
    "kp": 150,
    "damping": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}
PART = {**FLAT, "input_ref_frame": "world", "gripper": {"type": "GRIP"}}
COMPOSITE: dict[str, Any] = {"type": "BASIC", "body_parts": {"right": PART}}  # as in those of 1.5
FORMS = [(FLAT, "1.2.0"), (FLAT, "1.4.1"), (COMPOSITE, "1.5.1")]


def env_args(world: str = "Lift", *, version: str = "1.4.1", config: Any = FLAT, **kwargs: Any) -> dict[str, Any]:
    """The env_args of a published file."""
    arms = 2 if world == "TwoArmTransport" else 1
    given = {"robots": ["Panda"] * arms, "controller_configs": config, "control_freq": 20, "reward_shaping": False}
    given |= {"has_renderer": False, "has_offscreen_renderer": False, "use_object_obs": True, "camera_depths": False}
    given |= {"ignore_done": True, "use_camera_obs": False, "camera_heights": 84, "camera_widths": 84}
    return {"env_name": world, "env_version": version, "type": 1, "env_kwargs": given | kwargs}
