"""Files of pictures <-> float32 [H, W, 3] in [0, 1], sRGB. Nothing else in nstjax opens a picture.

Whatever a file holds (grey, palette, CMYK, 16 bits, alpha, a camera's rotation, a colour profile, an
animation) becomes plain sRGB; what cannot be shown faithfully is refused by an `InputError` of one line.
"""

import contextlib
import io
import json
import os
import stat
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageCms, PngImagePlugin, UnidentifiedImageError

from nstjax import files
from nstjax.errors import InputError

MAX_PIXELS = 500_000_000  # 2 GB when decoded: more is a mistake or an attack
HUGE_PIXELS = 64_000_000  # above this JPEGs are decoded at a reduced scale, and one picture at a time

# A closed list: some of Pillow's readers start programs (EPS runs Ghostscript) or take nearly any bytes.
_READABLE = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "PSD", "QOI")
_JPEG = ("JPEG", {"quality": 95, "subsampling": 0})
_TIFF = ("TIFF", {"compression": "tiff_lzw"})
_WRITABLE: dict[str, tuple[str, dict]] = {".png": ("PNG", {}), ".jpg": _JPEG, ".jpeg": _JPEG}
_WRITABLE |= {".webp": ("WEBP", {"lossless": True}), ".tif": _TIFF, ".tiff": _TIFF, ".bmp": ("BMP", {})}

_ORIENTATION, _DESCRIPTION = 0x0112, 0x010E  # EXIF tags
_TURNS = dict(enumerate((0, 3, 1, 5, 4, 6, 2), start=2))  # orientation -> the Image.Transpose to undo it
# Names of PNG text that readers, Pillow among them, take for something else.
_TAKEN = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp", "transparency", "icc_profile", "gamma", "dpi"}
_QUIET = threading.Lock()


def load(path, *, size=None, minimum=1, source_minimum=16) -> np.ndarray:
    """The picture in a file as float32 [H, W, 3] in [0, 1], sRGB, upright, transparency over white.

    `size`: the long side, (w, h) -> (round(w*k), round(h*k)) with k = size / max(w, h), or a (height, width);
    by Pillow's LANCZOS on 8 bits. InputError where a side comes out under `minimum`, is under
    `source_minimum` in the file, or the file is missing, no picture, corrupt, cut short or over MAX_PIXELS.
    """
    longest = max(size) if isinstance(size, tuple) else size
    picture, (w, h) = _read(path, background="white", least=source_minimum, longest=longest)
    if isinstance(size, tuple):
        target = size[::-1]
    else:
        k = 1 if size is None else size / max(w, h)
        target = round(w * k), round(h * k)
    if min(target) < max(minimum, 1):
        advice = f"under the minimum of {minimum}; choose a larger size or a less elongated picture"
        raise files.refusal(path, f"{w}x{h} px becomes {target[0]}x{target[1]} px, {advice}")
    if target[0] * target[1] > MAX_PIXELS:
        raise files.refusal(path, f"{target[0]}x{target[1]} px is over {MAX_PIXELS:,} pixels; lower the size")
    if picture.size != target:
        picture = picture.resize(target, Image.Resampling.LANCZOS)
    return np.asarray(picture.convert("RGB"), np.float32) / 255


def load_mask(path, *, shape) -> np.ndarray:
    """The mask in a file as float32 [H, W] in [0, 1] for shape (H, W), stretched to it; white is inside.

    The resizing antialiases. Colour counts by its luminance, transparency as black. InputError as in `load`,
    and for a mask all black.
    """
    picture, _ = _read(path, background="black", least=1, longest=max(shape), managed=False)
    grey = picture.convert("L").convert("F").resize(shape[::-1], Image.Resampling.BILINEAR)
    mask = np.clip(np.asarray(grey, np.float32) / 255, 0, 1)
    if not mask.any():
        raise files.refusal(path, "the mask is all black, so nothing is inside; paint the region white")
    return mask


