"""How loops are judged: seams, files, codecs and methods."""
