"""Eyes and a LoRA of the repository put together with a language model that is published elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SmolVLMForConditionalGeneration,
)
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

import madakv
from madakv import ConfigurationError, fingerprint
from madakv.evaluation.documents import make_document
from madakv.evaluation.documents.presentation import PLAIN_ENGLISH, presentation_for
from madakv.loading import load
from madakv.prompts import model_inputs
from madakv.whole import whole_folder

TRAINING = Path(__file__).parents[1] / "training" / "smolvlm"
MODULES = ("smolvlm", "captions", "pictures", "packed", "language", "state", "export", "eyes", "read")


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TRAINING))
    for module in MODULES:
        sys.modules.pop(module, None)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A stand-in for SmolLM2: its tokens are bytes and a few words, its vocabulary as large."""
    folder = tmp_path / "base"
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    special = ["<unk>", "<|im_start|>", "<|im_end|>"]
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    # The image token has to come right behind the language model's vocabulary.
    words += [f"filling{i}" for i in range(49152 - len(words))]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(base: Path, tmp_path: Path, training: None) -> Path:
    """What training exports, of random weights."""
    from export import export  # type: ignore[import-not-found]
    from language import Language  # type: ignore[import-not-found]
    from smolvlm import FRAMING, Eyes, model_config  # type: ignore[import-not-found]
    from transformers import AutoConfig

    torch.manual_seed(1)
    language = Language(base, len(FRAMING), 7)
    with torch.no_grad():
        for parameter in language.parameters():
            parameter.normal_(std=0.05)
    text = AutoConfig.from_pretrained(base)
    out = tmp_path / "assembled"
    export(Eyes(model_config(text)).state_dict(), language.state_dict(), text, str(base), out)
    return out


def test_it_is_one_model_that_reads_documents(folder: Path, base: Path) -> None:
    model, processor = load(str(folder), device="cpu")
    assert isinstance(model, SmolVLMForConditionalGeneration)
    assert model.dtype == torch.float32
    assert model.name_or_path == str(folder)
    own, published = load_file(folder / "adapter-2.safetensors"), load_file(base / "model.safetensors")
    added = 2.0 * own["layers.1.down_proj.lora_B"].float() @ own["layers.1.down_proj.lora_A"].float()
    weight = model.model.text_model.layers[1].mlp.down_proj.weight
    assert float(added.abs().max()) > 0.01
    torch.testing.assert_close(weight, published["model.layers.1.mlp.down_proj.weight"].float() + added)
    words = model.get_input_embeddings().weight
    assert torch.equal(words[49152:], own["framing"].float())
    assert model.lm_head.weight.data_ptr() == words.data_ptr()
    assert presentation_for(processor) == PLAIN_ENGLISH
    document = make_document(3, tokens=512, **vars(PLAIN_ENGLISH))
    inputs = model_inputs(processor, f"{document.text}\n{document.questions[0].prompt}", document.images)
    tiles = sum(1 if image.size == (64, 64) else 3 for image in document.images)
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 16 * tiles
    with madakv.evict(model, budget=0.2) as run:
        model.generate(**inputs, max_new_tokens=3)
    assert run.last is not None


@pytest.mark.parametrize("apart", [False, True])
def test_training_reads_what_the_processor_gives(folder: Path, base: Path, apart: bool) -> None:
    """Ids, pixels and logits of training are those of the model, with the question as a branch of its document."""
    from captions import Words  # type: ignore[import-not-found]
    from eyes import normal  # type: ignore[import-not-found]
    from language import Language
    from packed import Reader, collate, stretched  # type: ignore[import-not-found]
    from pictures import Painter  # type: ignore[import-not-found]
    from smolvlm import FRAMING, Eyes, model_config
    from transformers import AutoConfig

    from madakv.evaluation.documents import Shape, draft

    model, processor = load(str(folder), device="cpu")
    shape = Shape(codes=1, owners=1, painted=1, twins=1, changes=1, named=3, prose=12)
    drafted = draft(np.random.default_rng(4), shape, split="held_out", **vars(PLAIN_ENGLISH))
    words = Words(base / "tokenizer.json", None)
    reader = Reader(words, Painter(words, None))
    item = reader.item(drafted)
    images = [Image.fromarray(pixels) for pixels in drafted.pixels]
    assert {image.size for image in images} > {(64, 64)}
    batch = collate([item, item], reader.image_id)
    if apart:
        batch = stretched(batch, np.random.default_rng(5), 1.0, 4096)
        own = batch.places[0, : len(item.document)]
        assert own[0] == 0
        assert bool((own.diff() >= 1).all())
        assert len(item.document) < int(own[-1]) < 4096
    language = Language(base, len(FRAMING), 7)
    language.load_state_dict({name: t.float() for name, t in load_file(folder / "adapter-2.safetensors").items()})
    eyes = Eyes(model_config(AutoConfig.from_pretrained(base)))
    eyes.load_state_dict({name: t.float() for name, t in load_file(folder / "adapter-1.safetensors").items()})
    with torch.no_grad():
        visual = eyes(normal(batch.pixels, torch.device("cpu")))
        embedded = language.embed(batch.ids)
        flat = embedded.flatten(0, 1).index_copy(0, batch.visual, visual.flatten(0, 1))
        at = batch.lengths, batch.places, batch.seen, batch.length, batch.scored
        logits = language(flat.view_as(embedded), *at)
        for number, question in enumerate(drafted.questions):
            inputs = model_inputs(processor, f"{drafted.text}\n{question.prompt}", images)
            branch, (answer,) = item.branches[number]
            assert inputs["input_ids"][0].tolist() == [*item.document, *branch[: answer.start]]
            assert torch.equal(inputs["pixel_values"][0], normal(item.pixels, torch.device("cpu")))
            places = batch.places[0, : len(item.document)]
            after = places[-1] + 1 + torch.arange(answer.start)
            plain = model(**inputs, position_ids=torch.cat([places, after])[None]).logits[0, -1, :49152]
            mine = logits[batch.question == number][0]
            torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-3)


