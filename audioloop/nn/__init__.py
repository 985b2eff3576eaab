"""Layers that know circular sequences."""
