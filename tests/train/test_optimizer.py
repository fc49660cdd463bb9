"""Parameter groups and AdamW: rates by depth, what decays, and the fused kernel against the plain one."""

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from dualenc.model.finetune import prepare
from dualenc.model.lora import Lora
from dualenc.train.optimizer import make_optimizer, parameter_groups, take_rates
from tests.model.test_blocks import DEEP, model_of
from tests.small import loaded


def by_name(model, groups):
    """Parameter name -> (rate, weight decay)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    pairs = [(names[id(p)], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_one_rate_gives_the_two_groups_of_before():
    model = loaded().model
    groups = parameter_groups(model, lr=0.3, weight_decay=0.2)
    trained = list(model.parameters())
    for group, members, decay in zip(
        groups, ([p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]), (0.2, 0.0), strict=True
    ):
        assert [id(p) for p in group["params"]] == [id(p) for p in members]
        assert group["lr"] == 0.3 and group["weight_decay"] == decay


def test_rates_fall_from_the_head_to_the_stem_of_each_tower():
    model = model_of("vit")  # 3 and 2 blocks
    found = by_name(model, parameter_groups(model, lr=1.0, weight_decay=0.2, layer_decay=0.5))
    expected = {
        "logit_scale": (1.0, 0.0),
        "visual.proj": (1.0, 0.2),
        "visual.ln_post.bias": (1.0, 0.0),
        "visual.transformer.resblocks.2.attn.in_proj_weight": (0.5, 0.2),
        "visual.transformer.resblocks.2.attn.in_proj_bias": (0.5, 0.0),
        "visual.transformer.resblocks.1.mlp.c_fc.weight": (0.25, 0.2),
        "visual.transformer.resblocks.0.ln_1.weight": (0.125, 0.0),
        "visual.conv1.weight": (0.0625, 0.2),
        "visual.class_embedding": (0.0625, 0.0),
        "text_projection": (1.0, 0.2),
        "ln_final.weight": (1.0, 0.0),
        "transformer.resblocks.1.mlp.c_fc.weight": (0.5, 0.2),
        "transformer.resblocks.0.mlp.c_fc.weight": (0.25, 0.2),
        "token_embedding.weight": (0.125, 0.2),
        "positional_embedding": (0.125, 0.2),
    }
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
def test_every_trained_parameter_is_in_one_group(kind, layer_decay):
    model = model_of(kind)
    prepare(model, image_blocks=1)
    groups = parameter_groups(model, 1e-3, 0.2, layer_decay)
    found = by_name(model, groups)
    assert found.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, (_, decay) in found.items():
        assert decay == (0.0 if model.get_parameter(name).ndim < 2 else 0.2)
    keys = [(group["lr"], group["weight_decay"]) for group in groups]
    assert len(set(keys)) == len(keys) and [lr for lr, _ in keys] == sorted((lr for lr, _ in keys), reverse=True)


def test_adapters_have_the_rate_of_their_block():
    model = model_of("vit")
    prepare(model, lora=Lora(rank=2))
    found = by_name(model, parameter_groups(model, 1.0, 0.2, 0.5))
    rates = {name: lr for name, (lr, _) in found.items() if name.startswith("visual.")}
    assert rates and all(lr == 0.5 ** (3 - int(name.split(".")[3])) for name, lr in rates.items())
    assert found["logit_scale"] == (1.0, 0.0)


@pytest.mark.parametrize("layer_decay", [0.0, -1.0, 1.01, float("nan")])
def test_a_decay_outside_its_range_is_refused(layer_decay):
    with pytest.raises(ValueError, match=r"model\.layer_decay is .*above 0 and at most 1"):
        parameter_groups(loaded().model, 1e-3, 0.2, layer_decay)


def problem():
    """Three tensors and their gradients over some steps."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((40, 30), (30,), ())]
    gradients = [[torch.randn(p.shape, generator=generator) for p in parameters] for _ in range(20)]
    return parameters, gradients


def adamw(parameters, gradients, rates, decays, betas):
    """Loshchilov & Hutter 2019, algorithm 2, in float64."""
    values = [p.detach().double() for p in parameters]
    first, second = ([torch.zeros_like(v) for v in values] for _ in range(2))
    for step, some in enumerate(gradients, 1):
        for i, gradient in enumerate(g.double() for g in some):
            first[i] = betas[0] * first[i] + (1 - betas[0]) * gradient
            second[i] = betas[1] * second[i] + (1 - betas[1]) * gradient**2
            scaled = first[i] / (1 - betas[0] ** step) / ((second[i] / (1 - betas[1] ** step)).sqrt() + 1e-8)
            values[i] = values[i] - rates[i] * decays[i] * values[i] - rates[i] * scaled
    return values


