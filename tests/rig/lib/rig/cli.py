# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""The command line."""

import argparse
import fnmatch
import json
import os
import shlex
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import kernels, machine
from .boot import Session
from .expect import Tables, parse
from .packages import Archive
from .tap import Program, Report
from .util import PACKAGES, RigError, install, need, output_of, say

TOP = Path(__file__).resolve().parents[4]
OWN = ("selftest", "hazards", "patches")
# The main job, on a guest small enough for an emulated machine.
MAIN_JOB = {
	"lifecycle": ["--size", "64M"],
	"lifecycle-direct": ["--size", "64M", "--slot", "direct"],
}

# Emulated processors that run at the same time trip over each other: kernel code being patched is executed half
# patched, and guests under emulated SVM end in triple faults or never. In turn on one thread they do not, and a
# whole run is faster; the other CPUs have other kernels to run.
ONE_THREAD = "tcg,thread=single"

USAGE = """%(prog)s [options] KERNEL... [-- NAME...]

Boots each KERNEL in QEMU and runs the programs inside; prints TAP. KERNEL is

  stock:6.1 stock:6.12 …  Debian's newest kernel of that series, else of the next one up
  stock:newest            Debian's newest kernel
  patched, patched:MODE   the newest packaged source with tests/rig/patches, in every mode or one
  PATH[,DIR]              a bzImage, with the modules found under DIR

NAME is a program, with arguments if need be ('lifecycle --vcpus 1'), or PROGRAM/TEST; both may hold
wildcards. Without one, all of tests/kernel, the rig's own programs and the main job run."""


def _arguments(argv):
	own, names = argv, []
	if "--" in argv:
		at = argv.index("--")
		own, names = argv[:at], argv[at + 1:]
	p = argparse.ArgumentParser(prog="tests/rig/run", usage=USAGE, add_help=True)
	p.add_argument("kernel", nargs="+", metavar="KERNEL", help=argparse.SUPPRESS)
	p.add_argument("--build", type=Path, default=os.environ.get("MESON_BUILD_ROOT"),
		       help="build directory (default: build)")
	p.add_argument("--cache", type=Path, default=os.environ.get("KVMEM_RIG_CACHE"),
		       help="where kernels are kept (default: BUILD/rig, or $KVMEM_RIG_CACHE)")
	p.add_argument("--nodes", type=int, default=2, help="NUMA nodes (2)")
	p.add_argument("--memory", type=int, default=1024, help="MiB of each node (1024)")
	p.add_argument("--smp", type=int, default=2, help="processors (2)")
	p.add_argument("--accel", default=ONE_THREAD, help=f"QEMU's accelerator ({ONE_THREAD})")
	p.add_argument("--icount", action="store_true",
		       help="let a nanosecond inside be one instruction, on whichever processor")
	p.add_argument("--parallel", type=int, default=os.cpu_count() or 1, metavar="N",
		       help="kernels that run at the same time (one for each CPU here)")
	p.add_argument("--hugepages", type=int, default=64, help="2 MiB pages reserved (64)")
	p.add_argument("--append", default="", help="more words for the kernel command line")
	p.add_argument("--timeout", type=int, default=600, help="seconds for one program (600)")
	p.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 2),
		       help="compiler jobs for a patched kernel")
	p.add_argument("--mirror", help="Debian mirror, instead of the one that apt uses here")
	p.add_argument("--require", help="KVMEM_TEST_REQUIRE instead of the kernel's own")
	p.add_argument("--program", type=Path, action="append", default=[],
		       help="run this executable instead of the built ones")
	p.add_argument("--file", action="append", default=[], metavar="GUEST=HOST",
		       help="one more file inside")
	p.add_argument("--report", type=Path, help="write all results to this file, as JSON")
	p.add_argument("--show", action="store_true",
		       help="print what the programs say, as TAP comments")
	p.add_argument("--prepare", action="store_true",
		       help="fetch and build the kernels, and run nothing")
	p.add_argument("--no-expect", action="store_true",
		       help="do not compare with tests/rig/expect")
	opts = p.parse_args(own)
	opts.names = [shlex.split(n) for n in names]
	opts.build = Path(opts.build or TOP / "build").resolve()
	opts.cache = Path(opts.cache or opts.build / "rig").resolve()
	opts.agent = opts.build / "tests/rig/agent"
	return opts


