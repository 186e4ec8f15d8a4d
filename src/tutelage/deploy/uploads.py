"""The files of a request: read within limits, decoded, and classified. What is wrong becomes one line."""

from __future__ import annotations

import asyncio
import io
import warnings
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from tutelage.core.errors import TutelageError, one_line
from tutelage.data.decode import FORMATS, decode
from tutelage.deploy.predictor import Prediction, Predictor

FIELD = "images"  # of the form that holds the files
EXAMPLE = f"curl -F {FIELD}=@cat.jpg -F {FIELD}=@dog.jpg"
LONGEST_NAME = 200  # characters of a file's name that are given back


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how many may wait.

    Attributes:
        megabytes: of the body of a request, in 10^6 bytes.
        images: of a request.
        megapixels: of an image before it is decoded; larger ones are refused as decompression bombs.
        waiting: requests that are read or classified at the same time; a further one is answered with 503 at once.
        seconds: that a client may take to send the body of a request.
    """

    megabytes: float = 32.0
    images: int = 16
    megapixels: float = 50.0
    waiting: int = 64
    seconds: float = 60.0

    @property
    def bytes(self) -> int:
        """The largest body of a request."""
        return int(self.megabytes * 1e6)


async def read_files(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    """The names and contents of a request's files.

    Raises:
        HTTPException: 400, 413 or 422 with one line, where the body is too large or is not as it should be.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise HTTPException(415, f"send a form with files, such as {EXAMPLE} ADDRESS/predict")
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limits.bytes:
        raise _too_large(limits)
    limited = Request(request.scope, _limited(request.receive, limits))
    try:
        async with (
            asyncio.timeout(limits.seconds),
            limited.form(max_files=limits.images, max_fields=limits.images) as form,
        ):
            given = form.getlist(FIELD)
            if not given or not all(isinstance(one, UploadFile) for one in given):
                raise HTTPException(
                    422, f"the field {FIELD!r} has no file; send one or more, such as {EXAMPLE}"
                )
            return [(_name(one), await one.read()) for one in given if isinstance(one, UploadFile)]
    except TimeoutError:
        raise HTTPException(
            408, f"the request took more than {limits.seconds:g} seconds to arrive", {"Connection": "close"}
        ) from None
    except ClientDisconnect:
        raise HTTPException(400, "the client left before the end of its request") from None
    except HTTPException as error:
        if error.status_code == 400:  # of the parser, in its own words
            raise _unreadable(error.detail) from None
        raise
    except (ValueError, KeyError) as error:  # that the parser of forms does not foresee
        raise _unreadable(one_line(error)) from None


def _unreadable(reason: str) -> HTTPException:
    return HTTPException(400, f"the form cannot be read: {reason[:200]}")


def _limited(receive: Receive, limits: Limits) -> Receive:
    """Receive a body that may be of unknown length, up to the limit."""
    seen = 0

    async def inner() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limits.bytes:
            raise _too_large(limits)
        return message

    return inner


def _too_large(limits: Limits) -> HTTPException:
    return HTTPException(
        413, f"the request is larger than {limits.megabytes:g} MB; send fewer or smaller images"
    )


def classify(predictor: Predictor, name: str, content: bytes, top: int, limits: Limits) -> Prediction:
    """Decode and classify one file; called in a thread.

    Raises:
        HTTPException: 413 or 422, one line that names the file.
    """
    pixels = _pixels(content)
    if pixels > limits.megapixels * 1e6:
        raise HTTPException(
            413,
            f"{name}: has {pixels / 1e6:,.0f} megapixels, more than {limits.megapixels:g}; send a smaller image",
        )
    try:
        (found,) = predictor(decode(content, name), top)
    except TutelageError as error:
        raise HTTPException(422, one_line(error)) from None
    return replace(found, source=name)


def _pixels(content: bytes) -> int:
    """The number of pixels that a file's header states; 0 where it is none of an image, which `decode` will tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return image.width * image.height
        except Image.DecompressionBombError:
            return 2 * (Image.MAX_IMAGE_PIXELS or 0) + 1
        except Exception:  # Pillow's decoders raise nearly anything on damaged files
            return 0


def _name(file: UploadFile) -> str:
    """The name that a client gave a file, in one line of printable characters. No file is ever opened by it."""
    name = "".join(c if c.isprintable() else "?" for c in file.filename or "image")
    return name[:LONGEST_NAME]


def upload_schema(limits: Limits) -> dict[str, Any]:
    """The body of a prediction in OpenAPI."""
    file = {"type": "string", "format": "binary"}
    images = {"type": "array", "items": file, "minItems": 1, "maxItems": limits.images}
    schema = {"type": "object", "required": [FIELD], "properties": {FIELD: images}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
