"""The expert of ToolHang: the geometry that it relies on, its way in a world without physics, and an episode of robosuite."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from drifting_policy.envs.experts.motion import Pose, about, body_pose, downward, gap, quaternion
from drifting_policy.envs.experts.tool_hang import EYE, GRIP, HEADINGS, HOOK, STYLES, TIP, UP, carried, eye_pose, hole
from drifting_policy.envs.experts.tool_hang import expert as make

FLAT = np.stack([np.array([-0.832, 0.555, 0.0]), -UP, np.array([-0.555, -0.832, 0.0])], axis=1)  # the frame on the table


def any_rotation(rng: np.random.Generator) -> np.ndarray:
    return about(rng.standard_normal(3), rng.uniform(0.1, 3.0))


@pytest.fixture
def bench(puppets: Callable[..., Any], thing: Callable[..., Any]) -> Any:
    """The things of ToolHang as they lie at the beginning, and a hand that looks down at them."""
    frame = thing(Pose(np.array([-0.1, -0.27, 0.813]), FLAT), GRIP, np.array([0.0, 0.0, 0.03]))
    tool = thing(Pose(np.array([0.046, -0.19, 0.815]), about(UP, -1.96)), np.zeros(3), np.array([0.03, 0.0, 0.0]))
    hands = {"robot0": Pose(np.array([-0.09, 0.0, 1.02]), downward(np.pi / 2.0))}
    return puppets(
        hands, {"frame": frame, "tool": tool}, {"base_pos": np.array([-0.08, 0.0, 0.805]), "base_quat": np.eye(4)[3]}
    )


def test_what_is_carried_arrives_where_it_should() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        body, hand, goal = (Pose(rng.standard_normal(3), any_rotation(rng)) for _ in range(3))
        state = {
            "tool_pos": body.position,
            "tool_quat": quaternion(body.rotation),
            "robot0_eef_pos": hand.position,
            "robot0_eef_quat_site": quaternion(hand.rotation),
        }
        target = carried(state, "tool", goal)
        inside = hand.rotation.T @ body.rotation, hand.rotation.T @ (body.position - hand.position)  # the tool in the hand
        np.testing.assert_allclose(target.rotation @ inside[0], goal.rotation, atol=1e-9)
        np.testing.assert_allclose(target.at(inside[1]), goal.position, atol=1e-9)


def test_eye_pose_puts_the_eye_there_square_to_the_bar_and_leans() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        eye, lean, inner = rng.standard_normal(3), rng.uniform(0.0, 1.2), about(UP, rng.uniform(-3.0, 3.0))[:, 0]
        pose = eye_pose(eye, inner, lean)
        np.testing.assert_allclose(pose.at(EYE), eye, atol=1e-12)
        np.testing.assert_allclose(pose.rotation.T @ pose.rotation, np.eye(3), atol=1e-12)
        assert np.linalg.det(pose.rotation) == pytest.approx(1.0)
        assert pose.rotation[:, 0] @ inner == pytest.approx(0.0, abs=1e-12)
        assert pose.rotation[:, 2] @ UP == pytest.approx(np.cos(lean))
        assert pose.rotation[:, 2] @ inner == pytest.approx(-np.sin(lean))  # its upper side tips away from the stand


@pytest.mark.parametrize("style", range(len(STYLES)))
@pytest.mark.parametrize("seed", range(3))
def test_plan_mounts_the_frame_and_hangs_the_tool(bench: Any, style: int, seed: int) -> None:
    expert = make(np.random.default_rng(seed), style)
    steps = bench.play(expert.act, until=lambda: expert.motions[0].finished)
    state, frame, tool = bench.observe(), bench.things["frame"].pose, bench.things["tool"].pose
    assert steps > 200  # the longest way, not a shortcut
    assert np.linalg.norm(frame.at(TIP) - hole(state)) < 0.015
    upright = np.stack([-HEADINGS[style], np.cross(UP, -HEADINGS[style]), UP], axis=1)
    assert gap(frame, Pose(frame.position, upright))[1] < 0.1
    inwards, sideways, up = frame.rotation.T @ (tool.at(EYE) - frame.at(HOOK))
    assert 0.0 < inwards < 0.02
    assert np.hypot(sideways, up) < 0.00675  # what robosuite asks for: the eye around the bar
    assert bench.holders == {"frame": [], "tool": []}


def test_styles_differ_only_once_the_frame_is_lifted(bench: Any) -> None:
    one, other = (make(np.random.default_rng(0), style) for style in range(2))
    state = bench.observe()
    np.testing.assert_array_equal(one.act(state), other.act(state))
    phases = one.motions[0].phases, other.motions[0].phases
    start = bench.hands["robot0"]
    angles = [gap(a.target(state, start), b.target(state, start))[1] for a, b in zip(*phases, strict=False)]
    assert max(angles[:4]) == 0.0
    assert angles[4] == pytest.approx(np.pi / 2.0)


def test_same_generator_gives_the_same_actions(bench: Any) -> None:
    state = bench.observe()
    one, same, other = (make(np.random.default_rng(seed), 0) for seed in (0, 0, 1))
    actions = [np.array([expert.act(state) for _ in range(20)]) for expert in (one, same, other)]
    np.testing.assert_array_equal(actions[0], actions[1])
    assert not np.array_equal(actions[0], actions[2])


def test_episode_of_robosuite() -> None:
    """Its geometry is the one above, and the expert succeeds from a beginning that is known to be good."""
    pytest.importorskip("robosuite")
    from drifting_policy.datasets.recorder import record
    from drifting_policy.envs.robomimic_tasks import task_named, world_settings
    from drifting_policy.envs.robomimic_world import World

    task = task_named("tool_hang")
    world = World(task, world_settings("tool_hang", absolute=False))
    try:
        world.reset(np.random.default_rng([0, 0]))
        state, sim = world.observe(), world.robosuite.sim
        frame, tool = body_pose(state, "frame"), body_pose(state, "tool")
        np.testing.assert_allclose(frame.at(TIP), sim.data.get_site_xpos("frame_tip_site"), atol=1e-4)
        np.testing.assert_allclose(tool.at(EYE), sim.data.get_site_xpos("tool_hole1_center"), atol=3e-4)
        np.testing.assert_allclose(frame.at(GRIP), sim.data.get_geom_xpos("frame_grip_frame"), atol=1e-4)
        np.testing.assert_allclose(frame.at(HOOK - [0.00375, 0.0, 0.0]), sim.data.get_site_xpos("frame_hang_site"), atol=1e-4)
        walls = np.mean([sim.data.get_geom_xpos(f"stand_wall{i}") for i in range(4)], axis=0)
        np.testing.assert_allclose(hole(state) + 0.075 * UP, walls, atol=1e-3)
        expert = make(np.random.default_rng([0, 1]), 0)
        episode = record(world, task, expert.act, np.random.default_rng([0, 0]), max_steps=500)
        assert episode is not None
        assert episode["rewards"][-1] == 1.0
    finally:
        world.close()
