"""Folders of images: what is read, and every way they can be at fault."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditc.runtime.errors import DitcError
from ditc.tools.image_sets import read_images, read_pair


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(DitcError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pictures_in_the_order_of_their_names(tmp_path: Path) -> None:
    second, first = draw(4, 5, 3, seed=1), draw(4, 5, 3)
    png(tmp_path / "b.png", second)
    png(tmp_path / "a.png", first)
    found = read_images(tmp_path)
    assert found.names == ("a.png", "b.png")
    assert found.images.dtype == np.float32
    expected = np.stack([first, second]).transpose(0, 3, 1, 2) / 127.5 - 1
    np.testing.assert_allclose(found.images, expected, atol=1e-6)


def test_grey_pictures_and_arrays_say_the_same(tmp_path: Path) -> None:
    pixels = draw(3, 1, 6, 4)
    for number, image in enumerate(pixels):
        png(tmp_path / "pictures" / f"{number}.png", image[0])
    np.save(tmp_path / "bytes.npy", pixels)
    np.save(tmp_path / "floats.npy", (pixels / 127.5 - 1).astype(np.float64))
    (tmp_path / "each").mkdir()
    for number, image in enumerate(pixels):
        np.save(tmp_path / "each" / f"{number}.npy", image)
    expected = read_images(tmp_path / "pictures").images
    for name in ("bytes.npy", "floats.npy", "each"):
        np.testing.assert_allclose(read_images(tmp_path / name).images, expected, atol=1e-6)


def test_one_picture_is_a_set_of_one(tmp_path: Path) -> None:
    pixels = draw(4, 5, 3)
    png(tmp_path / "a.png", pixels)
    (tmp_path / "a.png").rename(tmp_path / "b.PNG")
    png(tmp_path / "a.png", pixels)
    first, second = read_pair(tmp_path / "a.png", tmp_path / "b.PNG")
    assert (first.names, second.names) == (("a.png",), ("b.PNG",))
    for found in (first, second):
        expected = pixels.transpose(2, 0, 1)[None] / 127.5 - 1
        np.testing.assert_allclose(found.images, expected, atol=1e-6)


def test_what_is_no_set_of_images(tmp_path: Path) -> None:
    def told(name: str, array: np.ndarray) -> str:
        np.save(tmp_path / name, array)
        return refusal(lambda: read_images(tmp_path / name))

    message = refusal(lambda: read_images(tmp_path / "none"))
    assert message.endswith("no folder of images, no .png and no .npy file is there")
    (tmp_path / "empty").mkdir()
    assert refusal(lambda: read_images(tmp_path / "empty")).endswith("files, found neither")
    (tmp_path / "text.npy").write_text("text")
    assert "is no array that can be read" in refusal(lambda: read_images(tmp_path / "text.npy"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("text")
    assert "is no PNG that can be read" in refusal(lambda: read_images(tmp_path / "bad"))
    np.savez(tmp_path / "zip.npz", a=np.zeros(3))
    (tmp_path / "zip.npz").rename(tmp_path / "zip.npy")
    assert "is an archive" in refusal(lambda: read_images(tmp_path / "zip.npy"))
    assert "float64 [2, 4, 8, 8], expected floats" in told("four.npy", np.zeros((2, 4, 8, 8)))
    assert "int64 [2, 1, 8, 8]" in told("int.npy", np.zeros((2, 1, 8, 8), np.int64))
    assert "float64 [0, 1, 8, 8]" in told("no.npy", np.zeros((0, 1, 8, 8)))
    assert "aren't finite" in told("nan.npy", np.full((1, 1, 8, 8), np.nan))
    assert "holds 255, expected pixels in [-1, 1]" in told("255.npy", np.full((1, 1, 8, 8), 255.0))
    png(tmp_path / "alpha" / "a.png", draw(4, 4, 4))
    assert "has pixels of mode RGBA" in refusal(lambda: read_images(tmp_path / "alpha"))


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "is no array that can be read" in refusal(lambda: read_images(tmp_path / "a.npy"))


def test_images_of_several_sizes(tmp_path: Path) -> None:
    png(tmp_path / "a.png", draw(4, 4))
    png(tmp_path / "b.png", draw(4, 5))
    assert refusal(lambda: read_images(tmp_path)) == (
        f"{tmp_path / 'b.png'}: holds images [1, 4, 5], expected [1, 4, 4] as in a.png"
    )
    np.save(tmp_path / "c.npy", draw(1, 4, 4))
    assert refusal(lambda: read_images(tmp_path)).endswith("files, found both")


def test_sets_that_do_not_go_together(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for name in ("a.png", "b.png"):
        png(first / name, draw(4, 4))
    png(second / "a.png", draw(4, 4))
    message = refusal(lambda: read_pair(first, second))
    assert message.endswith("expected as many of one size")
    assert "images [2, 1, 4, 4]" in message
    png(second / "c.png", draw(4, 4))
    message = refusal(lambda: read_pair(first, second))
    assert message == f"{first} and {second} don't go together: b.png is in one of them only"
    (second / "c.png").rename(second / "b.png")
    assert len(read_pair(first, second)[0].images) == 2


def test_pictures_go_together_with_arrays(tmp_path: Path) -> None:
    pictures, arrays = tmp_path / "pictures", tmp_path / "arrays"
    arrays.mkdir()
    for name in ("a", "b"):
        png(pictures / f"{name}.png", draw(4, 4))
        np.save(arrays / f"{name}.npy", draw(1, 4, 4))
    np.save(tmp_path / "both.npy", draw(2, 1, 4, 4))
    for one, other in ((pictures, arrays), (pictures, tmp_path / "both.npy")):
        for first, second in ((one, other), (other, one)):
            assert len(read_pair(first, second)[1].images) == 2