def load_alpha(path, *, shape) -> np.ndarray | None:
    """The opacity of the picture in a file as float32 [H, W] in [0, 1] for shape (H, W); None if it is opaque."""
    with _refusing(path), open(path, "rb") as file:
        if not _open(path, file, least=1).has_transparency_data:
            return None
    # However colours are converted, only what is transparent differs between the two.
    over = (_read(path, background=b, least=1, longest=max(shape))[0].convert("RGB") for b in ("white", "black"))
    seen = ImageChops.difference(*over).getchannel(0).resize(shape[::-1], Image.Resampling.LANCZOS)
    alpha = 1 - np.asarray(seen, np.float32) / 255
    return None if alpha.min() == 1 else alpha


def shape(path, *, size=None) -> tuple[int, int]:
    """(height, width) that `load(path, size=size)` will have, from the file's header."""
    with _refusing(path), open(path, "rb") as file:
        picture = _open(path, file, least=1)
        w, h = picture.size
        if picture.getexif().get(_ORIENTATION, 1) >= 5:
            w, h = h, w
    if size is None:
        return h, w
    return round(h * size / max(w, h)), round(w * size / max(w, h))


def same_aspect(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether shapes (H, W) agree in their aspect, up to 2 %, or half a pixel of a side, which rounding explains."""
    (h, w), (height, width) = one, other
    return abs(h * width - w * height) <= max(0.02 * h * width, max(height, width) / 2, max(h, w) / 2)


def check_aspect(path, like: tuple[int, int], flag: str) -> None:
    """Raise InputError if the image in a file has not the aspect of the shape `like`, (H, W); see `same_aspect`.

    flag: what the image was given as.
    """
    (h, w), (height, width) = shape(path), like
    if not same_aspect((h, w), like):
        why = f"{flag} has {w}x{h} px, another aspect than the {width}x{height} px that it is for"
        raise files.refusal(path, f"{why}; crop it to the same aspect")


def resize(image, shape) -> np.ndarray:
    """float [h, w, C] -> float32 [H, W, C] for shape (H, W), by Lanczos on floats, clipped to [0, 1]."""
    channels = np.moveaxis(np.asarray(image, np.float32), -1, 0)
    pictures = [Image.fromarray(np.ascontiguousarray(channel)) for channel in channels]
    resized = [np.asarray(p.resize(shape[::-1], Image.Resampling.LANCZOS)) for p in pictures]
    return np.clip(np.stack(resized, axis=-1), 0, 1)


def save(path, image, *, alpha=None, metadata=None) -> None:
    """Write float [H, W, 3], clipped to [0, 1] and rounded to 8 bits, in the suffix's format, all or nothing.

    .png, .webp (lossless), .tif, .bmp, .jpg (quality 95, 4:4:4). metadata {str: str} goes into PNG text, or
    as JSON into the EXIF description; BMP has no place for it. alpha: opacity [H, W] in [0, 1], for which JPEG and BMP
    have no place: there the image is as it is given. Equal pixels and metadata give equal bytes.
    Missing folders are made. InputError if the file cannot be written (an older one stays as it was),
    ValueError for bad pixels, and for names of metadata that mean something else in a PNG, such as "exif".
    """
    check_writable(path)
    if taken := _TAKEN & set(metadata or {}):
        raise ValueError(f"metadata cannot be named {', '.join(sorted(taken))}: readers of PNG take it for theirs")
    name, options = _WRITABLE[Path(path).suffix.lower()]
    picture = Image.fromarray(_to_bytes(image))
    if alpha is not None and name not in ("JPEG", "BMP"):
        picture.putalpha(Image.fromarray(np.rint(255 * np.clip(alpha, 0, 1)).astype(np.uint8)))
    try:
        data = _encode(picture, name, options, metadata or {})
    except (OSError, ValueError) as error:  # WebP ends at 16383 px, JPEG at 65500 px and at 64 kB of metadata
        raise files.refusal(path, f"{name} cannot hold this picture ({error}); write a .png") from error
    files.write(path, data)


def check_writable(path) -> None:
    """InputError if `save(path, ...)` could not work; leaves nothing behind. Missing folders are fine."""
    if Path(path).suffix.lower() not in _WRITABLE:
        raise files.refusal(path, f"cannot write this format; end the name in one of {', '.join(_WRITABLE)}")
    files.check_writable(path)


def metadata(path) -> dict[str, str]:
    """What `save` was given as metadata; of a foreign file its PNG text or its EXIF description, else {}."""
    with _refusing(path), open(path, "rb") as file:
        picture = _open(path, file, least=1)
        with _quietly():
            if isinstance(picture, PngImagePlugin.PngImageFile):
                return {str(key): str(text) for key, text in picture.text.items()}
            description = picture.getexif().get(_DESCRIPTION)
    with contextlib.suppress(TypeError, ValueError):  # None, or not JSON
        if isinstance(items := json.loads(description), dict):
            return {key: str(text) for key, text in items.items()}
    return {} if description is None else {"ImageDescription": str(description)}


def _read(path, *, background, least, longest, managed=True):
    """(an upright picture of mode L or RGB, its full size); a huge picture may come smaller than that."""
    with _refusing(path), open(path, "rb") as file:
        picture = _open(path, file, least=least)
        size = picture.size
        huge = size[0] * size[1] > HUGE_PIXELS
        if huge and longest:  # not for all, as decoding JPEG at 1/2, 1/4 or 1/8 changes the pixels a little
            picture.draft(None, (2 * longest, 2 * longest))
        with _quietly() if huge else contextlib.nullcontext():
            picture.load()
        with _quietly():
            orientation = picture.getexif().get(_ORIENTATION)
        profile = picture.info.get("icc_profile") if managed else None
        flat = _flatten(_to_8_bits(path, picture), background, profile)
    if orientation not in _TURNS:
        return flat, size
    return flat.transpose(Image.Transpose(_TURNS[orientation])), size[::-1] if orientation >= 5 else size


def _open(path, file, *, least):
    """The picture, of which only the header is read, if its size will do."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise files.refusal(path, "is not a regular file; give the name of a picture")
    if status.st_size == 0:
        raise files.refusal(path, "the file is empty; copy or download it again")
    with _quietly():
        Image.init()
        picture = Image.open(file, formats=[name for name in _READABLE if name in Image.OPEN])
    w, h = picture.size
    if w * h > MAX_PIXELS:
        raise files.refusal(path, f"{w}x{h} px is over the limit of {MAX_PIXELS:,} pixels; shrink it first")
    if min(w, h) < least:
        raise files.refusal(path, f"{w}x{h} px is too small; each side needs {least} px or more")
    return picture


def _to_8_bits(path, picture):
    """Modes I;16, I and F as L; others untouched (of 16-bit colour, Pillow has already kept the high bytes).

    Full scale is 65535 for I;16; for I, which may be a 16-bit PGM, it is 65535 if that holds every value, or
    else 2^31 - 1; for F, the first of 1, 255 and 65535 that does. Negative values are black.
    """
    if picture.mode not in ("I", "F") and not picture.mode.startswith("I;16"):
        return picture
    values = np.asarray(picture).astype(np.float32)
    scales = {"I": (65535, 2**31 - 1), "F": (1, 255, 65535)}.get(picture.mode, (65535,))
    scale = next((scale for scale in scales if values.max() <= scale), None)
    if scale is None or not np.isfinite(values).all():
        raise files.refusal(path, "its values are not in 0..1, 0..255 or 0..65535; convert it to 8 bits")
    return Image.fromarray(np.rint(values.clip(0, scale) * (255 / scale)).astype(np.uint8))


def _flatten(picture, background, profile):
    """Any 8-bit mode as L or RGB: colours to sRGB, then over the background where it is transparent."""
    grey, alpha = picture.mode in ("1", "L", "LA"), None
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        alpha = picture.getchannel("A")
    if picture.mode != "CMYK":  # kept for its profile, which speaks of inks
        picture = picture.convert("L" if grey else "RGB")
    picture = _to_srgb(picture, profile)
    if alpha is None:
        return picture
    canvas = Image.new(picture.mode, picture.size, background)
    canvas.paste(picture, mask=alpha)
    return canvas


def _to_srgb(picture, profile):
    """L, RGB or CMYK as L or RGB through its ICC profile, unless that is broken or for another mode."""
    if isinstance(profile, bytes):
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
            source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
            transform = ImageCms.buildTransform(source, srgb, picture.mode, "RGB", intent, flags)
            if picture.mode != "RGB" or not _changes_nothing(transform):
                return ImageCms.applyTransform(picture, transform)
    return picture.convert("RGB") if picture.mode == "CMYK" else picture


def _changes_nothing(transform):
    """Whether no colour moves by over 2 levels: most profiles are sRGB, and to apply it adds noise."""
    steps = np.linspace(0, 255, 16).astype(np.uint8)
    lattice = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(64, 64, 3)
    moved = np.asarray(ImageCms.applyTransform(Image.fromarray(lattice), transform))
    return np.abs(moved.astype(int) - lattice).max() <= 2


def _to_bytes(image):
    """float [H, W, 3] -> uint8."""
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype.kind in "biu":
        raise ValueError(f"a picture is float [H, W, 3] in [0, 1], not {array.dtype} {list(array.shape)}")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"the picture has {np.sum(~np.isfinite(array))} values that are not finite")
    return np.rint(255 * array.clip(0, 1)).astype(np.uint8)


