"""The glossary's terms: each is linked from its first use in each chapter.

    python tests/terms.py chapters/*.ipynb     sets the links that are missing

Headings, code, mathematics, citations and links are no uses.
"""

# ruff: noqa: E501, one line a term

import re
import sys
from pathlib import Path

import nbformat

GLOSSARY = Path(__file__).resolve().parent.parent / "back" / "glossary.md"

# What counts as a mention of a term in prose: plurals and variants, and nothing unrelated.
TERMS = {
    "1×1 convolution": r"\b1×1(?:-| )convolutions?\b",
    "activation": r"\bactivations?\b",
    "all-reduce": r"\ball[- ]?reduc(?:e|es|ed|ing)\b",
    "arithmetic intensity": r"\barithmetic intensit(?:y|ies)\b|\bFLOPs a byte\b",
    "arm": r"\b(?:all|each|every|the|its|these|an|another|two|next) arms?\b",
    "batch norm": r"\bbatch[- ]norms?\b|\bbatch normali[sz]ation\b",
    "branch": r"\bbranch(?:es)?\b",
    "break-even": r"\bbreaks?[- ]even\b",
    "channels last": r"\bchannels[- ]last\b",
    "checkpoint": r"\bcheckpoints?\b",
    "column-parallel": r"\bcolumn[- ]parallel(?:ism)?\b",
    "contiguous": r"\b(?:non-)?contiguous(?:ly)?\b",
    "CUDA graph": r"\bCUDA graphs?\b",
    "depthwise convolution": r"\bdepthwise\b",
    "device": r"\bdevices?\b",
    "dilation": r"\bdilat(?:ion|ions|ed)\b",
    "dispatch": r"\bdispatch(?:es|ed|ing|er|ers)?\b",
    "eager": r"\beager(?:ly)?\b",
    "embedding": r"\bembed(?:s|ded|dings?)?\b(?! (?:layer|table|vector))",
    "epilogue": r"\bepilogues?\b",
    "equal within rounding": r"\b(?:equal|same|agree)[^.;:]{0,20}?,? \*?within rounding\b",
    "eval mode": r"\beval[- ]mode\b",
    "exactly equal": r"\bexactly equal\b|\b(?:equal|agree|agrees|agreed) exactly\b|\bbit for bit\b",
    "FLOP": r"\b(?:tera|giga)?FLOPs?\b(?!/)",
    "folding": r"\b(?:un)?fold(?:s|ed|ing)?\b",
    "gain": r"\b(?<!to )(?<!lost, )gains?\b(?! (?:nothing|anything|less))",
    "gated MLP": r"\bgated MLPs?\b",
    "GEMM": r"\b(?<!implicit )GEMMs?\b",
    "gloo": r"\bgloo\b",
    "graph": r"\b(?<!CUDA )graphs?\b",
    "grid": r"\bgrids?\b",
    "group": r"\bgroups? of siblings\b|\b(?:each|every|one) group\b(?! of (?!siblings\b))",
    "grouped convolution": r"\bgrouped[- ]convolutions?\b",
    "grouped-query attention": r"\bgrouped[- ]query[- ]attention\b",
    "hidden copy": r"\bhidden (?:copy|copies|reorders?)\b",
    "hoisting": r"\bhoist(?:s|ed|ing)?\b",
    "hook": r"\bhooks?\b",
    "horizontal fusion": r"\bhorizontal(?:ly)? fus(?:ion|ions|ed|ing)\b|\bfus(?:e|es|ed|ing) sideways\b",
    "host": r"\bhosts?\b",
    "im2col": r"\bim2col\b",
    "implicit GEMM": r"\bimplicit GEMMs?\b",
    "in-place": r"\bin[- ]place\b(?! of\b)",
    "Inception module": r"\bInception modules?\b",
    "inflation": r"\binflat(?:ion|ions|ed)\b",
    "kernel": r"\bkernels?\b(?! too\b)",
    "lab": r"\blabs?\b(?<!make lab)",
    "launch": r"\blaunch(?:es|ed|ing)?\b",
    "LoRA adapter": r"\bLoRA\b(?: adapters?)?",
    "mask": r"\bmasks?\b(?! them\b)",
    "max-autotune": r"\bmax[-_ ]autotune\b",
    "median and quartiles": r"\bmedians?\b(?: and (?:the )?quartiles?\b)?|\bquartiles?\b",
    "multiprocessor": r"\bmultiprocessors?\b",
    "NCHW": r"\bNCHW\b",
    "NHWC": r"\bNHWC\b",
    "node": r"\bnodes?\b",
    "occupancy": r"\boccupanc(?:y|ies)\b",
    "operator": r"\boperators?\b(?! such as `\+=`)",
    "padding": r"\b(?:padding|padded)\b",
    "page fault": r"\bpage[- ]faults?\b|\bpages? of memory\b|\b(?:many|more|for|no) pages\b(?! and\b)",
    "plan": r"\b(?:the|a|its) plans?\b",
    "process": r"\b(?:two|four|several|each|every|between|across|all|other) process(?:es)?\b",
    "program": r"\bprograms? of (?:a|one|the) (?:launch|kernel|matrix multiply)\b|\bone program\b|\beach program\b|\bother programs\b",
    "projection": r"\bprojections?\b",
    "Q, K, V": r"\bQ, ?K,?(?: and| or)? ?V\b|\bquer(?:y|ies), keys? and values?\b",
    "rank": r"\branks? [0-9]\b|\b(?:each|every|a process's|its own) ranks?\b",
    "record": r"\b(?:a|an|the|one|no|new|every|from|these|those|any|its) records?\b|\brecords\b(?! gradients)(?<!it records)",
    "register": r"\bregisters?\b",
    "reorder": r"\breorder(?:s|ed|ing)?\b",
    "ridge": r"\bridges?\b",
    "roofline": r"\brooflines?\b",
    "round": r"\b(?:each|every|within a|within each|all|over the|the next) rounds?\b|\bround by round\b|\brounds in four\b",
    "rounding bound": r"\brounding bounds?\b",
    "routing": r"\brouting\b",
    "row-parallel": r"\brow[- ]parallel(?:ism)?\b",
    "sharding": r"\bshard(?:s|ed|ing)?\b",
    "sibling": r"\bsiblings?\b",
    "split": r"\b(?:(?:a|the|one|no|its|every) splits?|split (?:is|itself|at all|that copies|can|layer)|splitting)\b",
    "stack": r"\bstack(?:s|ed|ing)?\b",
    "state_dict": r"\bstate[_ ]dicts?\b",
    "stream": r"\bstreams?\b",
    "stride": r"\bstrid(?:e|es|ed)\b",
    "tensor core": r"\btensor[- ]cores?\b",
    "TF32": r"\bTF32\b",
    "tile": r"\btiles?\b",
    "torch.compile": r"\btorch\.compile\b",
    "torch.fx": r"\btorch\.fx\b",
    "tracing": r"\b(?:tracing|traced|traces?)\b",
    "Triton": r"\bTriton\b(?!'s interpreter)",
    "version": r"\bat one version\b|(?<=~)version(?=~)|\bversions of a memory\b",
    "vertical fusion": r"\bvertical(?:ly)? fus(?:ion|ions|ed|ing)\b",
    "view": r"\b(?<!\.)views?\b(?!\()",
    "warm-up": r"\bwarm(?:s|ed|ing)?[- ]up\b",
    "wave": r"\bwaves?\b",
    "WebGPU": r"\bWebGPU\b(?!'s)",
    "WGSL": r"\bWGSL\b",
    "window": r"\bwindows?\b",
}

