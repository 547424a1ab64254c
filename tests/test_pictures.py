"""Pictures of every kind look to a model as they look to people, or are refused in one line."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageCms, TiffImagePlugin

from madakv.errors import InputError
from madakv.pictures import as_rgb, open_images

RAMP = range(256)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def words(form: str, values: list[int] | list[float]) -> bytes:
    return struct.pack(f"{form[0]}{len(values)}{form[1]}", *values)


def opened(path: Path, data: bytes | None = None) -> Image.Image:
    if data is not None:
        path.write_bytes(data)
    (image,) = open_images([path])
    assert image.mode == "RGB"
    return image


def row(image: Image.Image) -> list[tuple[int, ...]]:
    found = [image.getpixel((x, 0)) for x in range(image.width)]
    return [pixel for pixel in found if isinstance(pixel, tuple)]


def greys(image: Image.Image) -> list[int]:
    found = row(image)
    assert all(red == green == blue for red, green, blue in found)
    return [pixel[0] for pixel in found]


def tiff(bits: int, data: bytes, *, photometric: int = 1, kind: int = 1) -> bytes:
    """One row of 256 greys; `kind` 1 is unsigned, 2 signed, 3 float."""
    tags = [(256, 256), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1)]
    tags += [(279, len(data)), (339, kind)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def png(bits: int, colours: int, pixels: bytes, width: int, key: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, 1, bits, colours, 0, 0, 0)
    body = [(b"IHDR", head), (b"tRNS", key), (b"IDAT", zlib.compress(b"\0" + pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in body)


@pytest.mark.parametrize("most", [65535, 4095, 1000, 256])
def test_greys_of_a_pgm_have_the_range_that_it_declares(tmp_path: Path, most: int) -> None:
    """Of a ramp of 16 bits, all but the first 255 greys were white."""
    values = [round(grey * most / 255) for grey in RAMP]
    found = greys(opened(tmp_path / "a.pgm", b"P5 256 1 %d\n" % most + words(">H", values)))
    assert max(abs(grey - want) for grey, want in zip(found, RAMP, strict=True)) <= (0 if most > 255 * 4 else 1)


SIXTEEN = [grey * 257 for grey in RAMP]
FLOATS = [grey / 255 for grey in RAMP]


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_sixteen_bits(mode: str, tmp_path: Path) -> None:
    image = Image.frombytes(mode, (256, 1), words(">H" if mode == "I;16B" else "<H", SIXTEEN))
    assert greys(as_rgb(image)) == list(RAMP)
    image = Image.frombytes("I;16", (256, 1), words("<H", SIXTEEN))
    for ending in ("png", "tif"):
        image.save(tmp_path / f"a.{ending}")
        assert greys(opened(tmp_path / f"a.{ending}")) == list(RAMP)


def test_greys_are_rounded() -> None:
    image = Image.frombytes("I;16", (4, 1), words("<H", [128, 129, 65535 - 129, 65535 - 128]))
    assert greys(as_rgb(image)) == [0, 1, 254, 255]


def test_a_tiff_of_twelve_bits(tmp_path: Path) -> None:
    values = [round(grey * 4095 / 255) for grey in RAMP]
    packed = b"".join(
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in zip(values[::2], values[1::2], strict=True)
    )
    assert greys(opened(tmp_path / "a.tif", tiff(12, packed))) == list(RAMP)


@pytest.mark.parametrize(
    ("bits", "data", "kind"), [(8, bytes(RAMP), 1), (16, words("<H", SIXTEEN), 1), (32, words("<f", FLOATS), 3)]
)
def test_a_tiff_may_count_from_white(tmp_path: Path, bits: int, data: bytes, kind: int) -> None:
    found = greys(opened(tmp_path / "a.tif", tiff(bits, data, photometric=0, kind=kind)))
    assert found == list(RAMP)[::-1]


@pytest.mark.parametrize("ending", ["tif", "pfm"])
def test_floats_from_nought_to_one(tmp_path: Path, ending: str) -> None:
    """They were black."""
    Image.frombytes("F", (256, 1), words("<f", FLOATS)).save(tmp_path / f"a.{ending}")
    assert greys(opened(tmp_path / f"a.{ending}")) == list(RAMP)


@pytest.mark.parametrize(("mode", "form", "kind"), [("I", "<i", 4), ("F", "<f", 12)])
def test_a_range_that_a_tiff_declares(tmp_path: Path, mode: str, form: str, kind: int) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in ((340, 1000), (341, 1000 + 255 * 16)):
        tags.tagtype[tag] = kind
        tags[tag] = value if mode == "I" else float(value)
    values = [1000 + 16 * grey for grey in RAMP]
    Image.frombytes(mode, (256, 1), words(form, values)).save(tmp_path / "a.tif", tiffinfo=tags)
    assert greys(opened(tmp_path / "a.tif")) == list(RAMP)


@pytest.mark.parametrize(
    ("mode", "form", "values", "message"),
    [
        ("I", "<i", [0, 255], "32-bit greys without a declared range"),
        ("F", "<f", [0.0, 255.0], "greys from 0 to 255 are outside of the range from 0 to 1"),
        ("F", "<f", [-0.5, 0.5], "greys from -0.5 to 0.5"),
        ("F", "<f", [0.5, float("nan")], "greys from nan to nan"),
    ],
)
def test_what_has_no_known_range_is_refused(
    tmp_path: Path, mode: str, form: str, values: list[int] | list[float], message: str
) -> None:
    path = tmp_path / "a.tif"
    Image.frombytes(mode, (2, 1), words(form, values)).save(path)
    with pytest.raises(InputError, match=message) as caught:
        open_images([path])
    assert "save the picture with 8 or 16 bits" in str(caught.value)
    assert str(path) in str(caught.value)


def test_signed_greys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without a declared range"):
        opened(tmp_path / "a.tif", tiff(16, words("<h", [grey - 128 for grey in RAMP]), kind=2))


COLOURS = [(255, 0, 0), (0, 128, 0), (250, 250, 250)]


@pytest.mark.parametrize(
    ("mode", "near"),
    [
        *((mode, 0) for mode in ("RGB", "RGBA", "RGBa", "RGBX", "CMYK", "HSV")),
        ("YCbCr", 1),
        ("LAB", 8),
        # The web palette has steps of 51.
        ("P", 26),
        ("PA", 26),
    ],
)
def test_colours_of_every_mode(mode: str, near: int) -> None:
    image = Image.new("RGB", (3, 1))
    image.putdata(COLOURS)
    if mode == "LAB":
        rgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, rgb, lab, outputMode="LAB") or image
    else:
        first = {"RGBa": "RGBA", "PA": "P"}.get(mode, mode)
        image = image.convert(first).convert(mode)
    assert image.mode == mode
    found = as_rgb(image)
    assert found.mode == "RGB"
    for colour, want in zip(row(found), COLOURS, strict=True):
        assert all(abs(one - other) <= near for one, other in zip(colour, want, strict=True)), (colour, want)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La"])
def test_greys_of_every_mode(mode: str) -> None:
    image = Image.new("L", (2, 1))
    image.putdata([0, 255])
    image = image.convert("LA" if mode == "La" else mode).convert(mode)
    assert greys(as_rgb(image)) == [0, 255]


def transparent(mode: str) -> Image.Image:
    """Nothing to be seen at the left, black at the right."""
    image = Image.new("RGBA", (2, 1), BLACK)
    image.putpixel((0, 0), (9, 9, 9, 0))
    if mode in ("LA", "La"):
        return image.convert("LA").convert(mode)
    if mode == "P":
        image = Image.new("P", (2, 1))
        image.putpalette([9, 9, 9, 0, 0, 0])
        image.putpixel((1, 0), 1)
        image.info["transparency"] = 0
        return image
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "P", "PA"])
def test_transparency_is_white(mode: str) -> None:
    assert row(as_rgb(transparent(mode))) == [WHITE, BLACK]


@pytest.mark.parametrize(
    ("bits", "colours", "pixels", "key"),
    [
        (8, 0, b"\x64\x00", (100,)),
        (16, 0, struct.pack(">2H", 10_000, 0), (10_000,)),
        (8, 2, bytes([9, 8, 7, 0, 0, 0]), (9, 8, 7)),
        (16, 2, struct.pack(">6H", 9000, 8000, 7000, 0, 0, 0), (9000, 8000, 7000)),
        (1, 0, bytes([0b10000000]), (1,)),
    ],
)
def test_a_transparent_colour_of_a_png(
    tmp_path: Path, bits: int, colours: int, pixels: bytes, key: tuple[int, ...]
) -> None:
    data = png(bits, colours, pixels, 2, struct.pack(f">{len(key)}H", *key))
    assert row(opened(tmp_path / "a.png", data)) == [WHITE, BLACK]


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_the_right_way_up(tmp_path: Path, ending: str) -> None:
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / f"a.{ending}", exif=exif)
    assert opened(tmp_path / f"a.{ending}").size == (10, 20)
    with Image.open(tmp_path / f"a.{ending}") as given:
        assert as_rgb(given).size == (10, 20)


def test_of_an_animation_the_first(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), "red").save(
        tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (1, 1), "blue")]
    )
    assert row(opened(tmp_path / "a.gif")) == [(255, 0, 0)]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://x.org/a.png", "https://x.org/a.png;"),
        ("HTTP://x.org/a.png", "HTTP://x.org/a.png;"),
        ("s3://bucket/a.png", "s3://bucket/a.png;"),
        ("file:///tmp/a.png", "file:/tmp/a.png;"),
        ("data:image/png;base64," + "A" * 5000, "AAA...;"),
    ],
)
def test_links_are_not_fetched(given: str, shown: str) -> None:
    with pytest.raises(InputError, match="links are not fetched") as caught:
        open_images([Path(given)])
    assert shown in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_path_of_windows_is_no_link() -> None:
    with pytest.raises(InputError, match="no such image file: C:/pictures/a.png"):
        open_images([Path("C:/pictures/a.png")])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: Image.new("1", (20_000, 20_000)).save(path),
            r"too large: .*\(.*400000000 pixels.*make it smaller",
        ),
        (lambda path: path.write_bytes(b""), "not an image that Pillow can read"),
        (lambda path: path.mkdir(), "not an image file but a folder"),
        (lambda path: None, "no such image file"),
        (lambda path: path.symlink_to(path), r"cannot be read: .*\(Too many levels"),
    ],
)
def test_files_that_are_no_pictures(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "a.png"
    make(path)
    with pytest.raises(InputError, match=message) as caught:
        open_images([path])
    assert str(path) in str(caught.value)
    assert "broken" not in str(caught.value)


def test_a_name_that_is_too_long() -> None:
    with pytest.raises(InputError, match="cannot be read: .*too long"):
        open_images([Path("a" * 5000)])
