"""MIDI files to scores, scores to piano rolls, and back."""
