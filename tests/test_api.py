"""The names that others script against."""

from __future__ import annotations

import inspect
import subprocess
import sys

import madakv
from madakv import errors


def test_exported_names() -> None:
    assert sorted(madakv.__all__) == [
        "CheckFailedError",
        "ConfigurationError",
        "DownloadError",
        "Full",
        "InputError",
        "KeepPlan",
        "Kept",
        "MadaKV",
        "MadaKVError",
        "Method",
        "MissingExtraError",
        "Modality",
        "NestedEvictionError",
        "Run",
        "UnsupportedModelError",
        "UnsupportedOptionError",
        "__version__",
        "allocate",
        "evict",
        "fast_linears",
        "known_families",
        "list_methods",
        "register_family",
    ]
    for name in madakv.__all__:
        assert getattr(madakv, name) is not None


def test_signatures() -> None:
    assert list(inspect.signature(madakv.evict).parameters) == [
        *("model", "method", "budget", "trigger", "store", "record", "options"),
    ]
    assert list(inspect.signature(madakv.allocate).parameters) == ["psi", "modality", "method", "budget", "options"]


def test_rooms_are_attributes() -> None:
    code = "import madakv; madakv.reading.Trigger, madakv.cache.Entries; assert not hasattr(madakv, 'nothing')"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_error_is_a_madakv_error_and_exported() -> None:
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if kind.__module__ == errors.__name__:
            assert issubclass(kind, madakv.MadaKVError)
            assert name in madakv.__all__


def test_a_methods_repr_rebuilds_it() -> None:
    weights = madakv.MadaKV.Weights(values=False)
    method = madakv.MadaKV(budget=0.1, safeguard=0.8, proxies=16, weights=weights)
    assert eval(repr(method), {"MadaKV": madakv.MadaKV}) == method


def test_importing_changes_nothing_in_transformers() -> None:
    code = (
        "import transformers, madakv.api\n"
        "from transformers import AttentionInterface, AttentionMaskInterface\n"
        "assert 'madakv' not in AttentionInterface._global_mapping\n"
        "assert 'madakv' not in AttentionMaskInterface._global_mapping\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
