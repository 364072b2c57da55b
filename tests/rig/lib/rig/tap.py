# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""What programs print inside becomes one stream of TAP outside."""

import fnmatch
import json
import re
import threading

RESULT = re.compile(r"(not )?ok\b(?:\s+(\d+))?(?:\s*-)?\s*(.*)$")
PLAN = re.compile(r"1\.\.(\d+)(?:\s*#\s*skip\S*\s*(.*))?$", re.I)
SKIP = re.compile(r"(.*?)\s*#\s*skip\S*\s*(.*)$", re.I)
EXPECT = re.compile(r"#\s*expect-kernel-log:\s*(.+)$")
BAD = re.compile(r"^(WARNING\b|BUG\b|kernel BUG|Oops\b|general protection fault|Kernel panic|"
		 r"INFO: task \S+ blocked|INFO: rcu|watchdog: BUG|unable to handle|"
		 r"UBSAN|KASAN|kernel tried to)|\[ cut here \]|stack segment:|invalid opcode:")
MARK = re.compile(r"kvmem-test: end of (.*)")
SHOWN = 40		# lines of diagnostics for a failure


class Report:
	"""Counts and prints; every result goes through here, from any thread."""

	def __init__(self, out):
		self._out = out
		self._lock = threading.Lock()
		self.results = []	# (kernel, test, "pass" / "skip" / "fail", text)
		self.shown = ["*"]	# wildcards: passed tests that match none are left out
		self.kernels = {}	# name: what was booted, and what probe says of it
		self.notes = []		# (kernel, program, text)
		self.seconds = []	# (kernel, program, seconds)
		self.verbose = False
		out("TAP version 13")

	def add(self, kernel, test, verdict, text="", lines=()):
		if verdict != "fail" and not any(fnmatch.fnmatch(test, w) for w in self.shown):
			return
		head = "not ok" if verdict == "fail" else "ok"
		skip = f" # SKIP {text}" if verdict == "skip" else ""
		said = [text] if verdict == "fail" and text else []
		with self._lock:
			self.results.append((kernel, test, verdict, text))
			self._out("\n".join([f"{head} {len(self.results)} - {kernel}/{test}{skip}",
					     *(f"# {line}" for line in [*said, *lines])]))

	def note(self, text):
		with self._lock:
			self._out(f"# {text}")

	def sort(self, kernels):
		"""Kernels that ran side by side, in the order in which they were named."""
		place = {name: i for i, name in enumerate(kernels)}
		for found in (self.results, self.notes, self.seconds):
			found.sort(key=lambda f: place.get(f[0], len(place)))
		self.kernels = dict(sorted(self.kernels.items(),
					   key=lambda k: place.get(k[0], len(place))))

	def as_json(self):
		return json.dumps({"kernels": self.kernels, "results": self.results,
				   "notes": self.notes, "seconds": self.seconds}, indent="\t") + "\n"

	def count(self, verdict):
		return sum(r[2] == verdict for r in self.results)

	def plan(self):
		self._out(f"1..{len(self.results)}")


class Program:
	"""One program to run inside: where it lies here, and what it is called there."""

	def __init__(self, name, path, args=(), timeout=300):
		self.name = name
		self.path = path
		self.args = list(args)
		self.timeout = timeout
		self.guest_path = f"rig/bin/{name}"


