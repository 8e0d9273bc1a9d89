"""Write a checkpoint as a folder for other people and programs, in the format of the Hugging Face hub."""
