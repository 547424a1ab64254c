"""Every error that madakv raises on purpose: one tree, so that `except MadaKVError` catches them all."""


class MadaKVError(Exception):
    """Base of all errors raised by madakv."""


class ConfigurationError(MadaKVError, ValueError):
    """A method name, a budget or an option that cannot be meant as it was given."""


class InputError(MadaKVError, ValueError):
    """A prompt, an image or a tensor that cannot be processed as it was given."""


class UnsupportedModelError(MadaKVError):
    """A model whose modalities or attention madakv does not know how to handle."""


class UnsupportedOptionError(MadaKVError):
    """A generation option that cannot be combined with eviction; the message names the option."""


class NestedEvictionError(MadaKVError):
    """`madakv.evict` was entered for a model that is already inside another `madakv.evict`."""


class MissingExtraError(MadaKVError, ImportError):
    """A feature needs an optional dependency; the message names the extra to install."""


class CheckFailedError(MadaKVError):
    """A benchmark got wrong results from what it was to time."""


class DownloadError(MadaKVError):
    """A published model cannot be brought here: the network, the index, the file or the room for it."""
