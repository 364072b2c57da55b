# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""Runs programs in a kernel, booting again after one that takes the machine down."""

import time

from . import initramfs
from .machine import Machine
from .tap import BAD, Run


class Session:
	def __init__(self, opts, report, kernel, directory):
		self._opts = opts
		self._report = report
		self._kernel = kernel
		self._directory = directory
		self.stdout = {}	# program name: [lines]
		self._boots = 0

	def run(self, programs, env, files=()):
		todo = list(programs)
		while todo:
			todo = self._boot(todo, env, files)

	def _boot(self, programs, env, files):
		"""Returns the programs that have not had their turn."""
		self._boots += 1
		directory = self._directory / f"boot-{self._boots}"
		directory.mkdir(parents=True, exist_ok=True)
		image = directory / "initramfs"
		initramfs.make(image, self._kernel, self._opts.agent, programs, env, files)
		machine = Machine(self._opts, self._kernel, image, directory)
		started, why = self._follow(machine)
		image.unlink()
		if why:
			self._abnormal(machine, started, why)
		# without a single start another boot would end the same way
		return programs[started:] if started else []

	def _follow(self, machine):
		"""(programs started, why the machine ended before its time)"""
		started, why, self._run = 0, "", None
		for tag, text in machine.run():
			if tag == "end":
				why = text
				continue
			if tag == "B":
				if not started:
					self._report_boot(machine)
				self._run = Run(self._report, self._kernel.name, text)
				started += 1
			if self._run:
				self._run.take(tag, text)
				self._clock(tag)
				self.stdout[self._run.name] = self._run.stdout
		return started, why

	def _clock(self, tag):
		if tag == "B":
			self._since = time.monotonic()
		elif tag == "X":
			self._report.seconds.append((self._kernel.name, self._run.name,
						     round(time.monotonic() - self._since, 1)))

	def _report_boot(self, machine):
		"""The log up to the first program must be clean, too."""
		bad = []
		for line in machine.tail(10000):
			text = line.split("] ", 1)[-1]
			if BAD.search(text):
				bad.append(text)
		if self._boots == 1 or bad:
			self._report.add(self._kernel.name, "boot", "fail" if bad else "pass",
					 "the kernel complains before any test" if bad else "", bad)

	def _abnormal(self, machine, started, why):
		tail = [f"console: {line}" for line in machine.tail()]
		if self._run and not self._run.done:
			self._run.lost(why, tail)
		elif not started:
			self._report.add(self._kernel.name, "boot", "fail", why, tail)
