#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""The manual says what the headers say, all of it, and its examples work."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import headers	# noqa: E402
from docs.rst import pages	# noqa: E402
from headers import BUILD, CC, TOP, output, squeeze	# noqa: E402
from pytap import main	# noqa: E402

PAGES = pages()
PARTS = [p for p in PAGES if p.section == "3"]
THREADS = {
	"May be called from any thread": "any",
	"One thread at a time per object": "one",
	"Before the first vCPU is created": "before",
}
IN_HEADERS = {
	"may be called from any thread": "any",
	"one thread at a time per": "one",
	"before the first vcpu is created": "before",
}


def header_of(page):
	return re.findall(r"#include <kvmem/(\w+\.h)>", page.blocks("SYNOPSIS")[0])[0]


def synopsis(page):
	found = {}
	for m in re.finditer(r"^([^#;]*?\b(kvmem_\w+)\s*\([^;]*\));", page.blocks("SYNOPSIS")[0], re.M):
		found[m.group(2)] = squeeze(m.group(1))
	return found


def comments(header):
	"""{function: its comment in the header}"""
	found = {}
	for m in re.finditer(r"/\*\*(.*?)\*/\s*KVMEM_API\s+[^;]*?\b(kvmem_\w+)\s*\(", headers.raw(header),
			     re.S):
		found[m.group(2)] = re.sub(r"\s*\n \*\s*", " ", m.group(1)).strip()
	return found


