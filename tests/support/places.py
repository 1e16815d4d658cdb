# SPDX-License-Identifier: Apache-2.0
"""Where things are: the root of the checkout and the reference outputs."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
GOLDENS = ROOT / "tests" / "goldens"
