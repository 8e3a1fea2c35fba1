"""The templates of pages, with what is put into them escaped, and the style that all pages share."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from ldm.report.theme import DARK, FONTS, LIGHT


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def template(name: str) -> Template:
    """A file of this folder."""
    return _environment().get_template(name)


def style() -> Markup:
    """The style sheet of a page, for light and dark."""
    return Markup(template("style.css").render(light=LIGHT, dark=DARK, fonts=FONTS))
