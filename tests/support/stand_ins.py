"""What takes the place of time, and of calls that fail."""

import math

import torch

X = torch.arange(1.0, 5.0)


def raising(error):
    """A function that raises this error, whatever it is called with."""

    def call(*_, **__):
        raise error

    return call


class Clock:
    """Time passes when `spend` says so, and not otherwise; the alarm then rings."""

    def __init__(self):
        self.now_s, self.rings_s, self.ring = 0.0, math.inf, None

    def spend(self, seconds):
        until_s = self.now_s + seconds
        while self.rings_s <= until_s:
            self.now_s, self.rings_s = self.rings_s, math.inf
            self.ring()
        self.now_s = until_s

    def set(self, _, seconds, again=0):
        self.rings_s = self.now_s + seconds if seconds else math.inf

    def handle(self, _, handler):
        before, self.ring = self.ring, handler
        return before

    def variant(self, seconds, makes_s=0, value=lambda: X + X):
        """What makes a variant, in so many seconds, whose calls take so many."""

        def call():
            self.spend(seconds)
            return value()

        def make():
            self.spend(makes_s)
            return call

        return make