def test_a_second_turn_reads_as_the_template_has_it(folder: Path, base: Path) -> None:
    from captions import Words
    from packed import Reader
    from pictures import Painter

    from madakv.evaluation.documents import Shape, draft

    _, processor = load(str(folder), device="cpu")
    drafted = draft(np.random.default_rng(4), Shape(codes=2, named=1), split="held_out", **vars(PLAIN_ENGLISH))
    words = Words(base / "tokenizer.json", None)
    item = Reader(words, Painter(words, None)).item(drafted, turns=2)
    (branch, (first, second)), *_ = item.branches
    turns = [
        (role, text) for q in drafted.questions[:2] for role, text in (("user", q.prompt), ("assistant", q.answer))
    ]
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    said = processor.tokenizer(processor.apply_chat_template(messages), add_special_tokens=False)["input_ids"]
    answer = processor.tokenizer(drafted.questions[0].answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
    assert branch[first.start : first.stop] == answer
    assert second.stop == len(branch)
    # The template begins with what stands before a document, and ends with a line break.
    start = len(processor.tokenizer("<|im_start|>user\n", add_special_tokens=False)["input_ids"])
    assert said[start:-1] == branch


def test_an_album_is_learnt_in_reading_order(training: None) -> None:
    """Its blocks stand anywhere, and the answer of the document is in no order that could be known."""
    from packed import in_reading_order

    from madakv.evaluation.documents import draft
    from madakv.evaluation.documents.shape import Shape

    moved = 0
    for seed in range(8):
        shape = Shape(albums=2, named=3, prose=10)
        drafted = draft(np.random.default_rng(seed), shape, split="train", **vars(PLAIN_ENGLISH))
        for question in drafted.questions:
            told = in_reading_order(question, drafted)
            if question.kind != "album":
                assert told == question.answer
                continue
            name = question.prompt.removesuffix("?").split()[-1]
            before = [piece for piece in drafted.text.split("<image>") if piece.endswith(f"Album {name}:")]
            assert len(before) == 3
            numbers = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
            places = [i for i, piece in enumerate(drafted.text.split("<image>")) if piece in before]
            shown = [drafted.contents[i].what for i in places]
            assert told == ", ".join(numbers[int(what)] if what.isdigit() else what for what in shown)
            moved += told != question.answer
    assert moved > 3


@pytest.mark.slow
def test_training_goes_on_where_it_was_killed(
    base: Path, tmp_path: Path, training: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All stages, each of them in two runs, and what comes out loads."""
    import export
    import eyes
    import read  # type: ignore[import-not-found]

    state, out = tmp_path / "state", tmp_path / "trained"

    def run(module: Any, *options: str) -> None:
        monkeypatch.setattr(sys, "argv", ["train", "--base", str(base), "--state", str(state), *options])
        module.main()

    for pictures in ("8", "16"):
        run(eyes, "--pictures", pictures, "--batch", "4", "--every", "8", "--judged", "4", "--device", "cpu")
    weights = load_state(state / "eyes.pt")["eyes"]
    for stage in "TJ":
        for documents in ("1", "2"):
            reading = ("--stage", stage, "--documents", documents, "--batch", "1", "--every", "1", "--judged", "1")
            run(read, *reading, "--device", "cpu")
    # Stage T is over once J has begun.
    run(read, "--stage", "T", "--documents", "9", "--device", "cpu")
    logged = [json.loads(line) for name in ("eyes", "read") for line in (state / f"{name}.jsonl").open()]
    starts = [line.get("seen", line.get("documents")) for line in logged if line.get("event") == "start"]
    assert starts == [0, 8, 0, 1, 0, 1]
    assert any(line.get("event") == "over" for line in logged)
    read_state = load_state(state / "read.pt")
    assert read_state["step"] == 2
    name = "connector.modality_projection.proj.weight"
    assert not torch.equal(read_state["eyes"][name], weights[name])
    run(export, "--out", str(out))
    described = json.loads((out / "adapter.json").read_text())
    assert described["base"] == "smollm2"
    (out / "adapter.json").write_text(json.dumps(described | {"base": str(base)}))
    model, _ = load(str(out), device="cpu")
    exported = read_state["eyes"][name].to(torch.bfloat16).float()
    assert torch.equal(model.model.connector.modality_projection.proj.weight, exported)


def load_state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    return state


def test_what_is_missing_is_said_in_one_line(folder: Path, base: Path) -> None:
    described = json.loads((folder / "adapter.json").read_text())
    (folder / "adapter.json").write_text(json.dumps(described | {"base": "no-such-model"}))
    with pytest.raises(
        ConfigurationError, match="needs the language model no-such-model, which is not here"
    ) as caught:
        load(str(folder), device="cpu")
    assert "\n" not in str(caught.value)
    (folder / "adapter.json").write_text('{"base": "x"}')
    with pytest.raises(ConfigurationError, match=r"adapter\.json does not say"):
        load(str(folder), device="cpu")


def test_parts_that_do_not_fit_are_refused(folder: Path) -> None:
    path = folder / "adapter-2.safetensors"
    tensors = load_file(path)
    save_file({name.replace("layers.1.", "layers.9."): t for name, t in tensors.items()}, path)
    with pytest.raises(ConfigurationError, match="does not fit its language model: no projection layers"):
        load(str(folder), device="cpu")
    save_file({name: t[..., :-1].clone() if name == "framing" else t for name, t in tensors.items()}, path)
    with pytest.raises(ConfigurationError, match="does not fit its language model"):
        load(str(folder), device="cpu")


def test_its_fingerprint_is_of_both_parts(folder: Path, base: Path) -> None:
    one = fingerprint.of_source(str(folder))
    assert one == fingerprint.of_source(str(folder))
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    other = fingerprint.of_source(str(folder))
    assert other != one
    tensors: dict[str, Any] = load_file(folder / "adapter-1.safetensors")
    save_file({name: t + 1 for name, t in tensors.items()}, folder / "adapter-1.safetensors")
    assert fingerprint.of_source(str(folder)) not in (one, other)


def test_large_pictures_are_scaled_down(folder: Path) -> None:
    _, processor = load(str(folder), device="cpu")
    inputs = model_inputs(processor, "<image>What is this?", [Image.new("RGB", (1000, 500), (200, 10, 10))])
    # 256 x 128: eight tiles and the whole.
    assert inputs["pixel_values"].shape == (1, 9, 3, 64, 64)


def test_written_down_whole_it_is_the_same_model(
    folder: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For engines that load folders: made once, and anew where a part has changed."""
    monkeypatch.setenv("MADAKV_HOME", str(tmp_path / "home"))
    whole = whole_folder(folder, base)
    assert whole.parent == tmp_path / "home" / "models"
    model, processor = load(str(folder), device="cpu")
    other = SmolVLMForConditionalGeneration.from_pretrained(whole)
    assert other.dtype == torch.float32
    inputs = model_inputs(processor, "<image>What is this?", [Image.new("RGB", (64, 64), (200, 10, 10))])
    assert torch.equal(other(**inputs).logits, model(**inputs).logits)
    tokenizer = AutoTokenizer.from_pretrained(whole)
    assert tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_id == 49152
    named = json.loads((whole / "processor_config.json").read_text())
    assert named == {"processor_class": "SmolVLMProcessor", "image_seq_len": 16}
    # A picture of the size of a tile is read as the model was trained to, and larger ones are scaled to it.
    pictures = SmolVLMImageProcessorPil.from_pretrained(whole)
    for size in ((64, 64), (1000, 500)):
        seen = pictures([Image.new("RGB", size, (200, 10, 10))], return_tensors="pt")
        assert torch.equal(seen["pixel_values"], inputs["pixel_values"])
    written = (whole / "model.safetensors").stat().st_mtime_ns
    assert whole_folder(folder, base) == whole
    assert (whole / "model.safetensors").stat().st_mtime_ns == written
    tensors = load_file(folder / "adapter-1.safetensors")
    save_file({name: t + 1 for name, t in tensors.items()}, folder / "adapter-1.safetensors")
    assert whole_folder(folder, base) != whole
    assert {path.name for path in whole.parent.iterdir()} == {whole.name, whole_folder(folder, base).name}
