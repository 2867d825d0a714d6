"""Other projects' files, read as they are and turned into data folders."""
