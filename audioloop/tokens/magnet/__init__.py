"""MAGNeT: non-autoregressive generation of codec tokens by a masked transformer."""
