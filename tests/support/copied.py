"""What comes back of a model, or of anything, that is copied, pickled or saved."""

import copy
import io
import pickle

import torch


def saved(thing, weights_only=False):
    """What torch.save has written, as torch.load reads it."""
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


TOOLS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "torch.save": saved,
}
