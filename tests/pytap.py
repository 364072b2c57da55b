# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""unittest printing TAP, for the tests that are scripts."""

import sys
import unittest


class _Result(unittest.TestResult):
	def __init__(self):
		super().__init__()
		self.number = 0
		self._said = False

	def startTest(self, test):
		super().startTest(test)
		self._said = False

	def stopTest(self, test):
		super().stopTest(test)
		if not self._said:	# only subtests failed
			self._line(False, test)

	def _line(self, ok, test, note=""):
		self.number += 1
		self._said = True
		name = test.id().split(".", 1)[-1]
		print(f"{'ok' if ok else 'not ok'} {self.number} - {name}{note}", flush=True)

	def _diagnose(self, err, test):
		for line in self._exc_info_to_string(err, test).splitlines():
			print(f"# {line}")

	def addSuccess(self, test):
		self._line(True, test)

	def addSkip(self, test, reason):
		super().addSkip(test, reason)
		self._line(True, test, f" # SKIP {reason}")

	def addFailure(self, test, err):
		super().addFailure(test, err)
		self._diagnose(err, test)
		self._line(False, test)

	def addError(self, test, err):
		super().addError(test, err)
		self._diagnose(err, test)
		self._line(False, test)

	def addSubTest(self, test, subtest, err):
		super().addSubTest(test, subtest, err)
		if err:
			print(f"# in {subtest}")
			self._diagnose(err, subtest)


def main():
	suite = unittest.defaultTestLoader.loadTestsFromModule(sys.modules["__main__"])
	print(f"1..{suite.countTestCases()}", flush=True)
	result = _Result()
	suite.run(result)
	sys.exit(0 if result.wasSuccessful() and result.number else 1)
