"""HTML elements whose text is escaped and whose tags are balanced, by construction."""

import html


class Markup(str):
    """Text that is HTML already."""


EMPTY = {"meta", "br", "img", "line", "circle", "rect", "image", "polyline"}


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """The element `tag`; children that are no Markup are escaped, and those that are None left out.

    A trailing underscore of an attribute is dropped (`class_`), others become hyphens; True stands for the bare attribute, None
    and False for none.
    """
    given = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None and value is not False)
    if tag in EMPTY and not children:
        return Markup(f"<{tag}{given}/>")
    return Markup(f"<{tag}{given}>{join(*children)}</{tag}>")


def join(*children: object) -> Markup:
    """The children one after the other, escaped where they are no Markup."""
    texts = (child if isinstance(child, Markup) else html.escape(str(child)) for child in children if child is not None)
    return Markup("".join(texts))


def _attribute(key: str, value: object) -> str:
    name = key.removesuffix("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'
