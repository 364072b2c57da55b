#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""kvmem-sandbox(7): its tables are whole, and a tracer finds nothing that is not in them."""

import os
import re
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / "tests"))
sys.path.insert(0, str(TOP / "tests/sandbox"))

import lists	# noqa: E402
from pytap import main	# noqa: E402

SANDBOX = os.environ["KVMEM_SANDBOX"]
PAGE = (TOP / "docs/man/kvmem-sandbox.7.rst").read_text(encoding="utf-8")
TABLES = lists.parse(PAGE)
ROWS = {row for phase in lists.PHASES for row in TABLES[phase]}


def can_trace():
	"""Whether a tracer is here, and allowed to trace, and there is something to look at."""
	if not shutil.which("strace") or not os.access("/dev/kvm", os.R_OK | os.W_OK):
		return False
	return not subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode


class Sandbox(unittest.TestCase):
	def test_every_function_has_a_row(self):
		functions = set(re.findall(r"\b(kvmem_\w+);", (TOP / "lib/libkvmem.map").read_text(encoding="utf-8")))
		self.assertGreater(len(functions), 80)
		self.assertEqual(functions - ROWS, set())
		self.assertEqual({row for row in ROWS if row.startswith("kvmem_")} - functions, set())

	def test_every_thread_is_explained(self):
		threads = {row for row in ROWS if row.startswith("kvmem-")}
		explained = set(re.findall(r"^``(kvmem-[\w/-]+)``", PAGE, re.M))
		self.assertGreater(len(threads), 4)
		self.assertEqual(threads - explained, set())
		self.assertLessEqual(explained - threads, {"kvmem-remove"})	# where another one cannot be begun

	def test_nothing_is_opened_later(self):
		for phase in ("run", "stop"):
			calls = set().union(*TABLES[phase].values())
			self.assertGreater(len(calls), 3)
			self.assertEqual({c for c in calls if c.startswith(("open", "memfd_create", "socket"))}, set())

	def test_ioctls_are_known(self):
		out = subprocess.run([SANDBOX, "--ioctls"], check=True, capture_output=True, text=True).stdout
		known = {line.split()[0] for line in out.splitlines()}
		used = set(re.findall(r"ioctl\(([A-Z]\w+)\)", PAGE))
		self.assertGreater(len(used), 20)
		self.assertEqual(used - known, set())

	def test_the_page_is_as_it_is_written(self):
		self.assertEqual(lists.write(PAGE, TABLES), PAGE)

	@unittest.skipUnless(can_trace(), "strace or /dev/kvm cannot be used here")
	def test_a_tracer_finds_nothing_else(self):
		found = lists.record(SANDBOX)
		for phase in lists.PHASES:
			for row, calls in found[phase].items():
				self.assertIn(row, TABLES[phase], phase)
				self.assertEqual(calls - TABLES[phase][row], set(), f"{phase}: {row}")


if __name__ == "__main__":
	main()
