"""Opening an address as pip's settings say: through their proxy, with their certificates and its own password."""

from __future__ import annotations

import base64
import http.client
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

from madakv.errors import ConfigurationError
from madakv.published.pip_settings import PipSettings

TROUBLE = (OSError, http.client.HTTPException)
"""What is raised where a network, a server or a file behind an address fails; URLError and HTTPError among them."""
_TIMEOUT_S = 30.0


def open_address(address: str, settings: PipSettings, headers: Mapping[str, str]) -> Any:
    """The server's response, to be read and closed.

    Raises:
        OSError, http.client.HTTPException: see `TROUBLE`.
        ConfigurationError: no address, or a file of certificates that cannot be read.
    """
    plain, login = _apart(address)
    try:
        request = Request(plain, headers=dict(headers))
        context = ssl.create_default_context(cafile=settings.certificate)
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"cannot open {plain!r} with pip's settings: {error}") from error
    if login:
        # Of this server alone: it may send us to another one.
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    proxies = {"http": settings.proxy, "https": settings.proxy} if settings.proxy else None
    opener = build_opener(ProxyHandler(proxies), HTTPSHandler(context=context))
    return opener.open(request, timeout=_TIMEOUT_S)


def shown(address: str) -> str:
    """An address without a user's name and password."""
    return _apart(address)[0]


def reason(error: Exception) -> str:
    """Why an address could not be opened or read, in a few words."""
    if isinstance(error, HTTPError):
        return f"HTTP status {error.code} {error.reason}".rstrip()
    if isinstance(error, URLError):
        inner = error.reason
        return str(getattr(inner, "strerror", None) or inner)
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


def _apart(address: str) -> tuple[str, str]:
    """An address without `user:password@`, and these."""
    parts = urlsplit(address)
    login, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=host)), unquote(login)
