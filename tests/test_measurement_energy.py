"""Energy from made-up RAPL counters whose change is known."""

import time

import pytest
import torch

from edgemin_utils.measurement import energy


def write_zone(folder, zone: str, name: str, counter: int, wrap: int = 10_000_000):
    (folder / zone).mkdir(exist_ok=True)
    for file, value in (("name", name), ("energy_uj", counter), ("max_energy_range_uj", wrap)):
        (folder / zone / file).write_text(f"{value}\n")


def test_packages_are_added_and_their_parts_are_not(tmp_path):
    write_zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    write_zone(tmp_path, "intel-rapl:1", "package-1", 2_000_000)
    write_zone(tmp_path, "intel-rapl:0:0", "core", 100)
    write_zone(tmp_path, "intel-rapl:2", "psys", 100)

    def work():
        write_zone(tmp_path, "intel-rapl:0", "package-0", 2_500_000)
        write_zone(tmp_path, "intel-rapl:1", "package-1", 2_250_000)
        write_zone(tmp_path, "intel-rapl:0:0", "core", 900_000)
        write_zone(tmp_path, "intel-rapl:2", "psys", 900_000)

    found = energy.cpu_energy(work, folder=tmp_path)
    assert found["joules"] == pytest.approx(1.5 + 0.25)
    assert found["source"] == "RAPL package counters"


def test_a_counter_that_wraps_goes_on(tmp_path):
    write_zone(tmp_path, "intel-rapl:0", "package-0", 9_900_000)
    found = energy.cpu_energy(lambda: write_zone(tmp_path, "intel-rapl:0", "package-0", 100_000), folder=tmp_path)
    assert found["joules"] == pytest.approx(0.2)


def test_without_counters_energy_is_not_measured_but_cpu_seconds_are(tmp_path):
    def work():
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    found = energy.cpu_energy(work, repeats=2, folder=tmp_path)
    assert (found["joules"], found["source"]) == (None, "not measured")
    assert 0.1 <= found["cpu_seconds"] < 0.2
    assert found["repeats"] == 2


def test_waiting_takes_wall_time_and_no_cpu_seconds(tmp_path):
    found = energy.cpu_energy(lambda: time.sleep(0.1), folder=tmp_path)
    assert found["wall_seconds"] >= 0.1
    assert found["cpu_seconds"] < 0.05


def test_one_unreadable_package_makes_the_sum_unknown(tmp_path):
    write_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    write_zone(tmp_path, "intel-rapl:1", "package-1", 1)
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert energy.read_packages(tmp_path) == {}
    assert energy.cpu_energy(lambda: None, folder=tmp_path)["source"] == energy.NOT_MEASURED


def test_a_forwards_share_of_the_work_and_the_threads_are_put_back():
    calls, threads = [], torch.get_num_threads()
    found = energy.forward_energy(
        lambda inputs: calls.append((inputs, torch.get_num_threads())) or sum(range(200_000)), "batch", 1, repeats=5
    )
    assert calls == [("batch", 1)] * 6 and torch.get_num_threads() == threads  # one warm-up
    assert found["repeats"] == 5 and found["threads"] == 1
    assert 0 < found["cpu_seconds"] < 1 and found["wall_seconds"] >= 0.5 * found["cpu_seconds"]


def test_a_forward_takes_a_repeats_share_of_what_was_measured(monkeypatch):
    """Five forwards in 5 CPU-seconds, 10 seconds and 20 joules, or without counters."""
    for joules, share in ((20.0, 4.0), (None, None)):
        measured = {"cpu_seconds": 5.0, "wall_seconds": 10.0, "joules": joules, "source": "made up"}
        monkeypatch.setattr(
            energy, "cpu_energy", lambda work, repeats, measured=measured: {"repeats": repeats, **measured}
        )
        found = energy.forward_energy(lambda inputs: inputs, "batch", 1, repeats=5)
        wanted = {"cpu_seconds": 1.0, "wall_seconds": 2.0, "joules": share, "source": "made up"}
        assert found == {"threads": 1, "repeats": 5, **wanted}
