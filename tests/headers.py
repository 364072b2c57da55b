# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""What the public headers declare, for the tests that compare it with something else."""

import os
import re
import shlex
import subprocess
import unittest
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
INCLUDE = TOP / "include"
# Of libraries of their own, on top of libkvmem.
OTHERS = {"image.h": "kvmem-image", "workset.h": "kvmem-image", "nbd.h": "kvmem-nbd"}
TOOLS = {"kvmem-image": ["kvmem-image"]}	# programs that are installed with them
EVERY = sorted(p.name for p in (INCLUDE / "kvmem").glob("*.h"))
NAMES = [n for n in EVERY if n not in OTHERS]
BUILD = Path(os.environ.get("KVMEM_BUILD", TOP / "build")).resolve()
CC = shlex.split(os.environ.get("CC", "cc"))
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]


def squeeze(text):
	"""One spelling of a declaration: single blanks, none beside brackets."""
	text = re.sub(r"\s+", " ", text).strip()
	return re.sub(r"\s*([(),;*])\s*", r"\1", text)


def raw(name):
	return (INCLUDE / "kvmem" / name).read_text(encoding="utf-8")


def code(name):
	"""A header without its comments and without the preprocessor's lines."""
	text = re.sub(r"/\*.*?\*/", " ", raw(name), flags=re.S)
	return re.sub(r"^\s*#.*?(?<!\\)$", "", text, flags=re.S | re.M)


def prototypes(name):
	"""{function: prototype as written} of one header."""
	found = {}
	for m in re.finditer(r"KVMEM_API\s+([^;{}]*?\b(kvmem_\w+)\s*\([^;]*\))\s*;", code(name)):
		found[m.group(2)] = m.group(1)
	return found


def functions(names=tuple(NAMES)):
	return {f: p for name in names for f, p in prototypes(name).items()}


def structs(name):
	"""{struct: [field, ...]} of the structs with a body."""
	found = {}
	for m in re.finditer(r"\bstruct\s+(kvmem_\w+)\s*\{(.*?)\n\};", code(name), re.S):
		fields = []
		for decl in m.group(2).split(";"):
			f = re.search(r"\(\*(\w+)\)|(\w+)\s*(?:\[[^]]*\]\s*)*$", decl.strip())
			if f:
				fields.append(f.group(1) or f.group(2))
		found[m.group(1)] = fields
	return found


def enumerators(name):
	found = []
	for m in re.finditer(r"\benum\s+kvmem_\w+\s*\{(.*?)\}", code(name), re.S):
		found += re.findall(r"\b(KVMEM_\w+)\s*(?:=|,|$)", m.group(1).strip() + ",")
	return found


def constants(name):
	"""Object-like macros with a value, the INIT macros left out."""
	return [m.group(1) for m in re.finditer(r"^#define\s+(KVMEM_\w+)[ \t]+(\S.*)$", raw(name), re.M)
		if not re.search(r"_(H|INIT|API|DECLS)$", m.group(1))]


def initialisers(name):
	"""{macro: struct} of KVMEM_*_INIT."""
	return dict(re.findall(r"^#define\s+(KVMEM_\w+_INIT)\s+KVMEM_INIT_\((struct \w+)\)", raw(name),
			       re.M))


def output(cmd, **kw):
	"""Of a command that must succeed; what it said is the failure's text."""
	done = subprocess.run([str(c) for c in cmd], stdin=subprocess.DEVNULL, capture_output=True,
			      text=True, check=False, **kw)
	if done.returncode:
		said = "\n".join((done.stdout + done.stderr).strip().splitlines()[:25])
		raise AssertionError(f"{shlex.join(map(str, cmd))}: {done.returncode}\n{said}")
	return done.stdout


class TestCase(unittest.TestCase):
	maxDiff = None
	longMessage = True

	def equal_sets(self, first, second, names):
		"""Two sets are the same, or the difference is said from both sides."""
		first, second = set(first), set(second)
		text = [f"only in {n}: {' '.join(sorted(d))}" for n, d in
			zip(names, (first - second, second - first)) if d]
		if text:
			self.fail("; ".join(text))
