#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""Counts what ran.

    results.py meson NAME TESTLOG STATUS    one line per test of a `meson test` run
    results.py tap NAME FILE STATUS         one line per test of a TAP stream
    results.py sum FILE                     the list of skips, the failures, and the last line

Lines are "verdict<TAB>name<TAB>text"; a program that ends badly, or runs fewer tests than it planned,
is one failure more than the tests it reported."""

import json
import re
import sys
from pathlib import Path

RESULT = re.compile(r"(not )?ok\b(?:\s+\d+)?(?:\s*-)?\s*(.*)$")
PLAN = re.compile(r"1\.\.(\d+)(?:\s*#\s*skip\S*\s*(.*))?$", re.I)
SKIP = re.compile(r"(.*?)\s*#\s*skip\S*\s*(.*)$", re.I)
SKIP_STATUS = 77
LONGEST = 4	# tests named with their time
WHY_LINES = 4	# of what is said after a failure


def tap(name, text, status):
	"""The results of one TAP stream, its program's exit status judged with it."""
	results, planned, bail, why = [], None, None, 0
	for line in text.splitlines():
		plan, result = PLAN.match(line), RESULT.match(line)
		if plan:
			planned = int(plan.group(1))
			if not planned:
				results.append(("skip", name, plan.group(2) or "no reason given"))
		elif result:
			skip = SKIP.match(result.group(2))
			test = f"{name}/{(skip.group(1) if skip else result.group(2)).strip()}"
			if result.group(1):
				results.append(("fail", test, ""))
				why = WHY_LINES
				continue
			else:
				results.append(("skip" if skip else "pass", test,
						skip.group(2) if skip else ""))
		elif line.startswith("Bail out!"):
			bail = line
		elif why and line.startswith("# "):
			verdict, test, said = results[-1]
			results[-1] = (verdict, test, f"{said} {line[2:]}".strip())
			why -= 1
			continue
		why = 0
	return results + ended_badly(name, results, planned, bail, status)


def ended_badly(name, results, planned, bail, status):
	ran = len(results)
	if bail:
		return [("fail", name, bail)]
	if status < 0 or status >= 128:
		return [("fail", name, f"ended by signal {-status if status < 0 else status - 128}")]
	if planned is None:
		return [("fail", name, f"no plan of tests, exit status {status}")]
	if planned and planned != ran:
		return [("fail", name, f"{planned} tests planned, {ran} ran")]
	if status and not any(r[0] == "fail" for r in results):
		return [("fail", name, f"exit status {status}, though no test failed")]
	return []


def last_line(*texts):
	for text in texts:
		lines = [l.strip() for l in (text or "").splitlines() if l.strip()]
		if lines:
			return lines[-1]
	return "no reason given"


def meson_test(name, entry):
	out, err = entry.get("stdout") or "", entry.get("stderr") or ""
	verdict, status = entry["result"], entry["returncode"]
	if verdict in ("TIMEOUT", "INTERRUPT"):
		done = [r for r in tap(name, out, 0) if r[1] != name]
		return done + [("fail", name, f"{verdict.lower()} after {entry['duration']:.0f} s")]
	if any(PLAN.match(l) or RESULT.match(l) for l in out.splitlines()):
		return tap(name, out, status)
	if verdict == "OK":
		return [("pass", name, "")]
	if verdict == "SKIP" or status == SKIP_STATUS:
		return [("skip", name, last_line(err, out))]
	return [("fail", name, f"{verdict}, exit status {status}: {last_line(err, out)}")]


def meson(name, log, status):
	results, spent = [], []
	try:
		lines = Path(log).read_text(encoding="utf-8").splitlines()
	except OSError:
		lines = []
	for line in lines:
		entry = json.loads(line)
		test = entry["name"].split(" / ")[-1].split(":")[-1]
		results += meson_test(f"{name}/{test}", entry)
		spent.append((entry["duration"], test))
	longest = sorted(spent, reverse=True)[:LONGEST]
	print("longest:", ", ".join(f"{test} {s:.0f} s" for s, test in longest), file=sys.stderr)
	if not results:
		results.append(("fail", name, f"no test ran, exit status {status}"))
	elif status and not any(r[0] == "fail" for r in results):
		results.append(("fail", name, f"meson test ended with {status}"))
	return results


def total(path):
	results = [l.split("\t", 2) for l in Path(path).read_text(encoding="utf-8").splitlines()]
	reasons = {}
	for verdict, name, text in results:
		if verdict == "skip":
			reasons.setdefault(text, []).append(name)
	if reasons:
		print("\nSkipped, and why:")
	for text in sorted(reasons):
		print(f"  {text}")
		for name in reasons[text]:
			print(f"    {name}")
	failed = [r for r in results if r[0] == "fail"]
	if failed:
		print("\nFailed:")
	for _, name, text in failed:
		print(f"  {name}" + (f": {text}" if text else ""))
	count = {v: sum(r[0] == v for r in results) for v in ("pass", "fail", "skip")}
	print(f"\n{count['pass']} passed, {count['fail']} failed, {count['skip']} skipped", flush=True)
	return 1 if failed or not count["pass"] else 0


def main(argv):
	if argv[0] == "sum":
		return total(argv[1])
	kind, name, path, status = argv[0], argv[1], argv[2], int(argv[3])
	if kind == "tap":
		text = Path(path).read_text(encoding="utf-8", errors="replace")
		results = tap(name, text, status)
	else:
		results = meson(name, path, status)
	for verdict, test, text in results:
		print(verdict, test, " ".join(text.split()), sep="\t")
	return 1 if any(r[0] == "fail" for r in results) else 0


if __name__ == "__main__":
	sys.exit(main(sys.argv[1:]))
