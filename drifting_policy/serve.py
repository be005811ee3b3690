"""`python -m drifting_policy.serve ckpt=RUN`: a policy behind a websocket, for openpi's clients and for `RemotePolicy`."""

import sys
from pathlib import Path
from typing import Any

from drifting_policy import cli
from drifting_policy.checkpoint import WEIGHTS, load_policy, read_config, resolve
from drifting_policy.commands import ServeConfig
from drifting_policy.control.server import Limits, PolicyServer, serve
from drifting_policy.demonstrations import bundled
from drifting_policy.eval import BUNDLED, BUNDLED_POLICY
from drifting_policy.train import choose_device, use_threads
from drifting_policy.types import ConfigError
from drifting_policy.versions import versions

ONNX = ".onnx"


def run(config: ServeConfig) -> None:
    """Load the policy, warm it up, and serve it until the program is interrupted or terminated."""
    if not config.ckpt:
        raise ConfigError("Say what to serve: ckpt=RUN_OR_CHECKPOINT_DIRECTORY, ckpt=FILE.onnx, or ckpt=bundled.")
    use_threads(config.threads)
    policy, about = open_policy(config)
    limits = Limits(deadline=config.deadline, max_message=config.max_message, connections=config.connections)
    server = PolicyServer(
        policy,
        host=config.host,
        port=config.port,
        token=read_token(config.token_file),
        insecure=config.insecure,
        about={"name": config.name or str(config.ckpt), **about, "versions": versions()},
        limits=limits,
    )
    if config.insecure and config.token_file is None:
        print("warning: insecure=true lets everybody who reaches this port ask the policy.", file=sys.stderr)
    serve(server, started=lambda: print(description(server, policy), flush=True))
    print("stopped")


def open_policy(config: ServeConfig) -> tuple[Any, dict[str, Any]]:
    """The policy, and what its clients are told about where it comes from.

    Raises:
        CheckpointError: where there is none, or it is damaged.
        ConfigError: where the device cannot be used.
    """
    if config.ckpt.endswith(ONNX):
        from drifting_policy.control.onnx_policy import OnnxPolicy

        return OnnxPolicy(config.ckpt, threads=max(1, config.threads)), {}
    checkpoint = resolve(bundled(BUNDLED_POLICY) if config.ckpt == BUNDLED else config.ckpt)
    stored = read_config(checkpoint)
    about = {"task": str(stored.get("task")), "sha256": str(stored["sha256"][WEIGHTS])}
    return load_policy(checkpoint, device=choose_device(config.device)), about


def read_token(file: str | None) -> str | None:
    """The token in `file`, without the white space around it; None without a file.

    Raises:
        ConfigError: where the file cannot be read or is empty.
    """
    if file is None:
        return None
    try:
        token = Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The token file {file} cannot be read ({error}).") from error
    if not token:
        raise ConfigError(f"The token file {file} is empty; write a long random word into it.")
    return token


def description(server: PolicyServer, policy: Any) -> str:
    """The address and the contract, for people."""
    spec = policy.spec
    host = f"[{server.host}]" if ":" in server.host else server.host
    lines = [f"serving at ws://{host}:{server.port}   contract {spec.contract_hash}, {spec.control_hz:g} Hz"]
    lines += [
        f"  observes     {key} {array.shape} {array.dtype} {array.unit}".rstrip()
        for key, array in sorted(spec.observations.items())
    ]
    actions = (spec.pred_horizon - spec.first_executed, *spec.action.shape)
    lines.append(f"  steps seen   {spec.obs_horizon}")
    lines.append(f"  answers      actions {actions} float32 {spec.action.unit}".rstrip())
    lines.append(f"  executed     {spec.exec_horizon} of them per plan in simulation")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.main("serve", run)
