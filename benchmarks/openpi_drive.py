"""Plays a task through the unmodified openpi-client, in an environment of its own that has this and the simulator.

`openpi_client.py` beside this file makes that environment and calls this with one JSON document: the server's port, the
environment of the task, the seeds, the mode and the file to write. Modes:

    windows   openpi's ActionChunkBroker asks once per plan; the program that owns the robot keeps the window of observations
    steps     the client asks at every control step with one observation, and the server keeps the window
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

import drifting_policy.envs  # noqa: F401 (registers the environments)
from drifting_policy.rollout.episode import Slot
from drifting_policy.types import PolicySpec

Drive = Callable[[dict[str, np.ndarray], int, int], np.ndarray]


def by_windows(client: WebsocketClientPolicy, spec: PolicySpec) -> Drive:
    """Commands from openpi's broker, which asks for a plan when it has executed the one before."""
    broker = ActionChunkBroker(client, action_horizon=spec.exec_horizon)
    window: list[dict[str, np.ndarray]] = []

    def drive(obs: dict[str, np.ndarray], seed: int, step: int) -> np.ndarray:
        if step == 0:
            broker.reset()
            window[:] = [obs] * spec.obs_horizon
        window[:] = [*window[1:], obs]
        request: dict[str, Any] = {key: np.stack([seen[key] for seen in window]) for key in obs}
        command: np.ndarray = broker.infer({**request, "seed": seed, "plan": step // spec.exec_horizon})["actions"]
        return command

    return drive


def by_steps(client: WebsocketClientPolicy, spec: PolicySpec) -> Drive:
    """Commands from a plan that is kept for its execution horizon, while the server is told every step."""
    plan = np.empty(0)

    def drive(obs: dict[str, np.ndarray], seed: int, step: int) -> np.ndarray:
        nonlocal plan
        answer = client.infer({**obs, "seed": seed, "plan": step // spec.exec_horizon, "reset": step == 0})
        if step % spec.exec_horizon == 0:
            plan = answer["actions"]
        command: np.ndarray = plan[step % spec.exec_horizon]
        return command

    return drive


def main(path: str) -> None:
    """Play, and write the outcomes of the episodes."""
    job = json.loads(Path(path).read_text())
    client = WebsocketClientPolicy("127.0.0.1", job["port"])
    spec = PolicySpec.from_dict(client.get_server_metadata()["spec"])
    drive = {"windows": by_windows, "steps": by_steps}[job["mode"]](client, spec)
    env = gymnasium.make(job["env_id"], disable_env_checker=True, **job["env_options"])
    slot = Slot(env, spec, max_steps=job["max_steps"], film_seeds=(), keep=False)
    episodes = []
    for seed in job["seeds"]:
        slot.begin(seed)
        step, over = 0, False
        while not over:
            over = slot.advance(drive(slot.obs, seed, step))
            step += 1
        episodes.append(asdict(slot.record().episode))
    slot.close()
    Path(job["out"]).write_text(json.dumps(episodes))


if __name__ == "__main__":
    main(sys.argv[1])
