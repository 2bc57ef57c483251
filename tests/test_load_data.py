"""Images from folders and arrays: every pixel where it belongs, and what cannot be read is named."""

import errno
import os
import shutil
import zipfile

import numpy as np
import pytest
from data_problems import all_of, load, RNG, write
from PIL import Image

from mlem_jax.diffusion._data import folder as _image_folder


@pytest.fixture
def folder(tmp_path):
    """Twenty colour pictures of 6 x 5 in two subfolders, as a lossless format keeps them."""
    pixels = RNG.integers(0, 256, (20, 6, 5, 3))
    for i, image in enumerate(pixels):
        write(tmp_path / "data" / ("a" if i < 10 else "b/c") / f"{i:02d}.png", image)
    return tmp_path / "data", pixels


def test_a_folder_is_read_pixel_for_pixel_and_split_the_same_way_every_time(folder):
    path, pixels = folder
    data = load(path, (6, 5, 3))
    assert data.images.shape == (18, 6, 5, 3) and data.held_out.shape == (2, 6, 5, 3)
    assert data.images.dtype == np.uint8 and data.skipped == ()
    assert all_of(data) == sorted(tuple(x.ravel()) for x in pixels)
    # Not in the order of the names, by which classes are often sorted; and not another order the next time.
    again = load(str(path), (6, 5, 3))
    np.testing.assert_array_equal(again.images, data.images)
    assert np.any(data.images != pixels[2:])


def test_class_folders_are_labels(folder, tmp_path):
    """Numbered by name; from the cache the same as from the pictures."""
    path, pixels = folder
    write(path / "a" / "unreadable.png", pixels[0])
    (path / "a" / "unreadable.png").write_text("no picture")
    of = {tuple(image.ravel()): int(i >= 10) for i, image in enumerate(pixels)}
    for settings in ({}, {"cache": tmp_path / "cache"}, {"cache": tmp_path / "cache"}):
        data = load(path, (6, 5, 3), labels=True, **settings)
        assert data.classes == ("a", "b") and len(data.skipped) == 1
        for images, labels in ((data.images, data.labels), (data.held_out, data.held_out_labels)):
            assert [of[tuple(image.ravel())] for image in images] == labels.tolist()
    assert load(path, (6, 5, 3)).classes is None
    write(path / "beside.png", pixels[0])
    with pytest.raises(ValueError, match="1 of which lie in no subfolder"):
        load(path, (6, 5, 3), labels=True)


def test_pictures_of_any_size_and_kind_are_fitted(tmp_path):
    # A tall picture: left half black, right half white, with margins above and below that the crop removes.
    tall = np.zeros((40, 16))
    tall[12:28, 8:] = 255
    tall[:12], tall[28:] = 100, 100
    for name, mode in (("grey.png", "L"), ("colour.bmp", "RGB"), ("palette.gif", "P"), ("Large.PNG", "RGBA")):
        Image.fromarray(tall.astype(np.uint8)).convert(mode).save(tmp_path / name)
    expected = np.repeat([[0, 0, 255, 255]], 4, axis=0)
    for channels in (1, 3):
        data = load(tmp_path, (4, 4, channels))
        found = np.concatenate([data.images, data.held_out]).astype(int)
        assert found.shape == (4, 4, 4, channels)
        # Lanczos rings a little at the edges.
        assert np.abs(found - expected[None, :, :, None]).max() < 50