# What is not read: fences and their options, headings, code, mathematics, roles, links.
APART = re.compile(
    r"""^```(?:python|sh|text|bibtex)\n.*?^```                     # code
    | ^(?:```|:::)[^\n]*$ | ^:\w[\w-]*:[^\n]*$ | ^\#[^\n]*$        # lines of their own
    | \$\$.*?\$\$(?:[ ]\(eq-[\w-]+\))? | (?<!\\)\$[^$]+\$   # mathematics
    | \{[\w:]+\}`[^`]*` | ``[^`]+`` | `[^`]*`                     # roles and code
    | !?\[[^\]]*\]\([^)]*\)                                       # links
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\{term\}`([^`<]*?)\s*(?:<([^`>]*)>)?`")


def defined():
    """The terms of the glossary, as the page has them."""
    lines = GLOSSARY.read_text(encoding="utf-8").splitlines()
    start = lines.index("```{glossary}")
    return [line for line in lines[start + 1 :] if line and line[0] not in " `"]


def prose(source):
    """A cell's text: spaces for the ends of lines, and ~ for what is not read."""
    blank = APART.sub(lambda found: "~" * len(found[0]), source).replace("*", "~")
    return re.sub(r"\s", " ", blank)


def missing(notebook):
    """First uses that are not links: {term: (cell, start, end)}."""
    cells = [c for c in notebook.cells if c.cell_type == "markdown"]
    linked = {}
    for number, cell in enumerate(cells):
        for found in LINK.finditer(cell.source):
            linked.setdefault(found[2] or found[1], (number, found.start()))
    wanted = {}
    for term, pattern in TERMS.items():
        for number, cell in enumerate(cells):
            found = re.search(pattern, prose(cell.source), re.IGNORECASE)
            if found:
                if linked.get(term, (len(cells), 0)) > (number, found.start()):
                    wanted[term] = (number, found.start(), found.end())
                break
    return wanted


def without_links(source, term):
    """A cell's text with the links to one term as plain words."""

    def plain(found):
        return found[1] if (found[2] or found[1]) == term else found[0]

    return LINK.sub(plain, source)


def link(notebook):
    """Make every first use a link, in place; longer terms first, where two overlap."""
    cells = [c for c in notebook.cells if c.cell_type == "markdown"]
    while wanted := missing(notebook):
        term, (number, start, end) = max(wanted.items(), key=lambda item: len(item[0]))
        source = cells[number].source
        # A later link of this term was its first use until something was written before.
        for cell in cells:
            cell.source = without_links(cell.source, term)
        if cells[number].source != source:
            continue
        word = " ".join(source[start:end].split())
        target = "" if word == term else f" <{term}>"
        cells[number].source = f"{source[:start]}{{term}}`{word}{target}`{source[end:]}"


if __name__ == "__main__":
    for path in sys.argv[1:]:
        notebook = nbformat.read(path, as_version=4)
        before = sum(len(LINK.findall(cell.source)) for cell in notebook.cells)
        link(notebook)
        after = sum(len(LINK.findall(cell.source)) for cell in notebook.cells)
        nbformat.write(notebook, path)
        print(f"{path}: {before} -> {after} links")
