"""Simulated tasks as Gymnasium environments: `gymnasium.make("drifting_policy.envs:drifting/PushT-v0")`.

Importing this package registers the tasks and loads no simulator. None of them limits the number of steps: the evaluation does.
"""

import gymnasium

gymnasium.register(id="drifting/PushT-v0", entry_point="drifting_policy.envs.push_t:PushTEnv")
gymnasium.register(id="drifting/Obstacle-v0", entry_point="drifting_policy.envs.obstacle:ObstacleEnv")
gymnasium.register(id="drifting/Mixture-v0", entry_point="drifting_policy.envs.mixture:MixtureEnv")
gymnasium.register(id="drifting/Kitchen-v0", entry_point="drifting_policy.envs.kitchen:KitchenEnv")
gymnasium.register(id="drifting/BlockPush-v0", entry_point="drifting_policy.envs.block_push:BlockPushEnv")

for name, task in {
    "Lift": "lift",
    "Can": "can",
    "Square": "square",
    "Transport": "transport",
    "ToolHang": "tool_hang",
}.items():
    gymnasium.register(
        id=f"drifting/{name}-v0", entry_point="drifting_policy.envs.robomimic:RobomimicEnv", kwargs={"task": task}
    )