def test_it_is_adamw_with_each_groups_rate_and_decay_by_the_fused_kernel():
    parameters, gradients = problem()
    rates, decays, betas = (0.1, 0.02, 0.3), (0.2, 0.0, 0.0), (0.8, 0.97)
    expected = adamw(parameters, gradients, rates, decays, betas)
    groups = [
        {"params": [p], "lr": rate, "weight_decay": decay, "betas": betas}
        for p, rate, decay in zip(parameters, rates, decays, strict=True)
    ]
    optimizer = make_optimizer(groups)
    assert optimizer.defaults["fused"] is True and isinstance(optimizer, torch.optim.AdamW)
    for some in gradients:
        for parameter, gradient in zip(parameters, some, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    for parameter, value in zip(parameters, expected, strict=True):
        assert torch.allclose(parameter.detach().double(), value, atol=1e-5)


def test_the_fused_step_agrees_with_the_plain_one():
    (ours, gradients), (theirs, _) = problem(), problem()
    optimizers = [
        make_optimizer([{"params": ours, "lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.98)}]),
        torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1, betas=(0.9, 0.98), foreach=False),
    ]
    for some in gradients:
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            for parameter, gradient in zip(parameters, some, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


def test_a_device_without_the_kernel_gets_the_plain_one():
    there = torch.nn.Parameter(torch.zeros(2, device="meta"))
    here = torch.nn.Parameter(torch.zeros(2))
    groups = [{"params": [here], "lr": 0.1}, {"params": [there], "lr": 0.1}]
    assert make_optimizer(groups).defaults["fused"] is False


class Tiny(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.norms = torch.nn.Linear(4, 4), []

    def training_step(self, batch, _):
        return 1e3 * F.mse_loss(self.layer(batch), batch)

    def on_before_optimizer_step(self, _):
        self.norms.append(torch.nn.utils.get_total_norm([p.grad for p in self.parameters()]).item())

    def configure_optimizers(self):
        return make_optimizer([{"params": list(self.parameters()), "lr": 0.01, "weight_decay": 0.0}])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_clips_its_gradients(precision, tmp_path):
    """Lightning refuses to where the optimizer may undo a loss scale itself, which fused ones announce."""
    module = Tiny()
    seen = []
    module.configure_gradient_clipping = lambda optimizer, **settings: (
        module.clip_gradients(optimizer, **settings),
        seen.append(torch.nn.utils.get_total_norm([p.grad for p in module.parameters()]).item()),
    )
    trainer = pl.Trainer(
        max_steps=3,
        precision=precision,
        gradient_clip_val=0.5,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.randn(12, 4), batch_size=4))
    assert min(module.norms) > 1 and seen == pytest.approx([0.5] * 3, rel=1e-3)


def test_the_state_goes_through_a_checkpoint_of_plain_types(tmp_path):
    first, gradients = problem()
    second, _ = problem()
    states = []
    for parameters, resume in ((first, False), (second, True)):
        optimizer = make_optimizer([{"params": parameters, "lr": 0.01, "weight_decay": 0.1}])
        for step, some in enumerate(gradients):
            if resume and step == 10:
                torch.save(optimizer.state_dict(), tmp_path / "o.pt")
                optimizer = make_optimizer([{"params": parameters, "lr": 0.5, "weight_decay": 0.0}])
                optimizer.load_state_dict(torch.load(tmp_path / "o.pt", weights_only=True))
            for parameter, gradient in zip(parameters, some, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
        states.append(parameters)
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def stepped(lr, weight_decay):
    """An optimizer and a schedule that halves the rate, after one step; and how they stand in a checkpoint."""
    layer = torch.nn.Linear(2, 2)
    optimizer = make_optimizer(
        [{"params": [layer.weight], "lr": lr, "weight_decay": weight_decay, "betas": (0.9, 0.98)}]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule.step()
    return {"optimizer_states": [optimizer.state_dict()], "lr_schedulers": [schedule.state_dict()]}


def test_a_resumed_run_takes_the_rates_it_is_given():
    groups = [{"params": [None], "lr": 0.1, "weight_decay": 0.3, "betas": (0.5, 0.6)}]
    checkpoint = stepped(0.8, 0.0)
    take_rates(checkpoint, groups)
    (state,) = checkpoint["optimizer_states"][0]["param_groups"]
    assert state["lr"] == pytest.approx(0.05) and state["initial_lr"] == 0.1  # as far along the schedule
    assert state["weight_decay"] == 0.3 and state["betas"] == (0.5, 0.6)
    assert checkpoint["lr_schedulers"][0]["base_lrs"] == [0.1]
    same, before = stepped(0.8, 0.0), stepped(0.8, 0.0)
    take_rates(same, [{"params": [None], "lr": 0.8, "weight_decay": 0.0, "betas": (0.9, 0.98)}])
    assert same["optimizer_states"][0]["param_groups"] == before["optimizer_states"][0]["param_groups"]


def test_a_checkpoint_of_other_groups_is_refused():
    for groups in ([], [{"params": [None, None], "lr": 0.1, "weight_decay": 0.0, "betas": (0.9, 0.98)}]):
        with pytest.raises(ValueError, match=r"what is frozen, or model\.layer_decay, is"):
            take_rates(stepped(0.8, 0.0), groups)
