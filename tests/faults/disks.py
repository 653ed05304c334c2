"""Full disks, read-only folders, damaged and deleted files."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.laboratory import Laboratory, must_be_clear, must_fail_clearly
from tests.faults.outcome import Difference
from tests.pipeline.workspaces import Workspace

MEBIBYTE = 2**20


def is_root() -> bool:
    """Whether no permission stops this process."""
    return os.geteuid() == 0


def can_mount() -> bool:
    """Whether this process may mount file systems of its own."""
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return is_root() and subprocess.run(probe, check=False, capture_output=True).returncode == 0


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system in memory at ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def full_disk(laboratory: Laboratory, stage: str, spare: int, words: str = "No space left on device") -> Difference:
    """The disk is full ``spare`` bytes into the stage, which says so in these words; then there is room."""
    source = laboratory.moments[stage].before
    folder = laboratory.folder / f"full-{stage}"
    with mounted(folder, "size=1g"):
        workspace = source.copy(folder)
        used = shutil.disk_usage(folder).used
        subprocess.run(["mount", "-o", f"remount,size={used + spare}", folder], check=True)
        status, output = workspace.run()
        must_fail_clearly(status, output, words)
        subprocess.run(["mount", "-o", "remount,size=1g", folder], check=True)
        return laboratory.complete(workspace)


def unwritable_output(laboratory: Laboratory, stage: str, output_folder: str) -> Difference:
    """The folder of a stage's outputs cannot be written to; then it can."""
    with laboratory.trial(stage) as workspace:
        with _unwritable(workspace.folder / output_folder):
            status, output = workspace.run()
            must_fail_clearly(status, output, output_folder)
        return laboratory.complete(workspace)


@contextmanager
def _unwritable(folder: Path) -> Iterator[None]:
    if is_root():
        with mounted(folder, "ro"):
            yield
    else:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(0o755)


def flip(path: Path) -> None:
    """Change one byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    """Keep the first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped_outputs(laboratory: Laboratory) -> Difference:
    """A byte of every kind of output: DVC sees them, and the stages run again."""
    with laboratory.trial() as workspace:
        for pattern in ("data/splits/test.*", "results/resnet/pgd.parquet", "results/*/fgsm.examples.*"):
            flip(_first(workspace, pattern))
        return laboratory.complete(workspace)


def flipped_store(laboratory: Laboratory) -> Difference:
    """A byte of every kind of stored file, with nothing but the store to go on from."""
    with laboratory.trial() as workspace:
        for pattern in ("rows/*/*.parquet", "rows/*/*.safetensors", "checkpoints/*.safetensors", "checkpoints/*.json"):
            flip(_first(workspace, f".store/{pattern}"))
        for kind in ("probes", "refinement", "trajectories", "theory"):
            flip(_first(workspace, f".store/{kind}/*.json"))
        flip(_first(workspace, ".store/transfer/*.parquet"))
        _forget(workspace)
        return laboratory.complete(workspace)


def truncated_checkpoints(laboratory: Laboratory) -> Difference:
    """Of a net that was trained, and of a training in progress."""
    with laboratory.trial() as workspace:
        truncate(_first(workspace, "checkpoints/resnet/*.safetensors"))
        for pattern in ("checkpoints/*.safetensors", "training/*/last.ckpt"):
            for path in workspace.folder.glob(f".store/{pattern}"):
                truncate(path)
        _forget(workspace)
        return laboratory.complete(workspace)


def truncated_dvc_lock(laboratory: Laboratory) -> Difference:
    """DVC's own file, half-written; its remedy is to delete it."""
    with laboratory.trial() as workspace:
        truncate(workspace.folder / "dvc.lock")
        status, output = workspace.run()
        must_be_clear(status, output)
        if status:
            (workspace.folder / "dvc.lock").unlink()
        return laboratory.complete(workspace)


def deleted_caches(laboratory: Laboratory) -> Difference:
    """DVC's cache, the store, and some results that were in both."""
    with laboratory.trial() as workspace:
        shutil.rmtree(workspace.folder / ".store")
        shutil.rmtree(workspace.folder / "results/resnet")
        _forget(workspace)
        return laboratory.complete(workspace)


def _forget(workspace: Workspace) -> None:
    """DVC's cache and memory, so that every stage runs again from what the store holds."""
    shutil.rmtree(workspace.folder / ".dvc/cache")
    (workspace.folder / "dvc.lock").unlink(missing_ok=True)


def _first(workspace: Workspace, pattern: str) -> Path:
    return sorted(workspace.folder.glob(pattern))[0]
