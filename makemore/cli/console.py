"""A rich console for text that may contain control codes."""

from __future__ import annotations

from collections.abc import Iterable

from rich import console
from rich.segment import Segment

from makemore.runtime.characters import escape_control_chars


class Console(console.Console):
    """A console that escapes control characters in everything except its own codes."""

    def render(
        self, renderable: console.RenderableType, options: console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(escape_control_chars(segment.text), segment.style)
