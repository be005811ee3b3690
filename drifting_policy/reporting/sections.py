"""The parts of the page, each made of what is known about a run; what is not known is said."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from drifting_policy.curves import PANELS
from drifting_policy.reporting.charts import Axis, Line, histogram, line_chart, number, rank, strip, tell
from drifting_policy.reporting.command import evaluation_command, training_command
from drifting_policy.reporting.fans import draw_fan, over_picture
from drifting_policy.reporting.gallery import Exhibit
from drifting_policy.reporting.markup import Markup, element, join
from drifting_policy.reporting.media import Media, why_absent
from drifting_policy.reporting.record import METRICS, Run, Scores
from drifting_policy.types import ConfigError

TABLE_ROWS = 10
MOST_DOTS = 5000


def title(run: Run) -> str:
    """Task, objective and head."""
    about, settings = run.scores.about if run.scores else {}, run.settings
    names = (
        about.get("task") or settings.get("task"),
        _named(settings.get("objective") or about.get("objective")),
        _named(settings.get("generator")),
    )
    return " · ".join(str(name) for name in names if name is not None) or "run"


def header(run: Run) -> Markup:
    """What was trained on what, and where it lies."""
    about, settings = run.scores.about if run.scores else {}, run.settings
    objective = settings.get("objective") or about.get("objective")
    facts = {
        "task": about.get("task") or settings.get("task"),
        "objective": _named(objective),
        "head": _named(settings.get("generator")),
        "network evaluations per plan": about.get("nfe"),
        "step": about.get("step", settings.get("step")),
        "data": settings.get("data"),
        "seed": settings.get("seed"),
        "simulated latency": f"{about['latency_steps']} steps" if about.get("latency_steps") else None,
        "seam": about.get("seam") if about.get("seam") != "snap" else None,
    }
    unusual = ("simulated latency", "seam")
    told = [_fact(name, _value(value)) for name, value in facts.items() if value is not None or name not in unusual]
    missing = [_missing(run, "scores"), _missing(run, "settings")]
    return element("header", element("h1", title(run)), element("dl", *told, class_="facts"), *missing)


def headline(run: Run) -> Markup | None:
    """The numbers that one asks for first."""
    if run.scores is None:
        return None
    cards = [_metric_card(METRICS.get(name, name), metric) for name, metric in run.scores.metrics.items()]
    for name, label in (("p50_ms", "median time of a plan"), ("p99_ms", "99 % of plans within")):
        if run.latency:
            note = f"{run.latency['n']:,.0f} plans, largest {number(run.latency['max_ms'])} ms"
            cards.append(_card(label, f"{number(run.latency[name])} ms", note))
    split = run.scores.about.get("split", "")
    counted = f"{len(run.scores.episodes):,} {split} episodes"
    return section("Scores", element("div", *cards, class_="cards"), _missing(run, "latency"), note=counted)


def comparison(runs: Sequence[Run]) -> Markup | None:
    """The runs side by side, where there are several."""
    if len(runs) < 2:
        return None
    head = element("tr", *(element("th", text) for text in ("run", "episodes", *METRICS.values(), "median plan")))
    rows, strips, judged = [], [], [run.scores for run in runs if run.scores]
    for run in runs:
        if run.scores is None:
            rows.append(element("tr", element("th", run.name), element("td", run.missing["scores"], colspan=5)))
            continue
        cells = [f"{len(run.scores.episodes):,} {run.scores.about.get('split', '')}"]
        cells += [f"{m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]" for m in (run.scores.metrics[name] for name in METRICS)]
        cells.append(f"{number(run.latency['p50_ms'])} ms" if run.latency else "not known")
        rows.append(element("tr", element("th", run.name), *(element("td", cell) for cell in cells)))
        strips.append(element("figure", element("figcaption", run.name), _strip(run.scores, judged)))
    seeds = [[episode["seed"] for episode in run.scores.episodes] if run.scores else [] for run in runs]
    if all(played == seeds[0] for played in seeds):
        advice = (
            "The episodes are the same, so differences are paired: python -m drifting_policy.compare tells which is better."
        )
    else:
        advice = "The episodes are not the same."
    table = element("div", element("table", element("thead", head), element("tbody", *rows)), class_="wide")
    return section("Side by side", table, element("p", advice), element("div", *strips, class_="grid"))


def failures(run: Run, media: Media) -> Markup | None:
    """The worst episodes as a table and as films."""
    if run.scores is None:
        return None
    ranked = rank(run.scores.episodes)
    shown = list(run.exhibits.shown) if run.exhibits else []
    films = [_film_card(exhibit, media) for exhibit in shown if not exhibit.episode["success"]]
    head = element("tr", *(element("th", text) for text in ("seed", "max score", "final score", "success", "steps")))
    rows = [
        element(
            "tr",
            element("th", episode["seed"]),
            element("td", f"{episode['max_score']:.3f}"),
            element("td", f"{episode['final_score']:.3f}"),
            element("td", _outcome(episode)),
            element("td", episode["steps"]),
        )
        for episode in ranked[:TABLE_ROWS]
    ]
    failed = sum(not episode["success"] for episode in ranked)
    return section(
        "Worst episodes",
        element("div", *films, class_="films") if films else None,
        element("p", "Every episode that is shown again succeeded.", class_="missing") if shown and not films else None,
        _missing(run, "exhibits"),
        element("div", element("table", element("thead", head), element("tbody", *rows)), class_="wide"),
        note=f"{failed:,} of {len(ranked):,} without success",
    )


def every_episode(run: Run) -> Markup | None:
    """One dot for each episode."""
    if run.scores is None:
        return None
    legend = element("div", _dot("good", "success"), _dot("bad", "no success"), class_="legend")
    return section("Every episode", _strip(run.scores), legend, note="max score, worst first; a dot tells its seed")


def curves(run: Run) -> Markup:
    """How the training went."""
    charts, unseen = [], []
    for title, logarithmic, prefixes in PANELS:
        lines = []
        for name in sorted(name for name in run.curves if name.startswith(tuple(prefixes))):
            points = [(x, y) for x, y in zip(*run.curves[name], strict=True) if y > 0 or not logarithmic]
            if points:
                lines.append(Line(name.replace("_", " "), [x for x, _ in points], [y for _, y in points]))
            else:
                unseen.append(f"{name.replace('_', ' ')} is never above 0, so it is not drawn")
        if lines:
            drawn = line_chart(lines, label=f"{title} over the training steps", logarithmic=logarithmic)
            charts.append(element("figure", element("figcaption", title), drawn))
    if not charts and "curves" not in run.missing:
        unseen.append("no training curves: no metric was logged")
    notes = [element("p", text, class_="missing") for text in unseen]
    return section("Training", element("div", *charts, class_="grid"), _missing(run, "curves"), *notes, note="over steps")


def latencies(run: Run) -> Markup | None:
    """How long a plan takes, and what a delay would cost."""
    if run.scores is None:
        return None
    charts = []
    if "counts" in run.latency:
        p50, p99 = run.latency["p50_ms"], run.latency["p99_ms"]
        bars = histogram(
            run.latency["edges_ms"],
            run.latency["counts"],
            markers={f"median {number(p50)} ms": p50, f"p99 {number(p99)} ms": p99},
            label="histogram of planning times",
            unit="ms",
        )
        charts.append(element("figure", element("figcaption", "plans by their time, ms"), bars))
    if len(run.delays) > 1:
        steps = [float(scores.latency_steps) for scores in run.delays]
        lines = [
            Line(label, steps, *([scores.metrics[name][key] for scores in run.delays] for key in ("value", "low", "high")))
            for name, label in METRICS.items()
            if name != "final_score"
        ]
        drawn = line_chart(lines, label="scores over simulated latency", y=Axis(-0.02, 1.04))
        charts.append(element("figure", element("figcaption", "scores over simulated latency, control steps"), drawn))
        no_delays = None
    else:
        no_delays = element("p", "no scores over latency: latency_steps=[0,1,2,4] was not evaluated", class_="missing")
    missing = [_missing(run, "latency"), _missing(run, "latency histogram"), no_delays]
    return section("Latency", element("div", *charts, class_="grid"), *missing)


def fans(run: Run, media: Media) -> Markup | None:
    """What the policy would do, drawn many times for one observation."""
    if run.scores is None:
        return None
    if run.exhibits is None:
        return section("Drawn chunks", _missing(run, "exhibits"))
    contract, drawn = run.exhibits.contract, [(exhibit, fan) for exhibit in run.exhibits.shown for fan in exhibit.fans]
    figures = [draw_fan(exhibit, fan, contract, media) for exhibit, fan in drawn]
    if any(over_picture(fan, contract) for _, fan in drawn):
        keys = [_swatch("executed", "executed"), _swatch("beyond", "planned beyond")]
    else:
        keys = [_swatch("drawn", "dimensions of the action over steps; executed up to the dotted line")]
    if any(fan.nearest is not None for _, fan in drawn):
        keys.append(_swatch("nearest", "nearest demonstration"))
    count = len(drawn[0][1].chunks) if drawn else 0
    note = f"{count} chunks for one observation each; spread is the mean distance from their mean"
    return section("Drawn chunks", element("div", *keys, class_="legend"), element("div", *figures, class_="films"), note=note)


def film(run: Run, media: Media) -> Markup | None:
    """The film of the first episodes."""
    if run.scores is None:
        return None
    if run.film is None:
        return section("Film", element("p", "no film: videos=0, or shards put together", class_="missing"))
    address = media.address(run.film)
    shown = _video(address) if address else element("p", why_absent(run.film), class_="missing")
    return section("Film", element("div", shown, class_="film"), note="the first episodes, green where they succeeded")


def settings(run: Run) -> Markup:
    """The commands that make it again, and all settings and versions."""
    told = run.settings
    versions = told.get("versions") if isinstance(told.get("versions"), Mapping) else {}
    revision = versions.get("git", "not stored") if versions else "not stored"
    commands = [_training(told), _evaluation(run)] if told else [_evaluation(run)]
    details = [
        _details(name, told[name])
        for name in ("objective", "generator", "policy", "trainer", "spec", "versions")
        if told.get(name)
    ]
    if run.scores:
        details.append(_details("evaluation", {**run.scores.about, "metrics": run.scores.metrics}))
    return section("Made by", *commands, element("p", f"git revision {revision}"), *details, note=run.name)


def section(title: str, *children: Markup | None, note: str = "") -> Markup:
    """One part of the page under its title."""
    head = element("h2", title, element("small", note) if note else None)
    return element("section", head, *children)


def _training(told: Mapping[str, Any]) -> Markup:
    try:
        return element("pre", training_command(told))
    except ConfigError as error:
        return element("p", f"no command of the training: {error}", class_="missing")


def _evaluation(run: Run) -> Markup | None:
    if run.scores is None:
        return None
    policy = run.settings.get("policy")
    trained = policy.get("sampler", {}) if isinstance(policy, Mapping) else {}
    return element("pre", evaluation_command(run.scores.about, n_episodes=len(run.scores.episodes), trained=trained))


def _details(name: str, values: Any) -> Markup:
    return element("details", element("summary", name), element("pre", json.dumps(values, indent=1, sort_keys=True)))


def _strip(scores: Scores, beside: Sequence[Scores] = ()) -> Markup:
    every = -(-len(scores.episodes) // MOST_DOTS)
    note = element("p", f"one dot for every {every} episodes", class_="missing") if every > 1 else None
    heights = [episode["max_score"] for one in (scores, *beside) for episode in one.episodes]
    label = "max score of every episode, worst first"
    return join(strip(rank(scores.episodes)[::every], label=label, scores=heights), note)


def _film_card(exhibit: Exhibit, media: Media) -> Markup:
    end, address = media.address(exhibit.end), media.address(exhibit.film)
    shown = _video(address, poster=end) if address else element("p", why_absent(exhibit.film), class_="missing")
    episode = exhibit.episode
    lines = (element("b", f"seed {episode['seed']}"), f" {tell(episode).partition(': ')[2]}")
    return element("figure", shown, element("figcaption", *lines))


def _video(address: str, poster: str | None = None) -> Markup:
    return element(
        "video", src=address, poster=poster, controls=True, muted=True, loop=True, playsinline=True, preload="metadata"
    )


def _metric_card(label: str, metric: Mapping[str, Any]) -> Markup:
    note = f"{100 * metric['confidence']:.0f} % [{metric['low']:.3f}, {metric['high']:.3f}], {metric.get('method', '')}"
    low, value, high = (f"{100 * min(max(metric[name], 0), 1):.1f}%" for name in ("low", "value", "high"))
    bar = element(
        "svg",
        element("line", x1="0", x2="100%", y1="50%", y2="50%", class_="rail"),
        element("line", x1=low, x2=high, y1="50%", y2="50%", class_="range"),
        element("circle", cx=value, cy="50%", r="5", class_="point s0"),
        class_="interval-bar",
        role="img",
        aria_label=f"{label} {metric['value']:.3f}",
    )
    return _card(label, f"{metric['value']:.3f}", note, bar)


def _card(label: str, value: str, note: str, *more: Markup) -> Markup:
    return element("div", element("span", label), element("strong", value), *more, element("small", note), class_="card")


def _fact(name: str, value: str) -> Markup:
    return element("div", element("dt", name), element("dd", value))


def _missing(run: Run, part: str) -> Markup | None:
    return element("p", run.missing[part], class_="missing") if part in run.missing else None


def _named(choice: Any) -> str | None:
    return str(choice["name"]) if isinstance(choice, Mapping) and "name" in choice else None


def _value(value: Any) -> str:
    if value is None:
        return "not stored"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _outcome(episode: Mapping[str, Any]) -> Markup:
    return element("span", "yes" if episode["success"] else "no", class_="good" if episode["success"] else "bad")


def _dot(kind: str, text: str) -> Markup:
    dot = element("svg", element("circle", cx="50%", cy="50%", r="5", class_=f"dot {kind}"), class_="key")
    return element("span", dot, text)


def _swatch(kind: str, text: str) -> Markup:
    return element("span", element("i", class_=f"swatch {kind}"), text)
