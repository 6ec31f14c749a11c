"""Text of peers, run files and files' names as a terminal may be shown it: one place for all of them."""

from __future__ import annotations

from typing import Any


def shown(text: str) -> str:
    """Spell out what would not be seen as it is: control characters, escape sequences, changes of direction."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def shown_lines(text: str) -> str:
    """Do the same, and keep line breaks: for text of several lines that we have put together ourselves."""
    return "\n".join(shown(line) for line in text.split("\n"))


def shown_all(data: Any) -> Any:
    """Do the same to every text within plain data, keys included."""
    if isinstance(data, str):
        return shown(data)
    if isinstance(data, dict):
        return {shown_all(key): shown_all(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [shown_all(item) for item in data]
    return data
