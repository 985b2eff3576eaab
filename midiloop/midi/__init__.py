"""MIDI files as scores, scores as piano rolls, and the way back."""
