"""Finding a package's file: the simple index of packages, as JSON (PEP 691) or HTML (PEP 503), and lists of links."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from madakv.errors import DownloadError
from madakv.published.known import Wheel
from madakv.published.pip_settings import PipSettings
from madakv.published.web import TROUBLE, open_address, reason, shown

_JSON = "application/vnd.pypi.simple.v1+json"
_ACCEPT = {"Accept": f"{_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"}
_LACKING = (404, 410)


def address_of(wheel: Wheel, settings: PipSettings) -> str:
    """Where to download a file.

    Raises:
        DownloadError: no index has it, or none could be reached; the message says what each answered.
    """
    answers = []
    for page in _pages(wheel, settings):
        try:
            found = _file_on(page, wheel.filename, settings)
        except TROUBLE as error:
            lacking = isinstance(error, HTTPError) and error.code in _LACKING
            answers.append(f"{shown(page)} {'lacks it' if lacking else f'fails ({reason(error)})'}")
        else:
            if found:
                return found
            answers.append(f"{shown(page)} lacks it")
    raise DownloadError(
        f"cannot find {wheel.package}=={wheel.version} ({wheel.filename}): "
        f"{'; '.join(answers) or 'pip is set up without an index'}. "
        f"Set where to look as for pip, such as by PIP_INDEX_URL; or put the file into {wheel.path.parent} yourself"
    )


def _pages(wheel: Wheel, settings: PipSettings) -> list[str]:
    indexes = [f"{index.rstrip('/')}/{wheel.package}/" for index in settings.indexes]
    return [*(_as_address(link) for link in settings.links), *indexes]


def _as_address(link: str) -> str:
    """A folder's address; others are addresses already."""
    return link if "://" in link else f"{Path(link).expanduser().absolute().as_uri()}/"


def _file_on(page: str, filename: str, settings: PipSettings) -> str | None:
    """The address that a page gives for a file; None if it gives none."""
    if urlsplit(page).scheme == "file":
        folder = Path(unquote(urlsplit(page).path))
        if not (folder / "index.html").is_file():
            return (folder / filename).as_uri() if (folder / filename).is_file() else None
        page = (folder / "index.html").as_uri()
    with open_address(page, settings, _ACCEPT) as response:
        content, kind = response.read(), response.headers.get_content_type()
        # It may have sent us elsewhere, and relative addresses are relative to that.
        base = response.url
    for link in _links(content, kind):
        address = urldefrag(urljoin(base, link)).url
        if unquote(urlsplit(address).path).rpartition("/")[2] == filename:
            return _with_login(address, page)
    return None


def _links(content: bytes, kind: str) -> list[str]:
    if kind == _JSON:
        try:
            return [str(file["url"]) for file in json.loads(content)["files"]]
        except (ValueError, KeyError, TypeError) as error:
            raise OSError(f"answers with broken JSON: {error!r}") from error
    reader = _Anchors()
    reader.feed(content.decode(errors="replace"))
    return reader.links


def _with_login(address: str, page: str) -> str:
    """A file's address with the page's user and password, if it is on the same server."""
    login, at, host = urlsplit(page).netloc.rpartition("@")
    parts = urlsplit(address)
    return parts._replace(netloc=f"{login}{at}{host}").geturl() if parts.netloc == host else address


class _Anchors(HTMLParser):
    """The addresses of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """One tag has been read."""
        self.links += [value for name, value in attrs if tag == "a" and name == "href" and value]
