"""Metrics of loops: pure functions, NumPy in, numbers out."""
