"""Data sets, one file each: ``Config`` and ``load(config) -> Dataset``."""
