"""NF4Linear is the linear layer that holds its dequantised weight: values, gradients, moving, state."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import pack, random_model, random_samples

from pyft.model.attention import NAME, register_packed_attention
from pyft.model.forward import forward_logits
from pyft.model.layers.nf4_linear import NF4Linear
from pyft.model.layers.replace import linear_names, replace_module
from pyft.model.quantize import quantize_linears


def dense_twin(model):
    """The same model with each NF4 layer replaced by a linear layer of the dequantised weight."""
    twin = copy.deepcopy(model)
    for name in linear_names(twin):
        layer = twin.get_submodule(name)
        linear = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        linear.weight = torch.nn.Parameter(layer.dequantized(), requires_grad=False)
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
    parameters = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        expected = parameters[name].grad
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
    assert (layer.dequantized() - before).abs().max() < 0.16 * before.abs().max()
    with pytest.raises(ValueError, match=r"weight\.shape is \(40, 95\), layer expects \(40, 96\)"):
        layer.quantize_(before[:, :95])


def test_casting_the_model_leaves_the_storage_alone():
    layer = NF4Linear.from_linear(torch.nn.Linear(128, 64))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    for dtype in (torch.bfloat16, torch.float32):
        layer.to(dtype)
        for name, tensor in layer.state_dict().items():
            if name != "bias":
                assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name])
    moved = layer.to("meta")
    assert all(tensor.is_meta for tensor in moved.state_dict().values())


def test_state_holds_codes_and_scales_and_nothing_trains_but_the_bias():
    layer = NF4Linear.from_linear(torch.nn.Linear(128, 64), double_quant=True)
    assert set(layer.state_dict()) == {"bias", "codes", "absmax_codes", "nested_absmax", "offset"}
    assert layer.codes.dtype == torch.uint8 and layer.codes.numel() == 128 * 64 // 2
    plain = NF4Linear.from_linear(torch.nn.Linear(128, 64, bias=False), double_quant=False)
    assert set(plain.state_dict()) == {"codes", "absmax"}
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    other = NF4Linear.from_linear(torch.nn.Linear(128, 64))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.dequantized(), layer.dequantized())
