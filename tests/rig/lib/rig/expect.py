# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""
What each kernel must offer: tests/rig/expect/KERNEL, with lines of

	cmdline WORDS		parameters it is booted with
	require NAMES		KVMEM_TEST_REQUIRE inside: a skip for the lack of these is a failure
	without PROGRAMS	what this kernel cannot show anything new of, and which does not run
	must-fail TESTS		this kernel is broken on purpose: these tests alone run, and must fail
	CAPABILITY SUPPORT VALUE	as probe --json has them; a VALUE of - is not compared
"""

import json
from pathlib import Path

from .packages import series_of

HERE = Path(__file__).resolve().parents[2]


class Table:
	def __init__(self, path):
		self.path = path
		self.cmdline = ""
		self.require = ""
		self.must_fail = []
		self.without = []
		self.capabilities = {}
		for line in path.read_text(encoding="utf-8").splitlines():
			words = line.split("#")[0].split()
			if words:
				self._take(words[0], words[1:])

	def _take(self, key, values):
		if key == "cmdline":
			self.cmdline = " ".join(values)
		elif key == "require":
			self.require += ("," if self.require else "") + ",".join(values)
		elif key == "without":
			self.without += values
		elif key == "must-fail":
			self.must_fail += values
		else:
			self.capabilities[key] = " ".join(values)

	def compare(self, report, kernel, caps):
		"""One test per capability; what the table does not name must not exist either."""
		for name in sorted(caps.keys() | self.capabilities.keys()):
			want, have = self.capabilities.get(name), caps.get(name)
			why = _difference(want, have)
			lines = [have["reason"]] if why and have else []
			report.add(kernel, f"expect/{name}", "fail" if why else "pass", why, lines)


def _difference(want, have):
	if not have:
		return "probe does not report it"
	found = f"{have['support']} {have['value']}"
	if not want:
		return f"not in the table; found {found}"
	support, _, value = want.partition(" ")
	if support != have["support"] or value not in ("-", str(have["value"])):
		return f"expected {want}, found {found}"
	return ""


def parse(lines):
	"""What probe --json printed; {} when that is no table."""
	try:
		caps = json.loads("\n".join(lines))
	except ValueError:
		return {}
	return caps if isinstance(caps, dict) else {}


class Tables:
	def __init__(self):
		self._paths = {p.name: p for p in sorted((HERE / "expect").glob("*"))}

	def modes(self):
		return [n.replace("-", ":", 1) for n in self._paths if n.startswith("patched-")]

	def find(self, name, version):
		names = [name.replace(":", "-", 1)]
		if name.startswith("stock:"):
			names.insert(0, "stock-%d.%d" % series_of(version))
			if name != "stock:newest":
				names.pop()	# the series may have moved up: only its own table counts
		for n in names:
			if n in self._paths:
				return Table(self._paths[n])
		return None
