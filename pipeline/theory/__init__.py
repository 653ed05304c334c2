"""Claims of the talk on toys whose truth is known: one file per claim, each with ``measure()``."""
