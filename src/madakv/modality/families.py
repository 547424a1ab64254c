"""The model families that are known: where each one's config names the tokens that stand for other than text."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from madakv.errors import ConfigurationError, UnsupportedModelError
from madakv.modality.config import Placeholder, as_ids, find_placeholders, has_media, kind_of_parts, value_at
from madakv.modality.kinds import Modality


@dataclass(frozen=True)
class Family:
    """Where a model family's config keeps the token ids that stand for non-text inputs.

    Each field has the config attributes of that modality, which may lie in a sub-config ("vision_config.token_id");
    it is empty if the family has no such modality.
    """

    image: tuple[str, ...] = ()
    video: tuple[str, ...] = ()
    audio: tuple[str, ...] = ()

    def items(self) -> list[tuple[Modality, str]]:
        """The config attributes of this family, each with its modality."""
        named = ((Modality.IMAGE, self.image), (Modality.VIDEO, self.video), (Modality.AUDIO, self.audio))
        return [(kind, path) for kind, paths in named for path in paths]


_IMAGE = Family(image=("image_token_id",))
_IMAGE_VIDEO = Family(image=("image_token_id",), video=("video_token_id",))
_AUDIO = Family(audio=("audio_token_id",))
_ALL = Family(image=("image_token_id",), video=("video_token_id",), audio=("audio_token_id",))

_FAMILIES: dict[str, Family] = {
    "aria": _IMAGE,
    "audioflamingo3": _AUDIO,
    "aya_vision": _IMAGE,
    "chameleon": _IMAGE,
    "cohere2_vision": _IMAGE,
    "deepseek_vl": _IMAGE,
    "deepseek_vl_hybrid": _IMAGE,
    "emu3": _IMAGE,
    "ernie4_5_vl_moe": _IMAGE_VIDEO,
    "fuyu": _IMAGE,
    "gemma3": _IMAGE,
    "gemma4": _ALL,
    "glm46v": _IMAGE_VIDEO,
    "glm4v": _IMAGE_VIDEO,
    "glm4v_moe": _IMAGE_VIDEO,
    "got_ocr2": _IMAGE,
    "granite_speech": _AUDIO,
    "idefics2": _IMAGE,
    "idefics3": _IMAGE,
    "internvl": _IMAGE,
    "janus": _IMAGE,
    "lfm2_vl": _IMAGE,
    "lighton_ocr": _IMAGE,
    "llama4": _IMAGE,
    "llava": _IMAGE,
    "llava_next": _IMAGE,
    "llava_next_video": _IMAGE_VIDEO,
    "llava_onevision": _IMAGE_VIDEO,
    "minicpmv4_6": _IMAGE_VIDEO,
    "mistral3": _IMAGE,
    # One token stands for patches of pictures and of videos; the processor's mm_token_type_ids tell them apart.
    "molmo2": Family(image=("image_patch_id",)),
    "ovis2": _IMAGE,
    "paddleocr_vl": _IMAGE_VIDEO,
    "paligemma": _IMAGE,
    "phi4_multimodal": Family(image=("vision_config.image_token_id",), audio=("audio_config.audio_token_id",)),
    "qwen2_5_omni_thinker": _ALL,
    "qwen2_5_vl": _IMAGE_VIDEO,
    "qwen2_audio": _AUDIO,
    "qwen2_vl": _IMAGE_VIDEO,
    "qwen3_5": _IMAGE_VIDEO,
    "qwen3_5_moe": _IMAGE_VIDEO,
    "qwen3_omni_moe_thinker": _ALL,
    "qwen3_vl": _IMAGE_VIDEO,
    "qwen3_vl_moe": _IMAGE_VIDEO,
    "smolvlm": _IMAGE,
    "video_llama_3": _IMAGE_VIDEO,
    "video_llava": _IMAGE_VIDEO,
    "vipllava": _IMAGE,
    "voxtral": _AUDIO,
}


def register_family(
    model_type: str,
    *,
    image: str | Sequence[str] | None = None,
    video: str | Sequence[str] | None = None,
    audio: str | Sequence[str] | None = None,
) -> None:
    """Teach madakv a model family.

    Args:
        model_type: the `model_type` of the family's config.
        image, video, audio: the config attribute, or several, that holds the token id, or a list of them, of that
            modality. A dot leads into a sub-config.

    Raises:
        ConfigurationError: anything but names was given.

    Example:
        `madakv.register_family("my_vlm", image="image_token_id", audio="audio_config.audio_token_id")`
    """
    if not isinstance(model_type, str) or not model_type:
        raise ConfigurationError(f"model_type must be the config's model_type, a string; got {model_type!r}")
    paths = {"image": image, "video": video, "audio": audio}
    _FAMILIES[model_type] = Family(**{kind: _paths(kind, given) for kind, given in paths.items()})


def _paths(kind: str, given: object) -> tuple[str, ...]:
    paths = () if given is None else (given,) if isinstance(given, str) else given
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str) and path for path in paths):
        raise ConfigurationError(f"{kind} must be the name of a config attribute, or several; got {given!r}")
    return tuple(paths)


def known_families() -> list[str]:
    """The `model_type` of every multimodal family madakv knows, sorted."""
    return sorted(_FAMILIES)


def placeholder_ids(config: Any) -> dict[Modality, tuple[int, ...]]:
    """The token ids that stand for other than text, by modality; a text-only model has none.

    Args:
        config: the model's top-level config.

    Raises:
        UnsupportedModelError: a multimodal config of unknown `model_type`; one that has no token id where its family
            has one, or has ids that its family does not name; one id for two modalities.
    """
    model_type = str(getattr(config, "model_type", ""))
    family = _FAMILIES.get(model_type)
    if family is None:
        if has_media(config):
            raise UnsupportedModelError(f"unknown multimodal family {model_type!r}; {_advice(model_type, config)}")
        return {}
    ids: dict[Modality, tuple[int, ...]] = {}
    for kind, path in family.items():
        ids[kind] = ids.get(kind, ()) + _ids_at(model_type, config, path)
    _check_apart(model_type, config, ids)
    named = {one for some in ids.values() for one in some}
    missing = [one.path for one in find_placeholders(config) if not named.issuperset(one.ids)]
    if missing:
        raise UnsupportedModelError(
            f"the config of {model_type!r} has placeholders that its family does not name: "
            f"{', '.join(map(repr, missing))}; {_advice(model_type, config)}"
        )
    return ids


def _ids_at(model_type: str, config: Any, path: str) -> tuple[int, ...]:
    try:
        value = value_at(config, path)
    except AttributeError:
        found = "there is no such attribute"
    else:
        if ids := as_ids(value):
            return ids
        found = f"it is {reprlib.repr(value)}"
    raise UnsupportedModelError(
        f"the config of {model_type!r} has no integer {path!r} ({found}); {_advice(model_type, config)}"
    )


def _check_apart(model_type: str, config: Any, ids: dict[Modality, tuple[int, ...]]) -> None:
    """Refuse one id for two modalities."""
    kinds: dict[int, Modality] = {}
    for kind, some in ids.items():
        for one in some:
            if (other := kinds.setdefault(one, kind)) != kind:
                raise UnsupportedModelError(
                    f"the config of {model_type!r} has token id {one} for {other.name.lower()} and for "
                    f"{kind.name.lower()}, which its tokens do not tell apart; {_advice(model_type, config)}"
                )


def _advice(model_type: str, config: Any) -> str:
    """What to do about a config whose placeholders are not all named: a call that names what it has."""
    found = find_placeholders(config)
    named: dict[Modality, list[str]] = {}
    seen: set[int] = set()
    for one in found:
        if not seen.issuperset(one.ids):
            seen.update(one.ids)
            named.setdefault(one.kind, []).append(one.path)
    if not named:
        return _advice_without_ids(model_type, config, found)
    paths = {kind.name.lower(): paths[0] if len(paths) == 1 else paths for kind, paths in named.items()}
    arguments = "".join(f", {kind}={json.dumps(path)}" for kind, path in paths.items())
    return f"name what it has with madakv.register_family({json.dumps(model_type)}{arguments})"


def _advice_without_ids(model_type: str, config: Any, found: list[Placeholder]) -> str:
    kind = (found[0].kind if found else kind_of_parts(config) or Modality.IMAGE).name.lower()
    path = found[0].path if found else f"{kind}_token_id"
    return (
        f"its config names no placeholder token: if its prompts have one that stands for {kind}, set "
        f"model.config.{path} to the id of it, and call "
        f"madakv.register_family({json.dumps(model_type)}, {kind}={json.dumps(path)})"
    )
