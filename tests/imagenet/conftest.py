"""Released folders made up by tests, through the msgpack package, which the code under test does without."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

from drifting_policy.imagenet.autoencoder import MaskedAutoencoder
from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.imagenet.release import autoencoder_options, generator_options, released_weights

GENERATOR = {
    **{"num_classes": 3, "input_size": 4, "in_channels": 1, "out_channels": 3, "patch_size": 2, "hidden_size": 16},
    **{"depth": 1, "num_heads": 2, "cond_dim": 8, "mlp_ratio": 2.0, "n_cls_tokens": 1, "noise_classes": 4, "noise_coords": 3},
    **{"use_qknorm": True, "use_swiglu": True, "use_rope": True, "use_rmsnorm": True},
}
AUTOENCODER = {"num_classes": 3, "in_channels": 2, "base_channels": 32, "patch_size": 2, "layers": [1, 1, 1, 1]}
AUTOENCODER |= {"input_patch_size": 1}
WriteRelease = Callable[..., Path]


def pack(values: np.ndarray) -> msgpack.ExtType:
    """An array as the release stores it."""
    return msgpack.ExtType(1, msgpack.packb([list(values.shape), values.dtype.name, values.tobytes()]))


def nest(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The nested maps of arrays by their names."""
    tree: dict[str, Any] = {}
    for name, values in arrays.items():
        *path, last = name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = pack(np.ascontiguousarray(values))
    return tree


@pytest.fixture
def write_release(tmp_path: Path) -> WriteRelease:
    """Writes a folder in the layout of the release and returns it.

    Of a "gen" or "mae" with random weights; `arrays` replaces some of them (None leaves one out), `metadata` some of the JSON,
    and `place` is the folder inside it that holds both files.
    """

    def write(
        kind: str = "gen",
        *,
        fields: Mapping[str, Any] | None = None,
        arrays: Mapping[str, np.ndarray | None] | None = None,
        metadata: Mapping[str, Any] | None = None,
        place: str = "params_ema",
    ) -> Path:
        fields = dict(fields or {"gen": GENERATOR, "mae": AUTOENCODER}[kind])
        network = (
            ImageGenerator(**generator_options(fields)) if kind == "gen" else MaskedAutoencoder(**autoencoder_options(fields))
        )
        source = torch.Generator().manual_seed(0)
        weights = {name: torch.randn(value.shape, generator=source) for name, value in network.named_parameters()}
        released = {**dict(released_weights(network, weights)), **(arrays or {})}
        told = {"format": "flax.msgpack", "kind": kind, "ema_decay": 0.999, "step": 7, "model_config": fields} | (
            metadata or {}
        )
        folder = tmp_path / f"released_{kind}" / place
        folder.mkdir(parents=True, exist_ok=True)
        kept = {name: values for name, values in released.items() if values is not None}
        (folder / "ema_params.msgpack").write_bytes(msgpack.packb(nest(kept)))
        (folder / "metadata.json").write_text(json.dumps(told))
        return tmp_path / f"released_{kind}"

    return write
