"""Spectra, effects and beats of waves."""
