"""Data of the book: beside the notebook; or else, in an installed wheel, in the package."""

from pathlib import Path

SHIPPED = Path(__file__).parent / "book"  # only a wheel has it; pyproject.toml says what


def shipped(path: str | Path) -> Path:
    """`path`, or what the wheel brings along by this name, if only that is there.

    path: "../records", as a notebook in `chapters/` sees the book's folder. A folder that
    is there counts even if it is empty: a reader's own data come first.

    >>> shipped("../no-such-folder").name
    'no-such-folder'
    """
    path = Path(path)
    brought = SHIPPED / path.name
    return brought if brought.exists() and not path.exists() else path
