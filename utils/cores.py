"""How many cores this process may use: less than the machine has, under taskset, Slurm or a container's limits."""


def usable_cores() -> int:
    """Return the number of cores, by affinity and cgroups; at least 1."""
    from joblib import cpu_count

    return int(cpu_count())
