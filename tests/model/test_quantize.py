"""NF4Linear is the linear layer that holds its dequantised weight: values, gradients, moving, state."""

from __future__ import annotations

import contextlib
import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import pack, random_model, random_samples, saved_model

from pyft.errors import ConfigError
from pyft.model.adapters import trainable_state
from pyft.model.attention import NAME, register_packed_attention
from pyft.model.forward import forward_logits
from pyft.model.layers import nf4_linear
from pyft.model.layers.nf4_linear import NF4Linear
from pyft.model.layers.replace import linear_names, replace_module
from pyft.model.load import load_model
from pyft.model.quantize import quantize_linears

ROOT = Path(__file__).parents[2]


def dense_twin(model):
    """The same model with each NF4 layer replaced by a linear layer of the dequantised weight."""
    twin = copy.deepcopy(model)
    for name in linear_names(twin):
        layer = twin.get_submodule(name)
        linear = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        linear.weight = torch.nn.Parameter(layer.dense_weight(), requires_grad=False)
        linear.bias = layer.bias
        replace_module(twin, name, linear)
    return twin


@pytest.mark.parametrize("double_quant", [True, False])
def test_loss_and_gradients_equal_the_dequantised_model(double_quant):
    register_packed_attention()
    model = random_model("qwen2", attention=NAME)  # has biases
    names = quantize_linears(model, double_quant=double_quant)
    assert len(names) == 14 and all(isinstance(model.get_submodule(name), NF4Linear) for name in names)
    assert type(model.lm_head) is torch.nn.Linear
    twin = dense_twin(model)
    batch = pack(random_samples([1, 19, 7]))
    for each in (model, twin):
        logits = forward_logits(each, batch)
        torch.nn.functional.cross_entropy(logits, batch.targets[0]).backward()
    torch.testing.assert_close(
        forward_logits(model, batch), forward_logits(twin, batch), rtol=1e-4, atol=1e-4
    )
    parameters = trainable_state(model)
    assert parameters.keys() == trainable_state(twin).keys()
    for name, parameter in parameters.items():
        expected = twin.get_parameter(name).grad
        torch.testing.assert_close(
            parameter.grad, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item()
        )


def test_quantising_is_close_and_leaves_the_source_alone():
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 40)
    before = linear.weight.detach().clone()
    layer = NF4Linear.from_linear(linear)
    assert torch.equal(linear.weight, before)
    assert layer.bias is linear.bias
    # Half the widest gap of the codebook (0.3 of the block's largest magnitude) is the most it can be off.
    assert (layer.dense_weight() - before).abs().max() < 0.16 * before.abs().max()
    with pytest.raises(ValueError, match=r"weight\.shape is \(40, 95\), layer expects \(40, 96\)"):
        layer.quantize_(before[:, :95])


def test_casting_the_model_leaves_the_storage_alone():
    layer = NF4Linear.from_linear(torch.nn.Linear(128, 64))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    parts = dict(layer.named_parameters())
    casts = [
        lambda: layer.to(torch.bfloat16),
        lambda: layer.to("cpu", torch.float32),
        layer.bfloat16,
        layer.half,
        layer.double,
        layer.float,
    ]
    for cast in casts:
        cast()
        for name, tensor in layer.state_dict().items():
            if name != "bias":
                assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name])
    assert all(parameter is parts[name] for name, parameter in layer.named_parameters())
    layer.bfloat16()
    assert layer.bias.dtype == torch.bfloat16
    moved = layer.to("meta")
    assert all(tensor.is_meta for tensor in moved.state_dict().values())
    assert not any(parameter.requires_grad for name, parameter in layer.named_parameters() if name != "bias")


def test_state_holds_codes_and_scales_and_nothing_trains_but_the_bias():
    layer = NF4Linear.from_linear(torch.nn.Linear(128, 64), double_quant=True)
    assert set(layer.state_dict()) == {"bias", "codes", "absmax_codes", "nested_absmax", "offset"}
    assert layer.codes.dtype == torch.uint8 and layer.codes.numel() == 128 * 64 // 2
    plain = NF4Linear.from_linear(torch.nn.Linear(128, 64, bias=False), double_quant=False)
    assert set(plain.state_dict()) == {"codes", "absmax"}
    assert [name for name, parameter in layer.named_parameters() if parameter.requires_grad] == ["bias"]
    assert {name: (p.dtype, p.ndim) for name, p in layer.named_parameters() if name != "bias"} == {
        "codes": (torch.uint8, 1),
        "absmax_codes": (torch.uint8, 1),
        "nested_absmax": (torch.float32, 1),
        "offset": (torch.float32, 1),
    }
    other = NF4Linear.from_linear(torch.nn.Linear(128, 64))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.dense_weight(), layer.dense_weight())


def test_the_weight_moves_before_it_is_quantised(tmp_path, monkeypatch):
    devices = []
    quantize = nf4_linear.nf4_quantize

    def recorded(weight, **options):
        devices.append(weight.device.type)
        return quantize(weight, **options)

    monkeypatch.setattr(nf4_linear, "nf4_quantize", recorded)
    model = saved_model(tmp_path)
    quantize_linears(model, device="meta")
    assert model.model.layers[0].self_attn.q_proj.codes.is_meta
    with pytest.raises(ConfigError, match="without a value"):
        load_model(tmp_path, dtype=torch.float32, quantization="nf4", device="meta")
    assert devices == ["meta"] * 28


_SHARDED = """
import os, sys
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from pyft.model.layers.frozen_linear import frozen
from pyft.model.layers.lora_linear import LoRALinear
from pyft.model.layers.nf4_linear import NF4Linear

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
layers = []
for double_quant in (True, False):
    nf4 = NF4Linear.from_linear(torch.nn.Linear(96, 40), double_quant=double_quant)
    nf4.bias.requires_grad_(False)
    layers.append(LoRALinear(nf4, r=4, lora_alpha=8, lora_dropout=0.0))
    layers[-1].lora_A.data.normal_()
    layers[-1].lora_B.data.normal_()
x = torch.randn(5, 96)
expected = [layer(x) for layer in layers]
codes = layers[0].base.codes.numel()
for layer in layers:
    fully_shard(layer)
assert layers[0].base.codes.to_local().numel() == codes // 2
for layer, wanted in zip(layers, expected):
    y = layer(x)
    assert torch.equal(y, wanted), (y - wanted).abs().max()
    y.square().sum().backward()
    assert layer.lora_A.grad.full_tensor().abs().max() > 0 and layer.base.codes.grad is None
dist.barrier()
print("equal", flush=True)
os._exit(0)  # no more of gloo: its threads, ending with the interpreter, abort the process once in a while
"""


def test_the_parts_shard_between_two_processes(tmp_path):
    python, store = [sys.executable, "-W", "ignore", "-c", _SHARDED], str(tmp_path / "store")
    with contextlib.ExitStack() as stack:
        children = []
        for rank in range(2):
            command = [*python, str(rank), store]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            child = subprocess.Popen(command, text=True, cwd=ROOT, **pipes)
            children.append(stack.enter_context(child))
            stack.callback(child.kill)  # if the other fails, this one waits for it
        for child in children:
            out, err = child.communicate(timeout=300)
            assert (child.returncode, out) == (0, "equal\n"), err
