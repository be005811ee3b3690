"""The schema of every YAML in configs/imagenet/, as plain dataclasses."""

from hydra.core.config_store import ConfigStore

COMMANDS: dict[str, type] = {}


def register() -> None:
    """Tell Hydra the schemas of the entry points."""
    for name, node in COMMANDS.items():
        ConfigStore.instance().store(name=f"imagenet_{name}_schema", node=node)
