"""Pictures that are cut by rules of one family: Phi-4-multimodal, Molmo 2, MiniCPM-V 4.6."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
import transformers
from torch import Tensor

from madakv.inspection.places import views
from tests.families import zoo
from tests.families.listed import LISTED
from tests.families.zoo import IMAGE
from tests.inspection.local import (
    PLACES,
    Box,
    Call,
    check,
    clear,
    flat,
    localised,
    model_of,
    picture,
    prompt,
    tower,
    with_image_processor,
)
from tests.inspection.words import tokenizer

hf: Any = transformers


class TestPhi4:
    """Two pictures: 2 x 3 crops of 16 pixels, the last row half empty, and one crop."""

    mask = torch.ones(2, 7, 4, 4)
    mask[0, 4:, 2:] = 0
    without: ClassVar[Any] = {
        "image_pixel_values": zoo.noise(1, 2, 7, 3, 16, 16) / 8,
        "image_sizes": torch.tensor([[32, 48], [16, 16]]),
        "image_attention_mask": mask,
    }
    # Rows of 6 tokens and of 2, each with an end; one between a picture and its whole.
    ids = prompt(3 * 7 + 1 + 2 * 3, 2 * 3 + 1 + 2 * 3)

    def features(self, given: Any) -> Tensor:
        model = model_of("phi4_multimodal")
        embedding = model.model.embed_tokens_extend.image_embed
        spoken = model.model.embed_tokens(self.ids)
        return embedding(self.ids, spoken, **given)[0][self.ids[0] == IMAGE]

    @pytest.mark.parametrize(
        ("at", "title", "square"),
        [
            ((0, 2, slice(1, 7), slice(9, 15)), "picture 1", (25 / 48, 1 / 24, 31 / 48, 7 / 24)),
            ((0, 5, slice(1, 7), slice(1, 7)), "picture 1", (17 / 48, 17 / 24, 23 / 48, 23 / 24)),
            ((0, 0, slice(1, 7), slice(9, 15)), "picture 1, whole", (9 / 16, 1 / 16, 15 / 16, 7 / 16)),
            ((1, 1, slice(9, 15), slice(1, 7)), "picture 2", (1 / 16, 9 / 16, 7 / 16, 15 / 16)),
        ],
    )
    def test_tokens_stand_where_the_tower_hears_them(self, at: Any, title: str, square: Box) -> None:
        having = {name: value.clone() for name, value in self.without.items()}
        row, crop, y, x = at
        having["image_pixel_values"][row, crop, :, y, x] += 0.4
        model = model_of("phi4_multimodal")
        part = with_image_processor(hf.SiglipImageProcessorPil())
        call = Call(model.config, part, self.ids, self.without, having, self.features)
        found = {view.title: view.picture for view in call.views(self.without)}
        assert {title: each and each.size for title, each in found.items()} == {
            "picture 1": (48, 24),
            "picture 1, whole": (16, 16),
            "picture 2": (16, 16),
            "picture 2, whole": (16, 16),
        }
        check(call, title, square)

    def test_its_own_processor(self) -> None:
        pytest.importorskip("torchvision")
        part = hf.Phi4MultimodalImageProcessor(size={"height": 16, "width": 16}, patch_size=4, dynamic_hd=8)
        made = part([picture(40, 22), picture(16, 30)], return_tensors="pt")
        # The processor counts 256 + 16 tokens for a whole of 16 x 16, whatever its size.
        counts = [int(count) - 256 - 16 + 4 + 2 for count in made["num_img_tokens"]]
        ids = prompt(*counts)
        config = model_of("phi4_multimodal").config
        found = views(config, part, ids[0], (ids[0] == IMAGE).long(), made)
        assert [view.title for view in found if "whole" not in view.title] == ["picture 1", "picture 2"]
        first = found[0].picture
        assert first is not None
        assert first.size == (48, 32)


class TestMolmo2:
    """Crops overlap, and what is put together of them does not."""

    grids = torch.tensor([[2, 2, 3, 4], [2, 2, 2, 2]])

    def made(self, square: Box | None) -> Any:
        """As the processor's _image_batch_to_patches_and_grids, with crops of 4 patches of which 1 overlaps."""
        part = hf.SiglipImageProcessorPil(do_resize=False)
        patches: list[Tensor] = []
        pooling = []
        for own, (width, height) in ((square, (32, 24)), (None, (16, 16))):
            for crop in (16, 16), (width, height):
                pixels = part([picture(*crop, own)], return_tensors="pt")["pixel_values"][0]
                rows, columns = crop[1] // 4, crop[0] // 4
                # In crops of 4 x 4 patches, one after another; each begins where the one before it has a patch left.
                index = torch.full((rows, columns), -1)
                for top in range(0, rows - 3, 2):
                    for left in range(0, columns - 3, 2):
                        shown = pixels[:, 4 * top : 4 * top + 16, 4 * left : 4 * left + 16]
                        own_index = 16 * len(patches) + torch.arange(16).view(4, 4)
                        patches.append(shown.reshape(3, 4, 4, 4, 4).permute(1, 3, 2, 4, 0).reshape(16, 48))
                        place = index[top : top + 4, left : left + 4]
                        place[place < 0] = own_index[place < 0]
                pooling.append(index.view(rows // 2, 2, columns // 2, 2).transpose(1, 2).reshape(-1, 4))
        return {
            "pixel_values": torch.stack(patches),
            "image_token_pooling": torch.cat(pooling),
            "image_grids": self.grids,
        }

    @pytest.mark.parametrize("square", PLACES[1:3])
    def test_tokens_stand_where_the_tower_hears_them(self, square: Box) -> None:
        model = molmo2()

        def features(given: Any) -> Tensor:
            return flat(tower(model).get_image_features(**given).pooler_output)

        without, having = self.made(None), self.made(square)
        # Row by row, with a token of text at the end of each.
        ids = prompt(*[2] * 2, *[4] * 3, *[2] * 2, *[2] * 2)
        part = with_image_processor(hf.SiglipImageProcessorPil(do_resize=False))
        call = Call(model.config, part, ids, without, clear(without, having), features)
        found = call.views(without)
        assert [view.title for view in found] == ["picture 1, whole", "picture 1", "picture 2, whole", "picture 2"]
        assert found[1].picture == picture(32, 24)
        check(call, "picture 1", square)
        check(call, "picture 1, whole", square)

    def test_its_own_processor(self) -> None:
        pytest.importorskip("torchvision")
        part = hf.Molmo2ImageProcessor(
            size={"height": 16, "width": 16}, patch_size=4, overlap_margins=[1, 1], max_crops=6, do_resize=True
        )
        made = part([picture(24, 16), picture(24, 24)], return_tensors="pt")
        counts = [n for one in made["image_grids"].tolist() for n in (one[0] * one[1], one[2] * one[3])]
        ids = prompt(*counts)
        found = views(molmo2().config, part, ids[0], (ids[0] == IMAGE).long(), made)
        assert [view.title for view in found] == ["picture 1, whole", "picture 1", "picture 2, whole", "picture 2"]
        shown, drawn = found[3].picture, picture(24, 24)
        assert shown is not None
        assert shown == drawn


def molmo2() -> Any:
    """Its adapter's attention pools a token's own patches, and is left as it is."""
    model = LISTED["molmo2"].model()
    adapter = {name: value.clone() for name, value in model.model.multi_modal_projector.state_dict().items()}
    localised(model)
    model.model.multi_modal_projector.load_state_dict(adapter)
    return model


MINICPM = tokenizer("<|image_pad|>", "<image>", "</image>", "<slice>", "</slice>")


class TestMiniCpm:
    """Three pictures: 2 x 3 slices, no slices, and 3 x 1; wholes come first."""

    grids = ((2, 3), (0, 0), (3, 1))
    wholes = ((16, 32), (32, 16), (48, 16))

    def made(self, changed: int, square: Box | None) -> Any:
        part = hf.SiglipImageProcessorPil(do_resize=False)
        strips: list[Tensor] = []
        sizes = []
        for number, ((down, across), (height, width)) in enumerate(zip(self.grids, self.wholes, strict=True)):
            own = square if number == changed else None
            shown = [picture(width, height, own)]
            large = picture(32 * across, 16 * down, own) if down else None
            for y in range(down):
                assert large
                shown += [large.crop((32 * x, 16 * y, 32 * x + 32, 16 * y + 16)) for x in range(across)]
            for each in shown:
                pixels = part([each], return_tensors="pt")["pixel_values"][0]
                rows, columns = each.height // 4, each.width // 4
                # As the processor's reshape_by_patch.
                strips.append(pixels.reshape(3, rows, 4, columns, 4).transpose(1, 2).reshape(3, 4, -1))
                sizes.append([rows, columns])
        return {"pixel_values": torch.cat(strips, -1)[None], "target_sizes": torch.tensor(sizes, dtype=torch.int32)}

    def text(self, marks: tuple[str, str] = ("<slice>", "</slice>")) -> str:
        """As the processor's replace_image_token."""
        texts = []
        for (down, across), (height, width) in zip(self.grids, self.wholes, strict=True):
            whole = f"<image> {'<|image_pad|> ' * (height * width // 256)}</image>"
            one = f"{marks[0]} {'<|image_pad|> ' * 2}{marks[1]}"
            texts.append(whole + "\n".join([one * across] * down))
        return " look ".join(texts)

    def call(self, changed: int, square: Box, text: str) -> Call:
        model = model_of("minicpmv4_6")
        without, having = self.made(changed, None), self.made(changed, square)

        def features(given: Any) -> Tensor:
            return flat(tower(model).get_image_features(**given).pooler_output)

        # A line break is a word of its own here.
        ids = MINICPM(text.replace("\n", " newline "), return_tensors="pt")["input_ids"]
        ids[ids == MINICPM.unk_token_id] = MINICPM.convert_tokens_to_ids("\n")
        part = with_image_processor(hf.SiglipImageProcessorPil(do_resize=False), Joined())
        return Call(model.config, part, ids, without, clear(without, having), features)

    @pytest.mark.parametrize("square", PLACES[1:3])
    def test_slices_are_put_together(self, square: Box) -> None:
        for changed, parts in enumerate((["", ", whole"], [""], ["", ", whole"])):
            call = self.call(changed, square, self.text())
            sizes = [view.picture.size for view in call.views(call.without) if view.picture]
            assert sizes == [(32, 16), (96, 32), (16, 32), (16, 48), (32, 48)]
            for part in parts:
                check(call, f"picture {changed + 1}{part}", square, off=0.1)

    def test_slices_without_marks_are_shown_one_by_one(self) -> None:
        call = self.call(0, PLACES[0], self.text(("look", "look")))
        found = call.views(call.without)
        assert [view.title for view in found] == [f"tile {number}" for number in range(1, 13)]
        assert all(view.known for view in found)


class Joined:
    """A tokenizer that puts no blanks between words."""

    def decode(self, ids: Any, **options: Any) -> str:
        return "".join(MINICPM.convert_ids_to_tokens(ids))
