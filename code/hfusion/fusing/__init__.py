"""A whole network: judge its siblings, plan, fuse, undo; and what each call checks."""
