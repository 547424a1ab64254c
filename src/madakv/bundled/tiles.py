"""A SmolVLM processor for pictures alone, which needs neither torchvision nor num2words."""

from __future__ import annotations

from typing import Any

from PIL import Image
from transformers import SmolVLMProcessor
from transformers.processing_utils import ProcessorMixin


class TileProcessor(SmolVLMProcessor):
    """transformers' own processor without its video part.

    Pictures are cut into tiles as they are, and small ones stay small; only those with an edge of more than `most`
    pixels are scaled down.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_len: int = 16,
        most: int = 256,
        chat_template: Any = None,
    ) -> None:
        self.image_token, self.fake_image_token = "<image>", "<fake_token_around_image>"
        self.global_image_token = "<global-img>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.image_seq_len = image_seq_len
        self.most = most
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        """The template's, without the settings of videos that transformers' version looks up."""
        return ProcessorMixin.apply_chat_template(self, *args, **kwargs)

    def __call__(self, images: Any = None, *args: Any, **kwargs: Any) -> Any:
        """transformers', of pictures that are no larger than `most`."""
        if images is not None:
            images = self._shrunk(self.image_processor.fetch_images(images))
        return super().__call__(images, *args, **kwargs)

    def _shrunk(self, images: Any) -> Any:
        if isinstance(images, list | tuple):
            return [self._shrunk(image) for image in images]
        if isinstance(images, Image.Image) and max(images.size) > self.most:
            images = images.copy()
            images.thumbnail((self.most, self.most))
        return images
