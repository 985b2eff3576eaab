"""Loops out of a corpus: walk it, apply the rules, write the dataset."""
