#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""What comes out of a booted kernel is neither lost nor prettied: the rig's reader of it, without a kernel."""

import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))

from rig.expect import Table	# noqa: E402
from rig.modules import _depends	# noqa: E402
from rig.packages import _uris_of_deb822, _uris_of_list, choose	# noqa: E402
from rig.tap import Report, Run	# noqa: E402


def results(events, lost=None, shown=("*",)):
	"""[(test, verdict)] of the program p after these (tag, text)."""
	report = Report(lambda line: None)
	report.shown = list(shown)
	run = Run(report, "k", "p")
	sent = 0
	for tag, text in [("B", "p"), *events]:
		if tag == "X" and " " not in text:
			text = f"{text} {sent}"
		sent += tag != "X"
		run.take(tag, text)
	if lost:
		run.lost(lost, [])
	return [(r[1], r[2]) for r in report.results]


def test_pass_skip_fail():
	assert results([("O", "1..3"), ("O", "ok 1 - a"), ("O", "ok 2 b # SKIP numa2: one node"),
			("O", "not ok 3 - c"), ("X", "1")]) == [
		("p/a", "pass"), ("p/b", "skip"), ("p/c", "fail")]


def test_plan_not_kept():
	assert results([("O", "1..2"), ("O", "ok 1 - a"), ("X", "0")])[-1] == ("p/exit", "fail")


def test_status_after_passes():
	assert results([("O", "1..1"), ("O", "ok 1 - a"), ("X", "139")])[-1] == ("p/exit", "fail")


def test_bail_out():
	assert results([("O", "ok 1 - a"), ("O", "Bail out! no"), ("X", "1")])[-1] == ("p/exit", "fail")


def test_lost_line():
	assert results([("O", "1..1"), ("O", "ok 1 - a"), ("X", "0 9")])[-1] == ("p/exit", "fail")


def test_kernels_side_by_side_are_reported_in_order():
	said = []
	report = Report(said.append)
	report.add("b", "t", "fail", "why", ["line"])
	report.add("a", "t", "pass")
	report.kernels = {"b": 1, "a": 2}
	report.sort(["a", "b"])
	assert said[1:] == ["not ok 1 - b/t\n# why\n# line", "ok 2 - a/t"]
	assert [r[0] for r in report.results] == ["a", "b"] and list(report.kernels) == ["a", "b"]


def test_plain_program():
	assert results([("O", "hello"), ("X", "0")]) == [("p", "pass")]
	assert results([("E", "no /dev/kvm"), ("X", "77")]) == [("p", "skip")]
	assert results([("X", "2")]) == [("p", "fail")]


def test_killed_program():
	assert results([("T", "5"), ("X", "0")]) == [("p", "fail")]
	assert results([("O", "ok 1 - a"), ("T", "5"), ("X", "137")])[-1] == ("p/exit", "fail")


def test_machine_lost():
	assert results([("O", "ok 1 - a")], lost="the machine hangs")[-1] == ("p/exit", "fail")


def test_kernel_warning():
	assert results([("K", "4 WARNING: CPU: 0 at mm/x.c"), ("O", "ok 1 - a"), ("X", "0")]) == [
		("p/a", "fail")]
	assert results([("K", "6 systemd says WARNING nothing"), ("O", "ok 1 - a"), ("X", "0")]) == [
		("p/a", "pass")]


def test_kernel_warning_announced():
	assert results([("K", "4 WARNING: foo"), ("O", "# expect-kernel-log: foo"),
			("O", "ok 1 - a"), ("O", "ok 2 - b"), ("X", "0")]) == [
		("p/a", "pass"), ("p/b", "pass")]
	assert results([("O", "# expect-kernel-log: bar"), ("K", "4 WARNING: foo"),
			("O", "ok 1 - a"), ("X", "0")]) == [("p/a", "fail")]


def test_kernel_warning_of_the_next_test():
	log = [("K", "4 kvmem-test: end of a"), ("K", "0 BUG: bad"), ("O", "ok 1 - a"),
	       ("K", "4 kvmem-test: end of b"), ("O", "ok 2 - b"), ("X", "0")]
	assert results(log) == [("p/a", "pass"), ("p/b", "fail")]


def test_kernel_warning_after_the_last_test():
	assert results([("K", "4 kvmem-test: end of a"), ("O", "ok 1 - a"), ("K", "0 BUG: late"),
			("X", "0")])[-1] == ("p/exit", "fail")


def test_failures_are_always_shown():
	assert results([("O", "ok 1 - a"), ("O", "not ok 2 - b"), ("X", "1")], shown=["p/x"]) == [
		("p/b", "fail")]


def test_package_sources():
	assert list(_uris_of_list("deb [signed-by=/k] http://m/debian trixie main\n# deb x y\n")) == [
		("http://m/debian", "trixie")]
	assert list(_uris_of_deb822("Types: deb\nURIs: http://m/debian\nSuites: a b\n")) == [
		("http://m/debian", "a"), ("http://m/debian", "b")]


class FakeArchive:
	def __init__(self, *entries):
		self._entries = [dict(zip(("Package", "Version", "Size"), e)) for e in entries]

	def packages(self):
		return self._entries


def test_choice_of_kernel():
	archive = FakeArchive(
		("linux-image-6.12.9-amd64", "6.12.9-1", "90000000"),
		("linux-image-6.12.10-amd64", "6.12.10-1", "90000000"),
		("linux-image-6.12.11-rt-amd64", "6.12.11-1", "90000000"),
		("linux-image-7.3-amd64", "7.3~rc7-1", "1900"),
		("linux-binary-7.3.4-amd64", "7.3.4-1", "14000000"),
		("linux-modules-7.3.4-amd64", "7.3.4-1", "100000000"),
		("linux-binary-7.4.1-amd64", "7.4.1-1", "14000000"))
	assert choose(archive, "6.12")[0] == "6.12.10-1"
	assert choose(archive, "newest")[0] == "7.3.4-1"
	version, parts, remark = choose(archive, "6.18")
	assert (version, len(parts)) == ("7.3.4-1", 2) and "no longer has 6.18" in remark


def test_module_dependencies():
	assert _depends(b"x\0depends=irqbypass,kvm-amd\0y") == ["irqbypass", "kvm_amd"]
	assert _depends(b"x\0depends=\0y") == []


def test_expectations(tmp=Path(__file__).resolve().parent / "expect"):
	for path in tmp.glob("*"):
		table = Table(path)
		assert table.require or table.cmdline or table.capabilities, path


def main():
	tests = [(n[5:], f) for n, f in sorted(globals().items()) if n.startswith("test_")]
	print(f"1..{len(tests)}")
	failed = 0
	for number, (name, test) in enumerate(tests, 1):
		try:
			test()
			print(f"ok {number} - {name}")
		except AssertionError as e:
			failed += 1
			print(f"not ok {number} - {name}\n# line {e.__traceback__.tb_next.tb_lineno}: {e}")
	return 1 if failed else 0


sys.exit(main())
