"""The colours and fonts of the report, once, for the page's CSS and for the plots.

`series` are the hues of Okabe and Ito (2008), which stay apart for colour-blind readers, with lightness fitted to each
background; plots repeat the distinction by line style and marker.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Theme:
    """Hexadecimal colours: text, its quieter forms, lines, backgrounds, and the two verdicts."""

    ink: str
    muted: str
    rule: str
    page: str
    surface: str
    accent: str
    good: str
    bad: str
    series: tuple[str, ...]


LIGHT = Theme(
    ink="#1b1f24",
    muted="#5c6570",
    rule="#e2e4e8",
    page="#f7f7f5",
    surface="#ffffff",
    accent="#0068a5",
    good="#00735a",
    bad="#b34700",
    series=("#0072b2", "#d55e00", "#00906a", "#b04a8f", "#7a4a00", "#2b3036"),
)
DARK = Theme(
    ink="#e8eaed",
    muted="#9ea6b1",
    rule="#30353d",
    page="#121417",
    surface="#1a1d22",
    accent="#6cbcf2",
    good="#41c9a2",
    bad="#ff9a56",
    series=("#56b4e9", "#f0813a", "#2cc49a", "#c95aa5", "#f3e88e", "#d0d4da"),
)

FONTS = ("Inter", "Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans")
