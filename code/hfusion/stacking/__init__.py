"""One layer made of several: who may be stacked, the stacked layer, its memory."""
