"""What the SVG drawings are made of: text in the colour of the page around it."""

from html import escape


def drawing(width, height, parts, label):
    """An SVG of these parts; `label` is what it shows, for those who do not see it."""
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}" '
        'font-family="sans-serif" font-size="13" text-anchor="middle">'
        + "".join(parts)
        + "</svg>"
    )


def text(x, y, content, **attributes):
    """A text centred at x, with its baseline at y; attributes: text_anchor="start", …"""
    more = "".join(
        f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items()
    )
    return f'<text x="{x}" y="{y}" fill="currentColor"{more}>{escape(str(content))}</text>'
