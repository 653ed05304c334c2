"""The floor of an attack: its own forward and backward passes, in the batch sizes in which it made them, timed bare."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Recorder(nn.Module):
    """A model that notes the batch size of every forward and how often it was differentiated."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.passes: list[list[int]] = []  # [batch, backwards], in order
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs)
        entry = [len(inputs), 0]
        self.passes.append(entry)
        if logits.requires_grad:
            logits.register_hook(lambda _: entry.__setitem__(1, entry[1] + 1))  # type: ignore[no-untyped-call]
        return logits

    def per_image(self, n: int) -> str:
        """Mean forwards + backwards of each of n images."""
        forwards, backwards = sum(b for b, _ in self.passes), sum(b * times for b, times in self.passes)
        return f"{forwards / n:.1f} + {backwards / n:.1f}"


def floor(model: nn.Module, inputs: Tensor, passes: list[list[int]]) -> None:
    """The passes alone, without the arithmetic between them."""
    for size, backwards in passes:
        images = inputs[torch.arange(size) % len(inputs)].requires_grad_(backwards > 0)
        with torch.set_grad_enabled(backwards > 0):
            logits = model(images)
        for i in range(backwards):
            torch.autograd.grad(logits[:, i % logits.shape[1]].sum(), images, retain_graph=i + 1 < backwards)
