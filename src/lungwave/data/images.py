"""Folders of images as arrays: OpenAI's listing, 8 and 16 bit, nothing resized; OpenAI's distorted view apart."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from lungwave.data import reading
from lungwave.types import UsageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif")
FORMATS = ("PNG", "JPEG", "GIF")
MAX_IMAGE_BYTES = 2**30  # [byte] of one image in memory
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I", "I;16", "I;16B")
DEEP = ("I", "I;16", "I;16B")  # 16 bit gray; "I" before Pillow 11
# What Pillow raises for damaged files; its readers index and unpack whatever they find.
BROKEN = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, struct.error, zlib.error,
          Image.DecompressionBombError)  # fmt: skip

Colours = Literal["gray", "gray as RGB", "colour"]


@dataclass(frozen=True)
class Picture:
    """One decoded image. Three equal colours are kept once."""

    pixels: Shaped[np.ndarray, "c z x"]  # uint8 or uint16
    colours: Colours
    alpha: bool  # a constant alpha channel was left out


def list_images(folder: str | Path) -> list[Path]:
    """Images of a folder and its subfolders in improved-diffusion's order: names sorted, a subfolder in its own place.

    A name counts by its extension (jpg, jpeg, png, gif). Raises UsageError for a folder that contains itself.
    """
    return list(_walk(Path(folder), ()))


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    here = folder.resolve()
    if here in above:
        raise UsageError(f"{folder}: links back to {here}, a folder that it lies in; remove the link")
    for entry in sorted(folder.iterdir(), key=lambda path: path.name):
        if entry.is_dir():
            yield from _walk(entry, (*above, here))
        elif "." in entry.name and f".{entry.name.rsplit('.', 1)[1].lower()}" in EXTENSIONS:
            yield entry


def class_name(path: str | Path) -> str:
    """Class of an image: its file name up to the first ``_``; UsageError where it has none."""
    name, mark, _ = Path(path).name.partition("_")
    if not mark or not name:
        raise UsageError(
            f"{path}: has no '_' after a class name; call the files CLASS_NUMBER.png, or ask for no classes"
        )
    return name


def read_images(files: Sequence[Path]) -> tuple[Shaped[np.ndarray, "n c z x"], list[str]]:
    """All images as one array, uint8 or (where any has 16 bit) uint16, and what was changed in plain words.

    Gray is one channel, also where a file says it three times; an image with true colours makes all RGB files of the
    set three channels. Raises UsageError for mixed sizes or channels and, by name, for an image that is not readable,
    animated, or transparent.
    """
    _refuse_mixed("sizes", files, [_size(path) for path in files], "put each size into a folder of its own")
    pictures = [decode(path) for path in files]
    kinds = Counter(picture.colours for picture in pictures)
    if kinds["colour"]:
        channels = ["1 channel" if picture.colours == "gray" else "3 channels" for picture in pictures]
        _refuse_mixed("numbers of channels", files, channels, "save all as gray, or all as RGB")
    total = len(files) * (3 if kinds["colour"] else 1)
    deep = any(picture.pixels.dtype == np.uint16 for picture in pictures)
    shape = (total, *pictures[0].pixels.shape[1:])
    reading.check_size(files[0].parent, "images", shape, 2 if deep else 1)
    notes = []
    if kinds["gray as RGB"] and not kinds["colour"]:
        notes.append(f"{kinds['gray as RGB']} images hold gray in three equal channels; one is kept")
    if alphas := sum(picture.alpha for picture in pictures):
        notes.append(f"{alphas} images have an alpha channel of one value, which is left out")
    if deep and (shallow := sum(picture.pixels.dtype == np.uint8 for picture in pictures)):
        notes.append(
            f"{shallow} images have 8 bit, {len(files) - shallow} have 16; both are read as fractions of white"
        )
    stack = [picture.pixels.astype(np.uint16) * 257 if deep and picture.pixels.dtype == np.uint8 else picture.pixels
             for picture in pictures]  # fmt: skip
    if kinds["colour"]:
        stack = [np.broadcast_to(pixels, (3, *pixels.shape[1:])) for pixels in stack]
    return np.stack(stack), notes


def _refuse_mixed(what: str, files: Sequence[Path], kinds: Sequence[str], cure: str) -> None:
    """Raise UsageError with how many files are of each kind, and the first of each."""
    counts = Counter(kinds)
    if len(counts) == 1:
        return
    shown = [f"{kind} ({n} files, first {files[kinds.index(kind)].name})" for kind, n in counts.most_common(4)]
    more = f" and {len(counts) - 4} more" if len(counts) > 4 else ""
    folder = Path(files[0]).parent
    raise UsageError(f"{folder}: images have {len(counts)} {what}: {', '.join(shown)}{more}; {cure}")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image with nothing decoded yet; whatever Pillow cannot read becomes a UsageError that names the file."""
    reading.check_file(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except UsageError:
        raise
    except BROKEN as error:
        reason = " ".join(str(error).split())[:80]
        raise UsageError(f"{path}: not a readable image ({reason}); copy it again or leave it out") from error


def _size(path: Path) -> str:
    with _opened(path) as image:
        reading.check_size(path, "image", (image.height, image.width), 8, MAX_IMAGE_BYTES)
        return f"{image.height} x {image.width}"


def decode(path: Path) -> Picture:
    """Pixels of one image at their own size; UsageError, naming file and cure, for what has no plain gray or RGB."""
    with _opened(path) as image:
        if image.mode not in MODES:
            raise UsageError(f"{path}: is a {image.mode} image; save it as gray or RGB")
        if getattr(image, "n_frames", 1) > 1:
            raise UsageError(f"{path}: holds {getattr(image, 'n_frames', 1)} frames; save the one that counts")
        if _bits(path) == 16 and image.mode not in DEEP:
            raise UsageError(f"{path}: has 16 bit colours, which would lose 8; save it as 16 bit gray or as NPZ")
        if image.mode in DEEP:
            deep = np.asarray(image)
            return Picture(deep.astype(np.uint16)[None], "gray", False)
        transparent = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
        plain = image.convert("L" if image.mode == "1" else image.mode)
        if transparent or image.mode == "P":
            plain = image.convert("RGBA" if transparent else "RGB")
        pixels = np.asarray(plain)
        single = image.mode in ("1", "L", "LA")
    if transparent:
        alpha = pixels[..., -1]
        if alpha.min() != alpha.max():
            raise UsageError(
                f"{path}: is partly transparent (alpha {alpha.min()}-{alpha.max()}); "
                "save it without an alpha channel, on the background that is meant"
            )
        pixels = pixels[..., :-1]
    if pixels.ndim == 2:
        return Picture(pixels[None].copy(), "gray", transparent)
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    if (planes == planes[:1]).all():
        return Picture(planes[:1].copy(), "gray" if single else "gray as RGB", transparent)
    return Picture(planes, "colour", transparent)


def _bits(path: Path) -> int:
    """Bits a channel as the PNG's header states them (byte 24); Pillow halves 16 bit colours without a word."""
    with path.open("rb") as stream:
        head = stream.read(25)
    return head[24] if head.startswith(b"\x89PNG") and len(head) == 25 else 8


def openai_view(image: Image.Image, size: int) -> UInt8[np.ndarray, "3 size size"]:
    """What improved-diffusion's loader shows its network of an image, distortion and all; for the legacy front only.

    The image is halved with a box filter while its short side is at least twice ``size``, scaled bicubically until the
    short side is ``size``, turned to RGB and cut to the centre square (Nichol and Dhariwal 2021, arXiv 2102.09672,
    their code's image_datasets.py). Of an 8 x 256 map at size 256 that leaves the 8 central columns, enlarged 32 times.
    """
    if size < 1:
        raise UsageError(f"image size {size} must be at least 1")
    while min(image.size) // 2 >= size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    pixels = np.asarray(image.convert("RGB"))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return np.ascontiguousarray(pixels[top : top + size, left : left + size].transpose(2, 0, 1))


def read_openai_views(files: Sequence[Path], size: int) -> UInt8[np.ndarray, "n 3 size size"]:
    """``openai_view`` of every file; sizes and colours may be mixed, as they may there."""
    reading.check_size(files[0].parent, "images", (len(files), 3, size, size), 1)
    views = []
    for path in files:
        with _opened(path) as image:
            image.load()
            views.append(openai_view(image, size))
    return np.stack(views)
