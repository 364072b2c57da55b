# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""The newest packaged kernel source with our test-only patches and a small configuration."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

from . import packages
from .util import BUILD_PACKAGES, RigError, heartbeat, install, need, say

HERE = Path(__file__).resolve().parents[2]
RECIPE = "1"		# raise it when the way of building changes


def _patches():
	return sorted((HERE / "patches").glob("*.patch"))


def _config():
	return HERE / "config"


def _key(source):
	"""Of what has an effect: not of the words around it."""
	h = hashlib.sha256(f"{RECIPE} {source['SHA256']}".encode())
	for line in _config().read_text(encoding="utf-8").splitlines():
		h.update(line.encode() if line.startswith("CONFIG_") else b"")
	for p in _patches():
		h.update(p.read_bytes().partition(b"\ndiff ")[2])
	return h.hexdigest()[:16]


def _make(tree, log, *args, env=None):
	cmd = ["nice", "-n", "15", "make", "-s", "ARCH=x86_64", *args]
	full = dict(os.environ, KBUILD_BUILD_TIMESTAMP="1970-01-01", KBUILD_BUILD_USER="rig",
		    KBUILD_BUILD_HOST="rig", **(env or {}))
	full.pop("MAKEFLAGS", None)
	done = subprocess.run(cmd, cwd=tree, env=full, stdin=subprocess.DEVNULL, stdout=log,
			      stderr=subprocess.STDOUT, check=False)
	return done.returncode == 0


def _tail(path, n=25):
	lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
	return "\n".join(lines[-n:])


def _configure(tree, log):
	"""Every line of ours must be in the result: a renamed option is an error, not a surprise."""
	if not _make(tree, log, "allnoconfig", env={"KCONFIG_ALLCONFIG": str(_config())}):
		return ["allnoconfig failed"]
	have = set((tree / ".config").read_text(encoding="utf-8").splitlines())
	wrong = []
	for line in _config().read_text(encoding="utf-8").splitlines():
		if not line.startswith("CONFIG_"):
			continue
		name, value = line.split("=", 1)
		if value == "n":
			wrong += [f"{name} is set" for h in have if h.startswith(name + "=")]
		elif line not in have:
			wrong.append(f"{line} did not take")
	return wrong


def _apply(tree, log):
	for p in _patches():
		with open(p, "rb") as f:
			done = subprocess.run(["patch", "-p1", "--batch", "--fuzz=3"], cwd=tree,
					      stdin=f, stdout=log, stderr=subprocess.STDOUT,
					      check=False)
		if done.returncode:
			return p.name
	return None


def _unpack(archive, source, work):
	packages.remove(work)
	say(f"fetching {source['Package']} {source['Version']} ({int(source['Size']) >> 20} MiB)")
	packages.unpack(archive.fetch(source, work / "deb"), work, ["*.tar.xz"])
	tars = list(work.rglob("linux-source-*.tar.xz"))
	if not tars:
		raise RigError(f"{source['Package']} holds no source")
	tree = work / "linux"
	tree.mkdir()
	subprocess.run(["tar", "-xJf", str(tars[0]), "-C", str(tree), "--strip-components=1"],
		       check=True, stdin=subprocess.DEVNULL)
	tars[0].unlink()
	return tree


def _try(cache, archive, source, cell, jobs):
	"""Returns why this source cannot be used, or None when the kernel is built."""
	work = cache / "patched-build"
	tree = _unpack(archive, source, work)
	log_path = cache / "patched-build.log"
	with open(log_path, "wb") as log:
		bad = _apply(tree, log)
		if bad:
			return f"{bad} does not apply"
		wrong = _configure(tree, log)
		if wrong:
			return "its configuration: " + "; ".join(wrong)
		say(f"building it with {jobs} jobs, some minutes")
		with heartbeat("still building"):
			good = _make(tree, log, f"-j{jobs}", "bzImage")
	if not good:
		raise RigError(f"{source['Package']} does not build:\n{_tail(log_path)}")
	packages.remove(cell)
	cell.mkdir(parents=True)
	(tree / "arch/x86/boot/bzImage").rename(cell / "vmlinuz")
	(tree / ".config").rename(cell / "config")
	packages.remove(work)
	(cell / "complete").touch()
	return None


def _remember(cache, source):
	path = cache / "kernels" / "patched.json"
	path.parent.mkdir(parents=True, exist_ok=True)
	path.write_text(json.dumps(source), encoding="utf-8")


def _recall(cache):
	"""The source used last, if what it makes with the patches of now is there."""
	path = cache / "kernels" / "patched.json"
	source = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
	return source if source and (_cell(cache, source) / "complete").exists() else None


def _cell(cache, source):
	return cache / "kernels" / f"patched-{_key(source)}"


def _find(cache, archive, jobs):
	archive.update()
	reasons = []
	for source in packages.sources(archive)[:3]:
		why = None
		if not (_cell(cache, source) / "complete").exists():
			install(BUILD_PACKAGES)
			need(BUILD_PACKAGES)
			why = _try(cache, archive, source, _cell(cache, source), jobs)
		if not why:
			_remember(cache, source)
			return source
		reasons.append(f"{source['Package']} {source['Version']}: {why}")
		say(f"{reasons[-1]}; the next older source is tried")
	raise RigError("no packaged kernel source takes the patches: " + "; ".join(reasons))


def build(cache, archive, jobs):
	"""(bzImage, version); built once for each content of source, patches and configuration."""
	source, remark = _recall(cache), ""
	if not (source and archive.fresh()):
		try:
			source = _find(cache, archive, jobs)
		except (RigError, OSError) as e:
			if not source:
				raise
			remark = f" (from the cache: {e})"
	say(f"patched: {source['Package']} {source['Version']} with {len(_patches())} patches of "
	    f"ours{remark}")
	return _cell(cache, source) / "vmlinuz", source["Version"]
