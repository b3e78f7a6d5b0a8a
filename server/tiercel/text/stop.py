"""Stop strings in text that arrives piece by piece. Knows neither tokens nor routes.

D. Knuth, J. Morris, V. Pratt, "Fast pattern matching in strings", 1977, one automaton per string.
"""

from collections.abc import Sequence


class StopMatcher:
    """Finds the first place where any stop string ends, however the text is cut into pieces.

    Time is linear in the text, whatever the length of the strings; memory is at most the shorter
    of the two. An empty stop string ends with the first piece.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._patterns = [_Pattern(stop) for stop in stops if stop]
        self._empty = any(not stop for stop in stops)
        self.stop: str | None = None  # the string that was found; the longest of those ending there

    def feed(self, text: str) -> int | None:
        """The index in `text` just after a stop string that ends in it, else None.

        Not to be called again once a stop string was found.
        """
        end: int | None = None
        for pattern in self._patterns:
            found = pattern.feed(text if end is None else text[:end])
            if found is None:
                continue
            if end is None or found < end or len(pattern.text) > len(self.stop or ""):
                end, self.stop = found, pattern.text
        if end is None and self._empty:
            end, self.stop = len(text), ""
        return end

    @property
    def partial(self) -> int:
        """How many of the last characters could be the beginning of a stop string."""
        return max((pattern.matched for pattern in self._patterns), default=0)


class StopCutter:
    """Passes text on up to a stop string and without it, holding back what could become one.

    Hidden text can be a part of a stop string, but is never passed on.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._matcher = StopMatcher(stops)
        self._held: list[tuple[str, bool]] = []  # (text, whether it is hidden)
        self._length = 0  # characters held
        self.stopped = False

    def feed(self, text: str, *, hidden: bool = False) -> str:
        """What may be sent now. Sets `stopped` when a stop string is complete: the end."""
        end = self._matcher.feed(text)
        self._held.append((text, hidden))
        self._length += len(text)
        if end is None:
            return self._release(self._length - self._matcher.partial)
        self.stopped = True
        shown = self._release(self._length - len(text) + end - len(self._matcher.stop or ""))
        self._held.clear()
        return shown

    def flush(self) -> str:
        """What is held back when the text ends without a stop string."""
        return self._release(self._length)

    def _release(self, length: int) -> str:
        """Of so many characters from the front those that are not hidden."""
        self._length -= length
        shown = ""
        while self._held:
            text, hidden = self._held.pop(0)
            shown += "" if hidden else text[:length]
            if len(text) > length:
                self._held.insert(0, (text[length:], hidden))
                break
            length -= len(text)
        return shown


class _Pattern:
    """One string's automaton. The failure table grows with the match, so a long string is free."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0  # characters of `text` that the end of the input equals
        self._failures = [0, 0]  # [i]: longest proper border of text[:i]

    def feed(self, text: str) -> int | None:
        """The index just after the first whole match that ends in `text`."""
        pattern, matched, at = self.text, self.matched, 0
        while at < len(text):
            if matched == 0:  # skip to where a match can begin
                at = text.find(pattern[0], at)
                if at < 0:
                    break
            elif text[at] != pattern[matched]:
                matched = self._failures[matched]
                continue
            at += 1
            matched += 1
            if matched == len(pattern):
                self.matched = 0
                return at
            self._extend(matched)
        self.matched = matched
        return None

    def _extend(self, length: int) -> None:
        """Make the failure table reach `length`."""
        pattern, failures = self.text, self._failures
        while len(failures) <= length:
            last = pattern[len(failures) - 1]
            border = failures[-1]
            while border and pattern[border] != last:
                border = failures[border]
            failures.append(border + 1 if pattern[border] == last else 0)
