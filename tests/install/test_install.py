#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""The library as others get it: installed to a prefix and found by pkg-config, or as a subproject."""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import headers	# noqa: E402
from headers import CC, TOP, WARNINGS, output	# noqa: E402
from pytap import main	# noqa: E402

HERE = Path(__file__).resolve().parent
LEAN = ["-Dtests=disabled", "-Dexamples=disabled"]
LANGUAGES = {"c": ([*CC, "-std=c99"], WARNINGS), "c++": (["g++", "-std=c++17", "-x", "c++"], WARNINGS)}

PROJECT = """project('vmm', 'c', version: '1')
kvmem = dependency('kvmem', fallback: 'libkvmem'%s)
test('vmm', executable('vmm', 'program.c', dependencies: kvmem))
"""


def meson_environment():
	"""A meson test must not hand its own settings to the meson that it runs."""
	return {k: v for k, v in os.environ.items() if not k.startswith(("MESON", "NINJA"))}


class Installed(headers.TestCase):
	@classmethod
	def setUpClass(cls):
		cls.tmp = Path(tempfile.mkdtemp())
		cls.addClassCleanup(shutil.rmtree, cls.tmp)
		cls.prefix = cls.tmp / "prefix"
		env = meson_environment()
		output(["meson", "setup", cls.tmp / "build", TOP, f"--prefix={cls.prefix}",
			"--libdir=lib", *LEAN], env=env)
		output(["meson", "install", "-C", cls.tmp / "build", "--quiet"], env=env)
		cls.env = dict(env, PKG_CONFIG_PATH=str(cls.prefix / "lib/pkgconfig"))

	def flags(self, *args):
		return output(["pkg-config", *args, "kvmem"], env=self.env).split()

	def build(self, language, *flags, run_env=None):
		compiler, warnings = LANGUAGES[language]
		if not shutil.which(compiler[0]):
			self.skipTest(f"{compiler[0]} is not installed")
		exe = self.tmp / f"{self._testMethodName}-{language}"
		output([*compiler, *warnings, HERE / "program.c", "-x", "none", "-o", exe, *flags])
		self.assertRegex(output([exe], env=run_env), r"^libkvmem \d+\.\d+\.\d+$")
		return output(["readelf", "-dW", exe])

	def test_shared(self):
		env = dict(self.env, LD_LIBRARY_PATH=str(self.prefix / "lib"))
		for language in LANGUAGES:
			needs = self.build(language, *self.flags("--cflags", "--libs"), run_env=env)
			self.assertIn("[libkvmem.so.0]", needs)
			self.assertNotIn("[liburing", needs)

	def test_static_library(self):
		"""libkvmem.a, everything else shared."""
		archive = str(self.prefix / "lib/libkvmem.a")
		flags = [archive if f == "-lkvmem" else f for f in
			 self.flags("--cflags", "--libs", "--static")]
		for language in LANGUAGES:
			self.assertNotIn("libkvmem", self.build(language, *flags))

	def test_static_program(self):
		for language in LANGUAGES:
			self.build(language, "-static", *self.flags("--cflags", "--libs", "--static"))

	def test_examples(self):
		"""Built alone, as a reader would; those run that need neither KVM nor a guest."""
		env = dict(self.env, LD_LIBRARY_PATH=str(self.prefix / "lib"), CC=" ".join(CC))
		out = self.tmp / "examples"
		output([TOP / "examples/build", out], env=env)
		for name in ("probe", "numa", "populate", "pager", "dirty", "lifecycle"):
			self.assertIn("[libkvmem.so.0]", output(["readelf", "-dW", out / name]))
		self.assertIn("guest-memfd", output([out / "probe"], env=env))
		self.assertIn("--vcpus", output([out / "lifecycle", "--help"], env=env))

	def test_what_is_installed(self):
		files = {str(p.relative_to(self.prefix)) for p in self.prefix.rglob("*")
			 if not p.is_dir()}
		files = {f for f in files if not f.startswith("share/man/")}
		lib = {f"lib/{n}" for n in ("libkvmem.a", "libkvmem.so", "libkvmem.so.0",
					    f"libkvmem.so.{self.version()}", "pkgconfig/kvmem.pc")}
		there = set(headers.NAMES)
		for header, name in headers.OTHERS.items():
			if (self.prefix / f"lib/lib{name}.so").exists():	# with what it needs
				there.add(header)
				lib |= {f"lib/{n}" for n in (f"lib{name}.a", f"lib{name}.so", f"lib{name}.so.0",
							     f"lib{name}.so.{self.version()}",
							     f"pkgconfig/{name}.pc")}
				lib |= {f"bin/{n}" for n in headers.TOOLS.get(name, ())}
		self.equal_sets(files, lib | {f"include/kvmem/{n}" for n in there},
				("the prefix", "what should be there"))

	def test_libraries_on_top(self):
		"""One program each, by the flags of its own pkg-config file."""
		env = dict(self.env, LD_LIBRARY_PATH=str(self.prefix / "lib"))
		for header, name in headers.OTHERS.items():
			if not (self.prefix / f"lib/pkgconfig/{name}.pc").exists():
				continue	# what it needs is not here
			src, exe = self.tmp / f"{name}.c", self.tmp / name
			function = sorted(headers.functions([header]))[0]
			src.write_text(f"#include <kvmem/{header}>\nint main(void)\n{{\n"
				       f"\treturn (void (*)(void)){function} == (void (*)(void))0;\n}}\n",
				       encoding="ascii")
			output([*CC, *WARNINGS, src, "-o", exe,
				*output(["pkg-config", "--cflags", "--libs", name], env=self.env).split()])
			output([exe], env=env)

	def version(self):
		return re.search(r"version: '([\d.]+)'", (TOP / "meson.build").read_text()).group(1)

	def test_versions_agree(self):
		self.assertEqual(self.flags("--modversion"), [self.version()])
		self.assertEqual(".".join(re.findall(r"_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)",
						     headers.raw("base.h"))), self.version())


class Subproject(headers.TestCase):
	def use(self, extra):
		with tempfile.TemporaryDirectory() as tmp:
			tmp = Path(tmp)
			(tmp / "subprojects").mkdir()
			(tmp / "subprojects/libkvmem").symlink_to(TOP)
			(tmp / "meson.build").write_text(PROJECT % extra, encoding="ascii")
			shutil.copy(HERE / "program.c", tmp)
			env = meson_environment()
			env["PKG_CONFIG_PATH"] = ""
			# What is found and linked counts here, not how fast it is: three builds without optimisation.
			output(["meson", "setup", tmp / "b", tmp, "--wrap-mode=forcefallback", "-Doptimization=0"], env=env)
			output(["meson", "test", "-C", tmp / "b", "--no-suite", "libkvmem"], env=env)
			listed = output(["meson", "test", "-C", tmp / "b", "--no-rebuild", "--list"],
					env=env)
			self.assertEqual(listed.split(), ["vmm"], "our own tests are not the user's")
			return output(["readelf", "-dW", tmp / "b/vmm"])

	def test_shared(self):
		self.assertIn("[libkvmem.so.0]", self.use(""))

	def test_static(self):
		self.assertNotIn("libkvmem", self.use(", static: true"))

	def test_static_by_default_library(self):
		self.assertNotIn("libkvmem", self.use(", default_options: ['default_library=static']"))


if __name__ == "__main__":
	main()