def _encode(picture, name, options, metadata):
    """The bytes of the file; metadata in sorted order, so that equal dictionaries give equal bytes."""
    if name == "PNG":
        text = PngImagePlugin.PngInfo()
        for key in sorted(metadata):
            text.add_text(key, metadata[key].encode(errors="replace").decode())
        options = options | {"pnginfo": text}
    elif metadata and name != "BMP":
        exif = Image.Exif()
        exif[_DESCRIPTION] = json.dumps(metadata, sort_keys=True)
        options = options | {"exif": exif}
    buffer = io.BytesIO()
    picture.save(buffer, name, **options)
    return buffer.getvalue()


@contextlib.contextmanager
def _quietly():
    """No warnings from Pillow, nor its own limit on pixels. Both settings are global: hence the lock."""
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextlib.contextmanager
def _refusing(path):
    """Turn what goes wrong in reading into an InputError. Pillow raises nearly anything on a corrupt file."""
    files.check_regular(path)  # before it is opened, which waits for a FIFO's writer
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise files.refusal(path, _reason(path, error)) from error


def _reason(path, error):
    match error:
        case FileNotFoundError():
            return "no such file; check the name"
        case UnidentifiedImageError():
            return f"not a picture that can be read ({', '.join(_READABLE)}); convert it to PNG or JPEG"
        case OSError() if os.path.isdir(path):
            return "is a folder; give the name of a picture in it"
        case PermissionError():
            return "no permission to read it; change its permissions"
        case OSError(errno=int()):
            return f"cannot be read ({error.strerror}); check the name and the disk"
        case MemoryError():
            return "not enough memory to decode it; shrink it first"
    return f"the picture is corrupt or cut short ({error}); copy or download it again"


def is_animated(path) -> bool:
    """Whether a file is a GIF, WebP or PNG of several frames; False if it cannot be read."""
    with contextlib.suppress(InputError), _refusing(path), open(path, "rb") as file:
        picture = _open(path, file, least=1)
        return picture.format in ("GIF", "WEBP", "PNG") and picture.is_animated
    return False
