"""Chunks are drawn where the task says that its actions lie in the picture, and over time where it does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drifting_policy.reporting.fans import MOST_DIMENSIONS, draw_fan
from drifting_policy.reporting.gallery import FOLDER, Exhibit, Fan
from drifting_policy.reporting.media import Media

EPISODE = {"seed": 7, "steps": 9, "max_score": 0.0, "final_score": 0.0, "success": False}
CORNERS = {"low": np.array([-1.0, 10.0]), "high": np.array([3.0, 2.0])}  # the y axis of this world points up


def drawn(picture: Path, chunks: np.ndarray, nearest: np.ndarray | None, *, corners: Any, room: int = 10**6) -> str:
    fan = Fan(4, picture, 2.5, chunks, nearest)
    contract = {"unit": "m", "control_hz": 10.0, "first_executed": 1, "exec_horizon": 2, "picture": corners}
    return draw_fan(Exhibit(EPISODE, picture, picture, [fan]), fan, contract, Media(room))


def places(points: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in points.split())]


def test_corners_of_the_actions_are_corners_of_the_picture(run_folder: Path, read: Callable[[str], Any]) -> None:
    picture = run_folder / "eval" / FOLDER / "100_0.png"  # 40 x 20
    chunk = np.array([[9.0, 9.0], [-1.0, 10.0], [3.0, 2.0], [1.0, 6.0]])
    page = read(drawn(picture, chunk[None], chunk, corners=CORNERS))
    beyond, executed, nearest = (places(points) for points in page.values("polyline", "points"))
    assert executed == [(0.0, 0.0), (40.0, 20.0)]
    assert beyond == [(40.0, 20.0), (20.0, 10.0)]
    assert nearest == executed + beyond[1:]
    assert page.values("polyline", "class") == ["beyond", "executed", "nearest"]
    assert page.values("svg", "viewbox") == ["0 0 40 20"]
    assert page.values("image", "href")[0].startswith("data:image/png;base64,")
    assert "seed 7, step 4 of 9; spread 2.5 m" in page.told("figcaption")


def test_a_picture_without_room_is_named(run_folder: Path, read: Callable[[str], Any]) -> None:
    picture = run_folder / "eval" / FOLDER / "100_0.png"
    for file, words in ((picture, "left out to keep the page small"), (picture.with_name("absent.png"), "is missing")):
        page = read(drawn(file, np.ones((2, 4, 2)), None, corners=CORNERS, room=0))
        assert words in page.told("p")
        assert "image" not in page.tags
        assert len(page.values("polyline", "points")) == 4


@pytest.mark.parametrize(("dimensions", "corners", "charts"), [(2, None, 2), (3, CORNERS, 3), (9, CORNERS, MOST_DIMENSIONS)])
def test_other_actions_are_drawn_over_time(
    dimensions: int, corners: Any, charts: int, read: Callable[[str], Any], tmp_path: Path
) -> None:
    chunks = np.random.default_rng(0).normal(size=(5, 4, dimensions))
    page = read(drawn(tmp_path / "none.png", chunks, chunks[0], corners=corners))
    assert len(page.values("svg", "aria-label")) == charts
    assert page.values("polyline", "class").count("line drawn") == 5 * charts
    assert page.values("polyline", "class").count("line nearest") == charts
    assert ("3 more dimensions are not drawn" in page.told("p")) == (dimensions == 9)
    lines = [places(points) for points in page.values("polyline", "points")[:5]]
    first = np.array([[y for _, y in line] for line in lines])
    assert np.corrcoef(first.ravel(), chunks[:, :, 0].ravel())[0, 1] == pytest.approx(-1, abs=1e-3)  # SVG's y points down
    assert all(0 <= y <= 1000 for line in lines for _, y in line)
