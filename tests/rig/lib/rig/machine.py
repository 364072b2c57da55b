# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""One boot of one kernel: QEMU's command line, and the two serial lines as they grow."""

import subprocess
import time

from .util import RigError

POLL = 0.05
HANGS = "the machine hangs"
BOOT_LIMIT = 120	# seconds until the agent says something
SILENCE = 60		# without a sign of life the machine counts as hung

_running = set()


def stop_all():
	for qemu in list(_running):
		qemu.kill()


def _nodes(nodes, memory, smp):
	"""smp processors spread over nodes of memory MiB each, a socket a node."""
	args = []
	for n in range(nodes):
		cpus = [c for c in range(smp) if c * nodes // smp == n]
		numa = f"node,nodeid={n},memdev=m{n}"
		if cpus:
			numa += f",cpus={cpus[0]}-{cpus[-1]}"
		args += ["-object", f"memory-backend-ram,id=m{n},size={memory}M", "-numa", numa]
	return args


def command(opts, kernel, initramfs, console, stream):
	cmdline = ["console=ttyS0", "loglevel=6", "log_buf_len=4M", "oops=panic", "panic=-1",
		   "mitigations=off", "printk.devkmsg=on", "random.trust_cpu=on", "hung_task_panic=0",
		   f"hugepages={opts.hugepages}", kernel.cmdline, opts.append]
	sockets = min(opts.smp, max(opts.nodes, 1))
	icount = ["-icount", "shift=0,sleep=off"] if opts.icount else []
	return ["qemu-system-x86_64", "-accel", opts.accel, *icount, "-cpu",
		"host" if opts.accel == "kvm" else "max",
		"-smp", f"{opts.smp},sockets={sockets}", "-m", f"{opts.nodes * opts.memory}M",
		*_nodes(opts.nodes, opts.memory, opts.smp),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", str(kernel.image), "-initrd", str(initramfs),
		"-append", " ".join(c for c in cmdline if c),
		"-serial", f"file:{console}", "-serial", f"file:{stream}"]


class Lines:
	"""The whole lines that a growing file has gained."""

	def __init__(self, path):
		path.write_bytes(b"")
		self._file = open(path, "rb")
		self._rest = b""

	def read(self):
		self._rest += self._file.read()
		*whole, self._rest = self._rest.split(b"\n")
		return [w.decode(errors="replace") for w in whole]

	def close(self):
		self._file.close()


class Machine:
	def __init__(self, opts, kernel, initramfs, directory):
		self.console = directory / "console.log"
		self.stream = directory / "stream.log"
		self._cmd = command(opts, kernel, initramfs, self.console, self.stream)
		self._errors = directory / "qemu.log"

	def tail(self, n=60):
		text = self.console.read_text(encoding="utf-8", errors="replace")
		return text.replace("\r", "").splitlines()[-n:]

	def run(self):
		"""
		Yields (tag, text) as the agent sends them, then ("end", why) with why empty only
		when the agent says that it is done.
		"""
		lines = Lines(self.stream)
		self.console.write_bytes(b"")
		with open(self._errors, "wb") as errors:
			qemu = subprocess.Popen(self._cmd, stdin=subprocess.DEVNULL, stdout=errors,
						stderr=errors)
		_running.add(qemu)
		try:
			yield from self._follow(qemu, lines)
		finally:
			qemu.kill()
			qemu.wait()
			_running.discard(qemu)
			lines.close()

	def _follow(self, qemu, lines):
		deadline = time.monotonic() + BOOT_LIMIT
		while True:
			gone = qemu.poll() is not None
			for line in lines.read():
				deadline = time.monotonic() + SILENCE
				if line[:1] == "D":
					yield ("end", "")
					return
				yield (line[:1], line[2:])
			if gone:
				yield ("end", self._why_gone(qemu))
				return
			if time.monotonic() > deadline:
				yield ("end", HANGS)
				return
			time.sleep(POLL)

	def _why_gone(self, qemu):
		text = self._errors.read_text(encoding="utf-8", errors="replace").strip()
		if qemu.returncode and text:
			raise RigError(f"QEMU: {text.splitlines()[-1]}")
		return "the machine stopped by itself"
