"""Pictures as data URIs, small enough that a page of five hundred stays light."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

ICON_SIDE = 48  # pixels; up to here an image is kept pixel for pixel
JPEG_QUALITY = 78


def data_uri(image: np.ndarray, max_side: int) -> str:
    """The picture as a `data:` URI: small ones exact as PNG, larger ones reduced and compressed as JPEG.

    Args:
        image: uint8 [H, W] or [H, W, 1] (grey) or [H, W, 3] (RGB), H and W at least 1.
        max_side: the longer side of a reduced picture, pixels.

    Raises:
        ValueError: another dtype or shape.
    """
    picture = Image.fromarray(_checked(image))
    buffer = io.BytesIO()
    if max(picture.size) <= ICON_SIDE:
        picture.save(buffer, "PNG", optimize=True)
        return _uri("image/png", buffer)
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return _uri("image/jpeg", buffer)


def is_icon(image: np.ndarray) -> bool:
    """True if the picture is so small that the page should enlarge it without smoothing."""
    return bool(max(image.shape[:2]) <= ICON_SIDE)


def _checked(image: np.ndarray) -> np.ndarray:
    """`image` as [H, W] or [H, W, 3], or an error that says what came."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    grey_or_rgb = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if image.dtype != np.uint8 or not grey_or_rgb or image.size == 0:
        raise ValueError(f"expected a uint8 image [H, W] or [H, W, 3], got {image.dtype} {image.shape}")
    return np.ascontiguousarray(image)


def _uri(mime: str, buffer: io.BytesIO) -> str:
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
