"""What a notebook's page offers: services once there is an address, the wheel once made."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import launch
import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("_config.yml", "_ext", "_static", "references.bib", "code/hfusion/__init__.py")
WHEEL = launch.wheel(ROOT).name
METADATA = {"language_info": {"name": "python"}}
GITHUB, GITLAB = "https://github.com/someone/book", "https://gitlab.com/someone/book"
AT_GITHUB = {
    "Binder": "https://mybinder.org/v2/gh/someone/book/main?urlpath=lab/tree/chapters/a.ipynb",
    "Colab": "https://colab.research.google.com/github/someone/book/blob/main/chapters/a.ipynb",
    "Kaggle": f"https://kaggle.com/kernels/welcome?src={GITHUB}/blob/main/chapters/a.ipynb",
}
AT_GITLAB = {
    "Binder": "https://mybinder.org/v2/gl/someone%2Fbook/main?urlpath=lab/tree/chapters/a.ipynb"
}


pytestmark = pytest.mark.slow  # builds a book for each


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A notebook and a text, with the book's configuration."""
    folder = tmp_path_factory.mktemp("book")
    skip = shutil.ignore_patterns("__pycache__")
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=skip)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "chapters").mkdir()
    cells = [nbformat.v4.new_markdown_cell("# A"), nbformat.v4.new_code_cell("1 + 1")]
    made = nbformat.v4.new_notebook(cells=cells, metadata=METADATA)
    nbformat.write(made, folder / "chapters" / "a.ipynb")
    (folder / "index.md").write_text("# A book\n", encoding="utf-8")
    contents = {"format": "jb-book", "root": "index", "chapters": [{"file": "chapters/a"}]}
    (folder / "_toc.yml").write_text(yaml.safe_dump(contents), encoding="utf-8")
    return folder


def build(book, address, wheel):
    """(the built pages, of the notebook's page and of the text's {button's text: link})."""
    config = (ROOT / "_config.yml").read_text(encoding="utf-8")
    assert config.count('  url: ""\n') == 1
    changed = config.replace('  url: ""\n', f'  url: "{address}"\n')
    (book / "_config.yml").write_text(changed, encoding="utf-8")
    shutil.rmtree(book / "_build", ignore_errors=True)
    if wheel:
        (book / "_build").mkdir()
        (book / "_build" / WHEEL).write_bytes(b"a wheel")
    program = Path(sysconfig.get_path("scripts")) / "jupyter-book"
    command = [program, "build", ".", "--all", "-W", "-n", "--keep-going"]
    built = subprocess.run(command, cwd=book, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    site = book / "_build" / "html"
    return site, *(buttons(site / page) for page in ("chapters/a.html", "index.html"))


def buttons(page):
    """{text: link} of the menus at the top of a page."""
    soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    links = soup.select(".article-header-buttons .dropdown-menu a")
    return {link.get_text().strip(): link["href"] for link in links}


def services(shown):
    return {text: link for text, link in shown.items() if text in AT_GITHUB}


def test_with_an_address_the_pages_of_notebooks_offer_services_and_the_wheel(book):
    site, notebook, text = build(book, GITHUB, wheel=True)
    assert services(notebook) == AT_GITHUB
    assert (site / "chapters" / notebook[".whl"]).read_bytes() == b"a wheel"
    assert [text for text in notebook if text[0] == "."] == [".ipynb", ".whl"]
    assert {"Repository", "Open issue"} <= set(text)
    assert services(text) == {}
    assert ".whl" not in text


def test_what_is_not_on_github_is_offered_to_binder_alone(book):
    _, notebook, _ = build(book, GITLAB, wheel=False)
    assert services(notebook) == AT_GITLAB
    assert ".whl" not in notebook


def test_without_an_address_there_is_the_wheel_alone(book):
    site, notebook, _ = build(book, "", wheel=True)
    assert list(notebook) == [".ipynb", ".whl"]
    assert (site / WHEEL).exists()


def test_the_guides_name_the_wheel_of_this_version():
    """By which a reader installs it."""
    for page in ("README.md", "index.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert f'pip install "{WHEEL}[notebook]"' in text, page
