"""Makes the zoo: texts, training, distillation, evaluation, and the model card."""
