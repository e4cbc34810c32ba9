"""The verdicts that a filter can get, each with its colour, hatching and meaning.

To add a verdict, add a member here and the rule that gives it in `filterscope.analysis.health.judgement`.
"""

from enum import StrEnum


class Verdict(StrEnum):
    """A verdict on one filter; members stand from the best to the worst.

    The colours are those of Okabe and Ito, which colour-blind people can tell apart, and a grey. A member is equal to
    its word (`Verdict.DEAD == "dead"`); files and checkpoints hold the word.

    Attributes:
        colour: RGB, 0 to 255, of frames in pictures, which have a dark background.
        page_colour: CSS colour on pages with a light or dark background.
        hatch: matplotlib's hatching, so that verdicts differ in print without colour.
        unused: whether the network should lose nothing when filters with this verdict are silenced.
        meaning: what the verdict says of the filter, as the end of a sentence.
    """

    colour: tuple[int, int, int]
    page_colour: str
    hatch: str
    unused: bool
    meaning: str

    USEFUL = "useful", (0, 158, 115), "#009e73", "", False, "the loss would rise without it"
    UNSTRUCTURED = (
        *("unstructured", (204, 121, 167), "#cc79a7", "++", False),
        "the loss would rise without it, though its weights are arranged as by chance",
    )
    UNKNOWN = "unknown", (0, 114, 178), "#0072b2", "oo", False, "whether it is needed was not measured"
    DUPLICATE = "duplicate", (86, 180, 233), "#56b4e9", "//", False, "does what another filter of the layer does"
    IDLE = "idle", (240, 228, 66), "#e6c800", "..", True, "the loss would not rise without it, though it has structure"
    NOISE = (
        *("noise", (236, 112, 20), "#d55e00", "xx", True),
        "the loss would not rise without it, and its weights are arranged as by chance",
    )
    DEAD = "dead", (188, 194, 205), "#8d939e", "--", True, "never active on any image"

    def __new__(
        cls,
        word: str,
        colour: tuple[int, int, int] = (0, 0, 0),
        page_colour: str = "",
        hatch: str = "",
        unused: bool = False,
        meaning: str = "",
    ) -> "Verdict":
        """Create a member whose value is its word; the defaults let type checkers accept `Verdict(word)`."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.colour, member.page_colour, member.hatch = colour, page_colour, hatch
        member.unused, member.meaning = unused, meaning
        return member

    @property
    def needed(self) -> bool:
        """Whether the network needs filters with this verdict."""
        return self in (Verdict.USEFUL, Verdict.UNSTRUCTURED)

    @property
    def rank(self) -> int:
        """The position from the best verdict (0) to the worst."""
        return list(type(self)).index(self)
