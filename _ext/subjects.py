"""The book's index: names and terms, with the sections that say most about each.

The glossary's terms and the names below are looked for in the text of chapters and back
pages. The first section that mentions one, and the three that do so most often, get an
entry for it.
"""

import json
import re
from functools import cache
from pathlib import Path

import terms

ROOT = Path(__file__).resolve().parent.parent
MOST = 3
HEADING = re.compile(r"^##+ (?!(?:Exercise|Solution) \d)(.+)$", re.M)
ADDRESS = re.compile(r"https?://[^\s)]+|^```.*?^```", re.M | re.S)
LEFT_OUT = ("Solutions", "Summary")  # they repeat what others say

NAMES = """
    Adafactor; Adam=AdamW?; attention; autograd; bfloat16; DenseNet;
    diffusers; DTensor; float16; flatten_parameters; GoogLeNet; H100; H200;
    Hidet=[Hh]idet; Higham; Inductor; IOS; JPEG; Mao; Megatron-LM=Megatron; MetaFlow;
    MobileNet; Muon; ONNX Runtime; OpenVINO; Rammer; ResNet; SiLU; softmax;
    SqueezeNet; TASO; TensorRT; torch.export=torch\\.export; transformers; TVM; vLLM;
    Winograd; XLA; YCbCr
"""
NAMES = dict((one.strip() + "=" + one.strip()).split("=")[:2] for one in NAMES.split(";"))
FORMS = {term: re.compile(form, re.IGNORECASE) for term, form in terms.TERMS.items()}
FORMS |= {name: re.compile(rf"\b{form}\b") for name, form in NAMES.items()}


def sections(notebook):
    """(heading, text) for each section of a notebook; the part above the first has none."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells)
    parts = HEADING.split(text)
    found = list(zip(parts[1::2], parts[2::2], strict=True))
    return [one for one in found if one[0] not in LEFT_OUT]


def mentions(text):
    """{name or term: how often a text mentions it}, in whatever form."""
    read = " ".join(ADDRESS.sub("", text).split())
    found = {name: len(form.findall(read)) for name, form in FORMS.items()}
    return {subject: n for subject, n in found.items() if n}


@cache
def index():
    """{page: {heading: subjects}} for the whole book; page: "03-stack-the-weights"."""
    said = {}  # of a subject: [(how often, page, heading)]
    for path in [
        *sorted(ROOT.glob("chapters/*.ipynb")),
        *sorted(ROOT.glob("back/*.ipynb")),
    ]:
        for heading, text in sections(json.loads(path.read_text(encoding="utf-8"))):
            for subject, often in mentions(text).items():
                said.setdefault(subject, []).append((often, path.stem, heading))
    found = {}
    for subject, places in said.items():
        most = sorted(places[1:], key=lambda place: -place[0])[:MOST]
        for _, page, heading in [places[0], *most]:
            found.setdefault(page, {}).setdefault(heading, []).append(subject)
    return found


def add(text, page):
    """A cell's text with entries below its headings."""
    of_page = index().get(page, {})

    def entered(heading):
        title = numbered(page) + re.sub(r"[`*$;!]", "", heading[1])
        entries = [
            f"```{{index}} single: {name}; {title}\n```"
            for name in sorted(of_page.get(heading[1], ()))
        ]
        return "\n\n".join([heading[0], *entries])

    return HEADING.sub(entered, text)


def numbered(page):
    """Which chapter, so that sections of several can be told apart."""
    number = page.partition("-")[0]
    return f"{number} · " if number.isdecimal() else ""
