"""The error that this package raises for what a user can put right."""


class UsageError(Exception):
    """The user gave something that is wrong; the message is one line that names it."""
