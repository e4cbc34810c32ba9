"""Finetuning with Lightning."""
