"""What the pages need beyond the options of the theme: a Sphinx extension."""

import re
from pathlib import Path

import plain
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

# Of MathJax, which sphinx-mathjax-offline copies whole: what the pages can ask for.
MATHJAX = ("tex-chtml.js", "output/chtml/", "input/tex/", "a11y/", "sre/", "ui/")


def setup(app):
    # "1×1" is one word to the search; `_static/search.js` says so to the reader's side.
    SearchEnglish._word_re = re.compile(r"\w+(?:×\w+)*")
    app.connect("config-inited", offer_to_launch)
    app.connect("source-read", plain.read)
    app.connect("html-page-context", mend)
    app.connect("build-finished", drop_unused)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def offer_to_launch(app, config):
    """Buttons to Binder, the repository and its issues, once `_config.yml` has an address.

    Binder brings the whole folder, so the chapters find the library and the records.
    """
    theme = config.html_theme_options
    if theme.get("repository_url"):
        theme["launch_buttons"] = {
            "binderhub_url": "https://mybinder.org",
            "notebook_interface": "jupyterlab",
        }
        theme["use_repository_button"] = theme["use_issues_button"] = True


def mend(app, page, template, context, doctree):
    """Replace what is WRONG in the page that is about to be written."""
    for wrong, right in WRONG.items():
        context["body"] = context.get("body", "").replace(wrong, right)


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
