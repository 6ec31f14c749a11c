"""How data can fail its user."""


class DataError(Exception):
    """The run's data cannot be used on this machine. The message says what to do about it."""
