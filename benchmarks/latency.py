"""`python benchmarks/latency.py`: what a plan costs against what it must cost at least, and against other ways of planning.

Every row is a ratio of medians for one observation; what is compared takes turns in one process, one for each number of CPU
threads, or one on a GPU. A floor is the time of reading every weight once: the sum of each matrix, which touches the same bytes
and computes next to nothing; it is the lowest of the ways tried (matrix-vector products take 1.4 times as long), so the hardest
to meet. On a GPU, where starting a kernel takes longer than reading a matrix, it is the sum of all of them in one vector.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from act import prepare
from timing import RESULTS, interleaved, record, spread, wait
from torch import Tensor, nn

from drifting_policy import cli
from drifting_policy.acceleration import accelerate, capture_graph
from drifting_policy.config import arguments, options
from drifting_policy.objectives import OBJECTIVES
from drifting_policy.policy import DriftingPolicy

BIG = {"unet_66M": [256, 512, 1024], "unet_249M": [512, 1024, 2048]}  # those of Diffusion Policy, kernel 5
HEADS = ("mlp", "transformer", "unet")
BARS = {"act / forward": 1.1, "forward / reading weights": 3.0, "image policy / ACT": 0.5}
FLOORS = {"DDPM-100 / one step": 90.0, "DDIM-10 / one step": 9.0}
CPU = torch.device("cpu")
Calls = dict[str, Callable[[], Any]]


def build_policy(overrides: Sequence[str], device: torch.device = CPU) -> DriftingPolicy:
    """The policy of this training with fresh weights."""
    config = cli.compose("train", list(overrides))
    objective = OBJECTIVES[config.objective.name](**arguments(config.objective))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        policy = DriftingPolicy(
            config.task.spec,
            encoder=options(config.encoder),
            generator=options(config.generator) | ({"time": True} if objective.timed else {}),
            noise_scale=objective.noise_scale,
            sampler=objective.sampler,
        )
    return policy.requires_grad_(False).eval().to(device)


def ratio(name: str, of: str, calls: Calls, *, over: str, under: str, repetitions: int) -> dict[str, Any]:
    """The row of one comparison: the median time of calls[over] over that of calls[under]."""
    times = interleaved({key: calls[key] for key in (over, under)}, repetitions=repetitions, warmup=max(1, repetitions // 10))
    above, below = spread(times[over]), spread(times[under])
    value = above["p50"] / below["p50"]
    bar, floor = BARS.get(name), FLOORS.get(name)
    met = (bar is None or value <= bar) and (floor is None or value >= floor)
    bound = f"<= {bar}" if bar else f">= {floor}" if floor else "-"
    row = {"comparison": name, "policy": of, "threads": torch.get_num_threads(), "ratio": round(value, 3), "bar": bound}
    row |= {"met": "yes" if met else "no", "p50_ms": above["p50"], "against_p50_ms": below["p50"]}
    row |= {"repetitions": repetitions, "spread_ms": above, "against_spread_ms": below}
    print(f"{name:<34} {of:<24} {row['threads']} threads {value:9.3f}  {bound:<8} {row['met']}", flush=True)
    return row


def reading(module: nn.Module) -> Callable[[], list[Tensor]]:
    """A call that reads every weight once."""
    weights = [parameter.detach().flatten() for parameter in module.parameters()]
    if weights[0].is_cuda:
        every = torch.cat(weights)
        return torch.inference_mode()(lambda: [wait(every.sum())])
    return torch.inference_mode()(lambda: [weight.sum() for weight in weights])


def captured(policy: DriftingPolicy) -> Calls:
    """`act` and `network` as CUDA graphs."""
    start = prepare(policy)["start"]
    chunk: Tensor = start().clone()
    repeat = torch.inference_mode()(capture_graph)(lambda: chunk.copy_(start()))

    def network() -> Tensor:
        repeat()
        return wait(chunk)

    return {"act": prepare(accelerate(policy, convolutions=False, cuda_graph=True))["act"], "network": network}


def onnx_session(policy: DriftingPolicy) -> Callable[[], Any] | None:
    """The call of ONNX Runtime for what `act` does; None where a package for it is missing."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        return None
    from drifting_policy.control.onnx_policy import OnnxPolicy
    from drifting_policy.exporting import write_graph

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "policy.onnx"
        write_graph(policy, file, form="onnx", about={})
        exported = OnnxPolicy(file, threads=torch.get_num_threads())
    rng, spec = np.random.default_rng(0), policy.spec
    obs = {key: rng.standard_normal((1, spec.obs_horizon, *a.shape), dtype=np.float32) for key, a in spec.observations.items()}
    noise = rng.standard_normal((1, *spec.sample_shape), dtype=np.float32)
    return lambda: exported.act(obs, noise=noise)


