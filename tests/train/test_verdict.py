"""The sentence that a user gets, from rates made up by hand."""

import pytest

from dualenc.train.verdict import judge

PARTS = {"read": 9000.0, "decode": 100.0, "tokenize": 50_000.0, "collate": 40_000.0, "together": 98.0}
SETTINGS = {"workers": 2, "cores": 8, "cache": None, "decode": "fast", "stream": False, "accelerator": "cpu"} | {
    "batch_size": 64,
    "devices": 2,
    "step_samples": 32,
}


def verdict(loader, step, parts=PARTS, **settings):
    return judge({**parts, "loader": loader, "step": step}, SETTINGS | settings)


def test_a_slow_loader():
    found = verdict(loader=190.0, step=500.0)
    assert found.bottleneck == "data" and found.expected == 190.0
    assert found.workers_needed == 6  # 95 samples/s each
    assert found.text == (
        "the step takes 500 samples/s, the loader gives 190: data is the bottleneck; raise data.workers to at least 6, "
        "or set data.cache, which keeps decoded images in memory"
    )


def test_a_slow_step():
    found = verdict(loader=190.0, step=50.0)
    assert found.bottleneck == "compute" and found.expected == 50.0 and found.workers_needed is None
    assert found.text == "the step takes 50 samples/s, the loader gives 190: compute is the bottleneck"


def test_in_one_process_loading_and_training_take_turns():
    found = verdict(loader=100.0, step=300.0, workers=0)
    assert found.bottleneck == "data" and found.expected == pytest.approx(75.0)  # 1/100 + 1/300 = 1/75
    assert "75% of the time goes into loading" in found.text and found.workers_needed == 4  # 98 samples/s each
    assert "data.workers to at least 4" in found.text
    assert "25% of the time" in verdict(loader=300.0, step=100.0, workers=0).text


@pytest.mark.parametrize(
    ("settings", "said", "unsaid"),
    [
        ({"cores": 4}, "more than these 4 cores: 6 loader processes", "raise data.workers"),
        ({"cores": 6}, "raise data.workers to at least 6", "cores"),
        ({"decode": "exact"}, "data.decode fast", "disk"),
        ({"cache": 80, "decode": "exact"}, "data.workers", "data.decode"),
        ({"cache": 80}, "data.workers", "data.cache"),
        ({"stream": True}, "data.workers", "data.cache"),
        ({"parts": PARTS | {"read": 95.0}}, "faster disk: reading is the slowest part", "decode fast"),
    ],
)
def test_what_would_help(settings, said, unsaid):
    text = verdict(loader=190.0, step=500.0, **settings).text
    assert said in text and unsaid not in text


def test_parts_of_a_stream_are_unknown():
    found = verdict(loader=190.0, step=500.0, parts=dict.fromkeys(PARTS), stream=True)
    assert found.workers_needed == 6 and found.to_json()["samples_per_second"]["read"] is None
    assert "reading" not in str(found) and "the loader" in str(found)


def test_the_report_names_every_part():
    lines = str(verdict(loader=190.0, step=500.0)).splitlines()
    assert len(lines) == 8 and lines[1].split()[:4] == ["decoding", "and", "augmentation", "100"]
    assert lines[5].endswith("2 workers") and lines[6].endswith("cpu, 32 samples") and lines[7].startswith("the step")
    assert str(verdict(loader=190.0, step=5.0, step_samples=8)).splitlines()[6].endswith("cpu, 8 of 32 samples")
