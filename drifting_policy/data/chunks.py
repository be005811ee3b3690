"""ChunkIndex: which steps of which episode make up each action chunk. Pure index arithmetic."""

from dataclasses import dataclass

import numpy as np

from drifting_policy.types import ConfigError


@dataclass(frozen=True)
class ChunkIndex:
    """One row per chunk.

    `steps` "n t" are rows of the replay buffer, held inside the episode: before its start and after its end the first and
    last step repeat, and `valid` "n t" is False there. `episode` "n" is the episode of each chunk.
    """

    steps: np.ndarray
    valid: np.ndarray
    episode: np.ndarray

    def of_episodes(self, episodes: np.ndarray) -> "ChunkIndex":
        """The chunks of these episodes."""
        rows = np.isin(self.episode, episodes)
        return ChunkIndex(self.steps[rows], self.valid[rows], self.episode[rows])


def chunk_index(episode_ends: np.ndarray, *, obs_horizon: int, pred_horizon: int, exec_horizon: int) -> ChunkIndex:
    """All chunks of all episodes, padded as in Diffusion Policy.

    A chunk of `pred_horizon` steps starts at the first observed step. Starts run from -(obs_horizon - 1), where the history
    is still padding, to the last start that leaves at most exec_horizon - 1 steps of padding behind the episode; an episode
    too short for that has the first chunk alone.
    """
    ends = np.asarray(episode_ends, dtype=np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    first = -(obs_horizon - 1)
    counts = np.maximum(1, (ends - starts) - pred_horizon + (exec_horizon - 1) - first + 1)
    episode = np.repeat(np.arange(len(ends)), counts)
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    wanted = (starts[episode] + first + place)[:, None] + np.arange(pred_horizon)
    low, high = starts[episode][:, None], ends[episode][:, None] - 1
    steps = np.clip(wanted, low, high)
    return ChunkIndex(steps, steps == wanted, episode)


def split_episodes(num_episodes: int, *, validation_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted numbers of the training and the validation episodes, disjoint; both non-empty unless the fraction is 0.

    Raises:
        ConfigError: where the fraction is outside [0, 1) or a single episode would have to serve both.
    """
    if not 0 <= validation_fraction < 1:
        raise ConfigError(f"validation_fraction must lie in [0, 1); got {validation_fraction}.")
    if validation_fraction == 0:
        return np.arange(num_episodes), np.arange(0)
    if num_episodes < 2:
        raise ConfigError("A single episode cannot be split: set trainer.validation_fraction=0.")
    held_out = min(num_episodes - 1, max(1, round(validation_fraction * num_episodes)))
    order = np.random.default_rng(seed).permutation(num_episodes)
    return np.sort(order[held_out:]), np.sort(order[:held_out])