def heads(names: Sequence[str], *, repetitions: int, compile: bool, device: torch.device) -> list[dict[str, Any]]:
    """The rows of the small heads: `act` over the network, and ONNX Runtime, torch.compile and CUDA graphs over `act`."""
    rows = []
    for name in names:
        policy = build_policy(["objective=drift", f"generator={name}"], device)
        calls = prepare(policy)
        rows.append(ratio("act / forward", name, calls, over="act", under="network", repetitions=repetitions))
        if device.type == "cuda":
            rows += graphs(name, policy, calls, repetitions=repetitions)
        elif (session := onnx_session(policy)) is not None:
            calls["onnx"] = session
            rows.append(ratio("ONNX Runtime / act", name, calls, over="onnx", under="act", repetitions=repetitions))
        if compile:
            calls["compiled"] = prepare(accelerate(policy, convolutions=False, compile=True))["act"]
            rows.append(ratio("torch.compile / act", name, calls, over="compiled", under="act", repetitions=repetitions))
    return rows


def graphs(name: str, policy: DriftingPolicy, calls: Calls, *, repetitions: int) -> list[dict[str, Any]]:
    """The rows of a policy as a CUDA graph: against its network as one, and against itself without."""
    graph = captured(policy)
    both = graph | {"plain": calls["act"]}
    return [
        ratio("act / forward", f"{name}, CUDA graph", graph, over="act", under="network", repetitions=repetitions),
        ratio("CUDA graph / plain", name, both, over="act", under="plain", repetitions=repetitions),
    ]


def backbone(name: str, channels: Sequence[int], *, repetitions: int, device: torch.device) -> list[dict[str, Any]]:
    """The rows of a U-Net of Diffusion Policy: against reading its weights, and accelerated against itself."""
    policy = build_policy(["objective=drift", "generator=unet", f"generator.channels={[*channels]}"], device)
    calls, rows = prepare(policy), []
    calls["reading"] = reading(policy.generator)

    def compared(title: str, suffix: str, over: str, under: str) -> None:
        rows.append(ratio(title, f"{name}{suffix}", calls, over=over, under=under, repetitions=repetitions))

    compared("act / forward", "", "act", "network")
    compared("plain forward / reading weights", "", "network", "reading")
    if device.type == "cuda":
        rows += graphs(name, policy, calls, repetitions=repetitions)
        calls["fast"] = captured(policy)["network"]
        compared("forward / reading weights", ", CUDA graph", "fast", "reading")
        return rows
    for title in ("packed", "shared"):
        calls["fast"] = prepare(accelerate(policy, share_weights=title == "shared"))["network"]
        bar = "forward / reading weights" if title == "packed" else "shared forward / reading weights"
        compared(bar, f", {title}", "fast", "reading")
        compared("accelerated / plain", f", {title}", "fast", "network")
    halves = ["bfloat16"] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else []  # not every CPU has products in it
    for dtype in (*halves, "int8"):
        calls["fast"] = prepare(accelerate(policy, dtype=dtype))["network"]
        compared("accelerated / plain", f", {dtype}", "fast", "network")
    return rows


