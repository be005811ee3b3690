"""A run as it lies on disk, small and made up, and a reader that insists on whole HTML."""

import io
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drifting_policy.reporting.gallery import FOLDER, INDEX, checksum

VOID = {"meta"}


class Reader(HTMLParser):
    """What a page holds; an element that is not closed where it should be is an error."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute stands twice in {tag}: {attrs}"

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"{tag} closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def values(self, tag: str, name: str) -> list[str]:
        """All values of an attribute."""
        return [value for owner, key, value in self.attributes if (owner, key) == (tag, name)]

    def told(self, tag: str = "") -> str:
        """The text of the page, or of the elements `tag`."""
        return " ".join(text for owner, text in self.texts if owner != "style" and tag in ("", owner))


def scores(*, n: int = 6, step: int = 20, **about: Any) -> dict[str, Any]:
    """What scores.json holds."""
    metric = {"value": 0.5, "low": 0.25, "high": 0.75, "confidence": 0.95, "method": "bootstrap", "n": n}
    episodes = [
        {"seed": 100 + i, "max_score": i / n, "final_score": 0.0, "success": i >= n - 2, "steps": 9} for i in reversed(range(n))
    ]
    told = {"task": "push_t", "split": "test", "n_episodes": n, "latency_steps": 0, "nfe": 1, "step": step}
    told |= {"checkpoint": "nowhere", "objective": {"name": "drift"}, "sampler": {"name": "one_step"}}
    names = ("max_score", "final_score", "success")
    return told | {"metrics": {name: dict(metric) for name in names}, "episodes": episodes} | about


def make_exhibits(home: Path, *, dimensions: int = 2, picture: Any = None) -> None:
    """Exhibits of the two worst episodes of the scores beside them."""
    (home / FOLDER).mkdir()
    rng = np.random.default_rng(0)
    shown = []
    for seed in (100, 101):
        for name in (f"{seed}_end.png", f"{seed}_0.png"):
            content = io.BytesIO()
            Image.new("RGB", (40, 20), (seed, 0, 0)).save(content, "png")
            (home / FOLDER / name).write_bytes(content.getvalue())
        (home / FOLDER / f"{seed}.mp4").write_bytes(rng.bytes(3000))
        chunks = rng.uniform(0, 512, (3, 5, dimensions))
        fan = {"step": 0, "picture": f"{seed}_0.png", "spread": 2.5, "chunks": chunks.tolist(), "nearest": chunks[0].tolist()}
        episode = {"seed": seed, "max_score": 0.1, "final_score": 0.0, "success": False, "steps": 9}
        shown.append(episode | {"film": f"{seed}.mp4", "end": f"{seed}_end.png", "fans": [fan]})
    contract = {"unit": "px", "control_hz": 10.0, "first_executed": 1, "exec_horizon": 2, "picture": picture}
    index = {"scores_sha256": checksum(home / "scores.json"), **contract, "episodes": shown}
    (home / FOLDER / INDEX).write_text(json.dumps(index))


def make_run(folder: Path, *, dimensions: int = 2, **about: Any) -> Path:
    """A run with everything in it."""
    home = folder / "eval"
    home.mkdir(parents=True)
    (home / "scores.json").write_text(json.dumps(scores(**about)))
    latency = {"p50_ms": 1.0, "p99_ms": 3.0, "max_ms": 4.0, "n": 7}
    (home / "latency.json").write_text(json.dumps(latency | {"histogram": {"edges_ms": [0.5, 1.5, 4.0], "counts": [5, 2]}}))
    (home / "episodes.mp4").write_bytes(b"the film")
    make_exhibits(home, dimensions=dimensions, picture={"low": [0, 0], "high": [512, 512]})
    (home / "latency_2").mkdir()
    (home / "latency_2" / "scores.json").write_text(json.dumps(scores(**about) | {"latency_steps": 2}))
    rows = [
        {"step": i, "loss": 7.0 + i % 2, "sample_error": 1 / i, "drift_rms_0.2": 0.1, "val_spread": 3.0} for i in range(1, 30)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"task": "push_t", "objective": {"name": "drift"}, "generator": {"name": "mlp"}, "data": "human", "seed": 3}
    told = settings | {"trainer": {}, "step": about.get("step", 20), "versions": {"torch": "2.9", "git": "abc123"}}
    (folder / "report.json").write_text(json.dumps(told))
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run with everything in it."""
    return make_run(tmp_path / "run")


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes runs with everything in them, under a name."""
    return lambda name, **about: make_run(tmp_path / name, **about)


@pytest.fixture
def new_scores() -> Callable[..., dict[str, Any]]:
    """Makes what scores.json holds."""
    return scores


@pytest.fixture
def read() -> Callable[[str], Reader]:
    """Reads a page."""
    return Reader
