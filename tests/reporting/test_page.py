"""The page is whole, needs nothing but itself, says what the files say, and names what they do not."""

import base64
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drifting_policy.report import main
from drifting_policy.reporting.gallery import FOLDER, INDEX, checksum
from drifting_policy.reporting.page import LIMIT, render, write_page
from drifting_policy.reporting.record import read_run
from drifting_policy.types import ConfigError

SECTIONS = ["Scores", "Worst episodes", "Every episode", "Training", "Latency", "Drawn chunks", "Film", "Made by"]
TAGS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "main",
    "header",
    "section",
    "div",
    "p",
    "pre",
    "span",
    "small",
    "strong",
}
TAGS |= {"h1", "h2", "dl", "dt", "dd", "b", "i", "figure", "figcaption", "video", "details", "summary"}
TAGS |= {"table", "thead", "tbody", "tr", "th", "td", "svg", "line", "circle", "text", "rect", "image", "polyline"}
Read = Callable[[str], Any]


def page_of(folder: Path, **options: Any) -> str:
    return write_page([folder], **options).read_text()


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_scores(folder: Path, **values: Any) -> None:
    """Other scores, which the exhibits still belong to."""
    home = folder / "eval"
    change(home / "scores.json", **values)
    change(home / FOLDER / INDEX, scores_sha256=checksum(home / "scores.json"))


def test_the_parts_come_in_order_and_say_what_the_files_say(run_folder: Path, read: Read) -> None:
    page = read(page_of(run_folder))
    assert [text for owner, text in page.texts if owner == "h2"] == SECTIONS
    assert page.told("h1") == "push_t · drift · mlp"
    facts = dict(zip(page.told("dt").split(), page.told("dd").split(), strict=False))
    assert (facts["task"], facts["objective"], facts["head"]) == ("push_t", "drift", "mlp")
    assert page.told("dd").split() == ["push_t", "drift", "mlp", "1", "20", "human", "3"]
    assert "95 % [0.250, 0.750], bootstrap" in page.told("small")
    assert {"1 ms", "3 ms"} <= {text for owner, text in page.texts if owner == "strong"}
    assert [int(text) for owner, text in page.texts if owner == "th" and text.isdigit()] == [100, 101, 102, 103, 104, 105]
    assert "4 of 6 without success" in page.told("small")
    assert page.values("circle", "class").count("dot good") == 2 + 1  # one in the legend
    assert "git revision abc123" in page.told("p")
    assert "success: 0.5 [0.25, 0.75]" in page.told("title")
    assert "missing" not in page.values("p", "class"), page.told("p")


def test_the_page_needs_nothing_but_itself(run_folder: Path, read: Read) -> None:
    text = page_of(run_folder)
    page = read(text)
    for name in ("src", "href", "poster"):
        assert all(value.startswith("data:") for _, key, value in page.attributes if key == name)
    assert not re.search(r"(https?:)?//\w|url\(|@import|<script|<link|javascript:", re.sub(r"base64,[^\"]*", "", text))
    assert set(page.tags) <= TAGS
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "default-src 'none'" in page.values("meta", "content")[-1]
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text


