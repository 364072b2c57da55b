#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""kvmem-image(1), as it is used."""

import ctypes
import fcntl
import json
import os
import pty
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pytap import main	# noqa: E402

TOP = Path(__file__).resolve().parents[2]
TOOL = os.environ["KVMEM_TOOL"]
PAGE = 4096
PAGES = 700


class Tool(unittest.TestCase):
	def setUp(self):
		self.dir = Path(tempfile.mkdtemp())
		self.addCleanup(shutil.rmtree, self.dir)
		self.random = random.Random(self.id())

	def run_tool(self, *args, status=0):
		done = subprocess.run([TOOL, *args], cwd=self.dir, capture_output=True, text=True, check=False)
		self.assertEqual(done.returncode, status, done.stderr)
		if status == 1 and args[0] != "diff":
			self.assertRegex(done.stderr, r"^kvmem-image: .+\n$")
			self.assertEqual(len(done.stderr.splitlines()), 1)
		return done.stdout + done.stderr

	def info(self, name):
		return json.loads(self.run_tool("info", "--json", name))

	def pages(self, *numbers):
		"""A raw sparse file's pages: {number: bytes}"""
		return {n: self.random.randbytes(PAGE) for n in numbers}

	def write(self, name, pages):
		with open(self.dir / name, "wb") as f:
			f.truncate(PAGES * PAGE)
			for n, content in pages.items():
				f.seek(n * PAGE)
				f.write(content)

	def content(self, *layers):
		out = bytearray(PAGES * PAGE)
		for pages in layers:
			for n, content in pages.items():
				out[n * PAGE:(n + 1) * PAGE] = content
		return bytes(out)

	def check(self, name, want):
		self.run_tool("verify", f"{name}.kvmem")
		self.run_tool("extract", f"{name}.kvmem", f"{name}.out")
		self.assertEqual((self.dir / f"{name}.out").read_bytes(), want, name)

	def test_a_raw_file_and_back(self):
		pages = self.pages(0, 3, 4, 600, PAGES - 1)
		self.write("raw", pages)
		self.assertEqual(self.run_tool("create", "raw", "a"), "")
		i = self.info("a.kvmem")
		self.assertEqual((i["bytes"], i["data"], i["parents"], i["depth"], i["parent"]),
				 (PAGES * PAGE, 5 * PAGE, 0, 0, None))
		self.assertRegex(i["id"], "^[0-9a-f]{32}$")
		self.check("a", self.content(pages))
		out = self.dir / "a.out"
		self.assertLess(out.stat().st_blocks * 512, 40 * PAGE)	# sparse
		self.assertEqual(out.stat().st_mode & 0o777, 0o600)
		self.assertIn(f"{5 * PAGE} stored here", self.run_tool("info", "a.kvmem"))

	def test_a_difference_by_content(self):
		old = self.pages(1, 2, 3, 500)
		new = {**old, **self.pages(2, 700 - 5)}
		new[3] = bytes(PAGE)
		self.write("old", old)
		self.write("new", new)
		self.run_tool("create", "old", "a")
		self.run_tool("create", "--parent", "a.kvmem", "new", "b")
		i = self.info("b.kvmem")
		self.assertEqual((i["data"], i["parents"], i["depth"]), (2 * PAGE, 2 * PAGE, 1))
		self.assertEqual(i["parent"], self.info("a.kvmem")["id"])
		self.check("b", self.content(new))
		runs = json.loads(self.run_tool("diff", "--json", "a.kvmem", "b.kvmem", status=1))
		self.assertEqual(runs, [{"offset": 2 * PAGE, "bytes": 2 * PAGE},
					{"offset": 695 * PAGE, "bytes": PAGE}])
		self.assertEqual(self.run_tool("diff", "a.kvmem", "b.kvmem", status=1),
				 "0x2000 0x2000\n0x2b7000 0x1000\n")
		self.assertEqual(self.run_tool("diff", "a.kvmem", "a.kvmem"), "")

	def test_a_difference_by_holes(self):
		old, new = self.pages(1, 2, 3), self.pages(2, 9)
		new[3] = bytes(PAGE)	# written zeros are zeros
		self.write("old", old)
		self.write("new", new)
		self.run_tool("create", "old", "a")
		self.run_tool("create", "--parent", "a.kvmem", "--diff", "new", "b")
		self.check("b", self.content(old, new))
		self.run_tool("create", "--parent", "a.kvmem", "new", "c")
		self.check("c", self.content(new))

	def test_flatten(self):
		layers = [self.pages(*self.random.sample(range(PAGES), 20)) for _ in range(4)]
		for n, pages in enumerate(layers):
			self.write("raw", pages)
			more = ["--parent", f"i{n - 1}.kvmem", "--diff"] if n else []
			self.run_tool("create", "--no-sync", *more, "raw", f"i{n}")
		self.run_tool("flatten", "i3.kvmem", "alone")
		self.assertEqual(self.info("alone.kvmem")["depth"], 0)
		for n in range(4):
			(self.dir / f"i{n}").unlink()
		self.check("alone", self.content(*layers))

	def test_nothing_is_written_over(self):
		self.write("raw", self.pages(1))
		self.write("a", self.pages(2))
		before = (self.dir / "a").read_bytes()
		self.run_tool("create", "raw", "a", status=1)
		self.run_tool("create", "raw", "b")
		self.run_tool("extract", "b.kvmem", "a", status=1)
		self.assertEqual((self.dir / "a").read_bytes(), before)
		self.run_tool("create", "raw", "b", status=1)
		self.run_tool("create", "--replace", "a", "b")
		self.check("b", before)

	def chain(self, *layers, start=0):
		"""Images i0, i1, ... each a difference to the one before."""
		for n, pages in enumerate(layers, start):
			self.write("raw", pages)
			more = ["--parent", f"i{n - 1}.kvmem", "--diff"] if n else []
			self.run_tool("create", *more, "raw", f"i{n}")

	def file(self, name):
		return (self.dir / name).read_bytes()

	def names(self):
		return sorted(p.name for p in self.dir.iterdir() if p.is_file())

	def need_zstd(self):
		if "zstd" not in os.environ.get("KVMEM_TOOL_HAS", "zstd"):
			self.skipTest("zstd: built without it")

	def test_packed_and_back(self):
		self.need_zstd()
		layers = [self.pages(0, 1, 2, 30, 600, PAGES - 1), {**self.pages(2, 9), 30: bytes(PAGE)}]
		layers[1][77] = layers[0][1][:100] * 40 + bytes(96)
		self.chain(*layers)
		self.run_tool("pack", "i0.kvmem", "p0")
		i, p = self.info("i0.kvmem"), self.info("p0.kvmem")
		self.assertEqual(p["packed"], (self.dir / "p0").stat().st_size)
		self.assertIsNone(i["packed"])
		self.assertIn(f"into {p['packed']}", self.run_tool("info", "p0.kvmem"))
		for field in ("bytes", "data", "zero", "parents", "depth", "regions", "blobs", "parent"):
			self.assertEqual(i[field], p[field])
		self.check("p0", self.content(layers[0]))
		self.run_tool("unpack", "p0.kvmem", "u0")
		self.assertEqual(self.file("u0"), self.file("i0"))
		self.assertLess((self.dir / "u0").stat().st_blocks * 512, 40 * PAGE)
		# A difference: on top of the same parent, each with a layout of its own.
		self.run_tool("pack", "i1.kvmem", "p1")
		self.assertEqual(self.info("p1.kvmem")["parent"], i["id"])
		self.assertEqual(self.info("p1.kvmem")["data"], 3 * PAGE)
		self.check("p1", self.content(*layers))
		self.run_tool("unpack", "p1.kvmem", "u1")
		self.assertEqual(self.file("u1"), self.file("i1"))
		self.assertEqual(self.run_tool("diff", "u1.kvmem", "p1.kvmem"), "")
		self.run_tool("rebase", "--parent", "p0.kvmem", "p1.kvmem", "q1")
		self.assertEqual(self.info("q1.kvmem")["parent"], p["id"])
		self.assertIsNotNone(self.info("q1.kvmem")["packed"])
		for name in ("i0", "i0.kvmem", "u0", "u0.kvmem"):
			(self.dir / name).unlink()
		self.check("q1", self.content(*layers))
		self.run_tool("flatten", "q1.kvmem", "f1")
		self.assertIsNotNone(self.info("f1.kvmem")["packed"])
		self.check("f1", self.content(*layers))

	def test_rebase(self):
		layers = [self.pages(*self.random.sample(range(PAGES), 20)) for _ in range(4)]
		layers[3][5] = layers[0][5] = self.random.randbytes(PAGE)
		layers[1][5] = self.random.randbytes(PAGE)
		layers[2][6] = bytes(PAGE)
		layers[0][6] = self.random.randbytes(PAGE)
		self.chain(*layers)
		want = self.content(*layers)
		base = self.content(layers[0])
		self.run_tool("rebase", "--parent", "i0.kvmem", "i3.kvmem", "r")
		i = self.info("r.kvmem")
		self.assertEqual((i["depth"], i["parent"]), (1, self.info("i0.kvmem")["id"]))
		differ = sum(want[n:n + PAGE] != base[n:n + PAGE] and want[n:n + PAGE] != bytes(PAGE)
			     for n in range(0, len(want), PAGE))
		self.assertEqual(i["data"], differ * PAGE)
		for n in (1, 2, 3):
			(self.dir / f"i{n}").unlink()
		self.check("r", want)
		# On top of one that has nothing of it, and of none.
		self.write("other", self.pages(6, 650))
		self.run_tool("create", "other", "o")
		self.run_tool("rebase", "--parent", "o.kvmem", "r.kvmem", "s")
		self.check("s", want)
		self.run_tool("rebase", "--flat", "s.kvmem", "t")
		self.assertEqual(self.info("t.kvmem")["depth"], 0)
		(self.dir / "o.kvmem").unlink()
		self.check("t", want)
		with open(self.dir / "short", "wb") as f:
			f.truncate(PAGE)
		self.run_tool("create", "short", "short-one")
		self.assertIn("lengths", self.run_tool("rebase", "--parent", "short-one.kvmem", "t.kvmem", "v", status=1))
		self.assertIn("none", self.run_tool("rebase", "--parent", "none.kvmem", "t.kvmem", "v", status=1))
		self.assertNotIn("v", self.names())

	def test_compact(self):
		layers = [self.pages(1, 2, 3), self.pages(2)]
		self.chain(*layers)
		clean = self.file("i1")
		with open(self.dir / "i1", "r+b") as f:	# what a copy makes of holes, and worse
			f.write(self.random.randbytes(PAGE))
			f.seek(300 * PAGE)
			f.write(bytes(100 * PAGE))
		self.run_tool("compact", "i1.kvmem", "c")
		self.assertEqual(self.file("c"), clean)
		self.assertLess((self.dir / "c").stat().st_blocks * 512, 20 * PAGE)
		i = self.info("c.kvmem")
		self.assertEqual((i["parent"], i["data"]), (self.info("i0.kvmem")["id"], PAGE))
		self.check("c", self.content(*layers))

	def test_an_image_replaces_itself(self):
		pages = self.pages(1, 2, 500)
		self.chain(pages)
		before = self.info("i0.kvmem")["id"]
		self.run_tool("compact", "--replace", "i0.kvmem", "i0")
		i = self.info("i0.kvmem")
		self.assertNotEqual(i["id"], before)
		self.assertEqual(self.names(), [f"i0.{i['id']}", "i0.kvmem", "raw"])
		self.check("i0", self.content(pages))
		# Somebody uses it: his data stay, as they are.
		data = self.dir / f"i0.{i['id']}"
		with open(data, "rb") as user:
			fcntl.flock(user, fcntl.LOCK_SH)
			self.run_tool("compact", "--replace", "i0.kvmem", "i0")
			self.assertEqual(user.read(), self.content(pages))
		self.assertTrue(data.exists())
		# Nobody uses them any more: they go with the next one.
		(self.dir / "i0.out").unlink()
		self.run_tool("compact", "--replace", "i0.kvmem", "i0")
		self.assertEqual(len(self.names()), 3, self.names())
		self.check("i0", self.content(pages))

	def test_a_parent_is_not_replaced_by_its_child(self):
		layers = [self.pages(1, 2), self.pages(2), self.pages(3)]
		self.chain(*layers)
		before = self.file("i0.kvmem"), self.file("i0"), self.names()
		for args in (["create", "--replace", "--parent", "i0.kvmem", "raw", "i0"],
			     ["compact", "--replace", "i2.kvmem", "i1"],
			     ["compact", "--replace", "i2.kvmem", "i0"],
			     ["rebase", "--replace", "--parent", "i1.kvmem", "i0.kvmem", "i0"]):
			self.assertIn("parent", self.run_tool(*args, status=1))
			self.assertEqual(before, (self.file("i0.kvmem"), self.file("i0"), self.names()))
		self.check("i2", self.content(*layers))

	def open_files(self, tool):
		"""Files in the folder that it has open, the folder itself not."""
		links = []
		for fd in Path(f"/proc/{tool.pid}/fd").iterdir():
			try:
				links.append(os.readlink(fd))
			except FileNotFoundError:
				pass
		return [link for link in links if link.startswith(f"{self.dir}/")]

	def while_it_waits(self, args, act):
		"""The program has read all and waits for the index's lock; act() is what another program does meanwhile."""
		index = os.open(self.dir / "i0.kvmem", os.O_RDONLY)
		try:
			fcntl.flock(index, fcntl.LOCK_EX)
			with subprocess.Popen([TOOL, *args], cwd=self.dir, stderr=subprocess.PIPE, text=True) as tool:
				until = time.monotonic() + 60
				while time.monotonic() < until and tool.poll() is None:
					files = self.open_files(tool)
					if files and not any(re.search(r"/i0(\.kvmem)?$", f) for f in files):
						break
					time.sleep(0.001)
				act()
				fcntl.flock(index, fcntl.LOCK_UN)
				error = tool.communicate(timeout=60)[1]
		finally:
			os.close(index)
		return tool.returncode, error

	def test_what_another_program_committed_stays(self):
		old, new = self.pages(1, 2, 500), self.pages(3, 2)
		commands = [["compact"], ["unpack"], ["flatten"], ["rebase", "--flat"]]
		if "zstd" in os.environ.get("KVMEM_TOOL_HAS", "zstd"):
			commands.append(["pack"])
		for args in commands:
			for name in self.names():
				(self.dir / name).unlink()
			self.chain(old)
			(self.dir / "other").mkdir(exist_ok=True)
			self.write("raw", new)
			self.run_tool("create", "raw", "other/i0")

			def act():
				os.rename(self.dir / "other/i0", self.dir / "i0")
				os.rename(self.dir / "other/i0.kvmem", self.dir / "i0.kvmem")
			code, error = self.while_it_waits([*args, "--replace", "i0.kvmem", "i0"], act)
			self.assertEqual(code, 1, args)
			self.assertRegex(error, "^kvmem-image: .*i0.kvmem.*another image by now")
			self.assertEqual(self.names(), ["i0", "i0.kvmem", "raw"])
			self.check("i0", self.content(new))

	def test_replaced_by_another_name_of_it(self):
		pages = self.pages(1, 2)
		self.chain(pages)
		os.symlink("i0.kvmem", self.dir / "link.kvmem")
		(self.dir / "i0").chmod(0o644)
		(self.dir / "i0.kvmem").chmod(0o640)
		for name in ("./i0.kvmem", "link.kvmem", f"{self.dir}/i0.kvmem"):
			self.run_tool("compact", "--replace", name, "i0")
			self.check("i0", self.content(pages))
			(self.dir / "i0.out").unlink()
			data = [n for n in self.names() if n not in ("i0.kvmem", "link.kvmem", "raw")]
			self.assertEqual(len(data), 1)
			self.assertEqual((self.dir / data[0]).stat().st_mode & 0o7777, 0o644)
			self.assertEqual((self.dir / "i0.kvmem").stat().st_mode & 0o7777, 0o640)

	def test_text_has_no_control_characters(self):
		self.write("raw", self.pages(5))
		odd = os.fsdecode(b"a\x1b]0;title\x07\x9b\xc2\x9bJ\n\xe2\x80\xae\x7f\\\xff\xc3\xa4")
		shown = r"a\x1b]0;title\x07\x9b\xc2\x9bJ\x0a\xe2\x80\xae\x7f\\\xff" + "\u00e4"
		self.run_tool("create", "raw", odd)
		self.assertEqual(self.run_tool("info", f"{odd}.kvmem").split("\n")[0], f"{shown}.kvmem")
		self.assertIn(f"{shown}.kvmem: all", self.run_tool("verify", f"{odd}.kvmem"))
		(self.dir / odd).unlink()
		self.assertIn(f"{shown}'", self.run_tool("info", f"{odd}.kvmem", status=1))

	def test_text_does_not_turn_its_surroundings(self):
		self.write("raw", self.pages(5))
		turns = [0x61c, 0x200e, 0x200f, *range(0x202a, 0x202f), *range(0x2066, 0x206a)]
		name = "".join(f"x{chr(c)}" for c in turns)
		shown = "".join("x" + "".join(f"\\x{b:02x}" for b in chr(c).encode()) for c in turns)
		self.run_tool("create", "raw", name)
		self.assertEqual(self.run_tool("info", f"{name}.kvmem").split("\n")[0], f"{shown}.kvmem")
		told = self.run_tool("info", "--json", f"{name}.kvmem")
		self.assertTrue(told.isascii())
		self.assertEqual(json.loads(told)["path"], f"{name}.kvmem")

	def test_names_in_an_image_are_not_trusted(self):
		name = b"\x1b[2J\"\xff\xc2\x85\n\\"
		lib = ctypes.CDLL(str(Path(TOOL).parent / "libkvmem-image.so.0"))
		region = ctypes.create_string_buffer(struct.pack("<IIQQQQ32s", 72, 0, 0, PAGE, 0, 0, name), 72)
		opts = struct.pack("<IIQIIQQQQ", 56, 0, ctypes.addressof(region), 1, 0, 0, 0, 0, 0)
		writer = ctypes.c_void_p()
		self.assertEqual(lib.kvmem_image_create(os.fsencode(self.dir / "a"), opts, ctypes.byref(writer)), 0)
		self.assertEqual(lib.kvmem_image_write_blob(writer, name, b"content", ctypes.c_uint64(7)), 0)
		self.assertEqual(lib.kvmem_image_commit(writer, None), 0)
		shown = r"""'\x1b[2J"\xff\xc2\x85\x0a\\': """
		told = self.run_tool("info", "a.kvmem")
		self.assertIn(f"  region  0 {shown}4096", told)
		self.assertIn(f"  blob    {shown}7", told)
		told = self.run_tool("info", "--json", "a.kvmem")
		self.assertNotRegex(told, r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
		told = json.loads(told)
		self.assertEqual(told["blobs"], [{"name": "\x1b[2J\"\ufffd\x85\n\\", "bytes": 7}])
		self.assertEqual(told["regions"][0]["name"], told["blobs"][0]["name"])
		with open(self.dir / "a.kvmem", "r+b") as f:
			content = f.read()
			f.seek(content.index(b"content"))
			f.write(b"C")
		self.assertIn(shown[:-2], self.run_tool("verify", "a.kvmem", status=1))

	def test_json(self):
		self.write("raw", self.pages(5, 6))
		odd = os.fsdecode(b'a"\\b\n\xff\xc3\xa4\xed\xa0\x80\xc3(')
		self.run_tool("create", "raw", odd)
		told = json.loads(self.run_tool("verify", "--json", f"{odd}.kvmem"))
		self.assertEqual(told, {"path": 'a"\\b\n\ufffd\u00e4\ufffd\ufffd\ufffd\ufffd(.kvmem', "ok": True, "error": None})
		self.assertEqual(self.info(f"{odd}.kvmem")["path"], told["path"])
		with open(self.dir / odd, "r+b") as f:
			f.seek(6 * PAGE + 77)
			f.write(b"?")
		self.run_tool("create", "raw", "b")
		done = subprocess.run([TOOL, "verify", "--json", f"{odd}.kvmem", "none.kvmem", "b.kvmem"], cwd=self.dir,
				      capture_output=True, check=False)
		self.assertEqual(done.returncode, 1)
		told = [json.loads(line) for line in done.stdout.decode().splitlines()]
		self.assertEqual([t["ok"] for t in told], [False, False, True])
		self.assertIn("0x6000", told[0]["error"])
		self.assertIn("none.kvmem", told[1]["error"])
		self.assertEqual(len(done.stderr.splitlines()), 2)

	def on_a_terminal(self, *args):
		"""What it writes to a standard error that is a terminal."""
		ours, theirs = pty.openpty()
		with subprocess.Popen([TOOL, *args], cwd=self.dir, stdout=subprocess.DEVNULL, stderr=theirs) as tool:
			os.close(theirs)
			told = b""
			try:
				while part := os.read(ours, 1 << 16):
					told += part
			except OSError:	# EIO: nobody has the other end any more
				pass
		os.close(ours)
		self.assertEqual(tool.returncode, 0)
		return told.decode()

	def test_progress_is_for_terminals(self):
		self.write("raw", self.pages(*range(PAGES)))
		bar = r"\r{} \[#+\.+\] +\d+ %"
		for args, what in ((["create", "raw", "a"], "copy"), (["verify", "a.kvmem"], "verify"),
				   (["diff", "a.kvmem", "a.kvmem"], "diff"), (["extract", "a.kvmem", "out"], "extract"),
				   (["rebase", "--flat", "a.kvmem", "b"], "copy"), (["compact", "a.kvmem", "c"], "copy")):
			told = self.on_a_terminal(*args)
			self.assertRegex(told, bar.format(what))
			self.assertTrue(told.endswith(" \r"), repr(told))	# and is gone
		self.assertEqual(self.on_a_terminal("verify", "--quiet", "a.kvmem"), "")
		self.assertEqual(self.run_tool("compact", "a.kvmem", "d"), "")	# no terminal

	def test_damage_is_told(self):
		self.write("raw", self.pages(5, 6))
		self.run_tool("create", "raw", "a")
		with open(self.dir / "a", "r+b") as f:
			f.seek(6 * PAGE + 77)
			f.write(b"?")
		self.assertIn("0x6000", self.run_tool("verify", "a.kvmem", status=1))
		self.run_tool("extract", "a.kvmem", "out", status=1)
		self.assertFalse((self.dir / "out").exists())
		self.run_tool("flatten", "a.kvmem", "b", status=1)
		self.assertEqual(sorted(p.name for p in self.dir.iterdir()), ["a", "a.kvmem", "raw"])
		self.run_tool("verify", "raw", status=1)
		self.run_tool("info", "none", status=1)

	def test_extract_that_is_killed_leaves_nothing(self):
		self.write("raw", self.pages(*range(PAGES)))
		self.run_tool("create", "--no-sync", "raw", "a")
		before, killed = self.names(), 0
		for _ in range(300):
			with subprocess.Popen([TOOL, "extract", "a.kvmem", "out"], cwd=self.dir) as tool:
				while tool.poll() is None and not any("out" in f or "#" in f for f in self.open_files(tool)):
					pass
				tool.kill()
			if self.names() != [*before, "out"]:
				killed += 1
				self.assertEqual(self.names(), before)
			(self.dir / "out").unlink(missing_ok=True)
			if killed == 3:
				break
		self.assertGreater(killed, 0)

	def test_wrong_arguments(self):
		for args in ([], ["nothing"], ["info"], ["diff", "a"], ["create", "--diff", "a", "b"],
			     ["info", "--replace", "a"], ["rebase", "a", "b"], ["pack", "a"],
			     ["rebase", "--flat", "--parent", "a", "b", "c"], ["pack", "--json", "a", "b"], ["flatten", "--flat", "a", "b"], ["verify", "--nonsense", "a"]):
			self.assertIn("usage:", self.run_tool(*args, status=2), args)

	def test_manual_and_help_agree(self):
		page = (TOP / "docs/man/kvmem-image.1.rst").read_text(encoding="utf-8")
		told = set(re.findall(r"^``(--[\w-]+)``", page, re.M)) | {"--version"}
		text = self.run_tool("--help")
		self.assertEqual(told - {"--help", "--version"}, set(re.findall(r"(?<!\[)(--[\w-]+)  ", text)))
		for command in ("info", "verify", "diff", "create", "flatten", "rebase", "compact", "pack", "unpack", "extract"):
			self.assertIn(f"kvmem-image {command} ", text)
			self.assertIn(f"\n``{command}``\n", page)
		self.assertRegex(self.run_tool("--version"), r"^kvmem-image \d+\.\d+\.\d+\n$")


if __name__ == "__main__":
	main()
