"""What is measured of loops: pure functions, NumPy in, numbers out."""
