"""Which images are held out, and what tells one set of images from another."""

import hashlib

import numpy as np
from jaxtyping import Int

# A tenth is held out, and no more than this.
_SHARE = 10
_MOST = 10_000


def count_held_out(count: int) -> int:
    """How many of `count` images are held out."""
    return min(max(count // _SHARE, 1), _MOST)


def digest(content: bytes | memoryview) -> bytes:
    """A short digest of an image, or of a file."""
    return hashlib.blake2b(content, digest_size=16).digest()


def split_by_content(images: np.ndarray) -> tuple[Int[np.ndarray, " kept"], Int[np.ndarray, " held"]]:
    """The indices of the images to train on and of those to hold out: the ones with the smallest digests. When
    others are added, moved or taken away, an image stays on its side, except for one at the border."""
    digests = [digest(np.ascontiguousarray(image).data) for image in images]
    order = sorted(range(len(images)), key=lambda i: digests[i])
    count = count_held_out(len(images))
    # In the file's order, since that is how a disk reads fastest.
    return np.sort(order[count:]), np.sort(order[:count])


def data_fingerprint(*arrays: np.ndarray | None) -> str:
    """A short text that differs between sets of images and labels."""
    code = hashlib.blake2b(digest_size=8)
    for array in arrays:
        code.update(b"none" if array is None else f"{array.dtype}{array.shape}".encode())
        # In parts, because a mapped array may be larger than the memory.
        for start in range(0, 0 if array is None else len(array), 1024):
            assert array is not None
            code.update(np.ascontiguousarray(array[start : start + 1024]).data)
    return code.hexdigest()
