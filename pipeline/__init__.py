"""Robustness benchmark for Neural ODE image classifiers and their controls."""