def _need_agent(opts):
	"""A build without tests has none: it is one file."""
	if opts.agent.exists():
		return
	opts.agent = opts.build / "rig-agent"
	opts.build.mkdir(parents=True, exist_ok=True)
	output_of(["cc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-o", str(opts.agent),
		   str(TOP / "tests/rig/agent.c")])


OF_IMAGES = "image_capture", "image_precopy", "image_save", "image_workset"


def _suite_programs(build, timeout):
	"""What meson knows as tests of the suite kernel, and those of images that ask the kernel for much."""
	info = build / "meson-info/intro-tests.json"
	if not info.exists():
		raise RigError(f"{build} is no build directory: meson setup it and ninja -C it first")
	found = []
	for t in json.loads(info.read_text(encoding="utf-8")):
		if any(s.split(":")[-1] == "kernel" for s in t["suite"]) or t["name"] in OF_IMAGES:
			found.append(Program(t["name"], Path(t["cmd"][0]), t["cmd"][1:], timeout))
	return found


def _built(build, timeout):
	programs = [Program(n, build / "tests/rig" / n, (), timeout) for n in OWN]
	programs += _suite_programs(build, timeout)
	programs += [Program(name, build / "examples/lifecycle", args, timeout)
		     for name, args in MAIN_JOB.items()]
	# On emulated processors everything takes longer, what hangs as well.
	programs.append(Program("torture", build / "tests/torture/torture",
				["--seconds", "30", "--hang", "240"], timeout))
	return [p for p in programs if p.path.exists()]


def _selected(programs, names):
	"""The programs that the names ask for, and the tests of them that are reported."""
	if not names:
		return programs, ["*"]
	chosen = []
	for name, *args in names:
		wanted = name.split("/")[0]
		found = [p for p in programs if fnmatch.fnmatch(p.name, wanted)]
		if not found:
			raise RigError(f"no program {wanted}; there are " +
				       " ".join(p.name for p in programs))
		for p in found:
			more = Program(p.name, p.path, p.args + args, p.timeout)
			if not any((c.name, c.args) == (more.name, more.args) for c in chosen):
				chosen.append(more)
	return chosen, [n[0] if "/" in n[0] else n[0] + "*" for n in names]


def _others(build, timeout, taken):
	"""Programs that run only when they are named; one called like a test gets a longer name."""
	found = []
	for p in sorted((build / "examples").glob("*")):
		if p.is_file() and os.access(p, os.X_OK) and p.name not in MAIN_JOB:
			name = f"example-{p.name}" if p.name in taken else p.name
			found.append(Program(name, p, (), timeout))
	return found


def _programs(opts):
	if opts.program:
		return _selected([Program(p.name, p.resolve(), (), opts.timeout) for p in opts.program],
				 opts.names)
	built = _built(opts.build, opts.timeout)
	if opts.names:
		built += _others(opts.build, opts.timeout, {p.name for p in built})
	return _selected(built, opts.names)


def _files(opts):
	pairs = [f.partition("=") for f in opts.file]
	return [(guest, host) for guest, _, host in pairs]


def _environment(opts, kernel):
	env = {"KVMEM_TEST_RIG": kernel.name}
	require = opts.require
	if require is None and kernel.table:
		require = kernel.table.require
	if require:
		env["KVMEM_TEST_REQUIRE"] = require
	return env


