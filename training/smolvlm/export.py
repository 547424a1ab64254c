"""What the repository holds of the model: eyes, connector and LoRA, without the language model.

    python training/smolvlm/export.py --base FOLDER --state DIR --out models/small-smolvlm

Takes `read.pt` of DIR; before stage J has begun, its eyes are those of `eyes.pt`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from language import STRENGTH
from packed import BEFORE, BETWEEN, END
from safetensors.torch import save_file
from smolvlm import FRAMING, MOST_TILES, SIDE, model_config
from state import load
from torch import Tensor
from transformers import AutoConfig, GenerationConfig
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

MOST_BYTES = 16 << 20
"""Of a file in the repository."""
_USER, _ASSISTANT = BEFORE.removesuffix("user\n"), BETWEEN.removeprefix(END + "\n")
TEMPLATE = (
    "{% for message in messages %}{{ '" + _USER + "' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<image>' }}{% elif item['type'] == 'text' %}{{ item['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '" + END + "\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + _ASSISTANT.replace("\n", "\\n") + "' }}{% endif %}"
)


def image_processor() -> Any:
    """Tiles of 64 x 64 as they are, -1 to 1."""
    return SmolVLMImageProcessorPil(
        do_resize=False,
        do_image_splitting=True,
        max_image_size={"longest_edge": SIDE},
        size={"longest_edge": SIDE * MOST_TILES},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def export(eyes: dict[str, Tensor], language: dict[str, Tensor], text: Any, base: str, out: Path) -> None:
    """Write the folder.

    Args:
        eyes, language: states of `smolvlm.Eyes` and of what `language.Language` learns.
        text: the language model's configuration.
        base: its name.
        out: the folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    for number, tensors in enumerate((eyes, language), start=1):
        path = out / f"adapter-{number}.safetensors"
        save_file({name: t.to(torch.bfloat16).contiguous() for name, t in tensors.items()}, path)
        path.chmod(0o644)
        if path.stat().st_size > MOST_BYTES:
            raise SystemExit(f"{path.name} has {path.stat().st_size:,} bytes, more than {MOST_BYTES:,}")
    description = {"base": base, "strength": STRENGTH, "tokens": list(FRAMING), "most_pixels": SIDE * MOST_TILES}
    (out / "adapter.json").write_text(json.dumps(description, indent=2) + "\n")
    config = model_config(text)
    config.architectures = ["SmolVLMForConditionalGeneration"]
    config.save_pretrained(out)
    written = json.loads((out / "config.json").read_text())
    written["text_config"].pop("dtype", None)
    (out / "config.json").write_text(json.dumps(written | {"dtype": "float32"}, indent=2) + "\n")
    image_processor().save_pretrained(out)
    (out / "chat_template.jinja").write_text(TEMPLATE)
    GenerationConfig(
        do_sample=False, max_new_tokens=32, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    ).save_pretrained(out)


def main() -> None:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--state", type=Path, required=True, help="folder of the training")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    read, alone = load(arguments.state / "read.pt"), load(arguments.state / "eyes.pt")
    if read is None or (read["stage"] == "T" and alone is None):
        raise SystemExit(f"{arguments.state} holds no read.pt, or one of stage T and no eyes.pt")
    eyes = read["eyes"] if read["stage"] == "J" else alone["eyes"]  # type: ignore[index]
    text = AutoConfig.from_pretrained(arguments.base)
    export(eyes, read["language"], text, "smollm2", arguments.out)


if __name__ == "__main__":
    main()
