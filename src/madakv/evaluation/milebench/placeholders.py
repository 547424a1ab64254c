"""Text that tokenizers do not read as text: what stands for a picture, a video or a sound in some model's prompts."""

from __future__ import annotations

import re

# Without `<image>`: prompts never hold it but for a picture, see `prompts`.
_NAMED = (
    *("<video>", "<audio>", "<sound>", "<imgpad>", "<im_patch>", "<image_placeholder>"),
    *("<IMG_CONTEXT>", "<image_soft_token>", "<audio_soft_token>", "<start_of_image>", "<end_of_image>"),
    *("<fake_token_around_image>", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "[AUDIO]", "[BEGIN_AUDIO]"),
    *("|SPEAKER|", "|NEWLINE|"),
)
# Qwen, GLM, Llama 4 and many others write all of their tokens like this, those that end a turn as well.
_TOKEN = re.compile(r"<\|\w+\|>|" + "|".join(map(re.escape, _NAMED)))


def found_in(text: str) -> list[str]:
    """The different ones in a text, in reading order."""
    return list(dict.fromkeys(_TOKEN.findall(text)))
