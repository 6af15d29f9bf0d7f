"""Text of the three forms: printers and parsers, inverses of each other."""
