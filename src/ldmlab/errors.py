"""Errors that a user can cause and mend: one sentence each, printed without a traceback, exit code 1.

A message names the option's path (or the file), the rule, the value that came, and the way out.
Anything that is not one of these classes is a bug of ours and keeps its traceback.
"""


class UserError(Exception):
    """Base of every error that a user can cause and mend."""


class ConfigError(UserError):
    """An option that does not exist, has the wrong type or range, or does not fit another one."""


class DataError(UserError):
    """A folder, image, shard or manifest that is missing, damaged or not what it says it is."""


class WeightsError(UserError):
    """A weights file that is missing, damaged or belongs to another network."""


class TrainingError(UserError):
    """A run that cannot go on: a non-finite loss, too few images for a batch, ranks that disagree."""
