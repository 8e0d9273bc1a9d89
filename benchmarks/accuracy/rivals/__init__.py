"""Other trainers, each as a script for an environment of its own: it imports nothing of this project but `common`.

They follow the logic and the defaults of the scripts that they stand for, with the libraries of those projects.
"""
