"""Text on a terminal as it was written: what models and users write is no markup, and commands no terminal."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from rich.console import Console

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""What a terminal would obey, and half characters, which no encoding has; line breaks and tabs are left."""


def plain_console(*, stderr: bool = False) -> Console:
    """A console that takes brackets, `:names:` and numbers for what they are, in tables too."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def visible(text: str) -> str:
    """The text with control characters written out, such as `\\x1b`."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def json_line(content: Any) -> str:
    """One line of JSON, every language as it is written; escaped, if standard output could not show it."""
    line = json.dumps(content, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(content)
    return json.dumps(content) if _CONTROL.search(line) else line
