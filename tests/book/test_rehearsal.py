"""The first recording on a GPU, rehearsed on a made-up one.

What pages read is there in time, whatever raises, is out of memory, gives wrong results or
takes long to make.
"""

import dataclasses

import pytest
from made_up_gpu import COMPILED, bad_variants, made_up, recorded

from sideways import experiments, records, runs


@pytest.fixture
def gpu(monkeypatch):
    return made_up(monkeypatch)


NEEDS = {
    (name, str(parameters), variants)
    for needs in runs.READERS.values()
    for name, parameters, variants in needs
    if name != "memory"  # PyTorch keeps a GPU's memory itself
}


def test_what_pages_read_is_there_within_five_of_seven_minutes(gpu, tmp_path, capsys):
    run, met = recorded(gpu, tmp_path, 7)
    assert set(met) >= NEEDS, NEEDS - set(met)
    assert max(met[need] for need in NEEDS) < 300
    assert gpu.now_s < 7 * 60 + 20
    run.finish()
    assert run.status() == 1
    found = {path.stem: records.load(path) for path in run.place.glob("*.json")}
    assert set(found) == set(experiments.SHARES)
    for record in found.values():
        for case in record.cases:
            if case.samples:
                assert not set(case.samples) & set(bad_variants(gpu))
                assert case.skipped["disagrees"].startswith(records.WRONG)
                assert (
                    case.skipped["raises"] == "failed: ZeroDivisionError: division by zero"
                )
                assert case.skipped["out of memory"] == "out of memory"
    assert "  chapter 6             has what it needs" in run.report().splitlines()


def test_the_most_important_comes_first_even_in_a_minute_and_a_half(gpu, tmp_path, capsys):
    _, met = recorded(gpu, tmp_path, 1.5)
    have = {name for name, *_ in met}
    assert {"ceilings", "stopwatches", "launch_overhead", "module_ladder"} <= have


@pytest.mark.slow
def test_compilers_come_after_all_else(gpu, tmp_path, capsys, monkeypatch):
    order = []
    run = experiments.run

    def watched(name, device, *given):
        order.append((name, given[5]))
        return run(name, device, *given)

    monkeypatch.setattr(experiments, "run", watched)
    made, _ = recorded(gpu, tmp_path, 30)
    assert order == [
        *((name, False) for name in experiments.SHARES),
        *((name, True) for name in experiments.AGAIN),
    ]
    ladder_made = made.known("module_ladder")
    first = ladder_made.cases[0]
    assert {f"compile, {variant}" for variant in COMPILED} <= set(first.samples)
    assert dataclasses.asdict(first)["skipped"]["raises later"].startswith(records.FAILED)
