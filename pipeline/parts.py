"""As many images at once as memory holds: halved when it runs out, without the loss of what is done."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Literal, TypeVar

import torch

from pipeline.errors import UserError
from pipeline.evaluate import Examples, is_out_of_memory

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Parts:
    """Calls a function on parts of the examples. The size that fitted is remembered for the calls to come.

    Args:
        batch_size: the largest part; ``auto`` begins with all that a call brings, and halves.
        whole: what does not depend on the batch may be parted; a model that couples its images may not.
    """

    def __init__(self, batch_size: int | Literal["auto"], *, whole: bool = False) -> None:
        self.fixed = whole or batch_size != "auto"
        self.size = None if whole or batch_size == "auto" else batch_size

    def each(self, function: Callable[[Examples], T], examples: Examples) -> list[T]:
        """What the function returned for each part, in the examples' order.

        Raises:
            UserError: memory ran out and the part may not be made smaller.
        """
        found: list[T] = []
        done = 0
        while done < len(examples):
            end = min(done + (self.size or len(examples)), len(examples))
            part = examples if end - done == len(examples) else examples.subset(range(done, end))
            try:
                found.append(function(part))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(len(part), error)
                del error  # with its traceback go the tensors of the attempt
                _free()
            else:
                done = end
        return found

    def _halve(self, size: int, error: Exception) -> None:
        if self.fixed or size == 1:
            remedy = "set compute.batch_size to auto or less" if self.size else "lower evaluate.chunk_size"
            raise UserError(
                f"params.yaml: memory does not hold an attack on {size} images at once; {remedy}, or take a device "
                "with more memory"
            ) from error
        self.size = size // 2
        logger.warning("out of memory with %d images at once; going on with %d", size, self.size)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
