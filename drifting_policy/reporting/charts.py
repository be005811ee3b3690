"""Charts as inline SVG: places are percentages and colours are CSS variables, so that they fit any width and either theme."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drifting_policy.reporting.markup import Markup, element, join

Number = float | int
SERIES = 6  # colours in the style sheet
MOST_POINTS = 500  # of one line


@dataclass(frozen=True)
class Axis:
    """A range of numbers along one side of a chart."""

    low: Number
    high: Number
    logarithmic: bool = False

    @staticmethod
    def over(values: Sequence[Number], *, logarithmic: bool = False, around: float = 0.04) -> "Axis":
        """An axis that holds all `values`, and a share `around` of its length more at either end."""
        kept = [value for value in values if not logarithmic or value > 0] or [1.0]
        low, high = (math.log10(f(kept)) if logarithmic else f(kept) for f in (min, max))
        margin = (high - low) * around or max(abs(high), 1.0) * 0.05
        low, high = low - margin, high + margin
        return Axis(10**low, 10**high, True) if logarithmic else Axis(low, high)

    def share(self, value: Number) -> float:
        """Where `value` lies between the ends, 0 .. 1."""
        if self.logarithmic:
            value, low, high = (math.log10(max(number, 1e-300)) for number in (value, self.low, self.high))
        else:
            low, high = self.low, self.high
        return (value - low) / (high - low)

    @property
    def ticks(self) -> Sequence[Number]:
        """About five round numbers on the axis."""
        if not self.logarithmic:
            return _steps(self.low, self.high)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in ((1,), (1, 3), (1, 2, 5)):
            every = max(1, len(decades) // 6)
            ticks = [f * 10.0**n for n in decades[::every] for f in factors if self.low <= f * 10.0**n <= self.high]
            if len(ticks) >= 3:
                return ticks
        return _steps(self.low, self.high)


@dataclass(frozen=True)
class Line:
    """A line of a chart."""

    name: str
    x: Sequence[Number]
    y: Sequence[Number]
    low: Sequence[Number] = ()
    high: Sequence[Number] = ()


def plot(*marks: Markup, x: Axis, y: Axis, label: str, x_ticks: Sequence[Number] | None = None, kind: str = "") -> Markup:
    """A chart of `marks` between two axes; `label` is what a reader who cannot see it is told."""
    grid = [
        join(
            element("line", x1="0", x2="100%", y1=(at := _percent(1 - y.share(tick))), y2=at, class_="rule"),
            element("text", number(tick), x="-8", y=at, dy="0.32em", class_="tick y"),
        )
        for tick in y.ticks
    ]
    below = [
        element("text", _short(tick), x=_percent(x.share(tick)), y="100%", dy="1.35em", class_="tick x")
        for tick in (x.ticks if x_ticks is None else x_ticks)
    ]
    frame = element("line", x1="0", x2="100%", y1="100%", y2="100%", class_="frame")
    return element("svg", *grid, *below, frame, *marks, class_=f"plot {kind}".strip(), role="img", aria_label=label)


def line_chart(lines: Sequence[Line], *, label: str, logarithmic: bool = False, y: Axis | None = None) -> Markup:
    """Lines with a legend; a line with an interval at each point has its points drawn too."""
    lines = [_thinned(line) for line in lines]
    x_axis = Axis.over([value for line in lines for value in line.x], around=0.02)
    y_axis = y or Axis.over(
        [value for line in lines for values in (line.y, line.low, line.high) for value in values], logarithmic=logarithmic
    )
    marks = [mark for number_, line in enumerate(lines) for mark in _marks(line, number_, x_axis, y_axis)]
    whole = sorted(set(lines[0].x)) if lines[0].low else None
    legend = element("div", *(_key(line.name, number_) for number_, line in enumerate(lines)), class_="legend")
    return join(plot(*marks, x=x_axis, y=y_axis, label=label, x_ticks=whole), legend)


def histogram(
    edges: Sequence[Number], counts: Sequence[Number], *, markers: Mapping[str, Number], label: str, unit: str
) -> Markup:
    """Bars over a logarithmic axis, with a named vertical line at each of `markers`."""
    x, y = Axis.over(edges, logarithmic=True, around=0.02), Axis(0, max(counts) * 1.12)
    bars = []
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        left, right, height = x.share(low), x.share(high), y.share(count)
        told = element("title", f"{number(low)} to {number(high)} {unit}: {count}")
        places = {"x": _percent(left), "width": _percent(right - left), "y": _percent(1 - height), "height": _percent(height)}
        bars.append(element("rect", told, class_="bar", **places))
    names = []
    for place, (name, value) in enumerate(markers.items()):
        at, right_half = _percent(x.share(value)), x.share(value) > 0.5
        names.append(element("line", x1=at, x2=at, y1="0", y2="100%", class_="marker"))
        anchor = {"text_anchor": "end", "dx": "-5"} if right_half else {"dx": "5"}
        names.append(element("text", name, x=at, y="0", dy=f"{0.9 + 1.2 * place}em", class_="note", **anchor))
    return plot(*bars, *names, x=x, y=y, label=label)


def rank(episodes: Sequence[Mapping[str, Number]]) -> list[Mapping[str, Number]]:
    """The episodes, worst first."""
    return sorted(episodes, key=lambda episode: (episode["max_score"], episode["final_score"], episode["seed"]))


def strip(episodes: Sequence[Mapping[str, Number]], *, label: str, scores: Sequence[Number]) -> Markup:
    """One dot for each episode at its max score, worst first: filled where it succeeded, a ring where it did not.

    The axis holds all `scores` and 1, so that strips can be compared.
    """
    ranked = rank(episodes)
    x = Axis(-0.5, len(ranked) - 0.5)
    y = Axis.over([1.0, *scores], around=0.08)
    radius = max(2.0, min(6.0, 240 / len(ranked)))
    dots = [
        element(
            "circle",
            element("title", tell(episode)),
            cx=_percent(x.share(place)),
            cy=_percent(1 - y.share(episode["max_score"])),
            r=f"{radius:.1f}",
            class_="dot good" if episode["success"] else "dot bad",
        )
        for place, episode in enumerate(ranked)
    ]
    return plot(*dots, x=x, y=y, label=label, x_ticks=(), kind="strip")


def tell(episode: Mapping[str, Number]) -> str:
    """An episode in words."""
    outcome = "success" if episode["success"] else "no success"
    scores = f"max {episode['max_score']:.3f}, final {episode['final_score']:.3f}"
    return f"seed {episode['seed']}: {scores}, {outcome}, {episode['steps']} steps"


def number(value: Number) -> str:
    """A short number: 12,000 and 0.05, not 1.2e4."""
    if value and not 1e-4 <= abs(value) < 1e9:
        return f"{value:.2g}"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.3g}"


def _marks(line: Line, color: int, x: Axis, y: Axis) -> list[Markup]:
    places = [(1000 * x.share(a), 1000 * (1 - y.share(b))) for a, b in zip(line.x, line.y, strict=True)]
    points, hue = " ".join(f"{a:.1f},{b:.1f}" for a, b in places), f"s{color % SERIES}"
    stroke = element(
        "polyline", element("title", line.name), points=points, vector_effect="non-scaling-stroke", class_=f"line {hue}"
    )
    marks = [element("svg", stroke, viewBox="0 0 1000 1000", preserveAspectRatio="none", width="100%", height="100%")]
    if line.low or len(places) <= 2:
        for index, (a, b) in enumerate(places):
            at, told = f"{a / 10:.2f}%", f"{line.name}: {number(line.y[index])}"
            if line.low:
                told += f" [{number(line.low[index])}, {number(line.high[index])}]"
                ends = {"y1": _percent(1 - y.share(line.low[index])), "y2": _percent(1 - y.share(line.high[index]))}
                marks.append(element("line", x1=at, x2=at, class_=f"interval {hue}", **ends))
            marks.append(element("circle", element("title", told), cx=at, cy=f"{b / 10:.2f}%", r="4", class_=f"point {hue}"))
    return marks


def _thinned(line: Line) -> Line:
    """At most MOST_POINTS points, the last among them."""
    every = -(-len(line.x) // MOST_POINTS)
    if every == 1 or line.low:
        return line
    kept = sorted({*range(0, len(line.x), every), len(line.x) - 1})
    return Line(line.name, [line.x[i] for i in kept], [line.y[i] for i in kept])


def _key(name: str, color: int) -> Markup:
    return element("span", element("i", class_=f"swatch s{color % SERIES}"), name)


def _short(value: Number) -> str:
    """A number with a "k" for three zeros, for neighbours on an axis must not touch."""
    return f"{number(value / 1000)}k" if value and value % 1000 == 0 else number(value)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _steps(low: Number, high: Number) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between two numbers, three to six of them."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda size: abs(size - rough))
    return [round(n * step, 12) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
