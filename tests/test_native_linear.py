"""Products with weights on a CPU: against fp64, and what is left to PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

import madakv
from madakv.attention import backend
from madakv.native import build, linear, native_linears
from tests import tiny
from tests.tolerance import TOLERANCE, assert_same

BF16 = torch.bfloat16

built = pytest.mark.skipif(build.kernels() is None, reason="needs a C++ compiler")


def layer(K: int, N: int, bias: bool = True) -> nn.Linear:
    return nn.Linear(K, N, bias=bias).to(BF16).requires_grad_(False)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every product that the kernel makes."""
    kernels = build.kernels()
    assert kernels is not None
    seen: list[int] = []

    def counted(*arguments: int) -> None:
        seen.append(arguments[3])
        kernels.linear(*arguments)

    monkeypatch.setattr(linear, "kernels", lambda: kernels._replace(linear=counted))
    return seen


@built
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("K", "N"), [(32, 1), (96, 37), (4096, 64), (11008, 5)])
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 1), (1, 4), (5,), (6, 1), (7, 1), (2, 4)])
def test_it_is_the_product_rounded_once(shape: tuple[int, ...], K: int, N: int, bias: bool, calls: list[int]) -> None:
    module = layer(K, N, bias)
    x = torch.randn(*shape, K).to(BF16)
    with native_linears(module):
        got = module(x)
    assert calls == [x.numel() // K]
    want = x.double() @ module.weight.double().T + (module.bias.double() if bias else 0)
    assert got.dtype == BF16
    assert got.shape == (*shape, N)
    # Half a unit in the last of 8 places, and what sums of K products in fp32 are off by.
    assert ((got.double() - want).abs() <= 2**-8 * want.abs() + 1e-5).all()


@built
def test_what_is_not_a_number_stays_none_and_what_is_too_large_is_infinite(calls: list[int]) -> None:
    module = layer(32, 3, bias=False)
    module.weight.fill_(1.0)
    module.weight[1, 5] = float("nan")
    module.weight[2] = 3e38
    with native_linears(module):
        got = module(torch.ones(1, 32, dtype=BF16))
    assert calls == [1]
    assert got[0, 0] == 32
    assert got[0, 1].isnan()
    assert got[0, 2] == float("inf")


@built
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_it_is_the_same_with_any_number_of_threads(threads: int) -> None:
    module, x = layer(256, 1000), torch.randn(2, 256).to(BF16)
    before = torch.get_num_threads()
    with native_linears(module):
        want = module(x)
        torch.set_num_threads(threads)
        got = module(x)
    torch.set_num_threads(before)
    assert torch.equal(got, want)


@built
def test_what_it_cannot_serve_is_left_to_pytorch(calls: list[int]) -> None:
    module, x = layer(64, 8), torch.randn(4, 64).to(BF16)
    with native_linears(module):
        for other in (torch.randn(9, 64).to(BF16), torch.randn(64, 4).to(BF16).T, torch.empty(0, 64, dtype=BF16)):
            assert torch.equal(module(other), nn.functional.linear(other, module.weight, module.bias))
        with torch.autocast("cpu", dtype=torch.float16):
            assert module(x).dtype == torch.float16
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            module(torch.randn(1, 32).to(BF16))
        wide = x.clone().requires_grad_()
        module(wide).sum().backward()
        assert wide.grad is not None
        module.requires_grad_(True)
        assert module(x).requires_grad
        assert not calls
        with torch.no_grad():
            module(x)
        assert calls == [4]
        module.float()
        assert module(x.float()).dtype == torch.float32
        assert calls == [4]


class Other(nn.Linear):
    """A linear layer of somebody else's."""


@built
def test_other_layers_and_layers_with_a_forward_of_their_own_stay_as_they_are() -> None:
    def own(x: Tensor) -> Tensor:
        return x

    model = nn.ModuleList([layer(32, 4), Other(32, 4).to(BF16), nn.Linear(32, 4), layer(48, 4), layer(32, 4)])
    model[4].__dict__["forward"] = own
    with native_linears(model):
        assert ["forward" in module.__dict__ for module in model] == [True, False, False, False, True]
        assert model[4].__dict__["forward"] is own
    assert ["forward" in module.__dict__ for module in model] == [False, False, False, False, True]


@built
def test_layers_are_restored_after_an_exception() -> None:
    module = layer(32, 4)
    with pytest.raises(ValueError, match="outside"), native_linears(module):
        raise ValueError("outside")
    assert "forward" not in module.__dict__


@pytest.fixture
def chosen_anew() -> Iterator[None]:
    backend.chosen.cache_clear()
    yield
    backend.chosen.cache_clear()


@built
@pytest.mark.usefixtures("chosen_anew")
@pytest.mark.parametrize(("name", "serves"), [("torch", False), ("native", True), ("auto", True)])
def test_the_backend_decides(name: str, serves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.VARIABLE, name)
    module = layer(32, 4)
    with native_linears(module):
        assert ("forward" in module.__dict__) == serves


def test_without_a_compiler_pytorch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "kernels", lambda: None)
    module = layer(32, 4)
    with native_linears(module):
        assert "forward" not in module.__dict__


@built
@torch.no_grad()
def test_an_evicted_model_decodes_by_it(calls: list[int]) -> None:
    model = LlamaForCausalLM(tiny.text_config()).eval().to(BF16)
    prompt, new = torch.arange(20)[None], torch.tensor([[3]])
    want = model(new, past_key_values=model(prompt).past_key_values).logits
    with madakv.evict(model, budget=1.0):
        cache = model(prompt).past_key_values
        assert not calls
        got = model(new, past_key_values=cache).logits
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    assert calls == [1] * len(linears)
    assert not any("forward" in module.__dict__ for module in linears)
    assert_same(got, want, 4 * TOLERANCE[BF16])
