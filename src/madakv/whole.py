"""A model that is put together in memory, written down whole: for engines that load folders, as vLLM does."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from madakv import assembled
from madakv.fingerprint import of_source
from madakv.published.known import home


def whole_folder(folder: Path, base: Path) -> Path:
    """The folder of the whole model, in fp32, made once; parts that have changed make another.

    It holds what published checkpoints of the class hold, `SmolVLMProcessor` among it. That processor's sizes cannot
    say "as they are, but no larger than": so every picture is scaled to one tile.

    Args:
        folder: one that has an `assembled.description`.
        base: the folder of the language model that this names.

    Raises:
        ConfigurationError: parts that do not fit together.
    """
    out = home() / "models" / f"{folder.name}-{of_source(str(folder))}"
    if out.is_dir():
        return out
    model, processor = assembled.load(folder, base, "float32")
    unfinished = out.with_name(f"{out.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    processor.tokenizer.save_pretrained(unfinished)
    shutil.copy(folder / "chat_template.jinja", unfinished)
    for name, described in _processors(processor).items():
        (unfinished / name).write_text(json.dumps(described, indent=2) + "\n")
    try:
        unfinished.rename(out)
    except OSError:
        # Another process was as fast.
        shutil.rmtree(unfinished)
        if not out.is_dir():
            raise
    return out


def _processors(processor: Any) -> dict[str, dict[str, Any]]:
    """By the names of their files."""
    pictures = processor.image_processor.to_dict()
    tile = pictures["max_image_size"]
    pictures |= {"do_resize": True, "size": tile, "image_processor_type": "SmolVLMImageProcessor"}
    shared = ("do_rescale", "do_normalize", "image_mean", "image_std", "rescale_factor", "size", "max_image_size")
    films = {key: pictures[key] for key in shared} | {"video_processor_type": "SmolVLMVideoProcessor"}
    named = {"processor_class": "SmolVLMProcessor"}
    return {
        "preprocessor_config.json": pictures | named,
        "video_preprocessor_config.json": films | named,
        "processor_config.json": named | {"image_seq_len": processor.image_seq_len},
    }
