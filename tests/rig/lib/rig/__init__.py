# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""Boots kernels in QEMU and runs programs inside; see tests/rig/run --help."""
