"""The provenance of a disk: its inputs, and the documents that describe them: CycloneDX, SPDX, in-toto."""
