#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""Every facility that a test may skip for is one that tests/run can find on the machine and require."""

import os
import re
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

import headers	# noqa: E402
from headers import BUILD, TOP, output	# noqa: E402
from pytap import main	# noqa: E402

OF_THE_BUILD = {"rlimit-as"}	# what a sanitizer takes away is not the machine's
SKIP = re.compile(r"\b(?:SKIP|SKIP_IF|harness_skip)\((?:[^\"]*?,\s*)?\"([a-z0-9-]+)\"")


class Facilities(headers.TestCase):
	def test_skips_name_known_ones(self):
		known = set(output([BUILD / "tests/facilities", "--known"]).strip().split(","))
		used = {}
		for directory in ("tests/unit", "tests/kernel", "tests/nbd"):
			for path in (TOP / directory).glob("*.[ch]"):
				for name in SKIP.findall(path.read_text(encoding="utf-8")):
					used.setdefault(name, path.name)
		self.assertGreater(len(used), 5)
		self.assertEqual({n: f for n, f in used.items() if n not in known | OF_THE_BUILD}, {})

	def test_this_machine_has_what_is_required(self):
		"""A list put together elsewhere, when there is one, holds no misspelt name."""
		known = set(output([BUILD / "tests/facilities", "--known"]).strip().split(","))
		required = {n for n in os.environ.get("KVMEM_TEST_REQUIRE", "").split(",") if n}
		self.assertEqual(required - known, set())


if __name__ == "__main__":
	main()
