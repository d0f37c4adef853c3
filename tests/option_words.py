"""Words of a command in tests: a list of usual ones, of which some are said otherwise."""

from collections.abc import Sequence


def replacing(words: Sequence[str], other: Sequence[str]) -> list[str]:
    """Both, without those of the first whose option the second gives too: an option is given once."""
    given = {word.partition("=")[0] for word in other if not word.startswith("-")}
    return [*(word for word in words if word.partition("=")[0] not in given), *other]
