"""audioloop: render loops and play them without a seam. Nothing is here yet but the name."""
