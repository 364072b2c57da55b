#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""The lists of kvmem-sandbox(7): recorded by a tracer, kept in the page, made into a header for the filters.

lists.py PAGE --header FILE     what the page has, as C
lists.py PAGE --record SANDBOX  run each life under strace and add to the page what is not there yet
"""

import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

PHASES = ["create", "run", "stop"]
BLOCK = re.compile(r"(\.\. begin (\w+)\n\n::\n\n)(.*?)(\n\.\. end \2\n)", re.S)

# Of the C library: memory for malloc(), locks, threads, signal masks.
EVERYWHERE = set("""brk mmap munmap mprotect mremap madvise futex clone3 clone set_robust_list rseq rt_sigprocmask
	prctl exit gettid getrandom clock_gettime getcpu restart_syscall rt_sigaction rt_sigreturn sched_yield""".split())

# What the others of its group do, each may have to do: which of them meets a page first is chance.
GROUPS = [
	("kvmem-fill-N", "kvmem_populate"),
	("kvmem-fill/N", "kvmem-pager/N", "kvmem_pager_handle", "kvmem_pager_put", "kvmem_pager_stop",
		"kvmem_pager_remove", "kvmem_source_complete"),
	("kvmem_region_discard", "kvmem_region_mark_absent"),
	("kvmem-save/N", "kvmem_capture_next"),
	("kvmem-reaper", "kvmem_dirty_commit", "kvmem_dirty_harvest", "kvmem_dirty_ring_full",
		"kvmem_reader_forget", "kvmem_reader_harvest", "kvmem_reader_pending"),
]

OLDER = {"syscall_0x1c3": "cachestat"}  # for a strace that is older


def parse(page):
	"""{block: {row: {call}}} of a page."""
	lists = {}
	for _, name, body, _ in BLOCK.findall(page):
		rows = lists[name] = {}
		for line in re.sub(r"\n\s{8,}", " ", body).splitlines():
			row, colon, calls = line.strip().partition(":")
			if colon:
				rows[row] = set(calls.replace(",", " ").split())
	return lists


def write(page, lists):
	"""The page with these lists."""
	def block(match):
		text = ""
		for row, calls in sorted(lists[match[2]].items()):
			text += textwrap.fill(f"{row}: {' '.join(sorted(calls))}", 100, initial_indent="    ",
				subsequent_indent=" " * 12, break_on_hyphens=False, break_long_words=False) + "\n"
		return match[1] + text + match[4]
	return BLOCK.sub(block, page)


# ---- the header ----

def c_list(name, calls):
	"""One list as a C array."""
	text = f"static const struct call sandbox_{name}[] = {{\n"
	for nr, arg in sorted({tuple(call.rstrip(")").split("(")) if call.startswith("ioctl(")
			else (call.partition("(")[0], "") for call in calls}):
		quoted = f'"{arg}"' if arg else "NULL"
		text += f'#ifdef SYS_{nr}\n\t{{ SYS_{nr}, "{nr}", {quoted} }},\n#endif\n'
	return text + "};\n" + f"#define sandbox_{name}_count (sizeof(sandbox_{name}) / sizeof(sandbox_{name}[0]))\n\n"


def header(lists):
	"""The lists of the phases, of what is let through in all, and of all phases together."""
	of = {p: set().union(*lists[p].values()) for p in PHASES}
	text = "/* Made from kvmem-sandbox(7) by tests/sandbox/lists.py. */\n"
	for name in PHASES:
		text += c_list(name, of[name])
	text += c_list("all", set().union(*of.values()))
	return text + c_list("everywhere", set().union(*lists["everywhere"].values()))


# ---- recording ----

class Thread:
	"""What one thread is at: the call of the library, or what it is by its name."""

	def __init__(self):
		self.call = None
		self.name = None


def thread_row(name):
	"""kvmem-fill/3 and kvmem-fill/4 are of one row."""
	return re.sub(r"\d+$", "N", name)


def file_row(rest):
	"""The path, without the numbers of descriptors and nodes."""
	return re.sub(r"(?<=[/e])\d+", "N", re.match(r'AT_FDCWD, "([^"]*)"', rest)[1])


def of_trace(lines, ioctls):
	"""{phase: {row: {call}}} of a strace output."""
	lists = {p: {} for p in PHASES}
	threads, phase = {}, None
	for line in lines:
		match = re.match(r"(\d+) +(\w+)\((.*)", line)
		if not match:
			continue
		tid, call, rest = match.groups()
		thread = threads.setdefault(tid, Thread())
		mark = re.match(r'-1, "([^"]*)", \d+', rest) if call == "write" else None
		if mark and mark[1].startswith("@"):
			phase = mark[1][1:]
		elif mark:
			thread.call = mark[1] or None
			if thread.call and phase:
				lists[phase].setdefault(thread.call, set())
		elif call == "prctl" and rest.startswith("PR_SET_NAME"):
			thread.name = thread_row(re.search(r'"([^"]*)"', rest)[1])
			lists[phase].setdefault(thread.name, set())
		call = OLDER.get(call, call)
		if mark or call in EVERYWHERE or not phase:
			continue
		if call == "ioctl":
			number = int(re.match(r"[^,]*, (0x[0-9a-f]+|\d+)", rest)[1], 0)
			if number not in ioctls:
				sys.exit(f"{thread.call}: ioctl 0x{number:x} is not in the table of filter.c")
			call = f"ioctl({ioctls[number]})"
		elif call == "openat":
			call = f"openat({file_row(rest)})"
		row = thread.call or thread.name
		if row:
			lists[phase].setdefault(row, set()).add(call)
	return lists


def record(sandbox):
	"""What all lives do."""
	out = subprocess.run([sandbox, "--ioctls"], check=True, capture_output=True, text=True).stdout
	ioctls = {int(number, 0): name for name, number in (line.split() for line in out.splitlines())}
	lives = subprocess.run([sandbox, "--lives"], check=True, capture_output=True, text=True).stdout.split()
	lists = {p: {} for p in PHASES}
	for life in lives:
		with tempfile.TemporaryDirectory() as folder:
			trace = Path(folder) / "trace"
			subprocess.run(["strace", "-f", "-qq", "-e", "raw=ioctl", "-o", trace, sandbox, "--mark", life],
				check=True, timeout=120)
			merge(lists, of_trace(trace.read_text().splitlines(), ioctls))
	for group in GROUPS:
		calls = set().union(*(lists[p].get(row, set()) for p in PHASES for row in group))
		for phase in PHASES:
			for row in set(group) & set(lists[phase]):
				lists[phase][row] |= calls
	return lists


def merge(lists, more):
	"""Add `more`, but what is let through everywhere."""
	for phase in PHASES:
		for row, calls in more[phase].items():
			lists[phase].setdefault(row, set()).update(calls)


def main():
	page = Path(sys.argv[1])
	text = page.read_text(encoding="utf-8")
	lists = parse(text)
	if sys.argv[2] == "--header":
		Path(sys.argv[3]).write_text(header(lists), encoding="utf-8")
	elif sys.argv[2] == "--record":
		merge(lists, record(sys.argv[3]))
		lists["everywhere"] = {"all": EVERYWHERE}
		page.write_text(write(text, lists), encoding="utf-8")
	else:
		sys.exit(__doc__)


if __name__ == "__main__":
	main()
