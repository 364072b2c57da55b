# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""What every part needs: messages, commands, a lock."""

import contextlib
import fcntl
import shutil
import subprocess
import sys
import threading

PACKAGES = {
	"qemu-system-x86_64": "qemu-system-x86",
	"busybox": "busybox-static",
}
BUILD_PACKAGES = {
	"make": "make", "gcc": "gcc", "flex": "flex", "bison": "bison", "bc": "bc", "xz": "xz-utils",
	"patch": "patch", "/usr/include/libelf.h": "libelf-dev", "/usr/include/openssl/opensslv.h":
	"libssl-dev",
}


class RigError(Exception):
	"""Something that the user must know and that ends the run of one kernel."""


def say(text):
	print(f"rig: {text}", file=sys.stderr, flush=True)


def output_of(cmd, **kw):
	done = subprocess.run(cmd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
			      stderr=subprocess.PIPE, text=True, errors="replace", **kw)
	if done.returncode:
		last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
		raise RigError(f"{cmd[0]} {' '.join(cmd[1:3])}…: exit {done.returncode}: {last}")
	return done.stdout


def _there(name):
	import os
	return os.path.exists(name) if name.startswith("/") else shutil.which(name)


def need(table):
	"""Every command and file of the table is there, or a message that says how to get it."""
	missing = sorted({pkg for name, pkg in table.items() if not _there(name)})
	if missing:
		raise RigError("missing: apt-get install --no-install-recommends " + " ".join(missing))


def install(table):
	"""As root on a machine with apt-get, installs what need() would complain about."""
	import os
	missing = sorted({pkg for name, pkg in table.items() if not _there(name)})
	if not missing or os.geteuid() or not shutil.which("apt-get"):
		return
	say("installing " + " ".join(missing))
	env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
	subprocess.run(["apt-get", "-qq", "update"], stdout=subprocess.DEVNULL, check=False, env=env)
	subprocess.run(["apt-get", "-qq", "install", "-y", "--no-install-recommends", *missing],
		       stdout=subprocess.DEVNULL, check=False, env=env)


@contextlib.contextmanager
def locked(path):
	"""One run at a time fills the cache."""
	path.parent.mkdir(parents=True, exist_ok=True)
	with open(path, "w", encoding="ascii") as f:
		fcntl.flock(f, fcntl.LOCK_EX)
		yield


@contextlib.contextmanager
def heartbeat(text, seconds=60):
	"""Says every minute that a long step is still going on."""
	end = threading.Event()

	def beat():
		while not end.wait(seconds):
			say(f"{text} …")

	thread = threading.Thread(target=beat, daemon=True)
	thread.start()
	try:
		yield
	finally:
		end.set()
		thread.join()
