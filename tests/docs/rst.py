# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""The manual's pages, cut into sections."""

import re
import textwrap
from pathlib import Path

MANUAL = Path(__file__).resolve().parents[2] / "docs/man"


class Page:
	def __init__(self, path):
		self.name, self.section = path.name.split(".")[:2]
		self.text = path.read_text(encoding="utf-8")
		self.sections = {}
		parts = re.split(r"^([A-Z][A-Z ]+)\n=+$", self.text, flags=re.M)
		for title, body in zip(parts[1::2], parts[2::2]):
			self.sections[title] = body

	def blocks(self, section):
		"""The literal blocks of a section."""
		found = []
		for m in re.finditer(r"::\n\n((?:[ ]{4}.*\n|\n)+)", self.sections.get(section, "")):
			found.append(textwrap.dedent(m.group(1)).strip() + "\n")
		return found

	def names(self, section=None):
		"""Words set as literals."""
		text = self.text if section is None else self.sections.get(section, "")
		found = set()
		for literal in re.findall(r"``([^`]+)``", text):
			found.update(re.findall(r"-?\w+", literal))
		return found


def pages():
	return [Page(p) for p in sorted(MANUAL.glob("*.rst"))]
