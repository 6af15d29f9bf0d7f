"""Execution plans: kernel calls over buffers of one arena, and the rules that every plan satisfies."""
