"""int8 with the teacher's help: quantisation-aware distillation."""
