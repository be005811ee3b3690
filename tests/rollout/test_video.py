"""Films are read back, and a grid is compared place by place."""

from pathlib import Path

import av
import numpy as np
import pytest

from drifting_policy.rollout.video import BORDER, FAILURE_COLOR, SUCCESS_COLOR, tile_episodes, write_video


def film(steps: int, *, level: int = 0, size: tuple[int, int] = (40, 60)) -> list[np.ndarray]:
    return [np.full((*size, 3), level + 20 * step, np.uint8) for step in range(steps)]


@pytest.mark.parametrize("size", [(40, 60), (41, 59)])
def test_a_video_reads_back(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "film.mp4"
    write_video(path, film(7, size=size), fps=10.0)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 10
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert {frame.shape for frame in frames} == {(size[0] + size[0] % 2, size[1] + size[1] % 2, 3)}
    np.testing.assert_allclose([frame.mean() for frame in frames], 20 * np.arange(7), atol=4)
    assert [entry.name for entry in tmp_path.iterdir()] == ["film.mp4"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"old")
    for frames in ([], [np.zeros((4, 4, 3))], [*film(1), *film(1, size=(8, 8))], [np.zeros((4, 4), np.uint8)]):
        with pytest.raises(ValueError, match=r"[Ff]rame"):
            write_video(path, frames, fps=10.0)
    with pytest.raises(ZeroDivisionError):
        write_video(path, FailingFrames(film(3)), fps=10.0)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["film.mp4"]


class FailingFrames(list[np.ndarray]):
    """Frames whose second reading fails half way."""

    readings = 0

    def __iter__(self):  # type: ignore[no-untyped-def]
        self.readings += 1
        for index, frame in enumerate(super().__iter__()):
            if self.readings == 2 and index == 2:
                raise ZeroDivisionError
            yield frame


def test_a_grid_shows_every_episode_in_its_place() -> None:
    films = {9: film(1, level=200), 4: film(5, level=10), 7: film(3, level=100)}
    height, width = 40 + 2 * BORDER, 60 + 2 * BORDER
    grid = tile_episodes(films, columns=2, success={9: True, 4: False})
    assert [frame.shape for frame in grid] == [(2 * height, 2 * width, 3)] * 5
    for step, frame in enumerate(grid):
        for place, seed in enumerate([4, 7, 9]):
            top, left = place // 2 * height + BORDER, place % 2 * width + BORDER
            shown = films[seed][min(step, len(films[seed]) - 1)]
            np.testing.assert_array_equal(frame[top : top + 40, left : left + 60], shown)
        assert tuple(frame[0, 0]) == FAILURE_COLOR
        assert tuple(frame[height, 0]) == SUCCESS_COLOR
        assert not frame[height:, width:].any()


def test_captions_mark_their_own_episode_only() -> None:
    films = {0: film(1, level=255), 1: film(1, level=255)}
    plain, captioned = tile_episodes(films, columns=5)[0], tile_episodes(films, columns=5, captions={1: "0.93"})[0]
    assert plain.shape == (40 + 2 * BORDER, 2 * (60 + 2 * BORDER), 3)
    changed = np.flatnonzero((plain != captioned).any(axis=(0, 2)))
    assert len(changed) > 5
    assert changed.min() >= 60 + 3 * BORDER


@pytest.mark.parametrize(("films", "columns"), [({}, 2), ({0: []}, 2), ({0: film(1)}, 0)])
def test_impossible_grids_are_refused(films: dict[int, list[np.ndarray]], columns: int) -> None:
    with pytest.raises(ValueError, match="A grid needs"):
        tile_episodes(films, columns=columns)
