"""What a user is told instead of a traceback."""


class UserError(ValueError):
    """Bad input: the message says what was given, what is allowed, what to change. Commands exit with 2."""


class Hung(UserError):
    """Something that this process waited for does not end: it must leave without waiting for its threads."""


class Damaged(UserError):
    """A file of a run directory that is not what was written."""
