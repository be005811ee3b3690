"""Controller configurations: the three published forms mean the same, and what is not known is refused by name."""

import copy
from typing import Any

import numpy as np
import pytest

from drifting_policy.envs.arm_actions import SITE, controller_action, delta_action
from drifting_policy.envs.controllers import before, composite, delta_scale, is_delta, reference_frame
from drifting_policy.envs.robomimic_tasks import TASKS, task_of, world_settings
from drifting_policy.envs.rotation import matrix_of_vector, six_of_matrix

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


@pytest.mark.parametrize("absolute", [False, True])
def test_the_published_forms_mean_the_same(absolute: bool) -> None:
    first, *others = [composite(config, version=version, absolute=absolute) for config, version in FORMS]
    assert all(other == first for other in others)
    arm = first["body_parts"]["right"]
    assert (arm["input_type"], arm["input_ref_frame"]) == ("absolute" if absolute else "delta", "world")
    assert arm["output_max"] == LIMITS
    assert (arm["damping_ratio"], arm["damping_ratio_limits"]) == (1, [0, 10])
    assert not {"damping", "damping_limits", "control_delta"} & set(arm)


def test_a_conversion_is_pure_and_a_fixed_point() -> None:
    kept = copy.deepcopy(COMPOSITE)
    once = composite(COMPOSITE, version="1.5.1", absolute=False)
    assert kept == COMPOSITE
    assert composite(once, version="1.5.2", absolute=False) == once
    nested = {"type": "BASIC", "body_parts": {"arms": {"right": PART}}}
    assert composite(nested, version="1.5.0", absolute=False) == once
    assert composite({**FLAT, "kp": 200}, version="1.4.1", absolute=True)["body_parts"]["right"]["kp"] == 200


def test_the_axes_of_deltas_are_those_of_the_version() -> None:
    assert reference_frame(FLAT, version="1.4.1") == "world"
    assert reference_frame(FLAT, version="1.5.0") == "base"
    assert reference_frame(COMPOSITE, version="1.5.0") == "world"
    assert [before(version, (1, 5)) for version in ("1.2.0", "1.4.9", "1.5.0", "1.10.0", "2.0.0")] == [True, True, *[False] * 3]


@pytest.mark.parametrize(
    ("change", "delta"), [({}, True), ({"control_delta": False}, False), ({"input_type": "absolute"}, False)]
)
def test_deltas_are_told_from_goals(change: dict[str, Any], delta: bool) -> None:
    assert is_delta({**FLAT, **change}) == delta
    if not delta:
        with pytest.raises(ValueError, match="takes absolute actions, not deltas"):
            composite({**FLAT, **change}, version="1.4.1", absolute=False)
    assert composite({**FLAT, **change}, version="1.4.1", absolute=True)["body_parts"]["right"]["input_type"] == "absolute"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**FLAT, "type": "JOINT_VELOCITY"}, "must be OSC_POSE; got 'JOINT_VELOCITY'"),
        ({**FLAT, "type": "IK_POSE"}, "got 'IK_POSE'"),
        ({**FLAT, "stiffness": 3}, r"not known here: \['stiffness'\]"),
        ({**FLAT, "impedance_mode": "variable"}, "impedance_mode must be 'fixed'; got 'variable'"),
        ({**FLAT, "interpolation": "linear"}, "interpolation must be None; got 'linear'"),
        ({**FLAT, "input_type": "relative"}, "input_type must be 'delta' or 'absolute'"),
        ({**FLAT, "input_ref_frame": "camera"}, "must be 'world' or 'base'; got 'camera'"),
        ({"type": "HYBRID_MOBILE_BASE", "body_parts": {"right": PART}}, "must be BASIC; got 'HYBRID_MOBILE_BASE'"),
        ({"type": "BASIC", "body_parts": {"torso": PART}}, r"no part 'right'; it has \['torso'\]"),
    ],
)
def test_what_is_not_known_is_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        composite(config, version="1.4.1", absolute=False)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(("config", "version"), FORMS)
def test_settings_of_files_and_of_names_agree(name: str, config: dict[str, Any], version: str) -> None:
    configuration = {"env_configuration": "single-arm-opposed"} if name == "transport" else {}
    stored = env_args(TASKS[name].world, version=version, config=config, lite_physics=False, **configuration)
    assert task_of(stored) == name
    for absolute in (False, True):
        assert world_settings(name, env_args=stored, absolute=absolute) == world_settings(name, absolute=absolute)


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (env_args("Door"), "one of the worlds Lift, .*got 'Door'"),
        (env_args("ToolHang"), "belong to the task tool_hang, not to lift"),
        (env_args(robots=["Sawyer"]), r"must be \['Panda'\]; got \['Sawyer'\]"),
        (env_args(reward_shaping=True), "reward_shaping must be False"),
        (env_args(gripper_types="RobotiqGripper"), r"not known here: \['gripper_types'\]"),
        (env_args(config=None), "controller_configs"),
        (env_args(config=[FLAT, {**FLAT, "kp": 1}]), "one configuration for all robots"),
        (env_args(version="new"), "looks like 1.4.1; got 'new'"),
        ({"env_name": "Lift", "env_version": "1.4.1", "env_kwargs": {}}, "hold no controller_configs"),
    ],
)
def test_files_of_other_worlds_are_refused_by_name(stored: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        world_settings("lift", env_args=stored, absolute=False)


def test_a_delta_reaches_its_goal_or_goes_towards_it() -> None:
    rng = np.random.default_rng(0)
    at, turned = rng.normal(size=(2, 3)), matrix_of_vector(rng.normal(size=(2, 3)))
    deltas = rng.uniform(-1, 1, (2, 7))
    goals = [
        np.concatenate([p + 0.05 * d[:3], six_of_matrix(matrix_of_vector(0.5 * d[3:6]) @ r), d[6:]])
        for p, r, d in zip(at, turned, deltas, strict=True)
    ]
    found = delta_action(np.concatenate(goals), positions=at, rotations=turned, scale=delta_scale(FLAT))
    np.testing.assert_allclose(found, deltas.ravel(), atol=1e-12)
    far = np.concatenate([at[0] + [1, -2, 0.5], six_of_matrix(turned[0]), [3.0]])
    short = delta_action(far, positions=at[:1], rotations=turned[:1], scale=delta_scale(COMPOSITE))
    np.testing.assert_allclose(short, [0.5, -1, 0.25, 0, 0, 0, 1], atol=1e-12)
    with pytest.raises(ValueError, match="three equal numbers"):
        delta_scale({**FLAT, "output_max": [1, 2, 3, 1, 1, 1], "output_min": [-1, -2, -3, -1, -1, -1]})
    with pytest.raises(ValueError, match="symmetric"):
        delta_scale({**FLAT, "input_max": 2})


def test_controllers_take_vectors_within_the_world() -> None:
    vector = np.array([0.3, -1.2, 0.4])
    action = np.concatenate([[0.1, 5.0, 1.0], six_of_matrix(matrix_of_vector(vector)), [-7.0]])
    np.testing.assert_allclose(controller_action(action), [0.1, 2.0, 1.0, *vector, -1.0], atol=1e-12)
    np.testing.assert_allclose(controller_action(np.tile(action, 2)), np.tile(controller_action(action), 2))
    np.testing.assert_allclose(SITE @ SITE.T, np.eye(3))
