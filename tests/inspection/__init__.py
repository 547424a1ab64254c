import pytest

# What the oracle asserts is told like what tests assert.
pytest.register_assert_rewrite("tests.inspection.local")
