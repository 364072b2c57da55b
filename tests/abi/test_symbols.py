#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""What is exported, declared and mapped is the same, and the library asks for nothing it must not."""

import re
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import headers	# noqa: E402
from headers import BUILD, CC, TOP, output	# noqa: E402
from pytap import main	# noqa: E402

SHARED = BUILD / "lib/libkvmem.so"
STATIC = BUILD / "lib/libkvmem.a"
MAP = TOP / "lib/libkvmem.map"

# A library does not print, end the program, read its environment or take its signals.
FORBIDDEN = re.compile(
	r"^(_*(v?f?printf|vd?printf|dprintf|puts|putchar|fputs|fputc|fwrite|perror|v?warnx?|v?errx?|error)"
	r"(_chk)?|v?syslog|stdout|stderr|_?exit|_Exit|quick_exit|abort|__assert_fail|assert|atexit|"
	r"on_exit|(secure_)?getenv|setenv|putenv|environ|signal|sigaction|sigwait\w*|signalfd|raise|"
	r"system|popen|fork|vfork|exec\w+|sleep|usleep|nanosleep|setlocale)$")
CONSTRUCTOR = re.compile(r"^\.(init_array|ctors|preinit_array|fini_array|dtors|init|fini)\b")
ON_TOP = re.compile(r"^(libc|libkvmem|ld-linux[-\w]*)\.so\.\d+$")	# needed by libraries on top, and
AND = {"kvmem-image": re.compile(r"^lib(xxhash|zstd)\.so\.\d+$"), "kvmem-nbd": re.compile(r"^libnbd\.so\.\d+$")}
NEEDED = re.compile(r"^(libc|libm|libpthread|liburing|libnuma|ld-linux[-\w]*)\.so\.\d+$")


def nm(*args):
	"""(type, name, version) of each symbol."""
	found = []
	for line in output(["nm", *args]).splitlines():
		m = re.match(r"(?:[0-9a-f]+)?\s+([A-Za-z])\s+([^@\s]+)(?:@+(\S+))?$", line)
		if m:
			found.append(m.groups())
	return found


def exported():
	"""The version node itself is an absolute symbol."""
	return {name: version for kind, name, version in nm("-D", "--defined-only", SHARED)
		if kind != "A"}


def mapped():
	"""{symbol: version node} of the map."""
	text = re.sub(r"/\*.*?\*/", "", MAP.read_text(encoding="utf-8"), flags=re.S)
	found = {}
	for node, body in re.findall(r"(\w+[\w.]*)\s*\{(.*?)\}", text, re.S):
		for section in re.findall(r"global:(.*?)(?:local:|$)", body, re.S):
			found.update({s: node for s in re.findall(r"([\w*?]+)\s*;", section)})
	return found


class Symbols(headers.TestCase):
	def test_map_is_what_is_exported(self):
		self.assertEqual(mapped(), exported())

	def test_headers_declare_what_is_exported(self):
		self.equal_sets(headers.functions(), exported(), ("the headers", "libkvmem.so"))

	def test_every_name_is_ours(self):
		self.assertEqual([s for s in exported() if not s.startswith("kvmem_")], [])

	def test_every_function_is_given_null(self):
		"""Those that take a number or nothing apart."""
		source = (TOP / "tests/kernel/every_call.c").read_text(encoding="utf-8")
		tried = set(re.findall(r"\b(kvmem_\w+)\((?:[^;]*\b)?NULL\b", source))
		numbers = {"kvmem_version", "kvmem_error_detail", "kvmem_error_set", "kvmem_cap_name",
			   "kvmem_fill_method_name", "kvmem_file_method_name"}
		self.equal_sets(set(headers.functions()), (tried | numbers) & set(headers.functions()),
				("the headers", "every_call.c"))

	def link(self, *libs):
		"""A program that takes the address of each declared function links and runs."""
		names = sorted(headers.functions())
		with tempfile.TemporaryDirectory() as tmp:
			src, exe = Path(tmp, "all.c"), Path(tmp, "all")
			src.write_text("#include <kvmem/kvmem.h>\n"
				       "typedef void (*fn)(void);\n"
				       "fn const all[] = {\n" +
				       "".join(f"\t(fn){n},\n" for n in names) +
				       "};\nint main(void)\n{\n"
				       f"\tfor (int i = 0; i < {len(names)}; i++)\n"
				       "\t\tif (!all[i])\n\t\t\treturn 1;\n\treturn 0;\n}\n",
				       encoding="ascii")
			output([*CC, "-Wall", "-Wextra", "-Werror", f"-I{headers.INCLUDE}", src, "-o",
				exe, *libs])
			output([exe])

	def test_every_function_links_shared(self):
		self.link(SHARED, f"-Wl,-rpath,{SHARED.parent}", "-Wl,-z,defs,-z,now")

	def test_every_function_links_static(self):
		self.link(STATIC, "-luring", "-lnuma", "-pthread")