def test_every_colour_is_declared_in_both_themes() -> None:
    from importlib.resources import files

    style = files("drifting_policy.reporting").joinpath("page.css").read_text()
    light, dark = (set(re.findall(r"(--\w+):", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL))
    assert light == dark
    assert set(re.findall(r"var\((--\w+)\)", style)) - {"--c"} <= light


def test_films_and_pictures_are_inside(run_folder: Path, read: Read) -> None:
    page, home = read(page_of(run_folder)), run_folder / "eval"
    films = [base64.b64decode(value.partition(",")[2]) for value in page.values("video", "src")]
    assert films == [
        file.read_bytes() for file in (home / FOLDER / "100.mp4", home / FOLDER / "101.mp4", home / "episodes.mp4")
    ]
    pictures = [base64.b64decode(value.partition(",")[2]) for value in page.values("image", "href")]
    assert pictures == [(home / FOLDER / name).read_bytes() for name in ("100_0.png", "101_0.png")]
    assert {"controls", "muted", "loop"} <= {name for tag, name, _ in page.attributes if tag == "video"}
    assert page.values("polyline", "class").count("executed") == 2 * 3
    assert page.values("polyline", "class").count("nearest") == 2


def test_equal_files_give_an_equal_page(run_folder: Path) -> None:
    first = page_of(run_folder)
    assert page_of(run_folder) == first  # the page of before is no input
    change(run_folder / "eval" / "latency.json", p50_ms=1.25)
    assert page_of(run_folder) != first


HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=\"a('&amp;')\">"


def test_names_are_text(tmp_path: Path, new_run: Callable[..., Path], read: Read) -> None:
    folder = new_run(HOSTILE.replace("/", "_"), task=HOSTILE, split=HOSTILE, checkpoint=HOSTILE, objective={"name": HOSTILE})
    change(
        folder / "report.json", data=HOSTILE, objective={"name": HOSTILE}, versions={"git": HOSTILE}, trainer={HOSTILE: HOSTILE}
    )
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 40, f"loss{HOSTILE}": 1.0}) + "\n")
    for metric in ("max_score", "success"):
        values = json.loads((folder / "eval" / "scores.json").read_text())["metrics"]
        change_scores(folder, metrics=values | {metric: values[metric] | {"method": HOSTILE}})
    change(folder / "eval" / FOLDER / INDEX, unit=HOSTILE)
    page = read(page_of(folder))
    assert set(page.tags) <= TAGS
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    for owner in ("h1", "title", "dd", "small", "p", "pre", "figcaption"):
        assert HOSTILE in page.told(owner) or "alert(1)" in page.told(owner), owner
    assert HOSTILE.replace("/", "_") in page.told("small")
    (folder / "eval" / "scores.json").unlink()
    assert set(read(page_of(folder)).tags) <= TAGS


def test_the_page_stays_within_its_limit(run_folder: Path, read: Read) -> None:
    whole = page_of(run_folder)
    assert len(whole) < LIMIT == 12_000_000
    bare = len(page_of(run_folder, limit=0))
    (run_folder / "eval" / "episodes.mp4").write_bytes(bytes(50_000))
    for limit, films in ((bare + 100, 0), (bare + 6000, 1), (bare + 20_000, 2), (bare + 90_000, 3)):
        text = page_of(run_folder, limit=limit)
        page = read(text)
        assert len(text) <= limit
        assert len(page.values("video", "src")) == films
        assert page.told("p").count("mp4 (") == 3 - films
    assert "left out to keep the page small" in read(page_of(run_folder, limit=0)).told("p")


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("eval/exhibits", "no film, no drawn chunks: videos=0, or shards put together"),
        ("eval/exhibits/100.mp4", "100.mp4 is missing"),
        ("eval/exhibits/100_0.png", "100_0.png is missing"),
        ("eval/episodes.mp4", "no film: videos=0, or shards put together"),
        ("eval/latency.json", "no latency:"),
        ("eval/latency_2", "no scores over latency: latency_steps=[0,1,2,4] was not evaluated"),
        ("metrics.jsonl", "no training curves:"),
        ("report.json", "no settings: the checkpoint nowhere of step 20 is not there any more"),
        ("eval", "no scores: trainer.eval_episodes=0; python -m drifting_policy.eval ckpt="),
    ],
)
def test_what_is_missing_is_named(run_folder: Path, lost: str, words: str, read: Read) -> None:
    doomed = run_folder / lost
    shutil.rmtree(doomed) if doomed.is_dir() else doomed.unlink()
    page = read(page_of(run_folder))
    assert words in page.told("p")
    assert "missing" in page.values("p", "class")


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("eval/latency.json", {"histogram": None}, "holds a summary only; evaluate again"),
        ("eval/latency.json", {"histogram": {"edges_ms": [1, 2], "counts": [1, 2]}}, "holds a summary only"),
        ("eval/latency.json", {"p50_ms": float("nan")}, "no latency"),
        ("eval/exhibits/exhibits.json", {"scores_sha256": "0"}, "belongs to another evaluation"),
        ("eval/exhibits/exhibits.json", {"episodes": 3}, "is damaged"),
        ("report.json", {"step": 10}, "no settings"),
        ("report.json", {"objective": {"name": "unheard of"}}, "no command of the training"),
    ],
)
def test_what_does_not_serve_is_named(run_folder: Path, file: str, values: dict[str, Any], words: str, read: Read) -> None:
    change(run_folder / file, **values)
    page = read(page_of(run_folder))
    assert words in page.told("p")
    if "another" in words:
        assert not page.values("video", "src")


