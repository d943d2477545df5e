"""An Inception module in two launches, in Triton, and what its kernels are made of.

`programs` has the Triton functions, `two_launches` the module that launches them, `tuning`
the choice of its tiles, and `cooperative` both launches in one, which is only compiled.
`compiling` compiles them all for a GPU that is not there and writes a table; `compiled`
reads it, and `occupancy` says how many programs a GPU holds at a time. Importing this
package does not import Triton: import the other modules by name.
"""

from . import compiled, occupancy

__all__ = ["compiled", "occupancy"]
