"""Caches that lose rows and count what attention looks at: four values, and equal bits however tokens arrive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.backends.jit_levels import runnable_levels
