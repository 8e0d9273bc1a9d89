"""Words of messages."""


def count_of(count: int | str, one: str, several: str = "") -> str:
    """Return a count in words: "1 epoch", "3 epochs", and of ("2", "batch", "batches") "2 batches".

    Args:
        count: a number, or its text in another format, such as "1,200" or "0.5".
        several: the plural, where it is not `one` with an s.
    """
    return f"{count} {one if str(count) == '1' else several or f'{one}s'}"
