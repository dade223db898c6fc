"""What a message says, and what of that is stored. Decides, and does no I/O."""

from dataclasses import dataclass

HIGH_SURROGATES = ("\ud800", "\udbff")


def clean(text: str) -> str:
    """Without what PostgreSQL's text cannot hold: U+0000 and lone surrogates. A pair of surrogates becomes its character."""
    if not isinstance(text, str):
        raise TypeError(f"text is wanted, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    return text.replace("\0", "")


@dataclass(frozen=True, slots=True)
class Part:
    """The text from `offset` on (in code points), as it was at a moment."""

    version: int
    offset: int
    text: str


class Draft:
    """A text that grows, after texts that are shown only until it begins.

    What is stored for good is forgotten here; what is not is kept, and offered again with each part().
    """

    def __init__(self, offset: int = 0) -> None:
        self._version = 0
        """Changes when the text is replaced rather than grown."""
        self._offset = offset
        self._tail: list[str] = []
        self._held = ""
        """Half of a character, until the other half comes."""
        self.provisional = False
        """Whether it says what is shown only until real text comes."""
        self.begun = offset > 0
        """Whether real text has come."""
        self.kept = 0
        """Code points that are kept here."""

    def __repr__(self) -> str:
        return f"<Draft {self._offset}+{self.kept}{' provisional' if self.provisional else ''}>"

    def show(self, text: str) -> bool:
        """Say this until real text comes; False if that has come already."""
        if self.begun:
            return False
        self._replace(clean(text))
        self.provisional = True
        return True

    def write(self, chunk: str) -> bool:
        """Append; the first time it takes the place of what was shown. False if there is nothing in it."""
        if not isinstance(chunk, str):
            raise TypeError(f"text is wanted, not {type(chunk).__name__}")
        chunk = self._held + chunk
        self._held = ""
        if chunk and HIGH_SURROGATES[0] <= chunk[-1] <= HIGH_SURROGATES[1]:
            chunk, self._held = chunk[:-1], chunk[-1]
        chunk = clean(chunk)
        if not chunk:
            return False
        if self.provisional:
            self._replace("")
        self.begun = True
        self._tail.append(chunk)
        self.kept += len(chunk)
        return True

    def end(self, text: str | None = None) -> None:
        """No more comes. What was shown only until real text comes goes; `text`, if given, takes the place of all."""
        self._held = ""
        if text is not None:
            self._replace(clean(text))
        elif self.provisional:
            self._replace("")
        self.provisional = False

    def part(self) -> Part:
        """All that may not be stored yet."""
        text = "".join(self._tail)
        self._tail = [text] if text else []
        return Part(self._version, self._offset, text)

    def stored(self, part: Part) -> None:
        """That part is stored for good."""
        if part.version != self._version or part.offset != self._offset:
            return
        text = self.part().text[len(part.text) :]
        self._offset += len(part.text)
        self._tail = [text] if text else []
        self.kept = len(text)

    def _replace(self, text: str) -> None:
        self._version += 1
        self._offset = 0
        self._tail = [text] if text else []
        self.kept = len(text)
        self.provisional = False
