# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""Debian's kernels and kernel sources through package lists of our own: nothing is installed."""

import functools
import glob
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from .util import RigError, output_of, say

SUITES = ("bookworm", "bookworm-backports", "trixie", "trixie-backports", "sid", "experimental")
LISTS_MAX_AGE = 24 * 3600
WHOLE = re.compile(r"linux-image-(\d[^ ]*)-amd64(-unsigned)?$")
BINARY = re.compile(r"linux-binary-(unsigned-)?(\d[^ ]*)-amd64$")
FLAVOURS = re.compile(r"-(cloud|rt)$")
SOURCE = re.compile(r"linux-source-(\d+\.\d+)$")
WHOLE_MIN_BYTES = 10 << 20	# smaller ones only name others


def _uris_of_list(text):
	"""deb [options] URI SUITE COMPONENT..."""
	for line in text.splitlines():
		m = re.match(r"\s*deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)", line)
		if m:
			yield m.group(1), m.group(2)


def _uris_of_deb822(text):
	for stanza in re.split(r"\n\s*\n", text):
		fields = dict(re.findall(r"^(\w[\w-]*):[ \t]*(.*)$", stanza, re.M))
		for uri in fields.get("URIs", "").split():
			for suite in fields.get("Suites", "").split():
				yield uri, suite


def configured_mirror():
	"""The mirror from which this machine takes Debian itself."""
	files = ["/etc/apt/sources.list", *glob.glob("/etc/apt/sources.list.d/*")]
	for name in files:
		try:
			text = Path(name).read_text(encoding="utf-8", errors="replace")
		except OSError:
			continue
		parse = _uris_of_deb822 if name.endswith(".sources") else _uris_of_list
		for uri, suite in parse(text):
			if uri.rstrip("/").endswith("/debian") and "/" not in suite:
				return uri.rstrip("/")
	raise RigError("no Debian mirror in this machine's package sources: name one with "
		       "--mirror URI, or give the path of a bzImage instead")


class Archive:
	def __init__(self, cache, mirror=None):
		self.root = Path(cache) / "apt"
		self.mirror = mirror
		self._packages = None

	def _options(self):
		o = {
			"Dir::State::Lists": self.root / "lists",
			"Dir::Cache": self.root / "cache",
			"Dir::Etc::sourcelist": self.root / "sources.list",
			"Dir::Etc::sourceparts": "/dev/null",
			"Dir::State::status": "/dev/null",
			"Acquire::Languages": "none",
			"APT::Architecture": "amd64",
			"APT::Sandbox::User": "root",
		}
		return [arg for k, v in o.items() for arg in ("-o", f"{k}={v}")]

	def _stamp(self):
		return self.root / "updated"

	def fresh(self):
		try:
			return time.time() - self._stamp().stat().st_mtime < LISTS_MAX_AGE
		except OSError:
			return False

	def update(self):
		if self.fresh():
			return
		for d in ("lists/partial", "cache/archives/partial"):
			(self.root / d).mkdir(parents=True, exist_ok=True)
		mirror = self.mirror or configured_mirror()
		(self.root / "sources.list").write_text(
			"".join(f"deb {mirror} {s} main\n" for s in SUITES), encoding="utf-8")
		say("reading the package lists")
		# A suite may be gone: what was read of the others is enough.
		subprocess.run(["apt-get", *self._options(), "-qq", "update"], check=False,
			       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
			       stderr=subprocess.DEVNULL)
		self._packages = None
		if not self.packages():
			raise RigError("no package list could be read from the configured mirror")
		self._stamp().touch()

	def packages(self):
		"""[{Package, Version, Size, SHA256}], every linux-* there is."""
		if self._packages is None:
			text = output_of(["apt-cache", *self._options(), "dumpavail"])
			self._packages = [self._stanza(s) for s in text.split("\n\n")
					  if s.startswith("Package: linux-")]
		return self._packages

	@staticmethod
	def _stanza(text):
		keys = ("Package", "Version", "Size", "SHA256")
		return {k: v for k, v in re.findall(r"^(\S+): (.*)$", text, re.M) if k in keys}

	def fetch(self, package, directory):
		directory.mkdir(parents=True, exist_ok=True)
		output_of(["apt-get", *self._options(), "download",
			   f"{package['Package']}={package['Version']}"], cwd=directory)
		found = list(directory.glob(f"{package['Package']}_*.deb"))
		if not found:
			raise RigError(f"{package['Package']}: downloaded, but not to be found")
		return found[0]


@functools.cmp_to_key
def by_version(a, b):
	if a == b:
		return 0
	less = subprocess.run(["dpkg", "--compare-versions", a, "lt", b], check=False)
	return -1 if less.returncode == 0 else 1


def series_of(version):
	m = re.match(r"(\d+)\.(\d+)", version)
	return (int(m.group(1)), int(m.group(2)))


def kernels(archive):
	"""[(version, [packages])], each of which together hold a bzImage and its modules."""
	packages = archive.packages()
	modules = {(p["Package"], p["Version"]): p for p in packages
		   if p["Package"].startswith("linux-modules-")}
	found = {}
	for p in packages:
		whole, binary = WHOLE.match(p["Package"]), BINARY.match(p["Package"])
		m = whole or binary
		abi = m and m.group(1 if whole else 2)
		if not m or FLAVOURS.search(abi):
			continue
		parts = [p]
		if binary:
			parts.append(modules.get((f"linux-modules-{abi}-amd64", p["Version"])))
		elif int(p["Size"]) < WHOLE_MIN_BYTES:
			continue
		if all(parts):
			found.setdefault(p["Version"], parts)
	return sorted(found.items(), key=lambda kv: by_version(kv[0]))


def choose(archive, series):
	"""The newest kernel of the series, else of the next one up; (version, packages, remark)."""
	there = kernels(archive)
	if not there:
		raise RigError("the mirror has no Debian kernel for amd64")
	if series == "newest":
		return (*there[-1], "")
	wanted = series_of(series)
	same = [k for k in there if series_of(k[0]) == wanted]
	if same:
		return (*same[-1], "")
	up = sorted({series_of(k[0]) for k in there if series_of(k[0]) > wanted})
	if not up:
		raise RigError(f"the mirror has no kernel {series} and none above it")
	version, parts = [k for k in there if series_of(k[0]) == up[0]][-1]
	return version, parts, f"the mirror no longer has {series}: the next one up is taken"


def sources(archive):
	"""Kernel source packages, the newest first."""
	found = [p for p in archive.packages() if SOURCE.match(p["Package"])]
	return sorted(found, key=lambda p: by_version(p["Version"]), reverse=True)


def unpack(deb, directory, patterns):
	"""The members of a package that match, without installing it."""
	directory.mkdir(parents=True, exist_ok=True)
	with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)],
			      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as deb_tar:
		# tar's complaint about a pattern that matched nothing is no error of ours
		subprocess.run(["tar", "-x", "-C", str(directory), "--wildcards", *patterns],
			       stdin=deb_tar.stdout, stderr=subprocess.DEVNULL, check=False)
		deb_tar.stdout.close()
	os.unlink(deb)


def remove(directory):
	shutil.rmtree(directory, ignore_errors=True)
