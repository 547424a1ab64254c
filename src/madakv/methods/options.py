"""Checks that several methods make of their fields."""

from __future__ import annotations

from typing import Any, get_args

from madakv.errors import ConfigurationError


def check_choice(field: str, value: object, choices: Any) -> None:
    """Raise ConfigurationError unless `value` is one of a `Literal`'s."""
    if value not in get_args(choices):
        raise ConfigurationError(f"{field} must be one of {get_args(choices)}; got {value!r}")


def check_share(field: str, value: object) -> None:
    """Raise ConfigurationError unless `value` is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigurationError(f"{field} must be from 0 to 1; got {value!r}")


def check_positive(field: str, value: object) -> None:
    """Raise ConfigurationError unless `value` is a positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigurationError(f"{field} must be a positive number; got {value!r}")


def check_flag(field: str, value: object) -> None:
    """Raise ConfigurationError unless `value` is a bool."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{field} must be True or False; got {value!r}")


def check_width(field: str, value: object) -> None:
    """Raise ConfigurationError unless `value` is an odd, positive int."""
    if not is_count(value) or value % 2 == 0:  # type: ignore[operator]
        raise ConfigurationError(f"{field} must be odd and a positive int; got {value!r}")


def check_number(field: str, value: object) -> None:
    """Raise ConfigurationError unless `value` is an int of 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigurationError(f"{field} must be a whole number, 0 or more; got {value!r}")


def check_proxies(field: str, value: object) -> None:
    """Raise ConfigurationError unless `value` is a `ProxyRule`."""
    if value != "question" and not is_count(value):
        raise ConfigurationError(f"{field} must be 'question' or a positive int; got {value!r}")


def is_count(value: object) -> bool:
    """Whether `value` is a positive int."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
