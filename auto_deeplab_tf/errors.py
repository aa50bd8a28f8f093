"""Errors meant for the user: the message says the rule, what came, and what to do.

The command line turns these into one line on stderr; any other exception keeps its traceback.
"""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user can fix: a value, a file's content, a combination of settings."""


class MissingFileError(FileNotFoundError):
    """A file or folder that is not there."""


class RunError(RuntimeError):
    """A run had to stop for a reason that its user can fix: the message says which, and how."""
