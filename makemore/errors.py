"""The exception for mistakes that the user can fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A request can't be carried out; the one-line message gives the reason and the remedy.

    The command line prints it and exits with status 2.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for an unknown name, suggesting the closest known one."""
    names = sorted(known)
    closest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {closest[0]!r}? " if closest else ""
    return UserError(f"unknown {kind} {name!r}; {hint}known: {', '.join(names)}")