def diffusion(name: str, channels: Sequence[int], *, repetitions: int, device: torch.device) -> list[dict[str, Any]]:
    """The rows of several steps over one, with equal backbones apart from the embedding of time."""
    unet = ["generator=unet", f"generator.channels={[*channels]}"]
    calls = {"one": prepare(build_policy(["objective=drift", *unet], device))["act"]}
    steps = build_policy(["objective=diffusion", *unet], device)
    rng, spec = np.random.default_rng(0), steps.spec
    obs = {key: rng.standard_normal((1, spec.obs_horizon, *a.shape), dtype=np.float32) for key, a in spec.observations.items()}
    noise, rows = rng.standard_normal((1, *spec.sample_shape), dtype=np.float32), []
    for title, scheduler, count in (("DDPM-100 / one step", "ddpm", 100), ("DDIM-10 / one step", "ddim", 10)):
        steps.resample(scheduler=scheduler, steps=count)
        calls["many"] = lambda: steps.act(obs, noise=noise)
        rows.append(ratio(title, name, calls, over="many", under="one", repetitions=max(1, repetitions * 10 // count)))
    return rows


class ActTransformer(nn.Module):
    """A transformer of the size of ACT (Zhao et al. 2023, table III): width 512, 4 + 7 layers, 8 heads, 3200 hidden units."""

    def __init__(self, *, tokens: int, embed_dim: int, steps: int, action: int, decoders: int) -> None:
        """A chunk of `steps` from `tokens` conditioning tokens."""
        super().__init__()
        self.cond = nn.Linear(embed_dim, 512)
        self.queries = nn.Parameter(torch.zeros(1, steps, 512))
        self.body = nn.Transformer(
            512, 8, num_encoder_layers=4, num_decoder_layers=decoders, dim_feedforward=3200, dropout=0.0, batch_first=True
        )
        self.output = nn.Linear(512, action)

    def forward(self, cond: Tensor) -> Tensor:
        """The chunk "b t d"."""
        chunk: Tensor = self.output(self.body(self.cond(cond), self.queries.expand(len(cond), -1, -1)))
        return chunk


def image_calls(policy: DriftingPolicy, act: ActTransformer, obs: Mapping[str, Tensor], noise: Tensor) -> Calls:
    """The networks of both for the same images, in network units."""
    network = torch.inference_mode()
    ours = network(lambda: wait(policy.generator(noise, policy.encoder(obs))))
    return {"ours": ours, "act": network(lambda: wait(act(policy.encoder(obs))))}


def images(*, repetitions: int, encoders: Sequence[str], decoders: Sequence[int], device: torch.device) -> list[dict[str, Any]]:
    """The rows of an image policy with the small head over a transformer of ACT's size behind the same encoder."""
    rows = []
    for encoder in encoders:
        policy = build_policy(["task=push_t_image", "objective=drift", "generator=mlp", f"encoder={encoder}"], device)
        spec, rng = policy.spec, np.random.default_rng(0)
        obs = {
            key: torch.from_numpy(rng.standard_normal((1, spec.obs_horizon, *array.shape), dtype=np.float32)).to(device)
            for key, array in spec.observations.items()
        }
        noise = torch.from_numpy(rng.standard_normal((1, 1, *spec.sample_shape), dtype=np.float32)).to(device)
        size = {"tokens": policy.encoder.tokens, "embed_dim": policy.encoder.embed_dim}
        for count in decoders:
            act = ActTransformer(**size, steps=spec.pred_horizon, action=spec.action.shape[0], decoders=count).eval().to(device)
            calls = image_calls(policy, act, obs, noise)
            of = f"{encoder}, {count} decoders"
            rows.append(ratio("image policy / ACT", of, calls, over="ours", under="act", repetitions=repetitions))
    return rows


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows in this process, with its number of threads."""
    rows, parts, where = [], given.parts, {"device": torch.device(given.device)}
    if "heads" in parts:
        rows += heads(given.heads, repetitions=given.repetitions, compile=given.compile, **where)
    for name, channels in (BIG if given.channels is None else {"unet": given.channels}).items():
        if "backbone" in parts:
            rows += backbone(name, channels, repetitions=max(1, given.repetitions // 20), **where)
        if "diffusion" in parts and name != "unet_249M":  # 100 steps of it take minutes and tell the same
            rows += diffusion(name, channels, repetitions=max(1, given.repetitions // 50), **where)
    if "images" in parts:
        rows += images(repetitions=max(1, given.repetitions // 5), encoders=given.encoders, decoders=[7, 1], **where)
    return rows


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description="Ratios of latencies of plans for one observation.")
    parser.add_argument("--parts", nargs="+", default=["heads", "backbone", "diffusion", "images"])
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--encoders", nargs="+", default=["image_small", "image"])
    parser.add_argument("--channels", nargs="+", type=int, help="one U-Net of these instead of those of Diffusion Policy")
    parser.add_argument("--repetitions", type=int, default=200, help="of the small heads; the others take a share of it")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too; needs a C++ compiler and minutes")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="a process for each")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda, where one number of threads is enough")
    parser.add_argument(
        "--rows", action="store_true", help="measure here and write bare rows, as a process for one number does"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "latency.json")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Measure with every number of threads, print the table, write the record; 1 where a bar is missed."""
    given = parse(argv)
    if given.rows:
        torch.set_num_threads(given.threads[0])
        given.out.write_text(json.dumps(measure(given)))
        return 0
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for threads in given.threads:
            out = Path(folder) / "rows.json"
            command = [sys.executable, __file__, *argv, "--rows", "--threads", str(threads), "--out", str(out)]
            subprocess.run(command, check=True)
            rows += json.loads(out.read_text())
    about = {"device": torch.cuda.get_device_name(given.device) if given.device != "cpu" else "cpu"}
    return record(
        given.out, rows=rows, missed=missed(rows), **about, benchmark="latency", bar=f"<= {BARS}, >= {FLOORS}", batch_size=1
    )


def missed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each bar that a row misses."""
    return [
        f"{row['comparison']} of {row['policy']} with {row['threads']} threads is {row['ratio']:.2f}, not {row['bar']}."
        for row in rows
        if row["met"] == "no"
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
