"""Every number of a chart lies where its axis puts it."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from drifting_policy.reporting.charts import MOST_POINTS, Axis, Line, histogram, line_chart, number, strip

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


@given(values=st.lists(NUMBERS, min_size=1, max_size=9))
def test_an_axis_holds_its_values_and_has_round_ticks(values: list[float]) -> None:
    assume(max(values) - min(values) > 1e-6 * max(1.0, *map(abs, values)) or len(set(values)) == 1)
    axis = Axis.over(values)
    assert all(0 <= axis.share(value) <= 1 for value in values)
    assert 2 <= len(axis.ticks) <= 9
    assert axis.ticks == sorted(set(axis.ticks))
    assert all(axis.low <= tick <= axis.high or math.isclose(tick, axis.low, abs_tol=1e-9) for tick in axis.ticks)


@given(values=st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=9))
def test_a_logarithmic_axis_has_equal_ratios_at_equal_distances(values: list[float]) -> None:
    axis = Axis.over(values, logarithmic=True)
    assert all(-1e-9 <= axis.share(value) <= 1 + 1e-9 for value in values)
    middle = math.sqrt(axis.low * axis.high)
    assert axis.share(middle) == pytest.approx(0.5)
    assert axis.ticks == sorted(set(axis.ticks))
    assert axis.ticks
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)


def test_values_that_have_no_logarithm_do_not_break_it() -> None:
    axis = Axis.over([0.0, -1.0, 2.0, 4.0], logarithmic=True)
    assert 0 < axis.low <= 2 < 4 <= axis.high


def test_points_lie_where_the_axes_say(read: Callable[[str], Any]) -> None:
    line = Line("loss", [0.0, 5.0, 10.0], [1.0, 3.0, 2.0])
    page = read(line_chart([line], label="x", y=Axis(0, 4)))
    (points,) = page.values("polyline", "points")
    found = [tuple(map(float, pair.split(","))) for pair in points.split()]
    axis = Axis.over(line.x, around=0.02)
    assert found == [
        pytest.approx((1000 * axis.share(x), 1000 * (1 - y / 4)), abs=0.1) for x, y in zip(line.x, line.y, strict=True)
    ]
    assert "loss" in page.told("span")


def test_a_long_line_is_thinned_and_keeps_its_ends(read: Callable[[str], Any]) -> None:
    steps = [float(i) for i in range(12345)]
    (points,) = read(line_chart([Line("a", steps, steps)], label="")).values("polyline", "points")
    pairs = points.split()
    assert len(pairs) <= MOST_POINTS + 1
    axis = Axis.over(steps, around=0.02)
    assert [float(pairs[i].split(",")[0]) for i in (0, -1)] == pytest.approx(
        [1000 * axis.share(steps[i]) for i in (0, -1)], abs=0.1
    )


def test_intervals_stand_around_their_values(read: Callable[[str], Any]) -> None:
    line = Line("success", [0.0, 2.0], [0.5, 0.25], [0.25, 0.0], [0.75, 0.5])
    page = read(line_chart([line], label="", y=Axis(0, 1)))
    marked = [i for i, (_, name, value) in enumerate(page.attributes) if name == "class" and value.startswith("interval")]
    ends = [{name: value for _, name, value in page.attributes[i - 4 : i + 3]} for i in marked]
    assert [(end["y1"], end["y2"]) for end in ends] == [("75.00%", "25.00%"), ("100.00%", "50.00%")]
    assert "success: 0.5 [0.25, 0.75]" in page.told("title")


def test_bars_are_as_high_as_their_counts(read: Callable[[str], Any]) -> None:
    page = read(histogram([1.0, 2.0, 4.0, 8.0], [4, 0, 1], markers={"median": 1.5}, label="", unit="ms"))
    heights = [float(value.rstrip("%")) for value in page.values("rect", "height")]
    widths = [float(value.rstrip("%")) for value in page.values("rect", "width")]
    assert heights == pytest.approx([4 * heights[2], 0, heights[2]], abs=0.02)
    assert widths == pytest.approx([widths[0]] * 3, abs=0.02)
    assert "1 to 2 ms: 4" in page.told("title")
    assert "median" in page.told("text")


def test_the_strip_has_one_dot_for_each_episode_worst_first(read: Callable[[str], Any]) -> None:
    best = {"seed": 1, "max_score": 1.0, "final_score": 0.2, "success": True, "steps": 3}
    worst = {"seed": 2, "max_score": 0.5, "final_score": 0.4, "success": False, "steps": 9}
    page = read(strip([best, worst], label="", scores=[0.5, 1.0]))
    assert page.values("circle", "class") == ["dot bad", "dot good"]
    across, down = ([float(value.rstrip("%")) for value in page.values("circle", name)] for name in ("cx", "cy"))
    assert across == [25.0, 75.0]
    assert down[0] > down[1]
    assert re.findall(r"seed (\d)", page.told("title")) == ["2", "1"]
    assert "max 0.500, final 0.400, no success, 9 steps" in page.told("title")


def test_numbers_are_short() -> None:
    values = [0, 0.05, 12000, 0.123456, 1e-7, 3.0, 1234.5, -2.5, 1e12]
    assert [number(value) for value in values] == ["0", "0.05", "12,000", "0.123", "1e-07", "3", "1,234", "-2.5", "1e+12"]