class Manual(headers.TestCase):
	def test_every_function_has_its_page(self):
		documented = {f for p in PARTS for f in synopsis(p)}
		self.equal_sets(headers.functions(headers.EVERY), documented, ("the headers", "the manual"))

	def test_synopsis_is_the_headers(self):
		for page in PARTS:
			want = {f: squeeze(p) for f, p in headers.prototypes(header_of(page)).items()}
			self.assertEqual(synopsis(page), want, page.name)

	def test_every_function_is_described(self):
		for page in PARTS:
			text = "".join(page.sections[s] for s in ("DESCRIPTION", "RETURN VALUE", "ERRORS"))
			for function in synopsis(page):
				self.assertRegex(text, rf"``{function}\(\)``|(?m:^(?:\w+\(\), )*{function}\(\))",
						 f"{page.name}: {function}")

	def headings(self, page):
		"""The headings of a DESCRIPTION."""
		return re.findall(r"^(\S.*)\n-{3,}$", page.sections["DESCRIPTION"], re.M)

	def test_every_function_has_a_heading(self):
		"""Whoever looks a function up finds one place that is about it, and text there."""
		for page in PARTS:
			found = [f for h in self.headings(page) for f in re.findall(r"(\w+)\(\)", h)]
			self.equal_sets(set(found), synopsis(page), ("DESCRIPTION", "SYNOPSIS"))
			self.assertEqual(len(found), len(set(found)), f"{page.name}: two headings for one")
			for body in re.findall(r"\(\)\n-{3,}\n\n(.*)\n", page.sections["DESCRIPTION"]):
				self.assertRegex(body, r"^[A-Z]", page.name)

	def callback_table(self):
		"""{call: its cells} of the table in kvmem(7)."""
		text = [p for p in PAGES if p.name == "kvmem"][0].sections["DESCRIPTION"]
		table = re.search(r"^    call +pager popul.*\n    -+\n((?:    .+\n)+)", text, re.M).group(1)
		return {row.split()[0]: row.split()[1:] for row in table.splitlines()}

	def test_callback_table_is_the_tested_one(self):
		"""tests/kernel/callbacks.c makes each of these calls from each callback but `foreign`."""
		source = (TOP / "tests/kernel/callbacks.c").read_text(encoding="utf-8")
		tested = {m.group(1): re.findall(r"\"(\w+)\"", m.group(2)) for m in
			  re.finditer(r"{ \"(\w+)\", call_\w+, {([^}]*)} }", source)}
		told = self.callback_table()
		self.assertGreater(len(tested), 30)
		for call, cells in told.items():
			self.assertIn(f"kvmem_{call}", headers.functions())
			if call in tested:
				self.assertEqual(cells[:len(tested[call])], tested[call], call)
			else:	# what waits, or may do harm, is not called
				self.assertFalse({"yes", "no", "busy"} & set(cells[:-1]), call)
		self.assertFalse(set(tested) - set(told), "not in kvmem(7)")

	def test_every_field_and_constant_is_described(self):
		for page in PARTS:
			header, names = header_of(page), page.names()
			want = set(headers.enumerators(header) + headers.constants(header))
			want |= set(headers.initialisers(header))
			for struct, fields in headers.structs(header).items():
				want |= set(fields)
			missing = {n for n in want - names
				   if not n.startswith("KVMEM_VERSION_") and
				   not self.in_other_words(n, page)}
			self.assertFalse(missing, f"{page.name}: not described")

	def in_other_words(self, name, page):
		"""Zero values of methods and the like may be told by what they mean."""
		return name.endswith("_AUTO") and name[:name.rindex("_")] in page.text

	def test_every_error_is_described(self):
		for page in PARTS:
			for function, text in comments(header_of(page)).items():
				codes = set(re.findall(r"-E[A-Z0-9]+\b", text))
				self.assertFalse(codes - page.names("ERRORS"),
						 f"{page.name}: {function}() can fail so")

	def test_errors_are_of_the_closed_set(self):
		closed = [p for p in PAGES if p.name == "kvmem"][0].names("ERRORS")
		for page in PARTS:
			codes = {n for n in page.names("ERRORS") if n.startswith("-E")}
			self.assertFalse(codes - closed, f"{page.name}: not in kvmem(7)")

	def test_bad_input_is_tested(self):
		"""Each line of kvmem(7) names its tests, these exist, and expect the codes that it tells."""
		text = [p for p in PAGES if p.name == "kvmem"][0].sections["ERRORS"]
		text = text[text.index("Bad input\n"):]
		told = {}
		for line in re.findall(r"^\* ((?:.*\n)(?:  .*\n)*)", text, re.M):
			tests = re.findall(r"``(\w+/\w+)``", line)
			self.assertTrue(tests, line)
			for test in tests:
				told.setdefault(test, set()).update(re.findall(r"``-(E\w+)``", line))
		for test, codes in told.items():
			program, name = test.split("/")
			source = (TOP / f"tests/kernel/{program}.c").read_text(encoding="utf-8")
			body = re.search(rf"^TEST\({name}\)", source, re.M)
			self.assertTrue(body, f"there is no test {test}")
			if codes:
				self.equal_sets(codes, self.codes_of(source, name),
						("kvmem(7)", test))
		here = {f"bad_input/{n}" for n in self.named_in("bad_input")}
		self.equal_sets({t for t in told if t.startswith("bad_input/")}, here,
				("kvmem(7)", "bad_input.c"))

	def named_in(self, program):
		source = (TOP / f"tests/kernel/{program}.c").read_text(encoding="utf-8")
		return re.findall(r"^TEST\((\w+)\)", source, re.M)

	def codes_of(self, source, name):
		"""The codes that a test, or the function that it runs in a child, expects."""
		body = re.search(rf"^TEST\({name}\)(.*?)^END$", source, re.M | re.S).group(1)
		for child in re.findall(r"harness_child\((\w+)", body):
			body += re.search(rf"^static int {child}\(.*?^}}", source, re.M | re.S).group(0)
		return set(re.findall(r"\b(E[A-Z0-9]{3,})\b", body))

	def threads(self, page):
		found = {}
		for title, body in re.findall(r"^(\w.*):\n((?:    .*\n)+)", page.sections["THREADS"], re.M):
			for function in re.findall(r"(kvmem_\w+)\(\)", body):
				self.assertNotIn(function, found, page.name)
				found[function] = THREADS[title]
		return found

	def test_threads_of_every_function(self):
		for page in PARTS:
			self.equal_sets(self.threads(page), synopsis(page), ("THREADS", "SYNOPSIS"))

	def test_threads_agree_with_the_header(self):
		agreed = 0
		for page in PARTS:
			said = self.threads(page)
			for function, text in comments(header_of(page)).items():
				for words, kind in IN_HEADERS.items():
					if words in text.lower():
						self.assertEqual(said[function], kind, function)
						agreed += 1
		self.assertGreater(agreed, len(headers.functions()) / 2)

	def test_sections(self):
		want = ["SYNOPSIS", "DESCRIPTION", "RETURN VALUE", "ERRORS", "THREADS", "EXAMPLE",
			"SEE ALSO"]
		for page in PARTS:
			self.assertEqual(list(page.sections), want, page.name)

	def test_recipes_are_programs(self):
		"""Each recipe names programs that tests run, is short, and shows lines of theirs."""
		built = (TOP / "examples/meson.build").read_text(encoding="utf-8")
		text = [p for p in PAGES if p.name == "kvmem-recipes"][0].sections["DESCRIPTION"]
		parts = re.split(r"^(\S.*)\n-{3,}$", text, flags=re.M)
		self.assertGreater(len(parts), 20)
		for title, body in zip(parts[1::2], parts[2::2]):
			source = ""
			for name in re.findall(r"``examples/(\w+)\.c``", body):
				self.assertIn(f"  '{name}': [", built, title)
				program = (TOP / f"examples/{name}.c").read_text(encoding="utf-8")
				self.assertTrue(name == "dirty" or program.count("\n") <= 60, name)
				source += program
			shown = re.search(r"^::\n\n((?:    .*\n)+)", body, re.M)
			self.assertTrue(source and shown, title)
			for line in shown.group(1).splitlines():
				self.assertIn(" ".join(line.split()), " ".join(source.split()), title)

	def test_references_exist(self):
		there = {(p.name, p.section) for p in PAGES}
		there |= {(f, "3") for f in headers.functions(headers.EVERY)}
		for page in PAGES:
			for ref in re.findall(r"\*\*(kvmem[\w-]*)\*\*\\ \((\d)\)", page.text):
				self.assertIn(ref, there, page.name)

	def test_examples(self):
		tried = 0
		for page in PAGES:
			for block in page.blocks("EXAMPLE") if page.section != "1" else []:
				tried += 1
				self.run_example(page.name, block)
		self.assertGreaterEqual(tried, len(PARTS))

	def libraries(self, code):
		"""Those on top of libkvmem that a program includes the header of."""
		for header in re.findall(r"#include <kvmem/(\w+\.h)>", code):
			name = headers.OTHERS.get(header)
			if name:
				folder = BUILD / "lib" / name.removeprefix("kvmem-")
				if not folder.exists():
					self.skipTest(f"lib{name} was not built")
				yield from (folder / f"lib{name}.so", f"-Wl,-rpath,{folder}")

	def run_example(self, name, code):
		with tempfile.TemporaryDirectory() as tmp:
			src, exe = Path(tmp, name + ".c"), Path(tmp, name)
			src.write_text(code, encoding="utf-8")
			output([*CC, "-std=c11", "-D_DEFAULT_SOURCE", *headers.WARNINGS, "-Wconversion",
				"-Wshadow", f"-I{headers.INCLUDE}", src, "-o", exe, *self.libraries(code),
				BUILD / "lib/libkvmem.so", f"-Wl,-rpath,{BUILD / 'lib'}"])
			done = subprocess.run([exe], capture_output=True, text=True, timeout=60,
					      check=False)
			self.assertIn(done.returncode, (0, 77), f"{name}: {done.stderr}")

	def test_readme_program(self):
		text = (TOP / "README.md").read_text(encoding="utf-8")
		programs = re.findall(r"```c\n(.*?)```", text, re.S)
		self.assertEqual(len(programs), 1)
		self.run_example("readme", programs[0])

	def test_readme_links(self):
		for md in [TOP / "README.md", *(TOP / "docs").glob("*.md")]:
			for link in re.findall(r"\]\(([^)#:]+)\)", md.read_text(encoding="utf-8")):
				self.assertTrue((md.parent / link).exists(), f"{md.name}: {link}")

	def rst2man(self):
		tool = shutil.which("rst2man") or shutil.which("rst2man.py")
		if not tool:
			self.skipTest("rst2man is not installed")
		return tool

	def test_pages_are_clean(self):
		"""No warning, neither from rst2man nor from what formats the page."""
		tool = self.rst2man()
		env = dict(os.environ, LC_ALL="C.UTF-8")
		for page in PAGES:
			source = TOP / f"docs/man/{page.name}.{page.section}.rst"
			with tempfile.TemporaryDirectory() as tmp:
				man = Path(tmp, page.name)
				output([tool, "--halt=2", source, man])
				if shutil.which("groff"):
					said = subprocess.run(["groff", "-Kutf8", "-t", "-man", "-Tutf8", "-ww", "-z",
							       man], capture_output=True, text=True,
							      check=True, env=env).stderr
					self.assertEqual(said, "", page.name)


if __name__ == "__main__":
	main()
