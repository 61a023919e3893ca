"""Training with stops."""

import pytest
import torch

from psmlib.bank.mlp_bank import Bank
from psmlib.data.toys import HG
from psmlib.nets.mlp import Plain
from psmlib.partition import TPSM_A
from psmlib.process import VP
from psmlib.training import fit
from psmlib.training.snapshots import kept, place, train

SMALL = Plain(hidden=(8,))
VP10 = VP(0.0, 10.0)


def run(stops, folder=None, **more):
    settings = dict(batch_size=8, seed=3) | more
    return train(Bank(SMALL, 2, seed=1), HG(), VP10, TPSM_A, stops=stops, folder=folder, **settings)


def test_a_long_run_holds_the_short_ones():
    long, short = run([50, 150]), run([50])
    assert torch.equal(long.banks[50].params, short.banks[50].params)
    assert not torch.equal(long.banks[50].params, long.banks[150].params)
    assert long.seconds[50] < long.seconds[150] and len(long.losses[150]) == 2


def test_a_second_call_reads_what_the_first_wrote(tmp_path):
    first = run([50, 100], tmp_path)
    again = run([50, 100], tmp_path)
    assert all(torch.equal(first.banks[n].params, again.banks[n].params) for n in (50, 100))
    assert again.seconds == first.seconds and again.losses == first.losses


def test_a_run_cut_short_goes_on_to_the_same_networks(tmp_path):
    whole = run([50, 150])
    run([50, 150], tmp_path)
    (tmp_path / "150.safetensors").unlink()
    cut = run([50, 150], tmp_path)
    assert torch.equal(whole.banks[150].params, cut.banks[150].params)


def test_whatever_stops_came_before_the_answer_is_complete(tmp_path):
    whole = run([50, 100, 150])
    for stops in ([100], [50, 100], [50], [100, 150], [50, 100, 150], [150]):
        found = run(stops, tmp_path)
        assert list(found.banks) == list(found.seconds) == list(found.losses) == stops
        assert all(torch.equal(found.banks[n].params, whole.banks[n].params) for n in stops)
        assert found.losses == {n: whole.losses[n] for n in stops}
    seconds = run([50, 100, 150], tmp_path).seconds
    (tmp_path / "150.safetensors").unlink()
    again = run([50, 100, 150], tmp_path).seconds
    assert again[50] == seconds[50] and 0 < again[50] < again[100]


def test_time_of_training_counts_earlier_calls(tmp_path):
    bank, path = Bank(SMALL, 2, seed=1), tmp_path / "run.safetensors"
    how = dict(batch_size=8, path=path, resume=True)
    first = [progress.seconds for progress in fit(bank, HG(), VP10, TPSM_A, updates=50, **how)][-1]
    again = [progress.seconds for progress in fit(bank, HG(), VP10, TPSM_A, updates=100, **how)][-1]
    only = [progress.seconds for progress in fit(bank, HG(), VP10, TPSM_A, updates=100, **how)][-1]
    assert 0 < first < only <= again


def test_another_run_in_the_same_folder_is_refused(tmp_path):
    run([50], tmp_path)
    (tmp_path / "50.safetensors").unlink()
    with pytest.raises(ValueError, match="batch_size = 8 but this run has 16"):
        run([50], tmp_path, batch_size=16)


def test_only_the_last_stop_may_lie_between_chunks():
    for stops in ([75, 150], [0, 50], []):
        with pytest.raises(ValueError, match="multiples of 50"):
            run(stops)
    assert sorted(run([50, 75]).banks) == [50, 75]


def test_only_long_profiles_keep_snapshots():
    assert place("psm_toys", "quick", "TY") is None
    assert place("psm_toys", "gpu", "TY", "SA-DPM (b = 12t)", 0).parts[-2:] == ("gpu", "TY_SA-DPM-b-12t_0")


def test_what_is_kept_is_made_once_for_the_same_things(tmp_path):
    made, path = [], tmp_path / "x.safetensors"

    def make():
        made.append(1)
        return {"x": torch.full((2,), float(len(made)))}

    first = kept(path, make, torch.ones(2), 3)
    assert torch.equal(kept(path, make, torch.ones(2), 3)["x"], first["x"]) and len(made) == 1
    assert float(kept(path, make, torch.ones(2), 4)["x"][0]) == 2.0  # of other things: anew
    path.write_bytes(path.read_bytes()[:-1])
    assert float(kept(path, make, torch.ones(2), 4)["x"][0]) == 3.0  # damaged: anew
    assert float(kept(None, make, torch.ones(2), 4)["x"][0]) == 4.0
