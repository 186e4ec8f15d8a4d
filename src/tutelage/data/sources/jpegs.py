"""Sets of images that are kept as JPEGs in parts."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from PIL import Image

from tutelage.data.plain_jpeg import jpeg_image, jpeg_pixels
from tutelage.data.sources.base import ImageSet


class StoredJpegs(ImageSet):
    """A set whose images are JPEGs in the parts of a store (`parts`)."""

    @abstractmethod
    def jpeg(self, index: int) -> bytes:
        """Read the JPEG of one image.

        Raises:
            UnreadableImage: it could not be decoded when its part was written.
            TutelageError: its part is damaged.
        """

    def image(self, index: int) -> Image.Image:
        """Decode one image; raises as `jpeg` does."""
        return jpeg_image(self.jpeg(index), self.ids[index])

    def pixels(self, index: int) -> np.ndarray:
        """As `image`, uint8 (H, W, 3), without the copy into Pillow's memory."""
        return jpeg_pixels(self.jpeg(index), self.ids[index])

    def content(self, index: int, count: int = -1) -> bytes:
        """The first bytes of the JPEG of one image, all for -1; raises as `jpeg` does."""
        jpeg = self.jpeg(index)
        return jpeg if count < 0 else jpeg[:count]
