"""Products with weights on a CPU: against fp64, and what is left to PyTorch."""

from __future__ import annotations

import copy
import io
import threading

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

import madakv
from madakv import ConfigurationError, linears
from madakv.cli.app import app
from madakv.linears import fast_linears
from madakv.native import build
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

    monkeypatch.setattr(linears, "kernels", lambda: kernels._replace(linear=counted))
    return seen


@built
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("K", "N"), [(32, 1), (96, 37), (4096, 64), (11008, 5)])
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 1), (1, 4), (5,), (6, 1), (7, 1), (2, 4)])
def test_it_is_the_product_rounded_once(shape: tuple[int, ...], K: int, N: int, bias: bool, calls: list[int]) -> None:
    module = layer(K, N, bias)
    x = torch.randn(*shape, K).to(BF16)
    with fast_linears(module):
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
    with fast_linears(module):
        got = module(torch.ones(1, 32, dtype=BF16))
    assert calls == [1]
    assert got[0, 0] == 32
    assert got[0, 1].isnan()
    assert got[0, 2] == float("inf")


@built
@pytest.mark.usefixtures("threads")
def test_it_is_the_same_with_any_number_of_threads() -> None:
    module, x = layer(256, 1000), torch.randn(2, 256).to(BF16)
    got = []
    with fast_linears(module):
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            got.append(module(x))
    assert torch.equal(got[0], got[1])
    assert torch.equal(got[0], got[2])


@built
def test_sums_are_rounded_to_the_nearest_and_of_two_to_the_even_one() -> None:
    largest = torch.finfo(BF16).max
    sums = {
        (1.0, 2**-8): 1.0,
        (1 + 2**-7, 2**-8): 1 + 2**-6,
        (1.0, 2**-8 + 2**-15): 1 + 2**-7,
        (-1.0, -(2**-8)): -1.0,
        (largest, 2.0**118): largest,
        (largest, 2.0**119): float("inf"),
    }
    module = layer(32, len(sums), bias=False)
    module.weight.zero_()
    module.weight[:, :2] = torch.tensor(list(sums))
    with fast_linears(module):
        got = module(torch.ones(1, 32, dtype=BF16))
    assert got[0].tolist() == list(sums.values())


@built
def test_what_it_cannot_serve_is_left_to_pytorch(calls: list[int]) -> None:
    module, x = layer(64, 8), torch.randn(4, 64).to(BF16)
    with fast_linears(module):
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


@built
@torch.no_grad()
def test_weights_and_biases_that_come_later_are_looked_at(calls: list[int]) -> None:
    x = torch.randn(2, 64).to(BF16)

    def served(**others: nn.Parameter | None) -> bool:
        module = layer(64, 8)
        before = len(calls)
        with fast_linears(module):
            for name, other in others.items():
                setattr(module, name, other)
            got = module(x)
        assert torch.equal(got, nn.functional.linear(x, module.weight, module.bias)) or len(calls) > before
        return len(calls) > before

    assert served()
    assert served(bias=None)
    wide = nn.Parameter(torch.randn(64, 8).to(BF16))
    assert not served(weight=nn.Parameter(wide.T))
    assert not served(bias=nn.Parameter(torch.ones(1).to(BF16)))
    assert not served(bias=nn.Parameter(torch.randn(2, 8).to(BF16)))
    assert not served(bias=nn.Parameter(torch.randn(16).to(BF16)[::2]))
    module = layer(64, 8)
    with fast_linears(module):
        module.float()
        with pytest.raises(RuntimeError, match="dtype"):
            module(x)
    assert calls == [2, 2]


@built
def test_who_trains_the_bias_gets_its_gradient() -> None:
    module = layer(64, 8)
    module.bias.requires_grad_(True)
    with fast_linears(module):
        module(torch.randn(1, 64).to(BF16)).sum().backward()
    assert module.bias.grad is not None


@built
@torch.no_grad()
def test_who_traces_or_transforms_sees_the_product(calls: list[int]) -> None:
    module, x = layer(64, 8), torch.randn(1, 64).to(BF16)
    want = nn.functional.linear(x, module.weight, module.bias)
    with fast_linears(module):
        traced = make_fx(module)(x)
        assert_same(torch.vmap(module)(x), want, TOLERANCE[BF16])
        with FlopCounterMode(display=False) as counted:
            module(x)
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert module(x).shape == (1, 8)
        with forward_ad.dual_level():
            out = module(forward_ad.make_dual(x, torch.ones_like(x)))
            assert forward_ad.unpack_dual(out).tangent is not None
    assert not calls
    assert torch.equal(traced(x), want)
    assert counted.get_total_flops() == 2 * 64 * 8


class Other(nn.Linear):
    """A linear layer of somebody else's."""


@built
def test_other_layers_and_layers_with_a_forward_of_their_own_stay_as_they_are() -> None:
    def own(x: Tensor) -> Tensor:
        return x

    model = nn.ModuleList([layer(32, 4), Other(32, 4).to(BF16), nn.Linear(32, 4), layer(48, 4), layer(32, 4)])
    model[4].__dict__["forward"] = own
    with fast_linears(model):
        assert ["forward" in module.__dict__ for module in model] == [True, False, False, False, True]
        assert model[4].__dict__["forward"] is own
    assert ["forward" in module.__dict__ for module in model] == [False, False, False, False, True]


