"""MAGNeT: codes of a wave, all places at once, from a masked transformer that reads a text."""
