"""What the commands print besides tables."""

from rich.console import Console


def say(console: Console, text: str) -> None:
    """Prints a text as it is: no colours for its numbers, no markup in its brackets, no line breaks added, so that
    paths and commands can be copied."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)
