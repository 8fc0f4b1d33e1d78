"""Prompts made in processes of their own, ahead of need: the driver decides which, and sees no pixels.

Runs in: the encoder actors; `handle.py` in the driver.

Doors: handle (`EncoderActors`, and `RemoteEncoder`, which stands for a `data.encoding.PromptEncoder`).

To add what prompts depend on: a field of `data.encoding.EncoderSettings`, which every batch brings.
"""
