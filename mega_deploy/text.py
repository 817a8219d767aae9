"""Text that comes from files, made fit for terminals, logs and pages.

A manifest, a model or a checkpoint may hold names with escapes that command a terminal, newlines that forge a line of
ours, marks that turn the direction of writing, or a mebibyte of letters.
"""

from __future__ import annotations

import logging

LINE = 2000
"""Letters of an error, a line of the log or a cell of a table: more than any of ours has."""
ELLIPSIS = "…"


def printable(value: object, limit: int | None = LINE, keep: str = "") -> str:
    """A value's text in one line, in which whatever is no letter, sign or space stands as its escape.

    Args:
        value: whatever has a text.
        limit: how many letters it may have; of a longer one the middle is left out.
        keep: letters that stay as they are, such as a newline.
    """
    text = _cut(str(value), limit)
    if not text.isprintable():
        letters = (letter if letter.isprintable() or letter in keep else _escaped(letter) for letter in text)
        text = _cut("".join(letters), limit)
    return text


def _cut(text: str, limit: int | None) -> str:
    if limit is None or len(text) <= limit:
        return text
    tail = limit // 4
    return f"{text[: limit - tail - 3]} {ELLIPSIS} {text[-tail:]}"


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def logger(name: str, limit: int | None = LINE, keep: str = "") -> logging.Logger:
    """The logger of this name, whose messages are printable lines whatever they quote.

    Args:
        name: of the logger.
        limit: how many letters a message may have; None: any number.
        keep: letters that stay as they are, such as a newline.
    """
    found = logging.getLogger(name)
    if not any(isinstance(one, _PrintableMessages) for one in found.filters):
        found.addFilter(_PrintableMessages(limit, keep))
    return found


class _PrintableMessages(logging.Filter):
    def __init__(self, limit: int | None, keep: str) -> None:
        super().__init__()
        self._limit, self._keep = limit, keep

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage(), self._limit, self._keep), ()
        return True
