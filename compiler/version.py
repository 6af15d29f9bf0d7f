"""The version of Tilewright, which artifacts name; `pyproject.toml` says the same."""

__version__ = "0.1.0"
