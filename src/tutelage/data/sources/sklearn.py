"""The sets of pictures of scikit-learn: ``sklearn:digits``, ``sklearn:olivetti_faces`` and ``sklearn:lfw_people``.

The digits are part of scikit-learn. It downloads the others, checks them by their digests, and keeps them in its own
folder (``$SCIKIT_LEARN_DATA`` or ``~/scikit_learn_data``), where other programs find them too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tutelage.core.errors import TutelageError, one_line
from tutelage.core.plugins import nearest
from tutelage.data.sources import digits
from tutelage.data.sources.base import ImageSet
from tutelage.data.sources.names import label_indices

FACES = (
    70  # of a person at least, as in scikit-learn's own example of face recognition: 7 persons, 1,288 faces
)


@dataclass(frozen=True)
class Known:
    """What has to be known of a function of scikit-learn that fetches faces.

    Attributes:
        megabytes: of the download, about.
        arguments: of the function.
    """

    megabytes: int
    arguments: dict[str, Any]


KNOWN = {
    "olivetti_faces": Known(4, {}),
    # as large as they come, in colour, without their background
    "lfw_people": Known(233, {"resize": None, "color": True, "min_faces_per_person": FACES}),
}
NAMES = ("digits", *KNOWN)


class Faces(ImageSet):
    """Pictures of persons, each of whom is a class. The id of each image is its number."""

    decoded = True

    def __init__(self, name: str, pixels: np.ndarray, persons: list[str]) -> None:
        """Take the faces as scikit-learn gives them.

        Args:
            name: of the source.
            pixels: (B, H, W) or (B, H, W, 3), from 0 to 1.
            persons: of each face.
        """
        super().__init__(name, name, [f"face-{i:05d}" for i in range(len(pixels))], *label_indices(persons))
        self._pixels = np.rint(pixels * 255).astype(np.uint8)

    def image(self, index: int) -> Image.Image:
        """One face as RGB."""
        return Image.fromarray(self._pixels[index]).convert("RGB")


def parts(where: str) -> tuple[str, ...]:
    """Each set is one: none has parts for training, model selection or evaluation."""
    _check(where)
    return ()


def load(where: str, part: str | None) -> ImageSet:
    """Open a set; what is not on this machine is downloaded first.

    Raises:
        TutelageError: there is no such set or part, or it cannot be downloaded.
    """
    _check(where)
    if where == "digits":
        return digits.load("", part)
    if part is not None:
        raise TutelageError(f"sklearn:{where}#{part}: no such part; it is one set, so write sklearn:{where}")
    from sklearn import datasets

    known = KNOWN[where]
    try:
        bunch = getattr(datasets, f"fetch_{where}")(n_retries=1, **known.arguments)
    except Exception as error:  # a download, a digest, an archive: each library raises its own
        raise TutelageError(
            f"sklearn:{where}: not in {datasets.get_data_home()}, and it cannot be downloaded "
            f"({one_line(error)[:160]}); go online (about {known.megabytes} MB), or copy that folder from a machine "
            "that has it"
        ) from None
    names = bunch.get("target_names")
    persons = [f"person {n:02d}" if names is None else str(names[n]) for n in bunch.target]
    return Faces(f"sklearn:{where}", bunch.images, persons)


def _check(where: str) -> None:
    if where not in NAMES:
        close = nearest(where, list(NAMES), cutoff=0.5)
        hint = f"did you mean {close!r}? There" if close else "there"
        raise TutelageError(f"sklearn:{where}: no such data set; {hint} are {', '.join(NAMES)}")