def test_no_file_outside_the_exhibits_is_shown(run_folder: Path, read: Read) -> None:
    (run_folder / "secret.mp4").write_bytes(b"secret")
    index = json.loads((run_folder / "eval" / FOLDER / INDEX).read_text())
    for name in ("../../secret.mp4", str(run_folder / "secret.mp4"), "a/../100.mp4"):
        index["episodes"][0]["film"] = name
        change(run_folder / "eval" / FOLDER / INDEX, **index)
        page = read(page_of(run_folder))
        assert "is no film or picture in it" in page.told("p")
        assert base64.b64encode(b"secret").decode() not in str(page.attributes)


@pytest.mark.parametrize(("picture", "legend"), [(None, "over steps"), ({"low": [0, 0], "high": [1, 1]}, "planned beyond")])
def test_the_legend_fits_what_is_drawn(run_folder: Path, picture: Any, legend: str, read: Read) -> None:
    change(run_folder / "eval" / FOLDER / INDEX, picture=picture)
    page = read(page_of(run_folder))
    assert [words for words in ("over steps", "planned beyond") if words in page.told("span")] == [legend]
    assert ("image" in page.tags) == (picture is not None)


def test_a_metric_without_a_logarithm_is_named(run_folder: Path, read: Read) -> None:
    (run_folder / "metrics.jsonl").write_text(
        '{"step": 1, "sibling_spread": 0.0, "loss": 1.0}\n{"step": 2, "sibling_spread": 0.0}\n'
    )
    page = read(page_of(run_folder))
    assert "sibling spread is never above 0, so it is not drawn" in page.told("p")
    assert "loss" in page.told("figcaption")
    (run_folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    assert re.search(r"no training curves: \S+ is damaged", read(page_of(run_folder)).told("p"))


def test_runs_stand_side_by_side(tmp_path: Path, new_run: Callable[..., Path], read: Read) -> None:
    first, second, third = (new_run(name, n=n) for name, n in (("one", 6), ("two", 6), ("three", 4)))
    page = read(write_page([first, second]).read_text())
    assert [text for owner, text in page.texts if owner == "h2"] == [SECTIONS[0], "Side by side", *SECTIONS[1:]]
    assert page.told("td").count("0.500 [0.250, 0.750]") == 2 * 3
    assert page.values("svg", "class").count("plot strip") == 1 + 2
    assert "differences are paired" in page.told("p")
    assert not (second / "report.html").exists()
    assert "The episodes are not the same" in read(write_page([first, third]).read_text()).told("p")
    shutil.rmtree(third / "eval")
    assert "no scores" in read(write_page([first, third]).read_text()).told("td")


def test_a_folder_without_a_run_is_one_sentence(tmp_path: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folders in ([tmp_path / "absent"], [tmp_path], [run_folder, tmp_path]):
        assert main(["html", *map(str, folders)]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        assert "is no run: it has neither scores.json nor metrics.jsonl" in printed.err
    assert not (run_folder / "report.html").exists()
    assert main(["html", str(run_folder)]) == 0
    assert capsys.readouterr().out == f"{run_folder / 'report.html'}\n"
    (run_folder / "eval" / "scores.json").write_text("{")
    assert main(["html", str(run_folder)]) == 2
    assert "scores.json cannot be read" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named(run_folder: Path) -> None:
    (run_folder / "report.html").mkdir()
    with pytest.raises(ConfigError, match=r"report.html cannot be written"):
        write_page([run_folder])


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to every part of nested JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [found for key, part in inner for found in leaves(part, (*path, key))]


FILES = ("eval/scores.json", "eval/latency.json", "eval/exhibits/exhibits.json", "report.json")


@given(
    data=st.data(), value=st.sampled_from([None, "x", "<b>", -1, 0, 1e300, math.inf, math.nan, [], [1], {}, {"name": 1}, True])
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_gives_a_whole_page_or_one_sentence(run_folder: Path, read: Read, data: Any, value: Any) -> None:
    file = run_folder / data.draw(st.sampled_from(FILES))
    before = file.read_text()
    content = json.loads(before)
    *way, last = data.draw(st.sampled_from(leaves(content)))
    part = content
    for key in way:
        part = part[key]
    part[last] = value
    file.write_text(json.dumps(content))
    if "scores" in file.name:
        change(run_folder / "eval" / FOLDER / INDEX, scores_sha256=checksum(file))
    try:
        text = render([read_run(run_folder)])
        assert set(read(text).tags) <= TAGS
        assert not re.search(
            r"\bnan\b|\binf\b", " ".join(v for _, n, v in read(text).attributes if n in ("x", "y", "cx", "points"))
        )
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017
    finally:
        file.write_text(before)
        change(run_folder / "eval" / FOLDER / INDEX, scores_sha256=checksum(run_folder / "eval" / "scores.json"))
