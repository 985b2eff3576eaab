"""The commands `midiloop` and `audioloop`: parse, call one library function, report."""
