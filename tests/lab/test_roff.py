"""The manual-page stripper on small pages."""

from edgecosine.lab.zoo.roff import arguments, is_mdoc, strip_roff, unescape

PAGE = r""".\" a comment
.TH demo 1 2024 "Demo"
.SH NAME
demo \- show a \fBbold\fR word
.de XX
hidden
..
.SH OPTIONS
.TP
.BR \-a ", " \-\-all
Show
everything \(em even \[aq]this\[aq].
.PP
Last paragraph.
.nf
  int x;   /* kept */
.fi
"""


def test_strip_roff_makes_one_line_of_each_paragraph() -> None:
    assert strip_roff(PAGE) == (
        "DEMO(1)\n\nNAME\ndemo - show a bold word\n\nOPTIONS\n\n"
        "-a, --all\n    Show everything -- even 'this'.\n\nLast paragraph.\n"
        "      int x;   /* kept */\n"
    )


def test_unescape_drops_sizes_and_motions() -> None:
    assert unescape(r"\s-1BIG\s+1\h'2n' \e\& end\c") == r"BIG \ end"


def test_arguments_honour_quotes() -> None:
    assert arguments('"two words" one "a ""b"""') == ["two words", "one", 'a "b"']


def test_mdoc_pages_are_recognised() -> None:
    assert is_mdoc(".Dd May 1\n.Dt X 1\n")
    assert not is_mdoc(PAGE)
