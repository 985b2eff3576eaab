"""What each model of midiloop learns from, and by which loss."""
