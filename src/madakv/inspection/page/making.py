"""From a report to a page: a template, one style sheet and a few scripts, and the data beside them."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path

from madakv.errors import ConfigurationError
from madakv.extras import require
from madakv.inspection.page.data import embedded
from madakv.inspection.report import Report

_SCRIPTS = ("decode.js", "values.js", "ramps.js", "field.js", "prompt.js", "charts.js", "page.js")
"""In the order in which they are read: one script together."""


def html(report: Report) -> str:
    """The page that shows a report.

    What prompts, answers and names hold goes in as escaped JSON, and the page's script sets it as text. Its content
    security policy lets no other script run and nothing be loaded.

    Args:
        report: with one or two sides of one shape.

    Raises:
        MissingExtraError: jinja2 is not installed.
        InputError: parts of the report do not fit together; says which.
    """
    require("a report needs", "inspect", "jinja2")
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    own = files("madakv.inspection.page")
    style = (own / "page.css").read_text(encoding="utf-8")
    script = "\n".join((own / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        (own / "page.html.jinja").read_text(encoding="utf-8")
    )
    return template.render(
        model=report.model.encode("utf-8", "replace").decode(),
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
        data=Markup(embedded(report)),
    )


def write(report: Report, path: Path) -> None:
    """Write the page that shows a report.

    Args:
        report: with one or two sides of one shape.
        path: of the HTML file, written over if it is there.

    Raises:
        MissingExtraError: jinja2 is not installed.
        InputError: parts of the report do not fit together.
        ConfigurationError: the file cannot be written.
    """
    page = html(report).encode()
    try:
        path.write_bytes(page)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"cannot write {path}: {why}; name a file in a folder that is writable") from error


def _hash(text: str) -> str:
    """As content security policies name an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
