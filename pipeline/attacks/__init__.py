"""Attacks, one file each: ``GOAL``, ``NORMS``, ``Config`` and ``attack()``. They never judge and never log."""
