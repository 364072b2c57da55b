#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""Prints "function page" for each function that a page's SYNOPSIS declares."""

import re
import sys
from pathlib import Path

for path in sys.argv[1:]:
	text = Path(path).read_text(encoding="utf-8")
	synopsis = re.search(r"^SYNOPSIS\n=+\n(.*?)^[A-Z ]+\n=+$", text, re.S | re.M).group(1)
	page = Path(path).name.split(".")[0]
	for function in re.findall(r"\b(kvmem_\w+)\s*\([^;]*\);", synopsis):
		if function != page:
			print(function, page)
