"""The comparison of LoopGen, table 2, with our own models."""
