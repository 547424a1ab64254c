"""Methods by name."""

from __future__ import annotations

import ast
import difflib
from dataclasses import fields, replace
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from madakv.errors import ConfigurationError
from madakv.methods.base import Method
from madakv.methods.renamed import reweighed


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
    """A method as typed on a command line: `madakv`, or with options `madakv:echo=256:draft=8`.

    Args:
        text: a name, then options as `:name=value`.
        budget: see `resolve`; a budget or a compression ratio in the text comes first.

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
    if not options.keys() & {"budget", "compression_ratio"}:
        options["budget"] = budget
    return resolve(name, **options)


def resolve(method: str | Method, **options: Any) -> Method:
    """A method object from a name or an object.

    Args:
        method: a name from `list_methods()`, or a method object.
        options: fields of the method, such as `budget`, and of its `weights`; None counts as not given. Instead of
            a budget, `compression_ratio` may be given, which is `1 - budget`.

    Raises:
        ConfigurationError: unknown name (the nearest is suggested), unknown option, bad value; or an option that
            differs from its default and changes nothing, as the others stand.
    """
    options = {name: value for name, value in options.items() if value is not None}
    cls = _class_of(method)
    options = cls.modern(_with_budget(options))
    defaults = cls.defaults()
    for name in options:
        if name not in defaults.keys() | {"weights"}:
            raise ConfigurationError(_no_option(cls, name))
    own = {field.name for field in fields(cls)}
    of_weights = {name: options.pop(name) for name in list(options) if name not in own}
    start: Any = method if isinstance(method, Method) else cls
    if of_weights:
        options["weights"] = reweighed(options.get("weights", start.weights), of_weights)
    chosen = replace(method, **options) if isinstance(method, Method) else cls(**options)
    for name, reason in chosen.idle().items():
        if chosen.options[name] != defaults[name]:
            raise ConfigurationError(
                f"{cls.name!r}: {name}={chosen.options[name]} changes nothing with {reason}; leave one of them out"
            )
    return chosen


def _class_of(method: str | Method) -> type[Method]:
    if isinstance(method, Method):
        return type(method)
    if not isinstance(method, str):
        raise ConfigurationError(f"method must be a name or a method object; got {method!r}")
    if method not in _METHODS:
        near = difflib.get_close_matches(method, _METHODS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigurationError(f"unknown method {method!r}; {hint}known: {', '.join(list_methods())}")
    return _METHODS[method]


def _with_budget(options: dict[str, Any]) -> dict[str, Any]:
    """The options with a budget in place of a compression ratio."""
    if "compression_ratio" not in options:
        return options
    ratio = options.pop("compression_ratio")
    if "budget" in options:
        raise ConfigurationError(
            f"compression_ratio={ratio!r} is 1 - budget, and budget={options['budget']!r} was given, too; choose one"
        )
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise ConfigurationError(f"compression_ratio must be a share of the prompt in [0, 1); got {ratio!r}")
    # In decimals, as it was written: in floats, 1 - 0.8 is less than 0.2.
    return options | {"budget": float(1 - Decimal(repr(ratio)))}


def _no_option(cls: type[Method], name: str) -> str:
    others = [other for other in list_methods() if name in _METHODS[other].defaults()]
    hint = f"it is one of {', '.join(others)}; " if others else ""
    return f"{cls.name!r} has no option {name!r}; {hint}its options: {', '.join(cls.defaults())}"