class Library(headers.TestCase):
	def imports(self):
		return {name for kind, name, _ in nm("-D", "--undefined-only", SHARED)}

	def test_prints_and_ends_nothing(self):
		self.assertEqual(sorted(n for n in self.imports() if FORBIDDEN.match(n)), [])

	def test_the_rule_above_can_fail(self):
		for name in ("printf", "__fprintf_chk", "exit", "abort", "getenv", "sigaction", "stderr"):
			self.assertTrue(FORBIDDEN.match(name), name)
		for name in ("snprintf", "__snprintf_chk", "__vsnprintf_chk", "pthread_sigmask"):
			self.assertFalse(FORBIDDEN.match(name), name)

	def test_no_constructors(self):
		sections = [line.split()[1] for line in output(["objdump", "-h", STATIC]).splitlines()
			    if re.match(r"\s*\d+\s+\.", line)]
		self.assertIn(".text", sections)
		self.assertEqual([s for s in sections if CONSTRUCTOR.match(s)], [])

	def test_static_names_are_ours(self):
		names = {n for kind, n, _ in nm("-g", "--defined-only", STATIC)}
		self.assertTrue(names)
		self.assertEqual(sorted(n for n in names if not n.startswith(("kvmem_", "km_"))), [])

	def test_needs_only_what_it_is_documented_to(self):
		text = output(["readelf", "-dW", SHARED])
		needed = re.findall(r"\(NEEDED\).*\[(.*)\]", text)
		self.assertTrue(needed)
		self.assertEqual([n for n in needed if not NEEDED.match(n)], [])
		self.assertRegex(text, r"\(SONAME\).*\[libkvmem\.so\.0\]")
		self.assertNotRegex(text, r"TEXTREL")

	def test_stack_is_not_executable(self):
		stack = re.search(r"GNU_STACK.*", output(["readelf", "-lW", SHARED]))
		self.assertNotIn("E", stack.group(0).split()[6])


class OnTop(headers.TestCase):
	"""Libraries on top of libkvmem: what they export, and what they need."""

	def each(self):
		libs = [(header, name, BUILD / "lib" / name.removeprefix("kvmem-") / f"lib{name}.so")
			for header, name in headers.OTHERS.items()]
		built = [lib for lib in libs if lib[2].exists()]
		if not built:
			self.skipTest("none was built")
		return built

	def test_headers_declare_what_is_exported(self):
		for _, name, lib in self.each():
			names = {n for kind, n, _ in nm("-D", "--defined-only", lib) if kind != "A"}
			its = [h for h, other in headers.OTHERS.items() if other == name]
			self.equal_sets(headers.functions(its), names, (" ".join(its), lib.name))

	def test_they_print_and_end_nothing(self):
		for _, _, lib in self.each():
			names = {n for kind, n, _ in nm("-D", "--undefined-only", lib)}
			self.assertEqual(sorted(n for n in names if FORBIDDEN.match(n)), [], lib.name)
			self.assertTrue({n for n in names if n.startswith("kvmem_")} <=
					set(headers.functions()), lib.name)

	def test_they_need_only_what_they_are_documented_to(self):
		for _, name, lib in self.each():
			text = output(["readelf", "-dW", lib])
			needed = re.findall(r"\(NEEDED\).*\[(.*)\]", text)
			self.assertIn("libkvmem.so.0", needed)
			self.assertEqual([n for n in needed if not ON_TOP.match(n) and not AND[name].match(n)], [])
			self.assertRegex(text, rf"\(SONAME\).*\[lib{name}\.so\.0\]")


if __name__ == "__main__":
	main()
