"""Episode seeds: three ranges that never meet, so that nothing is ever tuned on the episodes it is judged by."""

from drifting_policy.types import ConfigError

# Diffusion Policy's tests begin at 100000 too.
FIRST_SEED = {"test": 100_000, "validation": 200_000, "rollout": 300_000}
RANGE = 100_000


def episode_seeds(split: str, count: int, *, skip: int = 0) -> list[int]:
    """`count` seeds of a split, after the first `skip`: test, validation (to choose by), rollout (to make data with).

    Raises:
        ConfigError: on an unknown split or more seeds than its range holds.
    """
    if split not in FIRST_SEED:
        raise ConfigError(f"Unknown split '{split}'; choose one of {sorted(FIRST_SEED)}.")
    if not (count >= 1 and skip >= 0 and skip + count <= RANGE):
        raise ConfigError(f"A split holds {RANGE} episodes and at least 1 is needed; asked for {count} after {skip}.")
    return list(range(FIRST_SEED[split] + skip, FIRST_SEED[split] + skip + count))
