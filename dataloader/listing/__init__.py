"""Makes lists: the images of class folders, their split, and the files."""
