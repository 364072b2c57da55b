# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""Kernel modules: which ones KVM needs, in the order in which they load."""

import lzma
import gzip
import re
import subprocess

from .util import RigError

WANTED = ("kvm-amd", "kvm-intel")
SUFFIX = re.compile(r"\.ko(\.xz|\.gz|\.zst)?$")


def _plain(path):
	data = path.read_bytes()
	if path.suffix == ".xz":
		return lzma.decompress(data)
	if path.suffix == ".gz":
		return gzip.decompress(data)
	if path.suffix == ".zst":
		return subprocess.run(["zstd", "-dc", str(path)], stdout=subprocess.PIPE,
				      check=True).stdout
	return data


def _name(text):
	return SUFFIX.sub("", text).replace("-", "_")


def _depends(data):
	m = re.search(rb"\0depends=([^\0]*)\0", data)
	return [_name(d) for d in m.group(1).decode().split(",") if d] if m else []


def collect(tree):
	"""[(file name, plain bytes)] of KVM and all it depends on, dependencies first."""
	there = {_name(p.name): p for p in sorted(tree.rglob("*.ko*")) if SUFFIX.search(p.name)}
	order = {}

	def add(name, asker):
		if name in order:
			return
		if name not in there:
			raise RigError(f"module {name}, needed by {asker}, is not there")
		data = _plain(there[name])
		for d in _depends(data):
			add(d, name)
		order[name] = data

	for name in map(_name, WANTED):
		if name in there:
			add(name, "the rig")
	if not order:
		raise RigError(f"no KVM modules under {tree}")
	return [(f"{name}.ko", data) for name, data in order.items()]
