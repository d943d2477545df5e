"""What the pages need beyond the options of the theme: a Sphinx extension."""

import html
import json
import re
from pathlib import Path

import launch
import plain
import terms
from sphinx.search.en import SearchEnglish

# Of HTML that docutils and its extensions write: roles that ARIA no longer has, or has
# elsewhere, and a name that hides what a fold says of itself.
WRONG = {
    '<div role="list" class="citation-list">': '<div class="citation-list">',
    ' role="doc-biblioentry"': "",
    '<summary aria-label="Toggle hidden content">': "<summary>",
    '<section id="exercise-content">': "<section>",  # the same on every exercise
    '<section id="solution-content">': "<section>",
}

# What one plays with on a page: the keyboard gets there by a link at the page's beginning.
MOVES = re.compile(r"<(?:fs-player|fs-walk|\w+ [^>]*\bdata-(?:lab|case)\b)")
THERE = '<span id="moves" tabindex="-1"></span>'
TO_MOVES = '<p class="fs-skip"><a href="#moves">Skip to what moves on this page</a></p>'

# Fewer than eight lines. On paper they stay together, and CSS cannot count: a box with
# padding minds no `orphans`.
SHORT = re.compile(r"<pre>(?=(?:[^\n]*\n){0,7}</pre>)")

# Of MathJax, which sphinx-mathjax-offline copies whole: what the pages can ask for.
MATHJAX = ("tex-chtml.js", "output/chtml/", "input/tex/", "a11y/", "sre/", "ui/")


def setup(app):
    SearchEnglish.split = words
    launch.setup(app)
    app.connect("source-read", plain.read)
    app.connect("env-get-updated", count_on_each_page, priority=900)
    app.connect("html-page-context", mend)
    app.connect("html-page-context", keep_text)
    app.connect("build-finished", write_texts)
    app.connect("build-finished", drop_unused)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def count_on_each_page(app, env):
    """Figures outside of chapters are counted on each page, as its notebook says.

    Sphinx, which has counted them before this, goes on from page to page.
    """
    for kinds in env.toc_fignumbers.values():
        for numbers in kinds.values():
            if all(len(number) == 1 for number in numbers.values()):
                numbers.update({name: (i,) for i, name in enumerate(numbers, 1)})
    return []


def mend(app, page, template, context, doctree):
    """Replace what is WRONG, mark what is SHORT, and lead the keyboard to what MOVES."""
    body = context.get("body", "")
    for wrong, right in WRONG.items():
        body = body.replace(wrong, right)
    body = SHORT.sub('<pre class="fs-short">', body)
    body, moves = MOVES.subn(lambda begin: THERE + begin[0], body, count=1)
    context["body"] = (TO_MOVES if moves else "") + body


def words(language, text):
    """What the search finds a text by: its words, and the glossary's terms closed up.

    "1×1" is one word, and "Q, K and V" is also "qkv". `_static/search.js` does the same to
    what a reader types.

    >>> words(None, "a 1×1 convolution, for Q, K and V")
    ['a', '1×1', 'convolution', 'for', 'Q', 'K', 'and', 'V', '1×1convolution', 'qkv']
    """
    found = (term for term, like in terms.TERMS.items() if re.search(like, text, re.I))
    return re.findall(r"\w+(?:×\w+)*", text) + [closed_up(term) for term in found]


def closed_up(term):
    return "".join(re.findall(r"[^\W_]|×", term)).lower()


NO_TEXT = re.compile(
    r'(?s)<(script|style|svg)\b.*?</\1>|<a class="headerlink".*?</a>|<[^>]+>'
)


def keep_text(app, page, template, context, doctree):
    """Keep what a page says, for the search to quote, which may not open it from a file."""
    if doctree:
        text = html.unescape(NO_TEXT.sub("", context["body"]))
        app.__dict__.setdefault("texts", {})[page] = " ".join(text.split())


def write_texts(app, error):
    """Write what all pages say, as a script that only the search loads."""
    known = {closed_up(term): like for term, like in terms.TERMS.items()}
    texts = {"pages": getattr(app, "texts", {}), "terms": known}
    texts = json.dumps(texts, ensure_ascii=False)
    script = f'window.dispatchEvent(new CustomEvent("texts", {{ detail: {texts} }}));\n'
    (Path(app.outdir) / "searchtexts.js").write_text(script, encoding="utf-8")


def drop_unused(app, error):
    """Delete from the built pages what none of them loads: two thirds of their bytes."""
    static = Path(app.outdir) / "_static"
    mathjax = static / "mathjax"
    for path in list(mathjax.rglob("*")):
        name = path.relative_to(mathjax).as_posix()
        if path.is_file() and not name.startswith(MATHJAX):
            path.unlink()
    for path in list(static.rglob("*.map")):
        path.unlink()
