"""`report.html`: one file that shows a run and needs nothing else."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from drifting_policy.atomic import write_text
from drifting_policy.reporting import sections
from drifting_policy.reporting.markup import Markup, element, join
from drifting_policy.reporting.media import Media
from drifting_policy.reporting.record import Run, read_run
from drifting_policy.types import ConfigError

PAGE = "report.html"
LIMIT = 12_000_000  # characters
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"  # the page can load nothing


def write_page(folders: Sequence[Path], *, limit: int = LIMIT) -> Path:
    """`report.html` in the first of `folders`, about the run there; with more, the runs also stand side by side.

    Raises:
        ConfigError: where a folder is no run, a run is damaged, or the page cannot be written.
    """
    runs = [read_run(folder) for folder in folders]
    target = folders[0] / PAGE
    try:
        write_text(target, render(runs, limit=limit))
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error}).") from error
    return target


def render(runs: Sequence[Run], *, limit: int = LIMIT) -> str:
    """The page, of at most `limit` characters if that can be had by leaving out films and pictures."""
    bare = _page(runs, Media(0))
    return _page(runs, Media(limit - len(bare)))


def _page(runs: Sequence[Run], media: Media) -> Markup:
    run = runs[0]
    body = (
        sections.header(run),
        sections.headline(run),
        sections.comparison(runs),
        sections.failures(run, media),
        sections.every_episode(run),
        sections.curves(run),
        sections.latencies(run),
        sections.fans(run, media),
        sections.film(run, media),
        sections.settings(run),
    )
    style = Markup(files("drifting_policy.reporting").joinpath("page.css").read_text())
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("title", sections.title(run)),
        element("style", style),
    )
    whole = element("html", head, element("body", element("main", *body)), lang="en")
    return join(Markup("<!doctype html>\n"), whole, Markup("\n"))
