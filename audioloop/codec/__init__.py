"""Waves as latents and tokens, and back."""
