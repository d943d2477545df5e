"""The glossary's terms: the build links each from its first use in each notebook.

Headings, code, mathematics, citations and links are no uses.
"""

# ruff: noqa: E501, one line a term

import re
from pathlib import Path

GLOSSARY = Path(__file__).resolve().parent.parent / "back" / "glossary.md"

# What counts as a mention of a term in prose: plurals and variants, and nothing unrelated.
TERMS = {
    "1×1 convolution": r"\b1×1(?:-| )convolutions?\b",
    "activation": r"\bactivations?\b",
    "alias": r"\balias(?:es|ed|ing)?\b",
    "all-reduce": r"\ball[- ]?reduc(?:e|es|ed|ing)\b",
    "arithmetic intensity": r"\barithmetic intensit(?:y|ies)\b|\bFLOPs a byte\b",
    "autocast": r"\bautocast\b",
    "barrier": r"\bbarriers?\b",
    "batch norm": r"\bbatch[- ]norms?\b|\bbatch normali[sz]ation\b",
    "branch": r"\bbranch(?:es)?\b",
    "break-even": r"\bbreaks?[- ]even\b",
    "channels last": r"\bchannels[- ]last\b",
    "check": r"\bchecks?(?= (?:have (?:two )?limits|takes? time|fails?)\b)",
    "checkpoint": r"\bcheckpoints?\b",
    "column-parallel": r"\bcolumn[- ]parallel(?:ism)?\b",
    "contiguous": r"\b(?:non-)?contiguous(?:ly)?\b",
    "CUDA graph": r"\bCUDA graphs?\b",
    "cuDNN": r"\bcuDNN\b",
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
    "latency": r"\blatenc(?:y|ies)\b",
    "launch": r"\blaunch(?:es|ed|ing)?\b",
    "LoRA adapter": r"\bLoRA\b(?: adapters?)?",
    "mask": r"\bmasks?\b(?! them\b)",
    "max-autotune": r"\bmax[-_ ]autotune\b",
    "median": r"\bmedians?\b",
    "multiprocessor": r"\bmultiprocessors?\b",
    "NCHW": r"\bNCHW\b",
    "NHWC": r"\bNHWC\b",
    "node": r"\bnodes?\b",
    "occupancy": r"\boccupanc(?:y|ies)\b",
    "oneDNN": r"\boneDNN\b",
    "operator": r"\boperators?\b(?! such as `\+=`)",
    "padding": r"\b(?:padding|padded)\b",
    "page fault": r"\bpage[- ]faults?\b|\bpages? of memory\b|\b(?:many|more|for|no) pages\b(?! and\b)",
    "plan": r"\b(?:the|a|its) plans?\b",
    "process": r"\b(?:two|four|several|each|every|between|across|all|other) process(?:es)?\b",
    "program": r"\bprograms? of (?:a|one|the) (?:launch|kernel|matrix multiply)\b|\bone program\b|\beach program\b|\bother programs\b",
    "projection": r"\bprojections?\b",
    "Q, K, V": r"\bQ, ?K,?(?: and| or)? ?V\b|\bquer(?:y|ies), keys? and values?\b",
    "quartile": r"\bquartiles?\b",
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
    "shared memory": r"\bshared memory\b",
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
    "variant": r"\bvariants?\b|\b(?:all|each|every|these|two) arms?\b",
    "version": r"\bat one version\b|(?<=~)version(?=~)|\bversions of a memory\b",
    "vertical fusion": r"\bvertical(?:ly)? fus(?:ion|ions|ed|ing)\b",
    "view": r"\b(?<!\.)views?\b(?!\()",
    "warm-up": r"\bwarm(?:s|ed|ing)?[- ]up\b",
    "warp": r"\bwarps?\b",
    "wave": r"\bwaves?\b",
    "WebGPU": r"\bWebGPU\b(?!'s)",
    "WGSL": r"\bWGSL\b",
    "window": r"\bwindows?\b",
}

# What is not read: fences and their options, headings, code, mathematics, roles, links.
APART = re.compile(
    r"""^```(?:python|sh|text|bibtex)\n.*?^```                     # code
    | ^(?:```|:::)[^\n]*$ | ^:\w[\w-]*:[^\n]*$ | ^\#[^\n]*$        # lines of their own
    | ^\([\w-]+\)=$                                              # labels
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


def blanked(source):
    """A cell's text with ~ for what is not read."""
    return APART.sub(lambda apart: "~" * len(apart[0]), source)


def prose(source):
    """The same, also for emphasis, and with spaces for the ends of lines."""
    return re.sub(r"\s", " ", blanked(source).replace("*", "~"))


def in_prose(pattern, replace, source):
    """`re.sub` in what is read of a cell's text."""
    parts, end = [], 0
    for found in pattern.finditer(blanked(source)):
        parts += [source[end : found.start()], replace(found)]
        end = found.end()
    return "".join([*parts, source[end:]])


def link(cells):
    """Make the first use of each term a link, in cells of text, dicts with "source".

    Longer terms first: "CUDA graph" is no use of "graph".
    """
    for term in sorted(TERMS, key=len, reverse=True):
        for cell in cells:
            source = cell["source"]
            if found := re.search(TERMS[term], prose(source), re.IGNORECASE):
                word = " ".join(source[found.start() : found.end()].split())
                role = f"{{term}}`{word}`" if word == term else f"{{term}}`{word} <{term}>`"
                cell["source"] = source[: found.start()] + role + source[found.end() :]
                break
