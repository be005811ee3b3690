"""The tables of drifting and its controls: which task and data, which arms, how they are trained, and what judges them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Arm:
    """One line of a table: settings of the training, settings of the sampler, and how many checkpoints are judged.

    Arms with the same `overrides` share their runs; `run` names them.
    """

    run: str
    overrides: tuple[str, ...]
    sampler: Mapping[str, Any] = field(default_factory=dict)
    checkpoints: int | None = None


def single(objective: str, *overrides: str) -> Arm:
    """The arm of an objective with some settings, named by them."""
    name = "_".join([objective, *(text.split(".", 1)[1].replace("=", "_") for text in overrides)])
    return Arm(name, (f"objective={objective}", *overrides))


@dataclass(frozen=True)
class Suite:
    """A table: its task and data, its arms, settings of all trainings, and the episodes that judge."""

    task: str
    data: str
    arms: Mapping[str, Arm]
    overrides: tuple[str, ...] = ()
    seeds: int = 3
    split: str = "test"
    episodes: int = 50
    checkpoints: int = 5
    inference_batch: int = 1
    num_envs: int = 10


# Diffusion and flow draw as many noises per demonstration as drift draws samples: equal observations and equal network
# evaluations in every step of the training.
PLAIN = {"drift": single("drift"), "regression": single("regression")}
DIFFUSION = single("diffusion", "objective.samples=4")
FLOW = single("flow", "objective.samples=4")
DDIM_10 = {"diffusion, DDIM 10": replace(DIFFUSION, sampler={"scheduler": "ddim", "steps": 10})}

SMALL_UNET = (
    "generator=unet",
    "generator.channels=[32,64]",
    "generator.film_dim=128",
    "trainer.batch_size=64",
    "trainer.validation_chunks=64",
    "trainer.validation_samples=4",
    "trainer.eval_episodes=2",
)
PUSH_T_OPTIONS = {
    "drift, zero noise in use": single("drift", "objective.noise_scale=0"),
    "drift, 1 sample": single("drift", "objective.samples=1"),
    "drift, 2 samples": single("drift", "objective.samples=2"),
    "drift, grouping step": single("drift", "objective.grouping=step"),
    "drift, grouping dim": single("drift", "objective.grouping=dim"),
    "drift, scale and force per condition": single("drift", "objective.scale=condition", "objective.force=condition"),
    "regression, 2.5 times the steps": single("regression", "trainer.steps=30000"),
}

WEAK = single("drift", "objective.repulsion=0.9")
NEUTRAL = single("drift", "objective.repulsion=0.75")  # 1 - 1/samples: as if the sample itself were among its siblings
WEAKER = PLAIN | {
    "drift, repulsion 0.9": WEAK,
    "drift, repulsion 0.9, zero noise in use": replace(WEAK, sampler={"noise_scale": 0.0}),
    "drift, repulsion 0.75": NEUTRAL,
    "drift, repulsion 0.75, zero noise in use": replace(NEUTRAL, sampler={"noise_scale": 0.0}),
}


def matrix(task: str, data: str, *overrides: str, steps: int = 6000) -> Suite:
    """The same small U-Net, budget and controls on another task: two training seeds, 5 checkpoints, 40 episodes each."""
    budget = (f"trainer.steps={steps}", f"trainer.checkpoint_every={steps // 12}", f"trainer.validate_every={steps // 4}")
    return Suite(
        task,
        data,
        PLAIN | DDIM_10,
        overrides=(*SMALL_UNET, *budget, *overrides),
        seeds=2,
        episodes=40,
        inference_batch=20,
        num_envs=20,
    )


PUSH_T_UNET = Suite(
    "push_t",
    "human",
    PLAIN
    | {"diffusion, DDPM 100": replace(DIFFUSION, checkpoints=5)}  # a plan takes a hundred times as long
    | DDIM_10
    | {"flow, 10 steps": replace(FLOW, sampler={"steps": 10}), "flow, 1 step": replace(FLOW, sampler={"steps": 1})},
    overrides=(*SMALL_UNET, "trainer.checkpoint_every=500", "trainer.validate_every=3000"),
    checkpoints=10,
    inference_batch=50,
    num_envs=50,
)
SUITES = {
    "push_t/human_mlp": Suite("push_t", "human", PLAIN),
    "push_t/human_mlp_options": Suite("push_t", "human", PLAIN | PUSH_T_OPTIONS, seeds=1, split="validation", episodes=100),
    "push_t/human_mlp_repulsion": Suite("push_t", "human", WEAKER, seeds=1, split="validation", episodes=100),
    "push_t/human_unet": PUSH_T_UNET,
    "push_t/human_unet_repulsion": replace(PUSH_T_UNET, arms=PLAIN | {"drift, repulsion 0.75": NEUTRAL}),
    "lift/scripted_unet": matrix("lift", "scripted"),
    "can/scripted_unet": matrix("can", "scripted"),
    "square/scripted_unet": matrix("square", "scripted"),
    "kitchen/human_unet": matrix("kitchen", "human"),
    "kitchen/human_unet_repulsion": replace(matrix("kitchen", "human"), arms=WEAKER, checkpoints=3),
    "square/scripted_unet_repulsion": replace(matrix("square", "scripted"), arms=PLAIN | {"drift, repulsion 0.75": NEUTRAL}),
    "can/scripted_unet_repulsion": replace(matrix("can", "scripted"), arms=PLAIN | {"drift, repulsion 0.75": NEUTRAL}),
    "block_push/scripted_unet": matrix("block_push", "scripted"),
    "conveyor/bundled_unet": matrix("conveyor", "bundled"),
    # A reduced size: a ResNet of a quarter of the width, for two cores.
    "push_t_image/human_small": matrix("push_t_image", "human", "encoder=image_small", steps=4000),
}
