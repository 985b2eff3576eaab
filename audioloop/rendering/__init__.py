"""MIDI to audio, through FluidSynth."""
