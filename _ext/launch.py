"""What a notebook's page offers at its top: where to open it, and what it needs there."""

import re
from pathlib import Path

BINDER = "https://mybinder.org"
COLAB = "https://colab.research.google.com"
KAGGLE = "https://kaggle.com/kernels/welcome?src="
GITHUB = "https://github.com/"
AFTER_THEME = 502  # the theme makes its buttons at 501


def setup(app):
    app.connect("config-inited", offer_services)
    app.connect("config-inited", bring_wheel)
    app.connect("html-page-context", add_buttons, priority=AFTER_THEME)


def offer_services(app, config):
    """Buttons to services that run notebooks, to the repository and to its issues, once
    `_config.yml` has an address.

    Binder brings the whole folder, so the chapters find the library and the records. Colab
    and Kaggle bring the notebook alone, from GitHub; its first cell installs the wheel.
    """
    theme = config.html_theme_options
    address = theme.get("repository_url")
    if not address:
        return
    services = {"binderhub_url": BINDER, "notebook_interface": "jupyterlab"}
    if address.startswith(GITHUB):
        services["colab_url"] = COLAB
    theme["launch_buttons"] = services
    theme["use_repository_button"] = theme["use_issues_button"] = True


def wheel(root):
    """Where `make wheel` puts the library of this version."""
    text = (Path(root) / "code" / "hfusion" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.*)"$', text, re.M)[1]
    return Path(root) / "_build" / f"hfusion-{version}-py3-none-any.whl"


def bring_wheel(app, config):
    """Put the wheel beside the pages, if it has been made."""
    if (made := wheel(app.srcdir)).exists():
        config.html_extra_path.append(str(made))


def add_buttons(app, page, template, context, doctree):
    """On a notebook's page: the wheel, in the menu of downloads; and Kaggle."""
    if context.get("page_source_suffix") != ".ipynb":
        return
    groups = {group.get("label"): group for group in context["header_buttons"]}
    made = wheel(app.srcdir)
    if str(made) in app.config.html_extra_path:
        downloads = groups["download-buttons"]["buttons"]
        downloads.insert(1, wheel_button(context["pathto"](made.name, 1)))
    theme = app.config.html_theme_options
    if theme.get("launch_buttons", {}).get("colab_url"):
        address, branch = theme["repository_url"].rstrip("/"), theme["repository_branch"]
        there = f"{address}/blob/{branch}/{page}.ipynb"
        groups["launch-buttons"]["buttons"].append(kaggle_button(there))


def wheel_button(url):
    return {
        "type": "link",
        "url": url,
        "text": ".whl",
        "icon": "fas fa-box-open",
        "tooltip": "Download what the notebook needs: the library and the records",
        "label": "download-wheel-button",
    }


def kaggle_button(notebook):
    return {
        "type": "link",
        "url": KAGGLE + notebook,
        "text": "Kaggle",
        "icon": "fa-brands fa-kaggle",
        "tooltip": "Launch on Kaggle",
    }
