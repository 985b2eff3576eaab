"""Models of tokens: masked and causal, our own and published ones."""
