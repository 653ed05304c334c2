"""Initial value problems on batches of states. Nothing here knows about images."""

from pipeline.ode.solve import FIXED_STEP, Solution, SolverConfig, SolverStatus, solve

__all__ = ["FIXED_STEP", "Solution", "SolverConfig", "SolverStatus", "solve"]
