"""How `make lab` opens the book; JUPYTER_CONFIG_PATH names this folder.

Options of the command line come before it, and the reader's own configuration is read too.
Beside it lie custom.css, and in overrides.json defaults; what the reader sets in JupyterLab
overrides those.
"""

import os
import sys
from pathlib import Path

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelspec import get_kernel_dict
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager

HERE = Path(__file__).resolve().parent
BOOK = HERE.parent.parent


def about(display_name, language_info):
    """A notebook's metadata of its kernel."""
    spec = {"name": "python3", "language": "python", "display_name": display_name}
    return {"kernelspec": spec, "language_info": language_info}


# JupyterLab writes the kernel's into a notebook that it opens, which would mark each as
# changed and each saved one as different. So it is given them, and they are not kept.
SEEN = about(get_kernel_dict()["display_name"], IPythonKernel.language_info)
KEPT = about("Python 3", {"name": "python"})


def put(metadata, model):
    """Into a notebook of ours; one of another kernel keeps its own."""
    if model["type"] == "notebook" and model.get("content"):
        found = model["content"]["metadata"]
        if found.get("kernelspec", {}).get("name") == "python3":
            found.update(metadata)
    return model


class Chapters(AsyncLargeFileManager):
    """Notebooks whose file does not say which Python has opened them."""

    async def get(self, *args, **options):
        return put(SEEN, await super().get(*args, **options))

    async def save(self, model, path=""):
        return await super().save(put(KEPT, model), path)


c = get_config()  # noqa: F821
c.ServerApp.contents_manager_class = Chapters
c.ServerApp.root_dir = str(BOOK)
c.FileContentsManager.preferred_dir = str(BOOK / "chapters")  # listed first
# A container has no other user, and JupyterLab refuses root unless it is told.
c.ServerApp.allow_root = hasattr(os, "geteuid") and os.geteuid() == 0
c.ServerApp.tornado_settings = {"static_custom_path": str(HERE)}
c.LabApp.custom_css = True
c.LabApp.app_settings_dir = str(HERE)
# The reader's tabs of another project stay as they are.
c.LabApp.workspaces_dir = str(Path(sys.prefix) / "lab-workspaces")
