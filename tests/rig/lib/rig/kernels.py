# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""From the name of a kernel to a bzImage and its modules, kept in the cache."""

import dataclasses
import json
from pathlib import Path

from . import packages, patched
from .modules import collect
from .util import RigError, locked, say

PICK = ["*/vmlinuz*", "*/kernel/arch/*", "*/kernel/virt/*", "*/kernel/drivers/crypto/ccp/*",
	"*/kernel/lib/*", "*/kernel/crypto/*"]


@dataclasses.dataclass
class Kernel:
	name: str		# as asked for: the first part of every test's name
	image: Path
	modules: list		# [(file name, bytes)] in the order of loading
	version: str = ""
	cmdline: str = ""
	table: object = None	# the expectations, if there are any

	def suits(self, program):
		"""The proof of the patches is for the patched kernel; a table may leave out more."""
		if program == "patches" and not self.name.startswith("patched:"):
			return False
		return not self.table or program not in self.table.without


def _load_modules(directory):
	order = directory / "order"
	if not order.exists():
		return []
	names = order.read_text(encoding="utf-8").split()
	return [(n, (directory / n).read_bytes()) for n in names]


def _store_modules(directory, modules):
	directory.mkdir(parents=True)
	for name, data in modules:
		(directory / name).write_bytes(data)
	(directory / "order").write_text("".join(f"{n}\n" for n, _ in modules), encoding="utf-8")


def _unpack_stock(archive, parts, cell):
	"""Fills cell with vmlinuz and modules/; the mark comes last."""
	packages.remove(cell)
	tree = cell / "tree"
	for p in parts:
		say(f"fetching {p['Package']} {p['Version']} ({int(p['Size']) >> 20} MiB)")
		packages.unpack(archive.fetch(p, cell / "deb"), tree, PICK)
	images = sorted(tree.rglob("vmlinuz*"))
	if not images:
		raise RigError(f"{parts[0]['Package']} holds no vmlinuz")
	_store_modules(cell / "modules", collect(tree))
	images[0].rename(cell / "vmlinuz")
	packages.remove(tree)
	packages.remove(cell / "deb")
	(cell / "complete").touch()


def _recall(cache, name):
	"""What a name stood for last: enough for a day without network."""
	path = cache / "kernels" / "names.json"
	return json.loads(path.read_text(encoding="utf-8")).get(name) if path.exists() else None


def _remember(cache, name, known):
	path = cache / "kernels" / "names.json"
	names = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
	path.parent.mkdir(parents=True, exist_ok=True)
	path.write_text(json.dumps({**names, name: known}, indent="\t"), encoding="utf-8")


def _look_up(archive, cache, name):
	archive.update()
	version, parts, remark = packages.choose(archive, name.split(":", 1)[1])
	known = {"version": version, "packages": parts, "remark": remark}
	_remember(cache, name, known)
	return known


def _cell(cache, version):
	return cache / "kernels" / version.replace("~", "-")


def _stock(name, cache, archive):
	known = _recall(cache, name)
	complete = known and (_cell(cache, known["version"]) / "complete").exists()
	if not (complete and archive.fresh()):
		try:
			known = _look_up(archive, cache, name)
		except (RigError, OSError) as e:
			if not complete:
				raise
			known["remark"] = f"from the cache: {e}"
	cell = _cell(cache, known["version"])
	if not (cell / "complete").exists():
		_unpack_stock(archive, known["packages"], cell)
	remark = f" ({known['remark']})" if known["remark"] else ""
	say(f"{name}: {known['packages'][0]['Package']} {known['version']}{remark}")
	return Kernel(name, cell / "vmlinuz", _load_modules(cell / "modules"), known["version"])


def _path(name):
	image, _, tree = name.partition(",")
	if not Path(image).is_file():
		raise RigError(f"{name}: neither stock:SERIES, patched, patched:MODE nor a bzImage")
	return Kernel(Path(image).name, Path(image), collect(Path(tree)) if tree else [])


def expand(names, tables):
	"""patched stands for each of its modes."""
	for name in names:
		if name == "patched":
			yield from tables.modes()
		else:
			yield name


def get(name, cache, archive, tables, jobs):
	cache = Path(cache)
	with locked(cache / "lock"):
		if name.startswith("stock:"):
			kernel = _stock(name, cache, archive)
		elif name.startswith("patched:"):
			image, version = patched.build(cache, archive, jobs)
			kernel = Kernel(name, image, [], version)
		else:
			kernel = _path(name)
	kernel.table = tables.find(kernel.name, kernel.version)
	if kernel.table:
		kernel.cmdline = kernel.table.cmdline
	elif name.startswith("patched:"):
		raise RigError(f"{name}: no such mode; there are " + " ".join(tables.modes()))
	return kernel