class Run:
	"""One program's run: takes the agent's lines and reports tests as they end."""

	def __init__(self, report, kernel, name):
		self._report = report
		self._kernel = kernel
		self.name = name
		self._tests = 0
		self._planned = None
		self._skip_all = None
		self._failed = 0
		self._stderr = []
		self._log = []		# the kernel's complaints, and marks of tests that ended
		self._expected = []	# announced since the last result
		self._received = 0
		self._results = []	# reported together when the program has ended
		self._bail = None
		self.stdout = []
		self.done = False

	def take(self, tag, text):
		if tag in "BOEKT":
			self._received += 1
		handler = getattr(self, f"_take_{tag}", None)
		if handler:
			handler(text)

	def _take_E(self, text):
		self._stderr.append(text)

	def _take_K(self, text):
		_, _, line = text.partition(" ")
		if BAD.search(line) or MARK.match(line):
			self._log.append(line)

	def _complaints_of(self, name):
		"""Up to the mark of this test; without one, all that has come so far."""
		end = len(self._log)
		for i, line in enumerate(self._log):
			mark = MARK.match(line)
			if mark and mark.group(1) == name:
				end = i + 1
				break
		lines, self._log = self._log[:end], self._log[end:]
		return [l for l in lines if not MARK.match(l) and
			not any(e.search(l) for e in self._expected)]

	def _take_T(self, text):
		self._bail = f"still running after {text} s: killed"

	def _take_O(self, text):
		self.stdout.append(text)
		if self._report.verbose and not RESULT.match(text) and not text.startswith("#"):
			self._results.append((None, "note", text, ()))
		expect, plan, result = EXPECT.match(text), PLAN.match(text), RESULT.match(text)
		if expect:
			self._expected.append(re.compile(expect.group(1)))
		elif plan:
			self._planned, self._skip_all = int(plan.group(1)), plan.group(2)
		elif result:
			self._result(not result.group(1), result.group(3))
		elif text.startswith("Bail out!"):
			self._bail = text
		elif text.startswith("#"):
			self._results.append((None, "note", text[1:].strip(), ()))

	def _result(self, ok, rest):
		skip = SKIP.match(rest)
		name = (skip.group(1) if skip else rest).strip() or f"test {self._tests + 1}"
		self._tests += 1
		if not ok:
			self._end("fail", name)
		elif skip:
			self._end("skip", name, skip.group(2))
		else:
			self._end("pass", name)

	def _end(self, verdict, name="", text=""):
		"""A result; the kernel's complaints since the last one are its own."""
		lines = [f"kernel: {b}" for b in self._complaints_of(name)[:SHOWN]]
		if lines:
			verdict = "fail"
			text = text or "the kernel log has what the test did not announce"
		if verdict == "fail":
			self._failed += 1
			lines += [f"stderr: {e}" for e in self._stderr[-SHOWN:]]
			self._stderr = []
		self._expected = []
		test = f"{self.name}/{name}" if name else self.name
		self._results.append((test, verdict, text, lines))

	def flush(self):
		for test, verdict, text, lines in self._results:
			if verdict == "note":
				self._report.note(text)
				self._report.notes.append((self._kernel, self.name, text))
				continue
			self._report.add(self._kernel, test, verdict, text, lines)
		self._results = []

	def _take_X(self, text):
		status, sent = map(int, text.split())
		self.done = True
		if self._received != sent:
			self._bail = f"{sent} lines were sent, {self._received} came"
		if self._tests or self._planned is not None:
			self._finish_tap(status)
		else:
			self._finish_plain(status)
		self.flush()

	def _finish_tap(self, status):
		if self._planned == 0 and not self._tests:
			return self._end("skip", "", self._skip_all or "no reason given")
		why = self._bail
		if not why and self._planned not in (None, self._tests):
			why = f"planned {self._planned} tests, ran {self._tests}"
		if not why and status and not self._failed:
			why = f"every test passed, yet exit status {status}"
		if why or self._complaints_left():
			self._end("fail", "exit", why or "")

	def _complaints_left(self):
		return any(not MARK.match(l) for l in self._log)

	def _finish_plain(self, status):
		last = [t for t in self._stderr + self.stdout if t.strip()]
		if status == 77 and not self._bail:
			return self._end("skip", "", last[-1] if last else "no reason given")
		if status == 0 and not self._bail:
			return self._end("pass")
		self._stderr = self.stdout[-SHOWN:] + self._stderr
		self._end("fail", "", self._bail or f"exit status {status}")

	def lost(self, why, tail):
		"""The machine ended under the program."""
		self.done = True
		self._stderr += tail
		self._end("fail", "exit" if self._tests else "", why)
		self.flush()
