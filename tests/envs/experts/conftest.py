"""A world without physics for the experts: hands go where they are told, fingers take what lies between them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest

from drifting_policy.envs.experts.motion import REACH, TURN, Pose, about, quaternion

WIDE, THIN = 0.08, 0.03  # m between the fingers: open, and around a thing


@dataclass(frozen=True)
class Thing:
    """A body that can be taken anywhere between the points -`half` and +`half` (3,) around `grip` (3,), in its own axes.

    Let go, it falls to the height `rest`, or stays in the air where that is None.
    """

    pose: Pose
    grip: np.ndarray
    half: np.ndarray
    rest: float | None = None


class Puppets:
    """Hands, named as robosuite names arms, and things; `extra` are further observations, which never change."""

    def __init__(self, hands: Mapping[str, Pose], things: Mapping[str, Thing], extra: Mapping[str, np.ndarray]) -> None:
        self.hands, self.things, self.extra = dict(hands), dict(things), dict(extra)
        self.width = dict.fromkeys(hands, WIDE)
        self.holders: dict[str, list[str]] = {name: [] for name in things}

    def observe(self) -> dict[str, np.ndarray]:
        seen = dict(self.extra)
        for arm, pose in self.hands.items():
            seen[f"{arm}_eef_pos"], seen[f"{arm}_eef_quat_site"] = pose.position, quaternion(pose.rotation)
            seen[f"{arm}_gripper_qpos"] = np.array([0.5, -0.5]) * self.width[arm]
        for name, thing in self.things.items():
            seen[f"{name}_pos"], seen[f"{name}_quat"] = thing.pose.position, quaternion(thing.pose.rotation)
        return seen

    def step(self, action: np.ndarray) -> None:
        for arm, twist in zip(self.hands, action.reshape(-1, 7), strict=True):
            before = self.hands[arm]
            spin = 0.3 * TURN * twist[3:6]
            angle = float(np.linalg.norm(spin))
            turn = about(spin, angle) if angle > 1e-9 else np.eye(3)
            after = Pose(before.position + 0.3 * REACH * twist[:3], turn @ before.rotation)
            self.hands[arm] = after
            self.width[arm] = float(np.clip(self.width[arm] - 0.01 * np.sign(twist[6]), THIN, WIDE))
            for name, thing in self.things.items():
                if self.holders[name][:1] == [arm]:
                    moved = after.position + turn @ (thing.pose.position - before.position)
                    self.things[name] = replace(thing, pose=Pose(moved, turn @ thing.pose.rotation))
                self._take_or_drop(arm, name)

    def _take_or_drop(self, arm: str, name: str) -> None:
        thing, holders = self.things[name], self.holders[name]
        if self.width[arm] > 0.05 and arm in holders:
            holders.remove(arm)
            if not holders and thing.rest is not None:
                position = np.append(thing.pose.position[:2], thing.rest)
                self.things[name] = replace(thing, pose=Pose(position, thing.pose.rotation))
        elif self.width[arm] <= THIN and arm not in holders and self._between(self.hands[arm].position, thing):
            holders.append(arm)

    def _between(self, point: np.ndarray, thing: Thing) -> bool:
        local = thing.pose.rotation.T @ (point - thing.pose.position) - thing.grip
        along = np.clip(local @ thing.half / max(float(thing.half @ thing.half), 1e-9), -1.0, 1.0)
        return bool(np.linalg.norm(local - along * thing.half) < 0.02)

    def play(self, act: Callable[[Mapping[str, np.ndarray]], np.ndarray], *, until: Callable[[], bool], most: int = 700) -> int:
        """Steps until `until`; fails where an action leaves its bounds or `most` steps do not suffice."""
        for step in range(most):
            action = act(self.observe())
            assert np.all(np.abs(action) <= 1.0)
            self.step(action)
            if until():
                return step + 1
        pytest.fail(f"not done within {most} steps")


@pytest.fixture
def puppets() -> type[Puppets]:
    return Puppets


@pytest.fixture
def thing() -> type[Thing]:
    return Thing
