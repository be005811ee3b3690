"""Fans: many chunks that a policy drew for one observation, over its picture or, where they are no places in it, over time."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from drifting_policy.reporting.charts import Axis, number, plot
from drifting_policy.reporting.gallery import Exhibit, Fan
from drifting_policy.reporting.markup import Markup, element, join
from drifting_policy.reporting.media import Media, picture_size, why_absent

MOST_DIMENSIONS = 6


def draw_fan(exhibit: Exhibit, fan: Fan, contract: Mapping[str, Any], media: Media) -> Markup:
    """One figure: the chunks, what they are drawn for, and how far they spread."""
    caption = (
        f"seed {exhibit.episode['seed']}, step {fan.step} of {exhibit.episode['steps']}; "
        f"spread {number(fan.spread)} {contract['unit']}".rstrip()
    )
    flat = over_picture(fan, contract)
    drawing = _over_picture(fan, contract, media, caption) if flat else _over_time(fan, contract, caption)
    return element("figure", drawing, element("figcaption", caption), class_="fan" if flat else "fan timed")


def over_picture(fan: Fan, contract: Mapping[str, Any]) -> bool:
    """Whether the actions are places in the picture."""
    return contract["picture"] is not None and fan.chunks.shape[2] == 2


def _over_picture(fan: Fan, contract: Mapping[str, Any], media: Media, label: str) -> Markup:
    """Planar positions over the picture of the environment: solid what is executed, faint what is planned beyond."""
    width, height = picture_size(fan.picture)
    low, high = contract["picture"]["low"], contract["picture"]["high"]
    now, end = contract["first_executed"], contract["first_executed"] + contract["exec_horizon"]

    def path(chunk: np.ndarray, class_: str) -> Markup:
        places = (chunk - low) / (high - low) * [width, height]
        return element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places), class_=class_)

    address = media.address(fan.picture)
    ground = (
        element("rect", width=width, height=height, class_="blank")
        if address is None
        else element("image", href=address, width=width, height=height)
    )
    beyond = [path(chunk[end - 1 :], "beyond") for chunk in fan.chunks]
    executed = [path(chunk[now:end], "executed") for chunk in fan.chunks]
    nearest = [] if fan.nearest is None else [path(fan.nearest[now:], "nearest")]
    marks = [ground, *beyond, *executed, *nearest]
    svg = element("svg", *marks, viewBox=f"0 0 {width} {height}", class_="scene", role="img", aria_label=label)
    return join(svg, None if address else element("p", why_absent(fan.picture), class_="missing"))


def _over_time(fan: Fan, contract: Mapping[str, Any], label: str) -> Markup:
    """Each dimension of the action over the steps from now on; a line shows where the chunk is executed up to."""
    now, dimensions = contract["first_executed"], fan.chunks.shape[2]
    steps = np.arange(fan.chunks.shape[1]) - now
    x = Axis(float(steps[0]) - 0.3, float(steps[-1]) + 0.3)
    charts = []
    for dimension in range(min(dimensions, MOST_DIMENSIONS)):
        lines = [*fan.chunks[:, :, dimension], *([] if fan.nearest is None else [fan.nearest[:, dimension]])]
        y = Axis.over(np.concatenate(lines).tolist())
        classes = ["drawn"] * len(fan.chunks) + ["nearest"]
        marks = [_curve(steps, line, x, y, class_) for line, class_ in zip(lines, classes, strict=False)]
        at = f"{100 * x.share(contract['exec_horizon'] - 1):.2f}%"
        marks.append(element("line", x1=at, x2=at, y1="0", y2="100%", class_="marker"))
        charts.append(plot(*marks, x=x, y=y, label=f"{label}, dimension {dimension}", kind="small"))
    more = dimensions - MOST_DIMENSIONS
    note = element("p", f"{more} more dimensions are not drawn", class_="missing") if more > 0 else None
    return join(*charts, note)


def _curve(steps: np.ndarray, values: np.ndarray, x: Axis, y: Axis, class_: str) -> Markup:
    points = " ".join(
        f"{1000 * x.share(a):.1f},{1000 * (1 - y.share(b)):.1f}" for a, b in zip(steps.tolist(), values.tolist(), strict=True)
    )
    line = element("polyline", points=points, vector_effect="non-scaling-stroke", class_=f"line {class_}")
    return element("svg", line, viewBox="0 0 1000 1000", preserveAspectRatio="none", width="100%", height="100%")
