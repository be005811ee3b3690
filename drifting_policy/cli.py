"""The door: composes a command line by Hydra, hands over plain dataclasses, and turns user errors into one sentence."""

import contextlib
import copy
import dataclasses
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drifting_policy import commands
from drifting_policy import config as schema
from drifting_policy.types import ConfigError, UserError

CONFIG_MODULE = "drifting_policy.configs"
OWN_CONFIGS = "DRIFTING_POLICY_CONFIGS"  # a folder of the user's own YAML, such as task/my_task.yaml
GROUPS = ("task", "encoder", "generator", "objective", "trainer")
FLAGS = ("--help", "-h", "--multirun", "-m", "--cfg", "-c", "--info", "-i", "--resolve", "--package", "-p", "--hydra-help")
SWEEP = {"--multirun", "-m"}
FLAGS_WITH_A_WORD = {"--cfg", "-c", "--info", "-i", "--package", "-p"}


def main(config_name: str, run: Callable[[Any], int | None]) -> None:
    """Run `run` on the composed configuration and exit: 0 when done, 2 on a user's mistake, 130 when interrupted.

    `config_name` is a YAML of configs/, or folder.name for one in a folder there that has its own groups.
    """
    schema.register()
    commands.register()
    arguments = sys.argv[1:]
    try:
        _check_form(arguments)
        if not any(argument.startswith("-") for argument in arguments):
            code = run(compose(config_name, arguments)) or 0
        else:
            _validate(config_name, arguments)
            module, name = _place(config_name)
            runner = hydra.main(version_base="1.3", config_path=f"pkg://{module}", config_name=name)(_guarded(run))
            code = 0
            sys.argv += own_configs()
            if SWEEP & set(arguments):
                runner()
            else:  # Hydra shows something; it would take a reader that went away for its own failure
                shown = io.StringIO()
                try:
                    with contextlib.redirect_stdout(shown):
                        runner()
                finally:
                    print(shown.getvalue(), end="", flush=True)
        sys.stdout.flush()
        sys.exit(code)
    except UserError as error:
        sys.exit(_told(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os._exit(0)  # the reader of our output went away; nothing can be printed any more


def compose(config_name: str, overrides: Sequence[str]) -> Any:
    """The dataclass that YAML and `overrides` make.

    Raises:
        ConfigError: in one sentence, with the closest known name.
    """
    if own_configs():  # which may change
        return _compose(config_name, overrides)
    return copy.deepcopy(_packaged(config_name, tuple(overrides)))


@cache
def _packaged(config_name: str, overrides: tuple[str, ...]) -> Any:
    """The same from the YAML of the package alone; an evaluation asks for one task many times."""
    return _compose(config_name, overrides)


def _compose(config_name: str, overrides: Sequence[str]) -> Any:
    schema.register()
    commands.register()
    GlobalHydra.instance().clear()
    try:
        module, name = _place(config_name)
        with hydra.initialize_config_module(config_module=module, version_base="1.3"):
            return _plain(hydra.compose(name, overrides=[*overrides, *own_configs()]))
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException, AssertionError, ValueError) as error:  # ValueError: task=1
        raise ConfigError(_sentence(error, config_name, overrides)) from error


def own_configs() -> list[str]:
    """The override that lets Hydra find YAML in the folder DRIFTING_POLICY_CONFIGS too; without one, nothing.

    Raises:
        ConfigError: where it is no folder.
    """
    folder = os.environ.get(OWN_CONFIGS)
    if not folder:
        return []
    if not os.path.isdir(folder):
        raise ConfigError(
            f"{OWN_CONFIGS} must be a folder of YAML files such as task/my_task.yaml; there is no folder {folder}."
        )
    return [f"hydra.searchpath=['file://{os.path.abspath(folder)}']"]


def _place(config_name: str) -> tuple[str, str]:
    """The module that holds the YAML of `config_name`, and the YAML's name."""
    folder, _, name = config_name.rpartition(".")
    return (f"{CONFIG_MODULE}.{folder}" if folder else CONFIG_MODULE), name


def _plain(composed: Any) -> Any:
    """The dataclass of a composed configuration; what Hydra let in by `+` but nothing would read is refused."""
    config = OmegaConf.to_object(composed)
    for name in _extra(config):
        raise ConfigError(f"Unknown setting '{name}': nothing reads it, so it cannot be added.")
    return config


def _extra(config: Any, prefix: str = "") -> Iterator[str]:
    known = {field.name for field in dataclasses.fields(config)}
    for name, value in vars(config).items():
        if name not in known:
            yield prefix + name
        elif dataclasses.is_dataclass(value):
            yield from _extra(value, f"{prefix}{name}.")


def _check_form(arguments: Sequence[str]) -> None:
    """Refuse what is neither a flag nor name=value, before Hydra does so in many lines."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if argument.startswith("-"):
            if argument.partition("=")[0] not in FLAGS:
                raise ConfigError(
                    f"Unknown flag '{argument}'; settings are written name=value, and flags are {', '.join(FLAGS)}."
                )
        elif "=" not in argument and not argument.startswith("~") and before not in FLAGS_WITH_A_WORD:
            raise ConfigError(f"'{argument}' is not a setting; write name=value, as in seed=1.")


def _validate(config_name: str, arguments: Sequence[str]) -> None:
    """Compose once before Hydra's own runner, whose errors have another form; of a sweep, every value is tried."""
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    if SWEEP & set(arguments):
        try:
            values = [_sweep(argument) for argument in overrides]
        except HydraException as error:
            raise ConfigError(_sentence(error, config_name, ())) from error
        for job in range(max(map(len, values), default=1)):
            compose(config_name, [choices[job % len(choices)] for choices in values])
    else:
        compose(config_name, overrides)


def _sweep(argument: str) -> list[str]:
    """The overrides that a sweep such as seed=0,1 stands for; any other argument stands for itself."""
    (override,) = OverridesParser.create().parse_overrides([argument])
    if not (override.is_choice_sweep() or override.is_range_sweep()):
        return [argument]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _guarded(run: Callable[[Any], int | None]) -> Callable[[Any], None]:
    def guarded(composed: Any) -> None:
        try:
            code = run(_plain(composed))
        except UserError as error:
            code = _told(error)
        if code:
            sys.exit(code)

    return guarded


def _told(error: UserError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _sentence(error: Exception, config_name: str, overrides: Sequence[str]) -> str:
    """Hydra's message in one line; an unknown key gets the closest known one."""
    if isinstance(error, OverrideParseException):
        return f"'{error.override}' cannot be read ({(error.message.splitlines() or [''])[0]}); write name=value, as in seed=1."
    if isinstance(error, AssertionError):  # OmegaConf's answer to task.max_steps=1 where task is null
        return (
            f"A part of an empty setting cannot be changed ({' '.join(overrides)}); choose the whole first, as in task=push_t."
        )
    message = " ".join(str(error).split())
    if message.startswith("Config group override must be"):
        return f"A choice takes a name, as in task=push_t; among '{' '.join(overrides)}' is one with a number or true or false."
    unknown = re.search(r"Could not override '([\w.]+)'", message) or re.search(r"Key '([\w.]+)' (?:not in|is not in)", message)
    if unknown:
        known = _known_keys(config_name, [override for override in overrides if override.partition("=")[0] != unknown[1]])
        close = difflib.get_close_matches(unknown[1], known, n=1, cutoff=0.5)
        hint = (
            f" Did you mean '{close[0]}'?" if close else f" Top-level settings: {', '.join(k for k in known if '.' not in k)}."
        )
        return f"Unknown setting '{unknown[1]}'.{hint}"
    missing = re.search(r"Could not find '(\w+)/([^']+)' Available options in '[^']+': (.*?)(?: Config search path|$)", message)
    if missing:
        choices = [name for name in missing[3].split() if not name.endswith(("schema", "_base"))]
        return f"Unknown {missing[1]} '{missing[2]}'; choose one of {', '.join(choices)}."
    text = message.partition(" full_key:")[0]
    cause = " ".join(str(error.__cause__ or "").split()).partition(" full_key:")[0]
    return f"{text}: {cause}" if cause else text


def _known_keys(config_name: str, overrides: Sequence[str]) -> list[str]:
    """All settings, those of the chosen groups among them."""
    chosen = [override for override in overrides if override.partition("=")[0] in GROUPS]
    module, name = _place(config_name)
    with hydra.initialize_config_module(config_module=module, version_base="1.3"):
        composed = hydra.compose(name, overrides=[*chosen, *own_configs()])
    keys = []
    for key, value in composed.items():
        name = str(key)
        keys.append(name)
        if OmegaConf.is_dict(value):
            keys += [f"{name}.{inner}" for inner in map(str, value)]
    return keys
