"""Random search on the margin: try a change, keep it if the margin rises. Not a component: attacks import it.

It needs logits and no gradient, so nothing that hides gradients hides a model from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.attacks.base import ExampleRng, Status
from pipeline.attacks.losses import is_fooled, status_of, value

# (rows, points, uniforms, progress) -> points: for the images that `rows` (b,) selects, their best points (b, ...),
# fresh numbers (b, draws) in [0, 1) and the share of queries already made, the points to try next.
Proposal = Callable[[Tensor, Tensor, Tensor, float], Tensor]
# (rows, points) -> images (b, C, H, W) in [0, 1].
Rendering = Callable[[Tensor, Tensor], Tensor]

CHUNK = 64  # queries whose randomness is drawn at once: a generator per image and query would cost more than most nets


class Found(NamedTuple):
    """The best points (B, ...) and what was spent, in the terms of ``AttackOutput``."""

    points: Tensor
    n_forwards: Tensor
    status: Tensor


def search(
    model: nn.Module,
    starts: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    *,
    queries: int,
    propose: Proposal,
    render: Rendering,
    draws: int,
    rng: ExampleRng,
) -> Found:
    """At most ``queries`` forwards per image, the first of them for ``starts`` (B, ...).

    A fooled image is finished, one whose logits are not finite is given up. The k-th query of an image takes its
    numbers from the image's own stream, whichever images are left beside it; stream 0 is never touched.
    """
    best = starts.clone()
    highest = torch.full_like(labels, -torch.inf, dtype=starts.dtype)
    n_forwards, status = torch.zeros_like(labels), torch.zeros_like(labels)
    rows = torch.arange(len(labels), device=labels.device)
    uniforms = starts.new_empty(0)

    for query in range(queries):
        if len(rows) == 0:
            break
        points = best[rows]
        if query > 0:
            chunk, turn = divmod(query - 1, CHUNK)
            if turn == 0:
                uniforms = _all_rows(rng.subset(rows), rows, len(labels), draws, like=starts, stream=1 + chunk)
            points = propose(rows, points, uniforms[rows, turn], query / queries)
        goals = labels[rows], None if targets is None else targets[rows]
        logits, margins, _ = value(model, render(rows, points), *goals, "margin")
        n_forwards[rows] += 1
        fooled = is_fooled(logits, *goals)
        status[rows] = outcome = status_of(logits, None)
        better = fooled | ((margins > highest[rows]) & (outcome == Status.OK))
        best[rows[better]], highest[rows[better]] = points[better], margins[better]
        rows = rows[~fooled & (outcome == Status.OK)]
    return Found(best, n_forwards, status)


def _all_rows(rng: ExampleRng, rows: Tensor, n: int, draws: int, *, like: Tensor, stream: int) -> Tensor:
    """(n, CHUNK, draws) numbers, of which only those of ``rows`` are drawn."""
    numbers = like.new_zeros(n, CHUNK, draws)
    numbers[rows] = rng.uniform((CHUNK, draws), like=like, stream=stream)
    return numbers
