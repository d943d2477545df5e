"""An Inception module for any GPU, in WGSL, with the numbers that prove it right.

The kernels (`*.wgsl`) and what drives them in a page (`*.js`) are text that
`show.lab` puts into a cell's output; `generator` makes the same weights and images in
Python as `exact.js` does in the page.
"""

from . import generator

__all__ = ["generator"]
