"""The whole book as one PDF: the built pages in reading order, printed by Chromium.

    python tools/pdf.py _build/html _build/fusing-sideways.pdf

The articles of all pages are put into one page, whose equations MathJax then sets, so that
links within the book lead to its pages and Chromium makes bookmarks of the headings.
"""

import itertools
import logging
import os
import posixpath
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup
from playwright.sync_api import Error, sync_playwright
from pypdf import PdfWriter
from pypdf.generic import NameObject, TextStringObject

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FOOTER = """<div style="width: 100%; font: 8px system-ui, sans-serif; color: #4d5869;
padding: 0 18mm; display: flex; justify-content: space-between">
<span>Fusing Sideways</span><span class="pageNumber"></span></div>"""
PAPER = {
    "format": "A4",
    "margin": {"top": "18mm", "bottom": "20mm", "left": "18mm", "right": "18mm"},
    "print_background": True,
    "display_header_footer": True,
    "header_template": "<span></span>",
    "footer_template": FOOTER,
    "outline": True,  # bookmarks, from the headings
    "tagged": True,  # for screen readers
}
# What is of use on a screen only.
SCREEN = "a.headerlink, summary"
HEADINGS = ("h4", "h3", "h2", "h1")


def launched(playwright):
    """An installed Chromium or Chrome, running; None if there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    # Chrome is not on the PATH of every system; Playwright knows its usual places.
    where = {"executable_path": found} if found else {"channel": "chrome"}
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    try:
        return playwright.chromium.launch(args=flags, **where)
    except Error:
        return None


def contents():
    """[(a part's caption, its pages), …] in reading order, the cover first without one."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    parts = [
        (part["caption"], [chapter["file"] for chapter in part["chapters"]])
        for part in toc["parts"]
    ]
    return [("", [toc["root"]]), *parts]


def name_of(page, fragment=""):
    """An anchor's name in the one page: those of different pages must not meet."""
    return f"{page.replace('/', '-')}--{fragment}"


def article(site, page, below_a_part):
    """The article of a built page, its links and pictures good in the one page.

    below_a_part: its headings go down by one, so that they are bookmarks below the part.
    """
    html = (site / f"{page}.html").read_text(encoding="utf-8")
    found = BeautifulSoup(html, "html.parser").select_one("article.bd-article")
    for node in found.select(SCREEN):
        node.decompose()
    for node in found.select("details"):
        node.name = "div"
    for node in found.select("[id]"):
        node["id"] = name_of(page, node["id"])
    for node in found.select("a[href]"):
        node["href"] = _link(page, node["href"])
    for node in found.select("img[src]:not([src^='data:'])"):
        node["src"] = _below_the_site(page, node["src"])
    for below, heading in itertools.pairwise(HEADINGS) if below_a_part else ():
        for node in found.select(heading):
            node.name = below
    found["id"] = name_of(page)
    return found


def _below_the_site(page, path):
    """What a page calls `path`, as seen from the folder of the site."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), path))


def _link(page, href):
    """A link of a page as it has to be in the one page; others stay."""
    parts = urlsplit(href)
    if parts.scheme or parts.netloc or (parts.path and not parts.path.endswith(".html")):
        return href
    there = page
    if parts.path:
        there = _below_the_site(page, unquote(parts.path)).removesuffix(".html")
    return "#" + name_of(there, unquote(parts.fragment))


def one_page(site):
    """The whole book as one HTML page, which stands in the folder of the site."""
    front = (site / "index.html").read_text(encoding="utf-8")
    head = BeautifulSoup(front, "html.parser").head
    styles = "".join(map(str, head.select("link[rel=stylesheet]")))
    # The cover has no equations; any chapter brings the settings of MathJax.
    chapter = contents()[1][1][0]
    text = (site / f"{chapter}.html").read_text(encoding="utf-8")
    scripts = [
        str(script).replace("../_static", "_static")
        for script in BeautifulSoup(text, "html.parser").head.select("script")
        if "mathjax" in str(script).lower()
    ]
    body = []
    for caption, pages in contents():
        if caption:
            body.append(f'<h1 class="part">{caption}</h1>')
        body += [str(article(site, page, bool(caption))) for page in pages]
    print_css = (Path(__file__).parent / "print.css").read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8">'
        f"<title>Fusing Sideways</title>{styles}<style>{print_css}</style>"
        f"{''.join(scripts)}</head><body><main>{''.join(body)}</main></body></html>"
    )


def print_book(chromium, site, path):
    """Write the PDF with a running browser, whole or not at all."""
    page_file, unfinished = site / "one-page.html", path.with_suffix(".unfinished")
    page = chromium.new_page()
    try:
        page_file.write_text(one_page(site), encoding="utf-8")
        page.set_default_timeout(300_000)
        page.goto(page_file.as_uri())
        page.wait_for_function("window.MathJax && MathJax.startup.promise")
        page.evaluate("MathJax.startup.promise")
        page.pdf(path=unfinished, **PAPER)
        mend(unfinished)
        os.replace(unfinished, path)
    finally:
        page.close()
        page_file.unlink(missing_ok=True)
        unfinished.unlink(missing_ok=True)


def mend(path):
    """Say whose book it is, and say a bookmark's title once.

    Chromium says it twice for a heading that it first laid out on the page before.
    """
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # Chromium counts its objects short
    writer = PdfWriter(clone_from=path)
    writer.add_metadata(
        {"/Title": "Fusing Sideways", "/Author": "The Fusing Sideways authors"}
    )
    left = [writer.root_object["/Outlines"]]
    for item in left:
        left += (link.get_object() for link in map(item.get, ("/First", "/Next")) if link)
        title = str(item.get("/Title", ""))
        half = title[: len(title) // 2]
        if half and title == 2 * half:
            item[NameObject("/Title")] = TextStringObject(half)
    writer.write(path)


if __name__ == "__main__":
    with sync_playwright() as playwright:
        chromium = launched(playwright)
        if chromium is None:
            sys.exit("make pdf needs Chromium or Chrome (Debian: apt install chromium)")
        print_book(chromium, Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
    print(sys.argv[2])
