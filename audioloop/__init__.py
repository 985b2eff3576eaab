"""Render loops to audio without a seam, label them, check them, and measure their seams."""
