"""Turn manual-page source (roff with the `man` macros) into plain text, without a `man` binary."""

from __future__ import annotations

import re

_GLYPHS = {
    "aq": "'", "cq": "'", "oq": "`", "dq": '"', "lq": '"', "rq": '"', "em": "--", "en": "-",
    "hy": "-", "bu": "*", "co": "(C)", "rg": "(R)", "tm": "(TM)", "rs": "\\", "ti": "~",
    "ha": "^", "ga": "`", "at": "@", "sh": "#", "ba": "|", "br": "|", "mu": "x", "pl": "+",
    "mi": "-", "<=": "<=", ">=": ">=", "!=": "!=", "==": "==", "->": "->", "<-": "<-",
    "la": "<", "ra": ">", "..": "...", "de": "deg", "lB": "[", "rB": "]", "lC": "{",
    "rC": "}", "Do": "$", "Po": "GBP", "sc": "section", "Aq": "'", "C`": '"', "C'": '"',
}  # fmt: skip
_ESCAPE = re.compile(
    r"""\\(?:
        f(?:\[[^\]]*\]|\(..|.)            # font
      | s(?:[+-]?\d|[+-]?\[[^\]]*\]|\(..)  # size
      | [mMF]\[[^\]]*\]                    # colour, family
      | [hvwloLDZbXxRN]'[^']*'             # motion, drawing
      | (?P<string>[*]?)(?:\[(?P<long>[^\]]*)\]|\((?P<two>..))
      | n(?:\[[^\]]*\]|\(..|.)             # number register
      | \*.                                # one-letter string
      | \$.                                # macro argument
      | (?P<one>.)
    )""",
    re.VERBOSE,
)
_ONE = {"e": "\\", "-": "-", "\\": "\\", "'": "'", "`": "`", " ": " ", "~": " ", "0": " ", "t": " "}
_FONTS = {"B", "I", "R", "SM", "SB"}
_ALTERNATING = {"BR", "RB", "BI", "IB", "IR", "RI"}
_BREAKS = {"PP", "P", "LP", "sp", "HP"}
_VERBATIM_ON, _VERBATIM_OFF = {"nf", "EX", "Vb"}, {"fi", "EE", "Ve"}
_TAGGED = {"TP", "TQ"}


def _glyph(match: re.Match[str]) -> str:
    name = match["long"] or match["two"]
    if name is not None:
        if name.startswith("u") and re.fullmatch(r"u[0-9A-F]{4,5}", name):
            return chr(int(name[1:], 16))
        return _GLYPHS.get(name, "")
    return _ONE.get(match["one"] or "", "")


def unescape(text: str) -> str:
    """Replace the escapes of one line of roff by what they print."""
    return _ESCAPE.sub(_glyph, re.sub(r'\\["#].*', "", text))


def arguments(text: str) -> list[str]:
    """Split the arguments of a macro call, honouring double quotes."""
    text = text.replace("\\ ", "\0")
    parts = re.findall(r'"((?:[^"]|"")*)"?|(\S+)', text)
    return [(quoted or bare).replace('""', '"').replace("\0", "\\ ") for quoted, bare in parts]


class _Page:
    """The lines of one page, made from its text and macros in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._words: list[str] = []
        self._verbatim = False
        self._tag_next = False
        self._indent = ""

    def flush(self) -> None:
        if self._words:
            self.lines.append(self._indent + re.sub(r"\s+", " ", " ".join(self._words)).strip())
            self._words = []

    def blank(self) -> None:
        self.flush()
        if self.lines and self.lines[-1]:
            self.lines.append("")

    def text(self, text: str) -> None:
        if self._verbatim:
            self.lines.append(("    " + text).rstrip())
        elif self._tag_next:
            self._tag(text)
        elif text.strip():
            self._words.append(text.strip())
        else:
            self.blank()

    def _tag(self, text: str) -> None:
        self._tag_next = False
        self.lines.append(text.strip())
        self._indent = "    "

    def heading(self, text: str) -> None:
        self.blank()
        self._indent = ""
        self._tag_next = self._verbatim = False
        if text:
            self.lines.append(text)

    def macro(self, name: str, args: list[str]) -> None:
        plain = [unescape(a) for a in args]
        if name in _FONTS:
            self.text(" ".join(plain))
        elif name in _ALTERNATING:
            self.text("".join(plain))
        elif name in ("SH", "SS"):
            self.heading(" ".join(plain))
        elif name == "TH" and len(plain) > 1:
            self.heading(f"{plain[0].upper()}({plain[1]})")
            self.blank()
        elif name in _BREAKS:
            self.blank()
            self._indent = ""
        elif name in _TAGGED:
            self.blank()
            self._indent, self._tag_next = "", True
        elif name == "IP":
            self.blank()
            self._indent = ""
            if plain and plain[0].strip():
                self._tag(plain[0])
        elif name == "br":
            self.flush()
        elif name in _VERBATIM_ON:
            self.flush()
            self._verbatim = True
        elif name in _VERBATIM_OFF:
            self._verbatim = False
        elif name in ("UR", "MT", "URL") and plain:
            self.text(plain[0])


def is_mdoc(source: str) -> bool:
    """Whether a page uses the BSD macros (`mdoc`), which this module does not read."""
    return re.search(r"^\.Dd\b", source, re.MULTILINE) is not None


def _without_definitions(source: str) -> list[str]:
    """Drop macro definitions, tables, equations and conditional blocks."""
    kept: list[str] = []
    depth, until = 0, ""
    for line in source.splitlines():
        if until:
            until = "" if line.startswith(until) else until
            continue
        opened, closed = line.count("\\{"), line.count("\\}")
        if depth or opened:
            depth = max(0, depth + opened - closed)
            continue
        head = re.match(r"[.']\s*(\w+)", line)
        name = head[1] if head else ""
        if name in ("de", "de1", "am", "ig"):
            until = ".."
        elif name in ("TS", "EQ"):
            until = ".TE" if name == "TS" else ".EN"
        elif name not in ("if", "ie", "el"):
            kept.append(line)
    return kept


def strip_roff(source: str) -> str:
    """Return the plain text of one manual page: one line for each paragraph."""
    page = _Page()
    source = re.sub(r"\\\n", "", source)
    for line in _without_definitions(source):
        head = re.match(r"[.']\s*(\w+)\s*(.*)", line)
        if head:
            page.macro(head[1], arguments(re.sub(r'\\["#].*', "", head[2])))
        elif not line.startswith((".", "'\\\"")):
            page.text(unescape(line))
    page.flush()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(page.lines)).strip() + "\n"
