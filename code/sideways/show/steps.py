"""An element that is stepped through: pictures, a list, and the script that steps.

Without scripts the pictures stand side by side, and the list below them. Viewers that trust
nobody (a notebook that was not run here, GitHub's) drop scripts, styles and inline SVG, so
the drawings are images: these they keep. `steps.js` puts the drawings back into the page.

Every output brings script and style along, 9 KB: Colab shows each in a frame of its own,
where nothing of another is seen, and a notebook may be run from any cell.
"""

from functools import cache
from html import escape
from pathlib import Path

from .svg import image

FOLDER = Path(__file__).parent
# A longer list is folded where no script runs, and left out on paper.
LONG = 24
FOLDED = """fs-walk:has(.fs-controls) .fs-long { display: none; }
@media print { .fs-long { display: none !important; } }
"""


def element(name, label, drawings, sentences):
    """HTML of an <fs-player> or <fs-walk>: its drawings (SVG), and a sentence a step."""
    width = 270 if len(drawings) > 1 else 640
    pictures = "\n".join(image(svg, width) for svg in drawings)
    items = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    listed, style = f"<ol>\n{items}\n</ol>", _text("steps.css")
    if len(sentences) > LONG:
        said = f"<summary>{len(sentences)} steps</summary>"
        listed = f'<details class="fs-long">\n{said}\n{listed}\n</details>'
        style += FOLDED
    return (
        f'<{name} role="group" aria-label="{escape(label)}">\n'
        f'<div class="fs-sheet">\n{pictures}\n</div>\n'
        f"{listed}\n</{name}>\n<style>\n{style}</style>\n"
        f'<script>\n(() => {{\n"use strict";\n{_text("steps.js")}}})();\n</script>'
    )


@cache
def _text(name):
    return (FOLDER / name).read_text(encoding="utf-8")
