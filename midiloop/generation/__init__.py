"""New loops: sampled, decoded, chosen and written."""
