"""What a plain install leaves out."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution

from madakv.errors import MissingExtraError


def require(feature: str, extra: str, package: str) -> None:
    """Refuse a feature before its work begins, if what it needs is not installed.

    Args:
        feature: how the message begins, such as "plots need".
        extra: of madakv's package metadata.
        package: that the extra brings, as an installer calls it.

    Raises:
        MissingExtraError: it is missing; names what to install.
    """
    try:
        distribution(package)
    except PackageNotFoundError as error:
        raise MissingExtraError(f"{feature} {package}: pip install 'madakv[{extra}]'") from error
