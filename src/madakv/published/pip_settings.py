"""Where pip looks for packages, from its own settings: environment variables, then its files.

So whatever brought madakv to a machine, a mirror, a private index or a proxy, brings models, too. Read here and not
asked of pip: environments made by other tools have none.
"""

from __future__ import annotations

import os
import sys
from configparser import ConfigParser, Error
from dataclasses import dataclass
from pathlib import Path

from madakv.errors import ConfigurationError

_PYPI = "https://pypi.org/simple"
_SECTIONS = ("global", "install", "download")
_TRUE = ("1", "true", "yes", "on")


@dataclass(frozen=True)
class PipSettings:
    """What of pip's settings says how to reach a file.

    Attributes:
        indexes: addresses of simple indexes, in the order in which they are asked.
        links: folders, or pages, that list files themselves (`find-links`).
        certificate: a file of certificates to trust instead of the system's.
        proxy: for all addresses, instead of what the environment's `HTTPS_PROXY` and others say.
    """

    indexes: tuple[str, ...] = (_PYPI,)
    links: tuple[str, ...] = ()
    certificate: str | None = None
    proxy: str | None = None

    @classmethod
    def read(cls) -> PipSettings:
        """Those of this process.

        Raises:
            ConfigurationError: one of pip's files cannot be read.
        """
        said = _from_files() | _from_environment()
        indexes = (said.get("index-url", _PYPI), *said.get("extra-index-url", "").split())
        return cls(
            indexes=() if said.get("no-index", "").lower() in _TRUE else indexes,
            links=tuple(said.get("find-links", "").split()),
            certificate=said.get("cert"),
            proxy=said.get("proxy"),
        )


def _from_environment() -> dict[str, str]:
    names = ("index-url", "extra-index-url", "find-links", "no-index", "cert", "proxy")
    values = {name: os.environ.get(f"PIP_{name.upper().replace('-', '_')}") for name in names}
    return {name: value for name, value in values.items() if value}


def _from_files() -> dict[str, str]:
    said: dict[str, str] = {}
    for path in _files():
        parser = ConfigParser(interpolation=None)
        try:
            parser.read(path, encoding="utf-8")
        except (Error, UnicodeDecodeError) as error:
            raise ConfigurationError(f"cannot read pip's settings in {path}: {error}") from error
        for section in _SECTIONS:
            if parser.has_section(section):
                said |= {key.replace("_", "-"): value for key, value in parser.items(section)}
    return said


def _files() -> list[Path]:
    """pip's files as its documentation lists them (topics/configuration), the last one said counts."""
    own = os.environ.get("PIP_CONFIG_FILE")
    if own == os.devnull:
        return []
    home = Path.home()
    shared = os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
    files = [Path(folder) / "pip" / "pip.conf" for folder in shared.split(os.pathsep)]
    files += [Path("/etc/pip.conf"), home / ".pip" / "pip.conf"]
    files += [Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"]
    if sys.platform == "darwin":
        files += [root / "Library" / "Application Support" / "pip" / "pip.conf" for root in (Path("/"), home)]
    if "APPDATA" in os.environ:
        files += [Path(os.environ["APPDATA"]) / "pip" / "pip.ini"]
    files += [Path(sys.prefix) / "pip.conf", Path(sys.prefix) / "pip.ini"]
    return files + ([Path(own)] if own else [])
