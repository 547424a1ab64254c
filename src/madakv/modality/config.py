"""Placeholders as a model's config tells of them: token ids that stand for pictures, videos and sounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from madakv.modality.kinds import Modality

_KIND_OF_WORD = {
    **dict.fromkeys(("image", "img", "picture", "vision", "visual", "media"), Modality.IMAGE),
    **dict.fromkeys(("video", "frame"), Modality.VIDEO),
    **dict.fromkeys(("audio", "speech", "sound"), Modality.AUDIO),
}
_TOKEN_WORDS = {"token", "tokens", "patch", "pad", "placeholder"}
_ID_WORDS = {"id", "ids", "index", "indices"}
# Of tokens that stand around or between placeholders, and are text.
_MARKER_WORDS = {"start", "end", "bos", "eos", "begin", "indicator", "indicators", "newline", "break", "delimiter"}
_PARTS_WITHOUT_A_KIND = {"vq_config", "thinker_config"}


@dataclass(frozen=True)
class Placeholder:
    """One or more token ids that a config names.

    Attributes:
        kind: the modality that its name tells of.
        path: where it is, from the top-level config, with dots.
        ids: the token ids; empty where the config names no id, which is None there.
    """

    kind: Modality
    path: str
    ids: tuple[int, ...]


def find_placeholders(config: Any) -> list[Placeholder]:
    """Everything in a config and its sub-configs that is named as a placeholder's id is, outermost first.

    What tells the same ids of the same kind again is left out.
    """
    found: dict[tuple[Modality, tuple[int, ...] | str], Placeholder] = {}
    for path, value in _walk(config):
        kind, ids = _kind_of(path.rpartition(".")[2]), as_ids(value)
        if kind is not None and (ids or value is None):
            found.setdefault((kind, ids or path), Placeholder(kind, path, ids))
    return list(found.values())


def ids_named_after(config: Any, kind: Modality) -> tuple[int, ...]:
    """All token ids that a config names after a modality: placeholders, and what stands around or between them."""
    named = ((path.rpartition(".")[2], value) for path, value in _walk(config))
    return tuple(one for name, value in named if _is_id(name) and _kind_in(name) == kind for one in as_ids(value))


def has_media(config: Any) -> bool:
    """Whether a config has a part that reads something other than text, or a placeholder for it."""
    parts = (name for name, value in _fields(config) if _is_part(name, value))
    return (
        any(placeholder.ids for placeholder in find_placeholders(config))
        or kind_of_parts(config) is not None
        or not _PARTS_WITHOUT_A_KIND.isdisjoint(parts)
    )


def kind_of_parts(config: Any) -> Modality | None:
    """The modality that a config's first part for one is named after; None without such a part."""
    kinds = (_kind_in(name) for name, value in _fields(config) if _is_part(name, value))
    return next((kind for kind in kinds if kind is not None), None)


def value_at(config: Any, path: str) -> Any:
    """What a config holds at a path with dots.

    Raises:
        AttributeError: it has no such attribute.
    """
    value = config
    for name in path.split("."):
        if isinstance(value, Mapping):
            if name not in value:
                raise AttributeError(name)
            value = value[name]
        else:
            value = getattr(value, name)
    return value


def as_ids(value: Any) -> tuple[int, ...]:
    """Token ids of a config's value, which may be one or several; empty if it is anything else."""
    ids = tuple(value) if isinstance(value, list | tuple) else (value,)
    # True is an int, and no id.
    return ids if all(type(one) is int for one in ids) else ()


def _walk(config: Any) -> Iterator[tuple[str, Any]]:
    """Every attribute of a config and its sub-configs that is no sub-config, with its path; outermost first."""
    level, seen = [("", config)], {id(config)}
    while level:
        deeper = []
        for prefix, part in level:
            for name, value in _fields(part):
                if not _is_part(name, value):
                    yield prefix + name, value
                elif id(value) not in seen:
                    seen.add(id(value))
                    deeper.append((f"{prefix}{name}.", value))
        level = deeper


def _fields(config: Any) -> list[tuple[str, Any]]:
    fields = config if isinstance(config, Mapping) else vars(config)
    return [(name, value) for name, value in fields.items() if isinstance(name, str) and not name.startswith("_")]


def _is_part(name: str, value: Any) -> bool:
    """Whether an attribute is a sub-config; models that are loaded with their own code may have plain dicts."""
    is_dict = isinstance(value, Mapping) and bool(value)
    return hasattr(value, "model_type") or (is_dict and name.endswith("config"))


def _kind_of(name: str) -> Modality | None:
    """The modality of a placeholder's id, by its attribute's name; None if it is named as something else."""
    return _kind_in(name) if _is_id(name) and _MARKER_WORDS.isdisjoint(name.split("_")) else None


def _is_id(name: str) -> bool:
    words = name.split("_")
    return words[-1] in _ID_WORDS and not _TOKEN_WORDS.isdisjoint(words)


def _kind_in(name: str) -> Modality | None:
    return next((_KIND_OF_WORD[word] for word in name.split("_") if word in _KIND_OF_WORD), None)
