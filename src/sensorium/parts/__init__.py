"""Pure torch blocks that two or more families share. They import nothing of ours but ``errors``."""
