"""What measures us beside others, and proves that a change changed nothing: `python -m benchmarks.<name>`."""
