"""The door: composes a command line by Hydra, hands over plain dataclasses, and turns user errors into one sentence."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drifting_policy import config as schema
from drifting_policy.types import ConfigError, UserError

T = TypeVar("T")
CONFIG_MODULE = "drifting_policy.configs"


def main(config_name: str, run: Callable[[Any], int | None]) -> None:
    """Run `run` on the composed configuration and exit: 0 when done, 2 on a user's mistake, 130 when interrupted."""
    schema.register()
    arguments = sys.argv[1:]
    try:
        if not any(argument.startswith("-") for argument in arguments):
            sys.exit(run(compose(config_name, arguments)) or 0)
        _validate(config_name, arguments)
        hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name=config_name)(_guarded(run))()
    except UserError as error:
        sys.exit(_told(error))
    except BrokenPipeError:
        os._exit(0)  # the reader of our output went away; nothing can be printed any more


def compose(config_name: str, overrides: Sequence[str]) -> Any:
    """The dataclass that YAML and `overrides` make.

    Raises:
        ConfigError: in one sentence, with the closest known name.
    """
    schema.register()
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_module(config_module=CONFIG_MODULE, version_base="1.3"):
            composed = hydra.compose(config_name, overrides=list(overrides))
            return OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_sentence(error, config_name)) from error


def _validate(config_name: str, arguments: Sequence[str]) -> None:
    """Compose once before Hydra's own runner, whose errors have another form; sweeps it must split itself."""
    flags = {"-m", "--multirun", "--help", "-h", "--hydra-help", "--info", "-i", "--version"}
    if not flags & set(arguments):
        compose(config_name, [argument for argument in arguments if "=" in argument and not argument.startswith("--")])


def _guarded(run: Callable[[Any], int | None]) -> Callable[[DictConfig], None]:
    def guarded(composed: DictConfig) -> None:
        try:
            code = run(OmegaConf.to_object(composed))
        except UserError as error:
            code = _told(error)
        if code:
            sys.exit(code)

    return guarded


def _told(error: UserError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _sentence(error: Exception, config_name: str) -> str:
    """Hydra's message in one line; an unknown key gets the closest known one."""
    message = " ".join(str(error).split())
    unknown = re.search(r"Could not override '([\w.]+)'", message) or re.search(r"Key '([\w.]+)' (?:not in|is not in)", message)
    if unknown:
        known = _known_keys(config_name)
        close = difflib.get_close_matches(unknown[1], known, n=1, cutoff=0.5)
        hint = (
            f" Did you mean '{close[0]}'?" if close else f" Top-level settings: {', '.join(k for k in known if '.' not in k)}."
        )
        return f"Unknown setting '{unknown[1]}'.{hint}"
    missing = re.search(r"Could not find '(\w+)/([^']+)' Available options in '[^']+': (.*?)(?: Config search path|$)", message)
    if missing:
        choices = [name for name in missing[3].split() if not name.endswith("schema")]
        return f"Unknown {missing[1]} '{missing[2]}'; choose one of {', '.join(choices)}."
    cause = " ".join(str(error.__cause__ or "").split()).split(" full_key:")[0]
    return f"{message.partition(' full_key:')[0]}{': ' + cause if cause else ''}."


def _known_keys(config_name: str) -> list[str]:
    with hydra.initialize_config_module(config_module=CONFIG_MODULE, version_base="1.3"):
        composed = hydra.compose(config_name)
    keys = []
    for name, value in composed.items():
        keys.append(str(name))
        if OmegaConf.is_dict(value):
            keys += [f"{name}.{inner}" for inner in value]
    return keys
