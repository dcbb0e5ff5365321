"""What other trainers call the settings, for those who come from one."""

from __future__ import annotations

_EPOCHS = 'length = "3 epochs"'
_STEPS = 'length = "1000 steps"'
_RATE = "optimizer.learning_rate = 1e-3"
_CLIP = "optimizer.max_grad_norm = 1.0"
_ACCUMULATE = "accumulate = 4"
_PATIENCE = 'callbacks = ["early_stopping"] and callback_settings.early_stopping.patience = 3'
_PROCESSES = "ptrain run --processes 2, or torchrun"

_DATA = "fit(model, train, validation, test=...)"

WRITE = {
    **dict.fromkeys(("train_loader", "train_dataloader", "train_dataset"), _DATA),
    **dict.fromkeys(("val_loader", "valid_loader", "val_dataloader", "val_dataset"), _DATA),
    **dict.fromkeys(("eval_dataset", "eval_dataloader", "test_loader", "test_dataset"), _DATA),
    "epochs": _EPOCHS,
    "max_epochs": _EPOCHS,
    "num_epochs": _EPOCHS,
    "num_train_epochs": _EPOCHS,
    "max_duration": _EPOCHS,
    "steps": _STEPS,
    "max_steps": _STEPS,
    "num_steps": _STEPS,
    "max_iters": _STEPS,
    "lr": _RATE,
    "learning_rate": _RATE,
    "weight_decay": "optimizer.weight_decay = 0.01",
    "betas": "optimizer.settings.betas = [0.9, 0.999]",
    "momentum": "optimizer.settings.momentum = 0.9",
    "max_grad_norm": _CLIP,
    "grad_clip": _CLIP,
    "gradient_clip_val": _CLIP,
    "clip_grad_norm": _CLIP,
    "gradient_accumulation_steps": _ACCUMULATE,
    "accumulate_grad_batches": _ACCUMULATE,
    "accumulation_steps": _ACCUMULATE,
    "warmup_steps": 'schedule.warmup = "100 steps"',
    "warmup_ratio": 'schedule.warmup = "10 %"',
    "scheduler": 'schedule.name = "cosine"',
    "lr_scheduler": 'schedule.name = "cosine"',
    "lr_scheduler_type": 'schedule.name = "cosine"',
    "per_device_train_batch_size": "batch_size = 32",
    "train_batch_size": "batch_size = 32",
    "eval_steps": 'evaluate = "500 steps"',
    "val_check_interval": 'evaluate = "0.5 epoch"',
    "save_steps": 'save = "500 steps"',
    "save_total_limit": "keep = 3",
    "logging_steps": 'log = "50 steps"',
    "log_every_n_steps": 'log = "50 steps"',
    "output_dir": "ptrain run --out DIR, or fit(out=...)",
    "patience": _PATIENCE,
    "early_stopping_patience": _PATIENCE,
    "early_stopping": _PATIENCE,
    "amp": 'precision = "bf16"',
    "bf16": 'precision = "bf16"',
    "fp16": 'precision = "fp16"',
    "devices": _PROCESSES,
    "gpus": _PROCESSES,
    "num_gpus": _PROCESSES,
    "strategy": 'parallel.strategy = "fsdp2"',
    "monitor": 'best.watch = "val/loss"',
    "metric_for_best_model": 'best.watch = "val/loss"',
    "resume_from_checkpoint": "ptrain run --resume RUN, or fit(resume='auto')",
    "torch_compile": "compile = true",
}
"""What to write for a key of another trainer at the top of a run file."""
