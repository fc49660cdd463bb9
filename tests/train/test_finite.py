"""Steps that are not finite leave everything as it was, and are told by their keys."""

import copy
from types import SimpleNamespace

import pytest
import torch

from dualenc.train.finite import MOST_IN_A_ROW, NonFinite, total_norm
from tests.train.conftest import read_log


class Towers(torch.nn.Module):
    """A little of everything that a step changes."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm = torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)

    def log(self, name, value):
        self.logged = getattr(self, "logged", {}) | {name: value}

    def forward(self, rows):
        return self.norm(self.layer(rows)).square().mean()


def trainer(step=0, logged=True, scaler=None, ranks=1):
    return SimpleNamespace(
        global_step=step,
        world_size=ranks,
        is_global_zero=True,
        precision_plugin=SimpleNamespace(scaler=scaler),
        _logger_connector=SimpleNamespace(should_update_logs=logged),
    )


def run(guard, towers, optimizer, batches, clip=None, scaler=None, logged=True):
    """A loop that calls what Lightning calls, in its order. batches: rows to train on, or (rows, factor of the gradients)."""
    guard.on_fit_start(None, towers)
    for step, batch in enumerate(batches):
        rows, factor = batch if isinstance(batch, tuple) else (batch, 1.0)
        at = trainer(step, logged, scaler)
        guard.on_train_batch_start(at, towers, {"key": [f"{step}-{i}" for i in range(len(rows))]}, step)
        optimizer.zero_grad()
        loss = towers(rows)
        guard.on_before_backward(at, towers, loss)
        loss.backward()
        for parameter in towers.parameters():
            parameter.grad *= factor
        guard.on_before_optimizer_step(at, towers, optimizer)
        if clip:
            torch.nn.utils.clip_grad_norm_(towers.parameters(), clip)
        optimizer.step()
        guard.on_train_batch_end(at, towers, None, None, step)


def everything(towers, optimizer):
    state = copy.deepcopy(towers.state_dict())
    for number, moments in optimizer.state_dict()["state"].items():
        state |= {f"{number} {name}": tensor.clone() for name, tensor in moments.items()}
    return state


GOOD = [torch.randn(6, 4, generator=torch.Generator().manual_seed(i)) for i in range(4)]
BAD_LOSS = torch.full((6, 4), float("nan"))
BAD_GRADIENT = (GOOD[0], float("inf"))


@pytest.mark.parametrize("bad", [BAD_LOSS, BAD_GRADIENT, (GOOD[0], float("nan"))])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_is_not_finite_might_as_well_not_have_been(bad, clip, fused):
    found = []
    for batches in (GOOD, [*GOOD[:2], bad, *GOOD[2:]]):
        towers = Towers()
        optimizer = torch.optim.AdamW(towers.parameters(), lr=0.1, weight_decay=0.3, fused=fused)
        run(NonFinite("skip"), towers, optimizer, batches, clip)
        found.append(everything(towers, optimizer))
    assert len(found[0]) == 7 + 3 * 4
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name
        assert torch.isfinite(tensor).all()


def test_it_is_told_once_with_steps_and_keys(caplog):
    towers, guard = Towers(), NonFinite("skip")
    optimizer = torch.optim.AdamW(towers.parameters(), fused=True)
    towers.device = torch.device("cuda")  # where nothing is looked at between logged steps
    many = torch.full((11, 4), float("inf"))
    run(guard, towers, optimizer, [GOOD[0], many, GOOD[1], BAD_GRADIENT], logged=False)
    assert not caplog.records and guard.steps == 0
    guard.on_save_checkpoint(trainer(), None, {"callbacks": {}})
    (record,) = caplog.records
    assert guard.steps == 2
    assert record.getMessage() == (
        "left out, as they would have spoilt the weights: the loss is nan at step 1 (batch: 1-0, 1-1, 1-2, 1-3, 1-4, 1-5, 1-6, "
        "1-7 and 3 more); the gradient's norm is inf at step 3 (batch: 3-0, 3-1, 3-2, 3-3, 3-4, 3-5)"
    )
    guard.on_save_checkpoint(trainer(), None, {"callbacks": {}})
    assert len(caplog.records) == 1 and guard.steps == 2  # told once


def trained(batches):
    towers = Towers()
    optimizer = torch.optim.AdamW(towers.parameters(), lr=0.1, fused=True)
    run(NonFinite("stop"), towers, optimizer, batches)
    return everything(towers, optimizer)


def test_it_stops_with_the_weights_as_they_were():
    towers = Towers()
    optimizer = torch.optim.AdamW(towers.parameters(), lr=0.1, fused=True)
    with pytest.raises(
        ValueError, match=r"the loss is nan at step 1 .*1-0, 1-1.*stops before.*model\.non_finite"
    ) as error:
        run(NonFinite("stop"), towers, optimizer, [GOOD[0], BAD_LOSS])
    assert "\n" not in str(error.value)
    after = everything(towers, optimizer)
    assert all(torch.equal(tensor, after[name]) for name, tensor in trained(GOOD[:1]).items())


def test_many_in_a_row_stop_a_run_that_skips():
    towers, guard = Towers(), NonFinite("skip")
    optimizer = torch.optim.AdamW(towers.parameters(), fused=True)
    spaced = [*[BAD_LOSS] * (MOST_IN_A_ROW - 1), GOOD[0]]
    run(guard, towers, optimizer, spaced * 2)
    assert guard.steps == 2 * (MOST_IN_A_ROW - 1) and towers.logged == {"train/non_finite_steps": guard.steps}
    with pytest.raises(ValueError, match=f"the last of {MOST_IN_A_ROW} steps in a row"):
        run(guard, towers, optimizer, [BAD_LOSS] * MOST_IN_A_ROW)


def test_the_counts_are_part_of_a_checkpoint():
    guard, again = NonFinite("skip"), NonFinite("skip")
    towers = Towers()
    run(guard, towers, torch.optim.AdamW(towers.parameters(), fused=True), [BAD_LOSS] * 3)
    again.load_state_dict(guard.state_dict())
    assert again.steps == 3 and guard.state_dict() == again.state_dict() == {"steps": 3, "overflows": 0, "row": 3}


def test_a_checkpoint_has_the_steps_that_nobody_had_looked_at_yet():
    """On a GPU, where steps are looked at when metrics are logged; Lightning asks for the state before the hook."""
    guard, towers = NonFinite("skip"), Towers()
    run(guard, towers, torch.optim.AdamW(towers.parameters(), fused=True), [BAD_LOSS] * 3)
    guard._pending, guard.steps, guard._row = [(3, ["a"], 1, torch.tensor([1.0, 1.0, float("nan"), 1.0]))], 0, 0
    checkpoint = {"callbacks": {guard.state_key: guard.state_dict()}}
    guard.on_save_checkpoint(trainer(), None, checkpoint)
    assert checkpoint["callbacks"][guard.state_key] == {"steps": 1, "overflows": 0, "row": 1}


def test_a_scaler_that_leaves_out_every_step_stops_the_run():
    guard = NonFinite("skip")
    overflow = torch.tensor([0.0, 1.0, 2.0, float("inf")])  # not by us, but left out; loss, norm
    guard._pending = [(step, ["a"], 1, overflow) for step in range(MOST_IN_A_ROW - 1)]
    guard.look(trainer())
    guard._pending = [(MOST_IN_A_ROW, ["a"], 1, overflow)]
    with pytest.raises(ValueError, match=f"the last of {MOST_IN_A_ROW} steps in a row"):
        guard.look(trainer())
    assert guard.steps == 0 and guard.overflows == MOST_IN_A_ROW


def test_overflows_are_the_scalers_own():
    """A gradient that overflows in half precision is left to GradScaler; a loss that is not finite counts."""
    towers, guard = Towers(), NonFinite("stop")
    optimizer = torch.optim.AdamW(towers.parameters())
    run(guard, towers, optimizer, [GOOD[0], BAD_GRADIENT], scaler=object())
    assert (guard.steps, guard.overflows) == (0, 1) and guard.skipped == 1
    assert towers.logged == {"train/non_finite_steps": 0, "train/overflow_steps": 1}
    with pytest.raises(ValueError, match="the loss is nan"):
        run(guard, towers, optimizer, [BAD_LOSS], scaler=object())


def test_the_norm_is_that_of_all_gradients_before_clipping():
    towers, guard = Towers(), NonFinite("stop")
    optimizer = torch.optim.AdamW(towers.parameters(), fused=True)
    assert total_norm(towers.parameters()) == 0
    run(guard, towers, optimizer, [(GOOD[0], 7.0)])
    kept = [p.grad.clone() for p in towers.parameters()]
    run(guard, towers, optimizer, [])
    expected = torch.cat([grad.double().flatten() for grad in kept]).norm()
    assert float(guard.norm) == pytest.approx(float(expected), rel=1e-6)
    run(guard, towers, optimizer, [(GOOD[0], 7.0)], clip=1e-3)
    assert float(total_norm(towers.parameters())) == pytest.approx(1e-3, rel=1e-2) and guard.norm > 0.1


def test_an_unknown_action_is_refused():
    with pytest.raises(ValueError, match=r"model\.non_finite 'ignore' is unknown; use stop or skip"):
        NonFinite("ignore")


def _spoilt(monkeypatch, *steps):
    """The loss is nan at some steps."""
    from dualenc.train.module import ContrastiveModule

    step = ContrastiveModule.training_step

    def spoilt(self, batch, number):
        return step(self, batch, number) * (float("nan") if self.global_step in steps else 1.0)

    monkeypatch.setattr(ContrastiveModule, "training_step", spoilt)


def test_a_run_goes_on_without_them(command, tmp_path, monkeypatch, caplog):
    _spoilt(monkeypatch, 2, 3)
    changes = {"data": {"val": None, "zeroshot": None}, "trainer": {"gradient_clip_val": 1.0}}
    assert command("fit", tmp_path / "run", "--model.non_finite", "skip", **changes) == 0
    told = [r.getMessage() for r in caplog.records if "left out, as" in r.getMessage()]
    assert len(told) == 2 and "the loss is nan at step 2 (batch: s0" in told[0]
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 8
    assert all(torch.isfinite(tensor).all() for tensor in state["state_dict"].values())
    assert {float(s["step"]) for s in state["optimizer_states"][0]["state"].values()} == {6.0}
    counted = read_log(tmp_path / "run" / "log" / "metrics.csv")["train/non_finite_steps"]
    assert dict(counted) == {2: 1.0, 3: 2.0, 4: 2.0, 5: 2.0, 6: 2.0, 7: 2.0}


def test_a_run_stops_and_its_last_checkpoint_is_good(command, tmp_path, monkeypatch, capsys):
    _spoilt(monkeypatch, 3)
    changes = {"data": {"val": None, "zeroshot": None}, "checkpoint": {"every_n_train_steps": 1}}
    assert command("fit", tmp_path / "run", **changes) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dualenc: error:")]
    assert len(lines) == 1 and "the loss is nan at step 3 (batch: s0" in lines[0] and "model.lr" in lines[0]
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 3
    assert all(torch.isfinite(tensor).all() for tensor in state["state_dict"].values())
    assert not (tmp_path / "run" / "encoder").exists()
