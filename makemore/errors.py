"""The exception for mistakes that the user can fix."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable


class UserError(Exception):
    """A request can't be carried out; the one-line message gives the reason and the remedy.

    The command line prints it and exits with status 2.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for an unknown name, suggesting a similar one; of dotted names, compare the last parts."""
    names = sorted(known)
    by_last_part = {full.rpartition(".")[2]: full for full in names}
    # Settings have similar names, such as n_head and n_embd.
    cutoff = 0.7 if "." in name else 0.6
    closest = difflib.get_close_matches(name.rpartition(".")[2], by_last_part, n=1, cutoff=cutoff)
    hint = f"did you mean {by_last_part[closest[0]]!r}? " if closest else ""
    return UserError(f"unknown {kind} {name!r}; {hint}known: {', '.join(names)}")


def require_packages(feature: str, packages: Iterable[str], extra: str) -> None:
    """Raise UserError if a package of an optional feature isn't installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{feature} needs {' and '.join(missing)}; run: pip install 'makemore[{extra}]'")