def test_what_is_transparent_is_white_and_what_lies_on_its_side_is_turned(tmp_path):
    clear = np.zeros((4, 4, 4), np.uint8)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    left = Image.fromarray(np.repeat([[0, 0, 255, 255]], 4, axis=0).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    left.save(tmp_path / "turned.png", exif=exif)
    found = all_of(load(tmp_path, (4, 4, 1)))
    assert found == [(0,) * 8 + (255,) * 8, (255,) * 16]


def test_wide_numbers_are_scaled_to_bytes(tmp_path):
    # One column black, one at a fifth, one white, so that nothing is resized.
    columns = np.repeat([[0.0, 0.2, 1.0]], 3, axis=0)
    for name, array in (
        ("sixteen.png", np.round(65535 * columns).astype(np.uint16)),
        ("sixteen.tiff", np.round(65535 * columns).astype(np.uint16)),
        ("integers.tiff", np.round(65535 * columns).astype(np.int32)),
        ("floats.tiff", columns.astype(np.float32)),
        ("bytes.tiff", (255 * columns).astype(np.float32)),
    ):
        Image.fromarray(array).save(tmp_path / name)
    assert all_of(load(tmp_path, (3, 3, 1))) == [(0, 51, 255) * 3] * 5
    assert all_of(load(tmp_path, (3, 3, 3)))[0] == (0, 0, 0, 51, 51, 51, 255, 255, 255) * 3
    # Of these nobody knows what white is.
    for name, value in (("a.tiff", -1.0), ("b.tiff", 300.0), ("c.tiff", np.nan)):
        Image.fromarray(np.full((3, 3), value, np.float32)).save(tmp_path / name)
    names = [line.split(" (")[0] for line in load(tmp_path, (3, 3, 1)).skipped]
    assert sorted(names) == ["a.tiff", "b.tiff", "c.tiff"]


def test_hidden_folders_are_left_alone_and_links_followed_once(folder, tmp_path):
    path, pixels = folder
    extra = np.full((6, 5, 3), 7)
    write(path / ".thumbnails" / "00.png", extra)
    assert len(all_of(load(path, (6, 5, 3)))) == 20
    write(tmp_path / "elsewhere" / "x.png", extra)
    (path / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (path / "a" / "around").symlink_to(path, target_is_directory=True)
    (path / "twice").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    found = all_of(load(path, (6, 5, 3)))
    assert found == sorted([*(tuple(x.ravel()) for x in pixels), tuple(extra.ravel())])


@pytest.mark.parametrize("kind", ["folder", "array"])
def test_an_added_image_leaves_the_others_on_their_side(tmp_path, kind):
    pixels = RNG.integers(0, 256, (60, 4, 4, 1)).astype(np.uint8)

    def held_out(images):
        if kind == "array":
            np.save(tmp_path / "a.npy", images)
            data = load(tmp_path / "a.npy", (4, 4, 1))
        else:
            # The names, too, are others than before.
            shutil.rmtree(tmp_path / "f", ignore_errors=True)
            for i, image in enumerate(images):
                write(tmp_path / "f" / f"{len(images)}-{i}.png", image[..., 0])
            data = load(tmp_path / "f", (4, 4, 1))
        return {tuple(image.ravel()) for image in data.held_out}

    before = held_out(pixels)
    # In front, so that every image has another position.
    after = held_out(np.concatenate([RNG.integers(0, 256, (1, 4, 4, 1)).astype(np.uint8), pixels]))
    assert len(before) == 6 and len(before - after) <= 1
    # And not simply the first of the file.
    assert before != {tuple(image.ravel()) for image in pixels[:6]}


def test_files_of_another_kind_are_told_apart(tmp_path):
    write(tmp_path / "a.png", np.zeros((4, 4)))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
    for name, message in (
        ("a.png", f"a.png is one picture; name the folder that holds the pictures, such as {tmp_path}."),
        ("a.zip", "a.zip is an archive of files; unpack it and name the folder"),
    ):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / name, (4, 4, 1))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist. A folder of pictures, an .npy"):
        load(tmp_path / "nowhere", (4, 4, 1))
    booleans, holes = np.zeros((20, 4, 4, 1), bool), np.zeros((20, 4, 4, 1), np.float32)
    holes[7, 1, 2, 0] = np.nan
    for array, message in (
        (booleans, r"type bool.*Write 255 \* images.astype\(numpy.uint8\) if True is white"),
        (
            holes,
            "numbers that are not finite: 1 of 20 images have NaN or infinite ones, the first of them number 7",
        ),
    ):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "a.npy", (4, 4, 1))


def test_files_that_cannot_be_read_are_left_out_and_named(folder):
    path, pixels = folder
    whole = (path / "a" / "00.png").read_bytes()
    (path / "a" / "00.png").write_bytes(whole[: len(whole) // 2])
    (path / "b" / "empty.jpg").write_bytes(b"")
    (path / "b" / "page.jpeg").write_bytes(b"<html>404</html>")
    for name in ("notes.txt", "a/._01.png", ".hidden.png"):
        (path / name).write_bytes(b"not a picture")
    for cache in (None, path.parent / "cache", path.parent / "cache"):
        data = load(path, (6, 5, 3), cache=cache)
        assert all_of(data) == sorted(tuple(x.ravel()) for x in pixels[1:])
        names = sorted(line.split(" (")[0] for line in data.skipped)
        assert names == ["a/00.png", "b/empty.jpg", "b/page.jpeg"]


def test_the_cache_is_mapped_and_belongs_to_its_pictures_and_shape(folder, tmp_path, monkeypatch):
    path, _ = folder
    monkeypatch.setattr(_image_folder, "_BLOCK", 7)
    data = load(path, (6, 5, 3), cache=tmp_path / "out")
    assert isinstance(data.images, np.memmap) and not data.images.flags.writeable
    np.testing.assert_array_equal(data.images, load(path, (6, 5, 3)).images)
    assert sorted(p.suffix for p in (tmp_path / "out").iterdir()) == [".json", ".npy"]

    def decoded(shape):
        count, real = [], _image_folder.read_picture
        with monkeypatch.context() as patch:
            patch.setattr(_image_folder, "read_picture", lambda *a: count.append(a) or real(*a))
            found = load(path, shape, cache=tmp_path / "out")
        return len(count), found

    assert decoded((6, 5, 3))[0] == 0
    assert decoded((3, 3, 1))[0] == 20
    write(path / "new.png", np.zeros((6, 5, 3)))
    count, found = decoded((6, 5, 3))
    assert count == 21 and len(found.images) + len(found.held_out) == 21


def test_a_full_disk_leaves_no_half_a_cache(folder, tmp_path, monkeypatch):
    path, _ = folder

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space is left to write .*images-"):
        patch.setattr(os, "fsync", full)
        load(path, (6, 5, 3), cache=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert len(load(path, (6, 5, 3), cache=tmp_path / "out").images) == 18


@pytest.mark.parametrize(
    "fill, shape, message",
    [
        (lambda f: None, (4, 4, 1), "hold no pictures .*Name the folder of the images"),
        (lambda f: (f / "a.txt").write_text("x"), (4, 4, 1), "hold no pictures"),
        (lambda f: (f / "a.png").write_text("x"), (4, 4, 1), "None of the 1 pictures.*a.png .Unidentified"),
        (lambda f: write(f / "a.png", np.zeros((4, 4))), (4, 4, 1), "holds 1 images; at least 2 are needed"),
        (lambda f: write(f / "a.png", np.zeros((4, 4))), (4, 4, 2), r"1 channel .grey. or 3 .colour."),
    ],
    ids=["empty", "no pictures", "none is readable", "one picture", "two channels"],
)
def test_a_folder_that_cannot_be_used_says_why(tmp_path, fill, shape, message):
    (tmp_path / "f").mkdir()
    fill(tmp_path / "f")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "f", shape)
