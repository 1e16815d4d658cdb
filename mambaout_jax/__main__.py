# SPDX-License-Identifier: Apache-2.0
"""`python -m mambaout_jax` is `mambaout`."""

from mambaout_jax.cli import main

raise SystemExit(main())
