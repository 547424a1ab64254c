"""Whether a model and a processor are of one kind, as far as a prompt shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from madakv.errors import InputError

_SIZES = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "merge_size": "spatial_merge_size",
}
"""Names in an image processor, and in the vision config of its model."""


def check_inputs(model: Any, inputs: Any) -> None:
    """Raise InputError if a prompt has token ids beyond the model's vocabulary, which a GPU dies of.

    Ids that the config names, such as those of pictures, may lie beyond it: some models never look them up.

    Args:
        model: a transformers model.
        inputs: from `madakv.prompts.model_inputs`.
    """
    ids = inputs["input_ids"]
    known = model.get_input_embeddings().weight.shape[0]
    beyond = ids[ids >= known]
    if beyond.numel():
        beyond = beyond[~torch.isin(beyond, beyond.new_tensor([*_named_ids(model.config.to_dict())]))]
    if beyond.numel():
        raise InputError(
            f"the tokenizer gives token id {beyond.max().item()}, but the model knows {known:,}: "
            "take both from one model"
        )


def _named_ids(config: Mapping[Any, Any]) -> Iterator[int]:
    """The token ids in a config and in those within it."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _named_ids(value)
        elif str(name).endswith(("_token_id", "_token_index")) and isinstance(value, int):
            yield value


def differing_sizes(model: Any, processor: Any) -> str:
    """The sizes of patches that an image processor and its model's vision config disagree in; empty if none is."""
    vision, images = getattr(model.config, "vision_config", None), getattr(processor, "image_processor", None)
    pairs = [(name, getattr(images, name, None), getattr(vision, own, None)) for name, own in _SIZES.items()]
    return ", ".join(
        f"{name} {found} instead of {wanted}"
        for name, found, wanted in pairs
        if isinstance(found, int) and isinstance(wanted, int) and found != wanted
    )
