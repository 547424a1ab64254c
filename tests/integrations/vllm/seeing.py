"""Models that see, in folders as published checkpoints lie: names of weights, processors and their files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from madakv.evaluation.documents.presentation import presentation_for
from madakv.evaluation.suites import digit_documents, long_documents
from madakv.prompts import interleave, model_inputs
from madakv.published.known import KNOWN
from madakv.whole import whole_folder
from tests.integrations.vllm.engines import Seen

REPOSITORY = Path(__file__).parents[3]


def published(name: str, folder: Path) -> Path:
    """A bundled model, in the form in which models of its class are published."""
    if name == "small-smolvlm":
        if not KNOWN["smollm2"].is_here:
            pytest.skip("`madakv models get smollm2` brings the language model of small-smolvlm")
        return whole_folder(REPOSITORY / "models" / name, KNOWN["smollm2"].folder)
    shutil.copytree(REPOSITORY / "models" / name, folder)
    return {"small-llava": _llava, "small-qwen2.5-vl": _qwen}[name](folder)


def _llava(folder: Path) -> Path:
    """transformers has since taken a name out of its class of towers."""
    weights = load_file(folder / "model.safetensors")
    begin = "vision_tower."
    renamed = {key.replace(begin, f"{begin}vision_model.", 1): weight for key, weight in weights.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    return folder


def _qwen(folder: Path) -> Path:
    """A processor of its class, which wants to know of films too; rotations that vLLM has with three positions."""
    config = json.loads((folder / "config.json").read_text())
    kept = ("mrope_section", "rope_theta")
    ropes = {key: config["text_config"]["rope_parameters"][key] for key in kept} | {"rope_type": "default"}
    change(folder / "config.json", text_config=config["text_config"] | {"rope_parameters": ropes})
    change(folder / "processor_config.json", processor_class="Qwen2_5_VLProcessor")
    change(folder / "tokenizer_config.json", processor_class="Qwen2_5_VLProcessor")
    pictures = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    films = {key: value for key, value in pictures.items() if key != "image_processor_type"}
    films["video_processor_type"] = "Qwen2VLVideoProcessor"
    (folder / "video_preprocessor_config.json").write_text(json.dumps(films))
    return folder


def change(file: Path, **values: Any) -> None:
    """Set values of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def documents(folder: Path) -> list[Seen]:
    """Questions of eight kinds about four short documents with pictures and four longer ones."""
    processor = AutoProcessor.from_pretrained(folder)
    presentation = presentation_for(processor)
    short, longer = list(digit_documents(4, 7, presentation)), list(long_documents((500, 620), 4, 7, presentation))
    chosen = (made[number * len(made) // 4 + number] for number in range(4) for made in (short, longer))
    return [seen(processor, sample.prompt, sample.pictures()) for sample in chosen]


def seen(processor: Any, prompt: str, pictures: Sequence[Image.Image]) -> Seen:
    """A prompt as transformers reads it, and as vLLM is given it."""
    inputs = model_inputs(processor, prompt, pictures)
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
        for part in interleave(prompt, pictures)
    ]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    asked = {"prompt": text, "multi_modal_data": {"image": list(pictures)}}
    return Seen(inputs["input_ids"][0].tolist(), dict(inputs), asked)
