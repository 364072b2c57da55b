# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""The archive that a kernel boots from: busybox, the agent, programs and their libraries."""

import gzip
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

from .util import RigError

HERE = Path(__file__).resolve().parents[2]
DIRECTORIES = ("bin", "dev", "proc", "sys", "tmp", "etc", "root", "rig", "rig/bin", "rig/lib",
	       "rig/modules")


class Cpio:
	"""The newc format, as far as an initramfs needs it."""

	def __init__(self):
		self._out = []
		self._seen = set()
		self._inode = 0

	def _entry(self, name, mode, data=b"", dev=(0, 0)):
		if name in self._seen:
			return
		self._seen.add(name)
		self._inode += 1
		raw = name.encode() + b"\0"
		numbers = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *dev, len(raw), 0)
		head = b"070701" + b"".join(b"%08x" % n for n in numbers) + raw
		self._out.append(head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4))

	def directory(self, name):
		if name:
			self.directory(os.path.dirname(name))
			self._entry(name, stat.S_IFDIR | 0o755)

	def file(self, name, data, mode=0o644):
		self.directory(os.path.dirname(name))
		self._entry(name, stat.S_IFREG | mode, data)

	def device(self, name, major, minor):
		self._entry(name, stat.S_IFCHR | 0o600, dev=(major, minor))

	def write(self, path):
		self._inode = -1
		self._entry("TRAILER!!!", 0)
		path.write_bytes(gzip.compress(b"".join(self._out), 1))


def libraries(program):
	"""(interpreter or None, [libraries]); a static program has neither."""
	done = subprocess.run(["ldd", str(program)], stdout=subprocess.PIPE, text=True,
			      stderr=subprocess.DEVNULL, check=False)
	if done.returncode:
		return None, []
	missing = re.findall(r"^\s*(\S+) => not found", done.stdout, re.M)
	if missing:
		raise RigError(f"{program} needs {', '.join(missing)}, not found here")
	found = re.findall(r"=> (/\S+)", done.stdout)
	loader = re.findall(r"^\s*(/\S+) \(0x", done.stdout, re.M)
	return (loader[0] if loader else None), found


def _add_program(cpio, guest_path, host_path):
	cpio.file(guest_path, Path(host_path).read_bytes(), 0o755)
	loader, found = libraries(host_path)
	for lib in found:
		cpio.file("rig/lib/" + os.path.basename(lib), Path(lib).read_bytes(), 0o755)
	if loader:
		cpio.file(loader.lstrip("/"), Path(loader).read_bytes(), 0o755)


def make(path, kernel, agent, programs, env, files=()):
	"""programs: [Program]; env: {name: value}; files: [(guest path, host path)]."""
	cpio = Cpio()
	for d in DIRECTORIES:
		cpio.directory(d)
	cpio.device("dev/console", 5, 1)
	cpio.file("bin/busybox", Path(shutil.which("busybox")).read_bytes(), 0o755)
	cpio.file("init", (HERE / "init").read_bytes(), 0o755)
	cpio.file("etc/passwd", b"root:x:0:0:root:/tmp:/bin/sh\nnobody:x:65534:65534::/tmp:/bin/sh\n")
	cpio.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
	_add_program(cpio, "rig/agent", agent)
	for p in programs:
		_add_program(cpio, p.guest_path, p.path)
	for guest, host in files:
		cpio.file(guest.lstrip("/"), Path(host).read_bytes(), 0o644)
	for name, data in kernel.modules:
		cpio.file(f"rig/modules/{name}", data)
	env = dict(env, PATH="/bin:/rig/bin", HOME="/tmp", LD_LIBRARY_PATH="/rig/lib")
	cpio.file("rig/load", "".join(f"{n}\n" for n, _ in kernel.modules).encode())
	cpio.file("rig/env", "".join(f"{k}={v}\n" for k, v in env.items()).encode())
	cpio.file("rig/programs", "".join(
		"\t".join([p.name, str(p.timeout), "/" + p.guest_path, *p.args]) + "\n"
		for p in programs).encode())
	cpio.write(path)
