"""Layers of drafts that are not Qwen3's: Gemma 4's, and DeepSeek's with latents and with streams."""
