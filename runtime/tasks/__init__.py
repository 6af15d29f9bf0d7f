"""Texts and images in, answers out: what surrounds the graphs of a compiled encoder or vision model.

`inputs` and `images` make what graphs take, `answers` reads what they give, `runner` joins them.
"""
