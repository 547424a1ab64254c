"""Which layout each model family has."""

from __future__ import annotations

from typing import Any

from madakv.inspection.places import cuts
from madakv.inspection.places.anyres import anyres
from madakv.inspection.places.grid import Cell, frames, pictures
from madakv.inspection.places.hd import crops_then_whole
from madakv.inspection.places.lines import lines
from madakv.inspection.places.packed import positioned, shaped
from madakv.inspection.places.patches import patches
from madakv.inspection.places.pooled import pooled
from madakv.inspection.places.sheet import Given, Layout, Sheet, check, pair
from madakv.inspection.places.sized import sized
from madakv.inspection.places.slices import slices
from madakv.inspection.places.tiles import tiled
from madakv.modality import Modality

IMAGE, VIDEO = Modality.IMAGE, Modality.VIDEO


def patch(config: Any) -> int:
    """A token is a patch."""
    return pair(config.vision_config.patch_size)[0]


def times(factor: Any) -> Cell:
    """A token is so many patches wide and high; `factor` says how many, from the config."""

    def cell(config: Any) -> int:
        by = factor(config)
        check(by == int(by))
        return patch(config) * int(by)

    return cell


def _gemma3(config: Any) -> int:
    side = pair(config.vision_config.image_size)[0] // patch(config)
    return int(side // config.mm_tokens_per_image**0.5)


def _quantized(config: Any) -> int:
    """Every stage of the encoder but the last halves a picture."""
    return int(2 ** (len(config.vq_config.channel_multiplier) - 1))


def _whole(config: Any) -> int:
    """Tokens before a picture's patches that stand for all of it, where the tower has one and it is not dropped."""
    return int(
        config.vision_feature_select_strategy == "full" and config.vision_config.model_type == "clip_vision_model"
    )


def _llava(given: Given) -> list[Sheet]:
    """LLaVA, with a tower for pictures of one size, or Pixtral's for those of any."""
    pixtral = given.config.vision_config.model_type == "pixtral"
    layout = sized(patch) if pixtral else pictures(patch, whole=_whole)
    return layout(given)


def _video_llava(given: Given) -> list[Sheet]:
    """Pictures under their older name, if they came with that."""
    old = "pixel_values_images"
    return pictures(patch, tensor=old if old in given.inputs else "pixel_values", whole=_whole)(given)


_BLOCKS: dict[Modality, Layout] = {IMAGE: patches(IMAGE), VIDEO: patches(VIDEO)}
_NAMED_TILES = tiled(
    times(lambda config: config.scale_factor),
    cuts.by_names(r"<row_(?P<row>\d+)_col_(?P<column>\d+)>", "<global-img>"),
    skip_empty=True,
)

LAYOUTS: dict[str, dict[Modality, Layout]] = {
    "aya_vision": {
        IMAGE: tiled(times(lambda config: config.downsample_factor), cuts.up_to("TILE_GLOBAL", r"TILE_\d+"))
    },
    "chameleon": {IMAGE: pictures(_quantized)},
    "cohere2_vision": {IMAGE: tiled(times(lambda config: config.downsample_factor), cuts.with_breaks)},
    "deepseek_vl": {IMAGE: pictures(patch)},
    "deepseek_vl_hybrid": {IMAGE: pictures(patch)},
    "emu3": {IMAGE: sized(_quantized, row_ends=1)},
    "ernie4_5_vl_moe": {IMAGE: patches(IMAGE), VIDEO: patches(VIDEO, moments="temporal_merge_size")},
    "fuyu": {IMAGE: lines},
    "gemma3": {IMAGE: pictures(times(_gemma3))},
    "gemma4": {IMAGE: positioned},
    "glm46v": _BLOCKS,
    "glm4v": _BLOCKS,
    "glm4v_moe": _BLOCKS,
    "idefics3": {IMAGE: _NAMED_TILES},
    "internvl": {IMAGE: tiled(times(lambda config: 1 / config.downsample_ratio), cuts.in_runs)},
    "janus": {IMAGE: pictures(patch)},
    "lfm2_vl": {IMAGE: shaped},
    "lighton_ocr": {IMAGE: sized(times(lambda config: config.spatial_merge_size))},
    "llama4": {
        IMAGE: tiled(
            times(lambda config: 1 / config.vision_config.pixel_shuffle_ratio),
            cuts.by_separators(
                r"<\|image\|>", r"<\|tile_y_separator\|>|<\|image_start\|>", r"<\|tile_x_separator\|>"
            ),
        )
    },
    "llava": {IMAGE: _llava},
    "llava_next": {IMAGE: anyres(patch)},
    "llava_next_video": {IMAGE: anyres(patch), VIDEO: frames(times(lambda config: config.spatial_pool_stride))},
    "llava_onevision": {IMAGE: anyres(patch, most=True, single=True), VIDEO: frames(patch, halved=True, end=1)},
    "minicpmv4_6": {IMAGE: slices},
    "mistral3": {IMAGE: sized(times(lambda config: config.spatial_merge_size))},
    "molmo2": {IMAGE: pooled},
    "ovis2": {
        IMAGE: tiled(
            times(lambda config: config.vision_config.hidden_stride),
            cuts.by_separators("<IMG_START>", "<IMG_GRID>|<IMG_ROW>", "<IMG_COL>", whole_first=True),
        )
    },
    "paddleocr_vl": {IMAGE: patches(IMAGE, blocks=False)},
    "paligemma": {IMAGE: pictures(patch)},
    "phi4_multimodal": {IMAGE: crops_then_whole},
    "qwen2_5_omni_thinker": _BLOCKS,
    "qwen2_5_vl": _BLOCKS,
    "qwen2_vl": _BLOCKS,
    "qwen3_5": _BLOCKS,
    "qwen3_5_moe": _BLOCKS,
    "qwen3_omni_moe_thinker": _BLOCKS,
    "qwen3_vl": _BLOCKS,
    "qwen3_vl_moe": _BLOCKS,
    "smolvlm": {IMAGE: _NAMED_TILES},
    "video_llama_3": {
        IMAGE: patches(IMAGE, merge="image_merge_sizes"),
        VIDEO: patches(VIDEO, merge="video_merge_sizes"),
    },
    "video_llava": {IMAGE: _video_llava, VIDEO: frames(patch, whole=1)},
    "vipllava": {IMAGE: pictures(patch)},
}
"""By `model_type`. Families that are missing have tokens that stand for no one place, such as those of resamplers
(Aria, Idefics2), or for overlapping ones that lie beside a grid's cells, of pictures whose prompts do not say whether
they are pages or parts of one (GOT-OCR2)."""
