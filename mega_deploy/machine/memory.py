"""This machine's memory, for what a file asks for before anything of it is there."""

from __future__ import annotations

import os

from mega_deploy.errors import InputError


def refuse_beyond_memory(nbytes: int, what: str) -> None:
    """Refuse what this machine could not hold even if nothing else were in its memory.

    The system would grant it all the same, and end some process once it is written to.

    Args:
        nbytes: that it takes.
        what: its name, to begin the error with.

    Raises:
        InputError: saying how much there is.
    """
    if not hasattr(os, "sysconf"):
        return
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if nbytes > most > 0:
        raise InputError(
            f"{what} takes {nbytes} bytes, more than the {most} of this machine's memory; take fewer at once"
        )
