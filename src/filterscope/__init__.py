"""filterscope: finetune a CNN and see, epoch by epoch, what its filters learn."""
