"""Errors that are the user's to mend: shown as one line, without a traceback."""


class UserError(Exception):
    """What is wrong, where (file and key), and what to do."""
