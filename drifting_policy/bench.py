"""`python -m drifting_policy.bench ckpt=DIR hz=100 cycles=10000`: the latency certificate of a policy on this computer."""

from pathlib import Path
from typing import Any

from tqdm import tqdm

from drifting_policy import cli
from drifting_policy.certificate import PICTURE, drive, report, write_certificate
from drifting_policy.commands import BenchConfig
from drifting_policy.eval import BUNDLED, load_candidate
from drifting_policy.evaluation import writing_to
from drifting_policy.train import use_threads
from drifting_policy.types import ConfigError, Policy


def run(config: BenchConfig) -> None:
    """Measure one policy and write its certificate."""
    if not config.ckpt:
        raise ConfigError("Say what to measure: ckpt=RUN_OR_CHECKPOINT_DIRECTORY, ckpt=bundled, or ckpt=FILE.onnx.")
    use_threads(config.threads)
    exported = config.ckpt.endswith(".onnx")
    policy, about, place = _exported(config) if exported else _trained(config)
    out = Path(config.out) if config.out else place
    with writing_to(out), tqdm(total=config.cycles, unit="cycle", disable=None, mininterval=0.5) as bar:
        timing = drive(policy, hz=config.hz, cycles=config.cycles, progress=bar.update)
        certificate = write_certificate(out, timing, spec=policy.spec, about=about | {"threads": config.threads})
    print(report(certificate))
    if certificate["picture"] is None:
        print(f"  no {PICTURE}: drawing needs Matplotlib: pip install 'drifting-policy[plot]'")
    print(f"  certificate  {out}")


def _trained(config: BenchConfig) -> tuple[Policy, dict[str, Any], Path]:
    """The policy of a checkpoint, what is told about it, and where its certificate belongs."""
    from drifting_policy.acceleration import quicken

    candidate = load_candidate(config.ckpt, task=config.task, device=config.device, sampler=config.sampler.changes)
    policy = quicken(candidate.policy, dtype=config.dtype) if config.accelerate else candidate.policy
    name = "_".join(["latency", *(["accelerated"] if config.accelerate else []), *([config.dtype] if config.dtype else [])])
    about = candidate.about | {
        "weights_sha256": candidate.checksum,
        "evaluations": policy.evaluations,
        "device": config.device,
        "accelerated": config.accelerate,
        "dtype": config.dtype,
    }
    place = Path("runs") / f"bundled_{name}" if config.ckpt == BUNDLED else candidate.checkpoint / name
    return policy, about, place


def _exported(config: BenchConfig) -> tuple[Policy, dict[str, Any], Path]:
    """The same for a file of ONNX."""
    from drifting_policy.control.onnx_policy import OnnxPolicy

    if config.accelerate or config.device != "cpu" or config.sampler.changes:
        raise ConfigError("An exported policy is measured as it is, on the CPU: leave out accelerate, device and sampler.")
    policy = OnnxPolicy(config.ckpt, threads=config.threads)
    about = {"checkpoint": config.ckpt, "graph_sha256": policy.manifest.graph_sha256, "runtime": "onnxruntime"}
    return policy, about, Path(config.ckpt).parent / "latency"


if __name__ == "__main__":
    cli.main("bench", run)
