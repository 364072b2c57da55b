#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""Counting is right: what crashed, hung, or stopped half-way is never green."""

import sys
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from pytap import main	# noqa: E402
from results import meson_test, tap	# noqa: E402


def count(results):
	return tuple(sum(r[0] == v for r in results) for v in ("pass", "fail", "skip"))


def entry(out, result="OK", returncode=0, err=""):
	return {"name": "t", "stdout": out, "stderr": err, "result": result,
		"returncode": returncode, "duration": 1.0}


class Tap(unittest.TestCase):
	def test_each_kind(self):
		text = "1..3\nok 1 a\nok 2 b # SKIP numa2: one node\nnot ok 3 c\n"
		results = tap("p", text, 1)
		self.assertEqual(count(results), (1, 1, 1))
		self.assertEqual(results[1], ("skip", "p/b", "numa2: one node"))

	def test_crash_half_way(self):
		self.assertEqual(count(tap("p", "1..3\nok 1 a\n", -11)), (1, 1, 0))

	def test_fewer_than_planned(self):
		self.assertEqual(count(tap("p", "1..3\nok 1 a\n", 0)), (1, 1, 0))

	def test_exit_status_alone(self):
		self.assertEqual(count(tap("p", "1..1\nok 1 a\n", 1)), (1, 1, 0))

	def test_bail_out(self):
		self.assertEqual(count(tap("p", "Bail out! no kernel\n", 2)), (0, 1, 0))

	def test_no_output(self):
		self.assertEqual(count(tap("p", "", 0)), (0, 1, 0))

	def test_skip_all(self):
		self.assertEqual(tap("p", "1..0 # SKIP no compiler\n", 0),
				 [("skip", "p", "no compiler")])


class Meson(unittest.TestCase):
	def test_exit_codes(self):
		self.assertEqual(count(meson_test("t", entry("hello"))), (1, 0, 0))
		self.assertEqual(count(meson_test("t", entry("", "FAIL", 1))), (0, 1, 0))
		self.assertEqual(meson_test("t", entry("x\n", "SKIP", 77, "no kvm\n")),
				 [("skip", "t", "no kvm")])

	def test_crash(self):
		self.assertEqual(count(meson_test("t", entry("", "FAIL", -6))), (0, 1, 0))
		self.assertEqual(count(meson_test("t", entry("1..2\nok 1 a\n", "ERROR", -6))),
				 (1, 1, 0))

	def test_timeout(self):
		self.assertEqual(count(meson_test("t", entry("1..2\nok 1 a\n", "TIMEOUT", -9))),
				 (1, 1, 0))


if __name__ == "__main__":
	main()
