"""`python benchmarks/act.py`: what does `act` cost beyond the network?

`act` goes from NumPy to NumPy: checks, normalisation, noise, network, clipping, raw units. The bare network is the encoder
and the action head on tensors that are ready. The ratio is the median time of `act` over the median time of the network, for
one observation; both take turns in one run.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import RESULTS, interleaved, random_walks, record, spread, wait
from torch import Tensor

from drifting_policy import cli, train
from drifting_policy.config import arguments
from drifting_policy.models import GENERATORS
from drifting_policy.objectives.drift import DriftObjective
from drifting_policy.policy import DriftingPolicy

BARS = {"unet": 1.3}  # largest ratio; the small heads are told for information
REPETITIONS = 500
WARMUP = 10


def build_policy(head: str) -> DriftingPolicy:
    """The default policy with this action head and fresh weights."""
    config = cli.compose("train", ["objective=drift", f"generator={head}"])
    objective = DriftObjective(**arguments(config.objective))
    return train.build_state(config, random_walks(config.task), objective, torch.device("cpu")).policy.eval()


def prepare(policy: DriftingPolicy) -> dict[str, Callable[[], Any]]:
    """`act` and `network` for the same observation and noise: raw units "1 t d" as an array, network units "1 1 t d".

    `start` is the network without waiting for its chunk, which matters on a GPU.
    """
    rng, spec = np.random.default_rng(0), policy.spec
    shapes = {key: (1, spec.obs_horizon, *array.shape) for key, array in spec.observations.items()}
    obs = {key: rng.standard_normal(shape, dtype=np.float32) for key, shape in shapes.items()}
    noise = rng.standard_normal((1, *spec.sample_shape), dtype=np.float32)
    device = policy.normalizer.device
    ready = {key: policy.normalizer.normalize(key, torch.from_numpy(value).to(device)) for key, value in obs.items()}
    ready_noise = torch.from_numpy(noise).to(device)[:, None] * policy.noise_scale

    @torch.inference_mode()
    def start() -> Tensor:
        chunk: Tensor = policy.generator(ready_noise, policy.encoder(ready))
        return chunk

    return {"act": lambda: policy.act(obs, noise=noise), "network": lambda: wait(start()), "start": start}


def measure(head: str, *, repetitions: int) -> dict[str, Any]:
    """The row of one action head."""
    calls = prepare(build_policy(head))
    times = interleaved({name: calls[name] for name in ("act", "network")}, repetitions=repetitions, warmup=WARMUP)
    act, network = spread(times["act"]), spread(times["network"])
    row = {"head": head, "ratio": act["p50"] / network["p50"], "bar": BARS.get(head)}
    row |= {"act_p50_ms": act["p50"], "act_p99_ms": act["p99"], "network_p50_ms": network["p50"], "repetitions": repetitions}
    return row | {"act_spread_ms": act, "network_spread_ms": network}


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, write the record; 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description="The time of act over that of the bare network, one observation.")
    parser.add_argument("--heads", nargs="+", choices=list(GENERATORS), default=list(GENERATORS))
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's choice")
    parser.add_argument("--out", type=Path, default=RESULTS / "act.json")
    given = parser.parse_args(argv)
    if given.threads:
        torch.set_num_threads(given.threads)
    print(f"one observation, {torch.get_num_threads()} CPU threads, {given.repetitions} repetitions")
    print(f"{'head':<12} {'network p50':>12} {'act p50':>12} {'act p99':>12} {'ratio':>7}")
    rows = []
    for head in given.heads:
        row = measure(head, repetitions=given.repetitions)
        times = " ".join(f"{row[name]:9.3f} ms" for name in ("network_p50_ms", "act_p50_ms", "act_p99_ms"))
        print(f"{head:<12} {times} {row['ratio']:7.3f}", flush=True)
        rows.append(row)
    missed = [
        f"with the head {row['head']}, act takes {row['ratio']:.2f} times as long as its network, above {row['bar']}."
        for row in rows
        if row["bar"] is not None and row["ratio"] > row["bar"]
    ]
    return record(given.out, rows=rows, missed=missed, benchmark="act", bar=f"ratio <= {BARS}", batch_size=1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
