"""The book's machinery: what its experiments measure, and what its pages show.

experiments/   one question a file; `variants`, `peers` and `circumstances` help them
recorder/      how an experiment is measured, on this machine, in so much time
records        a record: raw samples to a file and back, with its digest
runs           a run of several experiments: where their records go, and a report
apart          an experiment in a process of its own
command        `python -m hfusion record`
live, progress   measuring from a page; the bar that says how long it takes
figures/       drawings and plots
show/          what chapters print: tables, sources, moving pictures, labs
estimates, outcomes         what stacking should bring, and what it brought
arithmetic, predictions     what an H200 should show, worked out beforehand
shipped        data beside a notebook, or in the wheel
"""
