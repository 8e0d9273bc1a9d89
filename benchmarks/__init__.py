"""Measure this project against others, and prove that a change keeps all numbers: `python -m benchmarks.<name>`."""
