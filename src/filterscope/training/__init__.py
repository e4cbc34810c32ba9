"""Finetuning with Lightning: module, policies, callbacks, loggers, checkpoints."""
