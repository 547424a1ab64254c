"""What a plain install leaves out, or what does not fit it."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, version

from madakv.errors import MissingExtraError

_TORCHVISION_AHEAD = 15
"""torch 2.n and torchvision 0.(n + 15) are of one release."""


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


def torchvision_fault() -> str | None:
    """Why torchvision, which is installed, cannot be imported, and which build to install; None if nothing is wrong.

    transformers imports it for pictures and videos, and names a class of its own where that fails.
    """
    try:
        found = version("torchvision")
    except PackageNotFoundError:
        return None
    try:
        import_module("torchvision")
    except Exception as error:
        # A build for another torch fails where its operators are looked up: RuntimeError, OSError, ImportError.
        torch = version("torch")
        release, _, build = torch.partition("+")
        minor = int(release.split(".")[1])
        index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
        return (
            f"torchvision {found} does not fit torch {torch} ({error}): pip install --force-reinstall --no-deps "
            f"'torchvision==0.{minor + _TORCHVISION_AHEAD}.*'{index}"
        )
    return None
