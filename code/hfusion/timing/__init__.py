"""Agree, then count, then race; and what it must cost."""
