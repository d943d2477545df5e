"""What the SVG drawings are made of: text in the colour of the page around it."""

import re
from base64 import b64encode
from html import escape

NUMBER = 20  # the height of a drawing's number
PAPER = 'style="background: #fff; color: #1f2733"'  # of an image, which knows no page


def drawing(width, height, parts, label, number=None):
    """An SVG of these parts; `label` is what it shows, for those who do not see it.

    number: its own among others, written above it at its left.
    """
    content = "".join(parts)
    if number is not None:
        height += NUMBER
        above = text(2, 14, number, text_anchor="start", font_weight="bold")
        content = f'{above}<g transform="translate(0 {NUMBER})">{content}</g>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{escape(label)}" '
        f'font-family="sans-serif" font-size="13" text-anchor="middle">{content}</svg>'
    )


def image(svg, width):
    """A drawing as an image that holds it: `width` pixels wide, black on white."""
    label = re.search('aria-label="(.*?)"', svg)
    data = b64encode(svg.replace("<svg", f"<svg {PAPER}", 1).encode()).decode()
    return (
        f'<img width="{width}" alt="{label[1] if label else ""}" '
        f'src="data:image/svg+xml;base64,{data}">'
    )


def text(x, y, content, **attributes):
    """A text centred at x, with its baseline at y; attributes: text_anchor="start", …"""
    more = "".join(
        f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items()
    )
    return f'<text x="{x}" y="{y}" fill="currentColor"{more}>{escape(str(content))}</text>'
