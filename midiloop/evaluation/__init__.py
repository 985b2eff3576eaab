"""Loops judged beside others, and the tables of the paper."""
