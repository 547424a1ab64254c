"""One real browser for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.inspection.browser import Browser, chromium


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip("no Chromium is on this machine: install one, or name it in MADAKV_CHROMIUM")
    browser = Browser(program, tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()