@built
def test_a_forward_that_comes_later_stays(calls: list[int]) -> None:
    module = layer(32, 4)
    with fast_linears(module):
        module.__dict__["forward"] = own = nn.Identity()
    assert module.__dict__["forward"] is own
    assert not calls


@built
def test_whoever_has_replaced_the_product_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    module = layer(32, 4)
    monkeypatch.setattr(nn.Linear, "forward", lambda _self, x: x)
    with pytest.raises(ConfigurationError, match="something else has replaced"):
        fast_linears(module).__enter__()
    assert "forward" not in module.__dict__


@built
def test_layers_without_a_matrix_of_weights_are_no_obstacle() -> None:
    model = nn.ModuleList([layer(32, 4), layer(32, 4), layer(32, 4)])
    del model[0].weight
    model[1].weight = nn.Parameter(torch.empty(0, dtype=BF16))
    with fast_linears(model):
        assert ["forward" in module.__dict__ for module in model] == [False, False, True]
    with pytest.raises(ConfigurationError, match="the first has none"):
        fast_linears(model[0]).__enter__()


@built
def test_layers_are_restored_after_an_exception() -> None:
    module = layer(32, 4)
    with pytest.raises(ValueError, match="outside"), fast_linears(module):
        raise ValueError("outside")
    assert "forward" not in module.__dict__


def test_what_cannot_be_served_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigurationError, match=r"bfloat16.*the first has torch.float32 on cpu.*load it in bfloat16"
    ):
        fast_linears(nn.Linear(32, 4)).__enter__()
    with pytest.raises(ConfigurationError, match="there are none"):
        fast_linears(nn.Identity()).__enter__()
    monkeypatch.setattr(linears, "kernels", lambda: None)
    module = layer(32, 4)
    with pytest.raises(ConfigurationError, match="cannot be built here"):
        fast_linears(module).__enter__()
    assert not STANDS_IN & set(module.__dict__)


STANDS_IN = {"forward", "__getstate__"}


@built
@torch.no_grad()
def test_nested_blocks_end_with_the_outermost(calls: list[int]) -> None:
    module, x = layer(32, 4), torch.randn(1, 32).to(BF16)
    with fast_linears(module):
        with fast_linears(module):
            module(x)
        module(x)
    assert calls == [1, 1]
    assert not STANDS_IN & set(module.__dict__)


@built
@torch.no_grad()
def test_threads_may_enter_and_leave_as_they_like(calls: list[int]) -> None:
    module, x = layer(32, 4), torch.randn(1, 32).to(BF16)
    entered, left = threading.Event(), threading.Event()

    def short() -> None:
        with fast_linears(module):
            entered.wait(10)
        left.set()

    other = threading.Thread(target=short)
    other.start()
    with fast_linears(module):
        entered.set()
        assert left.wait(10)
        module(x)
    other.join()
    assert calls == [1]
    assert not STANDS_IN & set(module.__dict__)


@built
@torch.no_grad()
def test_what_is_copied_or_saved_inside_is_the_plain_model(calls: list[int]) -> None:
    module, x, file = nn.Sequential(layer(32, 4)), torch.randn(1, 32).to(BF16), io.BytesIO()
    with fast_linears(module):
        copied = copy.deepcopy(module)
        torch.save(module, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        for twin in (copied, loaded):
            assert not STANDS_IN & set(twin[0].__dict__)
            assert torch.equal(twin(x), nn.functional.linear(x, module[0].weight, module[0].bias))
        assert not calls
        module(x)
    assert calls == [1]


@built
@torch.no_grad()
def test_an_evicted_model_decodes_by_it_only_where_it_is_asked_for(calls: list[int]) -> None:
    model = LlamaForCausalLM(tiny.text_config()).eval().to(BF16)
    prompt, new = torch.arange(20)[None], torch.tensor([[3]])
    want = model(new, past_key_values=model(prompt).past_key_values).logits
    with madakv.evict(model, budget=1.0):
        cache = model(prompt).past_key_values
        model(new, past_key_values=cache)
        assert not calls
        cache = model(prompt).past_key_values
        with fast_linears(model):
            got = model(new, past_key_values=cache).logits
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    assert calls == [1] * len(linears)
    assert not any(STANDS_IN & set(module.__dict__) for module in linears)
    assert_same(got, want, 4 * TOLERANCE[BF16])


@built
def test_the_command_line_asks_for_it(calls: list[int]) -> None:
    options = ["generate", "--max-new-tokens", "2", "--json", "--dtype"]
    assert CliRunner().invoke(app, [*options, "bfloat16"]).exit_code == 0
    assert not calls
    assert CliRunner().invoke(app, [*options, "bfloat16", "--fast-linears"]).exit_code == 0
    assert set(calls) == {1}
    refused = CliRunner().invoke(app, [*options, "float32", "--fast-linears"])
    assert refused.exit_code != 0
    assert "load it in bfloat16" in refused.stderr
