"""Methods by name."""

from __future__ import annotations

import ast
import dataclasses
import difflib
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from madakv.errors import ConfigurationError
from madakv.methods.base import Method


def _discover() -> dict[str, type[Method]]:
    """Every method of this folder by its name: a new one needs its file and nothing else."""
    found: dict[str, type[Method]] = {}
    for module in iter_modules([str(Path(__file__).parent)]):
        if module.name == "registry":
            continue
        for member in vars(import_module(f"{__package__}.{module.name}")).values():
            if isinstance(member, type) and issubclass(member, Method) and "name" in vars(member):
                found[member.name] = member
    return found


_METHODS = _discover()


def list_methods() -> list[str]:
    """Names that `madakv.evict` and `madakv.allocate` accept, sorted."""
    return sorted(_METHODS)


def from_text(text: str, budget: float | int | None = None) -> Method:
    """A method as typed on a command line: `madakv`, or with options `madakv:theta=0.8:compensation=none`.

    Args:
        text: a name, then options as `:name=value`.
        budget: see `resolve`.

    Raises:
        ConfigurationError: see `resolve`; or an option without a value.
    """
    name, *pairs = text.strip().split(":")
    options: dict[str, Any] = {}
    for pair in pairs:
        option, equals, value = pair.partition("=")
        if not equals:
            raise ConfigurationError(f"options of a method are written name:option=value; got {text!r}")
        try:
            options[option.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[option.strip()] = value.strip()
    return resolve(name, budget=options.pop("budget", budget), **options)


def resolve(method: str | Method, **options: Any) -> Method:
    """A method object from a name or an object.

    Args:
        method: a name from `list_methods()`, or a method object.
        options: fields of the method, such as `budget`; None counts as not given.

    Raises:
        ConfigurationError: unknown name (the nearest is suggested), unknown option, bad value.
    """
    options = {name: value for name, value in options.items() if value is not None}
    if isinstance(method, Method):
        cls: type[Method] = type(method)
    elif isinstance(method, str):
        if method not in _METHODS:
            near = difflib.get_close_matches(method, _METHODS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigurationError(f"unknown method {method!r}; {hint}known: {', '.join(list_methods())}")
        cls = _METHODS[method]
    else:
        raise ConfigurationError(f"method must be a name or a method object; got {method!r}")
    fields = [field.name for field in dataclasses.fields(cls)]
    for name in options:
        if name not in fields:
            raise ConfigurationError(f"{cls.name!r} has no option {name!r}; its options: {', '.join(fields)}")
    if isinstance(method, Method):
        return dataclasses.replace(method, **options)
    return cls(**options)
