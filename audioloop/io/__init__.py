"""Audio files: samples, chunks, labels, and what a file says of itself."""