def _run_kernel(opts, report, name, tables, archive, programs):
	kernel = kernels.get(name, opts.cache, archive, tables, opts.jobs)
	directory = opts.build / "rig-run" / kernel.name.replace(":", "-")
	shutil.rmtree(directory, ignore_errors=True)
	if kernel.table and kernel.table.must_fail:
		return _run_broken(opts, report, kernel, directory, programs)
	session = Session(opts, report, kernel, directory)
	todo = [p for p in programs if opts.names or kernel.suits(p.name)]
	probe = opts.build / "examples/probe"
	ask = probe.exists() and not (opts.names or opts.program)
	if ask:
		todo.insert(0, Program("probe", probe, ["--json"], opts.timeout))
	session.run(todo, _environment(opts, kernel), _files(opts))
	if not ask:
		return
	caps = parse(session.stdout.get("probe", []))
	report.kernels[kernel.name] = {"version": kernel.version, "cmdline": kernel.cmdline,
				       "caps": caps}
	if kernel.table and not opts.no_expect:
		kernel.table.compare(report, kernel.name, caps)


def _run_broken(opts, report, kernel, directory, programs):
	"""The kernel lies: the tests named in its table must notice."""
	wanted = kernel.table.must_fail
	own = Report(lambda line: None)
	todo = [p for p in programs if any(w.split("/")[0] == p.name for w in wanted)]
	Session(opts, own, kernel, directory).run(todo, _environment(opts, kernel))
	found = {test: verdict for _, test, verdict, _ in own.results}
	for test in wanted:
		if (opts.names or opts.program) and not any(test.split("/")[0] == p.name for p in todo):
			continue	# not asked for
		good = found.get(test) == "fail"
		report.add(kernel.name, f"{test} must fail", "pass" if good else "fail",
			   "" if good else f"it is {found.get(test, 'not run')}")


def _summary(report):
	for kernel in dict.fromkeys(k for k, _, _ in report.seconds):
		spent = sorted(((s, p) for k, p, s in report.seconds if k == kernel), reverse=True)
		report.note(f"{kernel}: {sum(s for s, _ in spent):.0f} s, most of them in " +
			    ", ".join(f"{p} {s:.0f}" for s, p in spent[:3]))
	for kernel, test, verdict, text in report.results:
		if verdict == "skip":
			report.note(f"skipped: {kernel}/{test}: {text}")
	for kernel, test, verdict, text in report.results:
		if verdict == "fail":
			report.note(f"FAILED: {kernel}/{test}: {text}")
	report.note(f"{report.count('pass')} passed, {report.count('fail')} failed, "
		    f"{report.count('skip')} skipped")


def _prepare(opts):
	"""A kernel that cannot be had now is complained of when it is to run."""
	install(PACKAGES)
	tables, archive = Tables(), Archive(opts.cache, opts.mirror)
	for name in kernels.expand(opts.kernel, tables):
		try:
			kernels.get(name, opts.cache, archive, tables, opts.jobs)
		except (RigError, OSError) as e:
			say(f"{name}: {e}")
	return 0


def main(argv):
	opts = _arguments(argv)
	if opts.prepare:
		return _prepare(opts)
	report = Report(lambda line: print(line, flush=True))
	try:
		install(PACKAGES)
		need(PACKAGES)
		_need_agent(opts)
		programs, report.shown = _programs(opts)
		report.verbose = opts.show
	except RigError as e:
		print(f"Bail out! {e}", flush=True)
		return 2
	tables, archive = Tables(), Archive(opts.cache, opts.mirror)
	names = list(dict.fromkeys(kernels.expand(opts.kernel, tables)))

	def one(name):
		try:
			_run_kernel(opts, report, name, tables, archive, programs)
		except (RigError, OSError) as e:
			report.add(name, "kernel", "fail", str(e).splitlines()[0],
				   str(e).splitlines()[1:])

	with ThreadPoolExecutor(max(opts.parallel, 1)) as pool:
		list(pool.map(one, names))	# raises here what a thread has raised
	report.sort(names)
	_summary(report)
	report.plan()
	if opts.report:
		opts.report.write_text(report.as_json(), encoding="utf-8")
	return 1 if report.count("fail") else 0


def run():
	try:
		return main(sys.argv[1:])
	except KeyboardInterrupt:
		say("interrupted")
		machine.stop_all()
		os._exit(130)	# the threads would boot the next ones
