"""What a command, a page or a notebook calls: loops in, loops out."""
