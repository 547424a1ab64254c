"""Pipelines call the model's own generate, so they are evicted without knowing it."""

from __future__ import annotations

from typing import Any

from transformers import pipeline

import madakv
from madakv import bundled
from madakv.answering import answer
from madakv.prompts import interleave, model_inputs


def test_image_text_to_text_pipeline() -> None:
    model, processor = bundled.load()
    sample = bundled.sample()
    prompt = f"{sample.text} {sample.questions[0].prompt}"
    parts = interleave(prompt, sample.images)
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in parts
    ]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    want = answer(model, processor, model_inputs(processor, prompt, sample.images), madakv.MadaKV(), max_new_tokens=8)
    with madakv.evict(model, budget=0.2) as run:
        (got,) = ask(text=messages, max_new_tokens=8, return_full_text=False)
    assert got["generated_text"].strip() == want.text
    assert run.last is not None
    assert want.kept is not None
    assert run.last.prompt_tokens == want.kept.prompt_tokens
    assert run.last.kv_bytes == want.kept.kv_bytes
