"""Whatever is said in an element is read from it again, and nothing else is."""

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from drifting_policy.reporting.markup import Markup, element, join

WORDS = st.text(st.characters(exclude_characters="\r\0", exclude_categories=("Cs",)), min_size=1)


@given(text=WORDS, value=WORDS)
def test_text_and_values_come_back(text: str, value: str) -> None:
    from html import unescape

    made = element("p", text, title=value)
    head, _, rest = made.partition(">")
    assert unescape(rest.removesuffix("</p>")) == text
    assert unescape(head.removeprefix('<p title="').removesuffix('"')) == value
    assert "<" not in rest.removesuffix("</p>") + head[1:]


def test_attributes_are_written_as_html_has_them() -> None:
    assert element("video", muted=True, controls=False, poster=None, class_="a") == '<video muted class="a"></video>'
    assert element("svg", viewBox="0 0 1 1", text_anchor="end") == '<svg viewBox="0 0 1 1" text-anchor="end"></svg>'
    assert element("circle", r=2) == '<circle r="2"/>'
    assert element("circle", element("title", "x"), r=2) == '<circle r="2"><title>x</title></circle>'


def test_what_is_absent_leaves_no_trace(read: Callable[[str], Any]) -> None:
    assert join("a", None, Markup("<br/>"), "<") == "a<br/>&lt;"
    assert read(element("div", None, element("p", 1), "</div>")).texts == [("p", "1"), ("div", "</div>")]
