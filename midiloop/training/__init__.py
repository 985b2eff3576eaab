"""Training of midiloop's models: losses, data and recipes."""
