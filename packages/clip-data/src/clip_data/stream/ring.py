"""The memory that worker processes fill and the training process reads: a ring of batch slots.

It is a file without a name: nothing leaks when a process is killed, and the limit on /dev/shm in containers does not
apply.
"""

import ctypes
import mmap
import os
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np

from clip_data.stream.batches import Plan

ALIGNMENT = 64  # bytes; a cache line


class Ring:
    """`slots` slots of one batch each, in a file that both sides map."""

    def __init__(self, plan: Plan, slots: int, file: int | None = None) -> None:
        """Creates the memory, or maps that of the descriptor `file`, which this object then owns."""
        self.image_shape = (plan.size, 3, *plan.preprocess.size)
        self.text_shape = (plan.size, plan.context)
        self.text_offset = _aligned(int(np.prod(self.image_shape)))
        self.stride = _aligned(self.text_offset + 8 * int(np.prod(self.text_shape)))
        self.file = anonymous_file(slots * self.stride) if file is None else file
        self.memory = mmap.mmap(self.file, slots * self.stride)
        self.free = deque(range(slots))
        weakref.finalize(self, os.close, self.file)

    def arrays(self, slot: int, released: Callable[[int], None] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns the slot's images (uint8 [n, 3, H, W]) and texts (int64 [n, context]), not copied.

        `released` is called with the slot when both arrays and all views of them are gone.
        """
        lease = (ctypes.c_char * self.stride).from_buffer(self.memory, slot * self.stride)
        if released is not None:
            weakref.finalize(lease, released, slot).atexit = False
        view = memoryview(lease)
        images: np.ndarray = np.ndarray(self.image_shape, np.uint8, view)
        return images, np.ndarray(self.text_shape, np.int64, view, self.text_offset)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def anonymous_file(size: int) -> int:
    """Returns the descriptor of a new file without a name."""
    file = os.memfd_create("clip-data-batches")
    os.ftruncate(file, size)
    return file
