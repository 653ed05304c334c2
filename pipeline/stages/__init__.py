"""Stages: read params, call, write. Each is ``python -m pipeline.stages.<name>``, and DVC runs them in order."""
